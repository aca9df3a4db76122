"""The augmentation: a pair (sample, apply) that is also a value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.augment import targets as forms
from gradxform.augment.batching import BATCHINGS, apply_batch
from gradxform.augment.drawn import Drawn, fitting
from gradxform.augment.sequence import Built, Mixed, Sequence
from gradxform.augment.stage import Mix, Sampled, Shape, Stage, closed
from gradxform.core import checks
from gradxform.core.arrays import one_key
from gradxform.core.divide import spread_like
from gradxform.core.pytree import register
from gradxform.core.types import PyTree, Treedef
from gradxform.core.value import Value, factory

P = ParamSpec("P")


@register
class Augmentation(Value):
    """A random change of images, and of what is known of them, that prints, compares, pickles and chains.

    It is made by a factory in ``gradxform.augment``. ``aug(key, images)`` draws parameters and applies them;
    ``aug.sample`` and ``aug.apply`` do one of the two, so that parameters can be kept and used again. Images are
    (H, W, C) or (B, H, W, C), of uint8, of uint16 or of floats in [0, 1]; in a batch each has parameters of its own,
    which do not depend on the others. Where pixels only move, floats may have any range. Images of uint16 are worked
    on as floats, 65535 for 1, and rounded once in the end.

    A dict may hold, besides ``image``, each with the batch in front: ``mask`` (H, W) or (H, W, K); ``boxes`` (N, 4) as
    x1, y1, x2, y2, of which those out of sight become zeros; ``visibility`` (N,), the share of each box that is in
    sight, ones to begin with; ``keypoints`` (..., N, 2) as x, y, or with more columns, which stay; ``label``. Positions
    are in pixels from the top-left corner of the image. Any other field passes untouched.

    With ``size`` (2,), height and width of the true image in the top-left corner of a padded array, images of several
    sizes go through one program: each as it would by itself, with zeros beyond its true size. The result's ``size`` is
    the whole array's once a crop or ``resize`` has given it one.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> aug = gx.augment.chain(gx.augment.random_crop((24, 24)), gx.augment.random_flip_left_right())
      >>> aug(jax.random.key(0), jnp.zeros((8, 32, 32, 3), jnp.uint8)).shape
      (8, 24, 24, 3)
    """

    @property
    def stage(self) -> Built:
        """What it does to one image, or to a batch where images mix."""
        stage = self.built
        if not isinstance(stage, (Stage, Mix, Mixed)):
            raise TypeError(f"{self.name}: expected a factory of augmentations to return a Stage, got {stage!r}")
        return stage

    def __call__(self, key: jax.Array, inputs: PyTree, *, batching: str = "auto", boxes: str = "xyxy") -> PyTree:
        """The augmented inputs.

        Args:
          key: a key from ``jax.random.key`` or ``jax.random.PRNGKey``, or (B,) of them, one for each image.
          inputs: an image, a batch of images, or a dict of them and of what is known of them.
          batching: how to go through a batch: ``"map"``, a few images at a time, each with its own branches,
            ``"vmap"``, all at once with every branch for each; ``"auto"`` is what suits the platform. All give the
            same. On a mesh of devices each goes through its own images: over the axes that an Explicit mesh divides
            them by; over all axes of an Auto mesh that their number is a multiple of.
          boxes: the format of boxes, before and after: two corners, ``"xyxy"`` or ``"yxyx"``, the first corner and the
            size, ``"xywh"``, or the middle and the size, ``"cxcywh"``, in pixels; with ``"rel_"`` ahead, as in YOLO's
            ``"rel_cxcywh"``, in shares of width and height.

        Returns:
          The same form as ``inputs``, in the same dtypes; boxes and keypoints in float32.

        Raises:
          TypeError: the key, the images or a target are of the wrong type, or cannot be moved.
          ValueError: a shape or a number is out of range.
        """
        checks.choice("batching", batching, BATCHINGS)
        given = forms.Given.of(inputs, boxes, self.stage)
        return given.back(self._call(_augment, _keys(key), given.arrays, batching))

    def sample(self, key: jax.Array, shape: tuple[int, ...], *, size: Any = None) -> Sampled:
        """The parameters of an image, or of each image of a batch.

        Args:
          key: a key from ``jax.random.key`` or ``jax.random.PRNGKey``, or (B,) of them, one for each image.
          shape: (H, W, C) or (B, H, W, C).
          size: true heights and widths, (2,) or (B, 2), where images are padded to the shape.

        Returns:
          A tree of small arrays, with the batch in front, that knows the height and the width of the shape.

        Raises:
          TypeError: the key is no key.
          ValueError: images of this shape cannot be augmented so.
        """
        shape = forms.shape_of(shape)
        size = None if size is None else forms.sizes_of(size, shape)
        return Drawn(self._call(_sample, _keys(key), size, shape), (shape[-3], shape[-2], shape[-1]))

    def apply(self, params: Sampled, inputs: PyTree, *, batching: str = "auto", boxes: str = "xyxy") -> PyTree:
        """The inputs as given parameters make them.

        Args:
          params: what ``sample`` gave for the shape of the images; or for that of one image, and then they are used
            for each image of a batch, as for the frames of a video. Those that do not depend on the size are for
            images of any.
          inputs: as for a call.
          batching: as for a call.
          boxes: as for a call.

        Returns:
          The same form as ``inputs``, in the same dtypes.

        Raises:
          TypeError: the images or a target are of the wrong type, or cannot be moved.
          ValueError: a shape or a number is out of range.
        """
        checks.choice("batching", batching, BATCHINGS)
        given = forms.Given.of(inputs, boxes, self.stage)
        params = fitting(params, self.stage, given.arrays["image"].shape)
        return given.back(self._call(_apply, params, given.arrays, batching))

    def _call(self, function: Callable[..., PyTree], *args: PyTree) -> PyTree:
        # Plain numbers are constants of the compiled program; arrays, which may be traced, are its arguments.
        leaves, structure = jax.tree.flatten(self)
        arrays = [x if isinstance(x, (jax.Array, np.ndarray)) else None for x in leaves]
        plain = tuple(x if array is None else None for x, array in zip(leaves, arrays, strict=True))
        return function((structure, plain), arrays, *args)


def augmentation(function: Callable[P, Built]) -> Callable[P, Augmentation]:
    """Turns a factory of stages into one of augmentations.

    Args:
      function: a function of the hyperparameters that returns a ``Stage``, or a ``Mix``.

    Returns:
      The factory; its augmentations are pytrees of their float and array arguments.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> @gx.augment.augmentation
      ... def halved(factor: float = 0.5):
      ...   return gx.augment.Pixelwise(lambda key, shape: (), lambda params, planes: [p * factor for p in planes])
      >>> float(halved()(jax.random.key(0), jnp.ones((2, 2, 1)))[0, 0, 0])
      0.5
    """
    return factory(Augmentation, function)


Fixed: TypeAlias = tuple[Treedef, tuple[object, ...]]
"""An augmentation but for its arrays: its structure, and its numbers that are no arrays."""


@functools.partial(jax.jit, static_argnums=(0, 4))
def _augment(fixed: Fixed, arrays: PyTree, key: jax.Array, inputs: PyTree, batching: str) -> PyTree:
    stage, prepared = _stage(fixed, arrays), forms.prepared(inputs)
    stage.out_shape(_one(prepared.shape))
    return _run(fixed, arrays, _draw(stage, key, prepared.drawn_for), prepared, batching)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _sample(fixed: Fixed, arrays: PyTree, key: jax.Array, size: jax.Array | None, shape: tuple[int, ...]) -> Sampled:
    stage = _stage(fixed, arrays)
    stage.out_shape(_one(shape))
    true: PyTree = shape if size is None else (*shape[:-3], size[..., 0], size[..., 1], shape[-1])
    return _draw(stage, key, true)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _apply(fixed: Fixed, arrays: PyTree, params: Sampled, inputs: PyTree, batching: str) -> PyTree:
    stage, prepared = _stage(fixed, arrays), forms.prepared(inputs)
    if isinstance(stage, Stage):
        params = _checked(stage, params, prepared.shape)
    return _run(fixed, arrays, params, prepared, batching)


def _keys(key: object) -> jax.Array:
    """A key, or a key for each image of a batch.

    Raises:
      TypeError: it is neither.
    """
    if isinstance(key, (jax.Array, np.ndarray)):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1:
            return jnp.asarray(key)
        if key.dtype == jnp.uint32 and key.ndim == 2:
            return jax.random.wrap_key_data(jnp.asarray(key))
    return one_key("key", key)


def _stage(fixed: Fixed, arrays: PyTree) -> Built:
    structure, plain = fixed
    leaves = [x if array is None else array for x, array in zip(plain, arrays, strict=True)]
    aug: Augmentation = jax.tree.unflatten(structure, leaves)
    return aug.stage


def _one(shape: tuple[int, ...]) -> Shape:
    return shape[-3], shape[-2], shape[-1]


def _draw(stage: Built, key: jax.Array, shape: PyTree) -> Sampled:
    if key.ndim and (len(shape) == 3 or key.shape[0] != shape[0] or not isinstance(stage, Stage)):
        raise ValueError(
            f"key: expected one key, or one for each image of a batch that is not mixed, got keys of "
            f"shape {key.shape} for images of shape {shape}"
        )
    if len(shape) == 4:
        return stage.sample_each(key, shape) if key.ndim else stage.sample_batch(key, shape)  # type: ignore[union-attr]
    if not isinstance(stage, Stage):
        raise ValueError(f"image: expected a batch (B, H, W, C), since images of a batch are mixed, got shape {shape}")
    return stage.sample(key, _one(shape))


def _run(fixed: Fixed, arrays: PyTree, params: Sampled, prepared: forms.Prepared, batching: str) -> PyTree:
    stage, targets = _stage(fixed, arrays), prepared.arrays
    if len(prepared.shape) == 3:
        return prepared.restored(closed(stage.apply(params, targets)))  # type: ignore[union-attr]
    if isinstance(stage, Stage):

        def built(arrays: PyTree) -> Stage:
            return _stage(fixed, arrays)  # type: ignore[return-value]

        return prepared.restored(apply_batch(built, arrays, params, targets, batching))
    whole = stage if isinstance(stage, Mixed) else Mixed((stage,))
    params = params if isinstance(stage, Mixed) else (params,)
    for mixes, places in whole.segments():
        if mixes:
            if "size" in targets:
                raise ValueError(
                    "size: expected none where images are mixed, which takes images of one size; crop or "
                    "resize them to one first"
                )
            for i in places:
                targets = whole.parts[i].apply(spread_like(params[i], targets["image"]), targets)
        else:

            def build(arrays: PyTree, places: tuple[int, ...] = places) -> Stage:
                return Sequence(tuple(_stage(fixed, arrays).parts[i] for i in places))  # type: ignore[union-attr,misc]

            targets = apply_batch(build, arrays, tuple(params[i] for i in places), targets, batching)
    return prepared.restored(targets)


def _checked(stage: Stage, params: Sampled, shape: tuple[int, ...]) -> Sampled:
    """Parameters of an image, or of each image of a batch, where they may be those of one image.

    Raises:
      ValueError: they are not what ``sample`` gives.
    """
    *batch, height, width, channels = shape
    one = jax.eval_shape(lambda: stage.sample(jax.random.key(0), (height, width, channels)))
    expected, structure = jax.tree.flatten(one)
    found: Any = jax.tree.structure(params)
    if found != structure:
        raise ValueError(f"params: expected what sample gives, {structure}, got {found}")
    shapes = [jnp.shape(x) for x in jax.tree.leaves(params)]
    if shapes == [x.shape for x in expected]:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*batch, *jnp.shape(x))), params)
    if not batch or shapes != [(*batch, *x.shape) for x in expected]:
        whose = f"one image or of each of {batch[0]}" if batch else "one image"
        raise ValueError(
            f"params: expected those of {whose}, for one arrays of shapes {[x.shape for x in expected]}, got {shapes}"
        )
    return params
