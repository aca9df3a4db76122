"""The stages that augmentations are made of: each a pair (sample, apply) for one image.

A stage is written for one image, in plain JAX; what an image does or does not do is a ``lax.switch``. How a batch is
gone through is said elsewhere, once for all of them, in ``batching``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gradxform.augment.pixels.canvas import Canvas, Planes
from gradxform.core.isolate import isolated
from gradxform.core.types import PyTree

Shape = tuple[int, int, int]
"""Height, width and channels of an image."""
Targets = dict[str, Any]
"""What there is of an image, by name: the ``image``, an array (H, W, C) or a canvas, ``mask``, ``boxes`` and their
``visibility``, ``keypoints``, ``label``; ``size`` (2,), its true height and width, as long as its arrays are padded."""
Sampled: TypeAlias = PyTree
"""What a stage draws for an image, and takes to change it: a tree of small arrays of its own form."""
Images: TypeAlias = Callable[[Shape, DTypeLike], int | None]
"""From the shape and the dtype of images to how many of them a processor does best with at a time; None for any."""


class Stage:
    """What a factory of augmentations returns.

    ``sample``, ``apply`` and ``out_shape`` are yours, of one image; the rest has defaults that are right, and is
    about speed or about what a chain may put behind what.

    Attributes:
      dear: whether doing it to an image that does not take it costs more than going through a batch image by image:
        true of look-ups, of nothing that is a pass over the pixels.
      chooses: whether each image takes one of several branches of which some are dear.
      several: whether it makes, or mixes, several images of each.
      needs_unit: whether float images have to be in [0, 1].
      leaves_unit: whether what it makes of them is not.

    Example:
      >>> import gradxform as gx
      >>> gx.augment.chain(gx.augment.random_crop((24, 24)), gx.augment.invert()).stage.out_shape((32, 32, 3))
      (24, 24, 3)
    """

    dear: bool = False
    chooses: bool = False
    several: bool = False
    needs_unit: bool = False
    leaves_unit: bool = False

    def sample(self, key: jax.Array, shape: Shape) -> Sampled:
        """The parameters of one image of a shape: a tree of small arrays."""
        raise NotImplementedError

    def apply(self, params: Sampled, targets: Targets) -> PyTree:
        """The targets of one image as its parameters make them; several views are a tuple."""
        raise NotImplementedError

    def out_shape(self, shape: Shape) -> Shape:
        """The shape that comes of a shape.

        Raises:
          ValueError: images of this shape cannot be augmented so.
        """
        return shape

    def images(self, shape: Shape, dtype: DTypeLike) -> int | None:
        """How many images a processor does best with at a time; None for any number."""
        return None

    def sample_batch(self, key: jax.Array, shape: tuple[int, ...]) -> Sampled:
        """The parameters of a batch of images, each with a key of its own that the others do not change."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[0], dtype=jnp.uint32))
        return self.sample_each(keys, shape)

    def sample_each(self, keys: jax.Array, shape: tuple[int, ...]) -> Sampled:
        """The parameters of a batch of images by their keys (B,)."""
        # True sizes (B,) are each image's own.
        sizes = shape[1:3] if isinstance(shape[1], jax.Array) else ()
        return jax.vmap(lambda key, *size: self.sample(key, (*(size or shape[1:3]), shape[3])))(keys, *sizes)


class Mix:
    """What mixes the images of a batch: a pair (sample, apply) of a whole batch.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> class Averaged(gx.augment.Mix):
      ...   def sample_batch(self, key, shape):
      ...     return jax.random.permutation(key, shape[0])
      ...   def apply(self, partner, targets):
      ...     image = targets["image"]
      ...     return targets | {"image": (image + image[partner]) / 2}
      >>> averaged = gx.augment.augmentation(lambda: Averaged())
      >>> averaged()(jax.random.key(0), jnp.ones((4, 8, 8, 3))).shape
      (4, 8, 8, 3)
    """

    def sample_batch(self, key: jax.Array, shape: tuple[int, ...]) -> Sampled:
        """The parameters of a batch of a shape (B, H, W, C)."""
        raise NotImplementedError

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The targets of a batch, arrays with the batch in front, mixed."""
        raise NotImplementedError

    def out_shape(self, shape: Shape) -> Shape:
        """The shape of images that comes of a shape."""
        return shape


def few(pixels: int) -> Images:
    """As many images as have that many pixels together, and at least one."""

    def images(shape: Shape, dtype: DTypeLike) -> int:
        known = isinstance(shape[0], int) and isinstance(shape[1], int)
        return max(1, pixels // (shape[0] * shape[1])) if known else 1

    return images


def any_number(shape: Shape, dtype: DTypeLike) -> None:
    """Where it does not matter how many images there are at a time."""


def canvas_of(targets: Targets, *, once: bool = False) -> Canvas:
    """The image as a canvas; ``once`` where a single pass goes over it."""
    image = targets["image"]
    if isinstance(image, Canvas):
        return image
    size = targets.get("size")
    if image.dtype != jnp.uint8:
        return Canvas.of(image, size)
    # A CPU's vectors: packed in the loops of what is made of it an image is unpacked in each of them, and a blur is
    # three times slower; packed in a loop of its own for a single pass, that pass is twice as slow.
    canvas: Canvas = Canvas.of(image, size) if once else isolated(Canvas.of, image, size)
    return canvas.with_levels(jnp.moveaxis(image, -1, 0))


def closed(result: PyTree) -> PyTree:
    """The targets of each view as they are given back, with the image of a canvas."""
    if isinstance(result, tuple):
        return tuple(closed(one) for one in result)
    image = result["image"]
    return result | {"image": image.image() if isinstance(image, Canvas) else image}


@dataclasses.dataclass(frozen=True)
class Pixelwise(Stage):
    """Changes the image in place: masks, boxes, points and labels stay.

    Attributes:
      draw: the parameters from a key and a shape.
      kernel: the new channels from the parameters and the channels.
      at_a_time: how many images a processor does best with at a time; any number where each pixel is read once.
      dear: whether doing it in vain costs more than a loop over images.
      needs_unit: whether float images have to be in [0, 1], because the kernel measures or cuts there.
      leaves_unit: whether what it makes of them is not.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> @gx.augment.augmentation
      ... def darkened(least: float):
      ...   def draw(key, shape):
      ...     return jax.random.uniform(key, minval=least)
      ...   def kernel(factor, planes):
      ...     return [(factor * plane).astype(plane.dtype) for plane in planes]
      ...   return gx.augment.Pixelwise(draw, kernel)
      >>> darkened(0.5)(jax.random.key(0), jnp.ones((8, 32, 32, 3))).min() >= 0.5
      Array(True, dtype=bool)
    """

    draw: Callable[[jax.Array, Shape], Sampled]
    kernel: Callable[[Sampled, Planes], Planes]
    at_a_time: Images = any_number
    dear: bool = False
    needs_unit: bool = False
    leaves_unit: bool = False

    def images(self, shape: Shape, dtype: DTypeLike) -> int | None:
        """As ``at_a_time`` says."""
        return self.at_a_time(shape, dtype)

    def sample(self, key: jax.Array, shape: Shape) -> Sampled:
        """The parameters of one image."""
        return self.draw(key, shape)

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The targets with another image."""
        canvas = canvas_of(targets, once=self.at_a_time is any_number)
        return targets | {"image": canvas.with_planes(self.kernel(params, canvas.planes()))}
