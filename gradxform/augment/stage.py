"""The stages that augmentations are made of: each a pair (sample, apply) for one image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from gradxform.augment.pixels.canvas import Canvas, Planes

Shape = tuple[int, int, int]
"""Height, width and channels of an image."""
Targets = dict[str, Any]
"""What there is of an image, by name: its canvas as ``image``, and ``mask``, ``boxes`` and their ``visibility``,
``keypoints``, ``label``; ``size`` (2,), its true height and width, as long as its arrays are padded."""


class Stage:
    """What a factory of augmentations returns.

    ``sample`` and ``apply`` are of one image. ``branches`` tells whether the work on an image depends on its
    parameters or goes through memory in an order that does; then a processor does better with a few images at a time.
    ``whole_batch`` tells whether images of a batch mix; then both are of a whole batch. ``views`` tells whether there
    are several results, and ``whole_pixels`` whether it works on (H, W, C) as they are, without a canvas. ``unit``
    tells whether it takes floats in [0, 1] alone, as a change of colours does.

    Example:
      >>> import gradxform as gx
      >>> gx.augment.chain(gx.augment.random_crop((24, 24)), gx.augment.invert()).stage.out_shape((32, 32, 3))
      (24, 24, 3)
    """

    branches: bool = False
    whole_batch: bool = False
    views: bool = False
    whole_pixels: bool = False
    unit: bool = True

    def sample(self, key: jax.Array, shape: Shape) -> Any:
        """The parameters of one image of a shape: a tree of small arrays."""
        raise NotImplementedError

    def apply(self, params: Any, targets: Targets) -> Any:
        """The targets of one image as its parameters make them."""
        raise NotImplementedError

    def out_shape(self, shape: Shape) -> Shape:
        """The shape that comes of a shape.

        Raises:
          ValueError: images of this shape cannot be augmented so.
        """
        return shape

    def at_once(self, shape: Shape, dtype: Any) -> int:
        """How many images a processor does best with at a time where there are branches."""
        return 1

    def sample_batch(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        """The parameters of a batch of images, each with a key of its own that the others do not change."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[0], dtype=jnp.uint32))
        # True sizes (B,) are each image's own.
        sizes = shape[1:3] if isinstance(shape[1], jax.Array) else ()
        return jax.vmap(lambda key, *size: self.sample(key, (*(size or shape[1:3]), shape[3])))(keys, *sizes)

    def apply_mixed(self, params: Any, targets: Targets, strategy: str) -> Any:
        """The targets of a batch, where the stage works on whole batches."""
        return self.apply(params, targets)

    def apply_sorted(self, params: Any, targets: Targets) -> Any:
        """The targets of a batch; a branch is gone through by the images that take it."""
        return jax.vmap(self.apply)(params, targets)


def images_of(pixels: int, shape: Shape, least: int = 1) -> int:
    """How many images of a shape have so many pixels, and no fewer than ``least``, which it is for shapes unknown."""
    known = isinstance(shape[0], int) and isinstance(shape[1], int)
    return max(least, pixels // (shape[0] * shape[1])) if known else least


def fewest(stages: Iterable[tuple[Stage, Shape]], dtype: Any) -> int:
    """How many images at a time suit all of the stages that have branches, each with the shape that it gets."""
    return min((stage.at_once(shape, dtype) for stage, shape in stages if stage.branches), default=1)


def opened(stage: Stage, targets: Targets) -> Targets:
    """The targets as a stage takes them, with a canvas for the image unless it works on whole pixels."""
    image = targets["image"]
    if stage.whole_pixels or isinstance(image, Canvas):
        return targets
    return targets | {"image": Canvas.of(image, targets.get("size"))}


def closed(result: Any) -> Any:
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
      branches: whether it has branches.
      pixels: where there are branches, of as many a processor does best with images at a time, of 8 bits and of floats.

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

    draw: Callable[[jax.Array, Shape], Any]
    kernel: Callable[[Any, Planes], Planes]
    branches: bool = False
    pixels: tuple[int, int] = (1, 1)

    def at_once(self, shape: Shape, dtype: Any) -> int:
        """As many as have that many pixels."""
        return images_of(self.pixels[dtype != jnp.uint8], shape)

    def sample(self, key: jax.Array, shape: Shape) -> Any:
        """The parameters of one image."""
        return self.draw(key, shape)

    def apply(self, params: Any, targets: Targets) -> Targets:
        """The targets with another image."""
        canvas: Canvas = targets["image"]
        return targets | {"image": canvas.with_planes(self.kernel(params, canvas.planes()))}
