"""Turns by 90 degrees, transposition, and all eight symmetries of a square: pixels are copied, none interpolated."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.placement import Affine
from gradxform.augment.geometry.run import Geometric, Resampling
from gradxform.augment.stage import Sampled, Shape, Stage
from gradxform.core import checks
from gradxform.core.types import Scalar


@augmentation
def random_rot90(p: Scalar = 0.75) -> Stage:
    """Square images turned by 90, 180 or 270 degrees.

    Args:
      p: for which share of images, in [0, 1], each angle as likely; by default the four orientations are alike.

    Returns:
      The augmentation.

    Raises:
      TypeError: ``p`` is no number.
      ValueError: ``p`` is out of range, or (when called) images are not square.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.arange(4, dtype=jnp.uint8).reshape(2, 2, 1)
      >>> gx.augment.random_rot90().apply(({"quarters": jnp.int32(1)},), image)[..., 0]    # counter-clockwise
      Array([[1, 3],
             [0, 2]], dtype=uint8)
    """
    checks.real("p", p, at_least=0, at_most=1)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        some, which = jax.random.split(key)
        quarters = jax.random.randint(which, (), 1, 4)
        return {"quarters": jnp.where(jax.random.uniform(some) < p, quarters, 0)}

    def place(params: Sampled, shape: Shape) -> Affine:
        quarters = params["quarters"]
        return _symmetry(shape, quarters % 2 == 1, (quarters == 1) | (quarters == 2), quarters >= 2)

    return _turning(draw, place)


@augmentation
def random_transpose(p: Scalar = 0.5) -> Stage:
    """Square images with rows and columns exchanged, for some of the images.

    Args:
      p: for which share of them, in [0, 1].

    Returns:
      The augmentation.

    Raises:
      TypeError: ``p`` is no number.
      ValueError: ``p`` is out of range, or (when called) images are not square.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.arange(4, dtype=jnp.uint8).reshape(2, 2, 1)
      >>> gx.augment.random_transpose(1.0)(jax.random.key(0), image)[..., 0]
      Array([[0, 2],
             [1, 3]], dtype=uint8)
    """
    checks.real("p", p, at_least=0, at_most=1)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        return {"transpose": jax.random.uniform(key) < p}

    def place(params: Sampled, shape: Shape) -> Affine:
        return _symmetry(shape, params["transpose"], jnp.bool_(False), jnp.bool_(False))

    return _turning(draw, place)


@augmentation
def random_d4() -> Stage:
    """One of the eight symmetries of a square, each as likely: turns by 90 degrees and their mirror images.

    Returns:
      The augmentation.

    Raises:
      ValueError: (when called) images are not square.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.random_d4()(jax.random.key(0), jnp.zeros((8, 32, 32, 3))).shape
      (8, 32, 32, 3)
    """

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        return {"symmetry": jax.random.randint(key, (), 0, 8)}

    def place(params: Sampled, shape: Shape) -> Affine:
        bits = params["symmetry"]
        return _symmetry(shape, bits & 4 > 0, bits & 2 > 0, bits & 1 > 0)

    return _turning(draw, place)


def _symmetry(shape: Shape, swap: jax.Array, from_right: jax.Array, from_below: jax.Array) -> Affine:
    """Source columns counted from the right, source rows from below, and columns that are the rows of the result."""
    x, y = jnp.where(from_right, -1.0, 1.0), jnp.where(from_below, -1.0, 1.0)
    x0, y0 = jnp.where(from_right, float(shape[1]), 0.0), jnp.where(from_below, float(shape[0]), 0.0)
    return Affine(
        jnp.where(swap, 0.0, x), jnp.where(swap, x, 0.0), x0, jnp.where(swap, y, 0.0), jnp.where(swap, 0.0, y), y0
    )


def _turning(draw: Callable[[jax.Array, Shape], Sampled], place: Callable[[Sampled, Shape], Affine]) -> Stage:
    def result(shape: Shape) -> tuple[int, int]:
        if shape[0] != shape[1]:
            raise ValueError(
                f"image: expected square images, whose shape stays when rows become columns, got {shape[:2]}"
            )
        return shape[0], shape[1]

    return Resampling((Geometric(draw, place, "shift", result, mirrors=(True, True), turns=True, known=True),))
