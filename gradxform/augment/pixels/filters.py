"""Kernels that mix neighbouring pixels: sharpness and the Gaussian blur."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.augment.geometry.borders import inward
from gradxform.augment.pixels.arithmetic import whole, within
from gradxform.augment.pixels.canvas import Padded, Planes, true_size
from gradxform.augment.pixels.color import blend
from gradxform.core.types import Scalar


def sharpness(planes: Planes, factor: Scalar) -> Planes:
    """Away from a smoothed image, or toward it, as Pillow's ``ImageEnhance.Sharpness``, to the last bit for 8 bits.

    The smoothing weighs a pixel 5 and each of its eight neighbours 1; the pixels of the rim stay as they are, and so
    does an image of fewer than 3 rows or columns.
    """
    if min(planes[0].shape) < 3:
        return planes
    height, width = true_size(planes)
    return [blend(_smoothed(plane, height, width), plane, factor) for plane in planes]


def gaussian_blur(planes: Planes, sigma: Scalar, radius: int) -> Planes:
    """The image convolved with a Gaussian, cut off at a radius and normalized; beyond the rim the image is mirrored.

    Unlike Pillow's ``GaussianBlur``, which stands in box blurs for it, this is the Gaussian. 8-bit channels are
    rounded once, in the end.

    Args:
      planes: the channels.
      sigma: the standard deviation in pixels, >= 0; 0 leaves the image as it is.
      radius: how many pixels it reaches to each side; static.

    Returns:
      The channels.
    """
    if isinstance(planes, Padded):
        # Beyond the true size the image is mirrored, as far as the Gaussian reaches.
        rows, columns = (inward(jnp.arange(side + radius), true, "reflect")
                         for side, true in zip(planes[0].shape, planes.size, strict=True))
        blurred_planes = gaussian_blur([plane[rows][:, columns] for plane in planes], sigma, radius)
        return [plane[:rows.size - radius, :columns.size - radius] for plane in blurred_planes]
    places = jnp.arange(radius + 1, dtype=jnp.float32)
    # A sigma of 0 is a Gaussian with all its weight in the middle.
    weights = jnp.exp(-0.5 * jnp.square(places / jnp.maximum(jnp.asarray(sigma, jnp.float32), 1e-3)))
    weights /= 2 * jnp.sum(weights) - 1

    def blurred(plane: jax.Array) -> jax.Array:
        values = _convolved(_convolved(plane.astype(jnp.float32), weights, 0), weights, 1)
        if plane.dtype == jnp.int32:
            return whole(within(values + 0.5, 0.0, 255.0))
        return within(values, 0.0, 1.0)

    return [blurred(plane) for plane in planes]


def _smoothed(plane: jax.Array, height: Any, width: Any) -> jax.Array:
    rows = plane[:-2] + plane[1:-1] + plane[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * plane[1:-1, 1:-1]
    if plane.dtype == jnp.int32:
        # Thirteenths are nowhere near a half, so that it does not matter how floats round.
        mean = whole((around.astype(jnp.float32) + 6.5) / 13)
    else:
        mean = around / 13
    row, column = (lax.broadcasted_iota(jnp.int32, plane.shape, axis) for axis in (0, 1))
    inside = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return jnp.where(inside, jnp.pad(mean, 1), plane)


def _convolved(plane: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """One pass of the convolution, along an axis, as a sum of shifted images."""
    radius, size = weights.shape[0] - 1, plane.shape[axis]
    padded = _mirrored(plane, radius, axis)

    def shifted(by: int) -> jax.Array:
        return lax.slice_in_dim(padded, radius + by, radius + by + size, axis=axis)

    total = weights[0] * plane
    for i in range(1, radius + 1):
        total += weights[i] * (shifted(-i) + shifted(i))
    return total


def _mirrored(plane: jax.Array, radius: int, axis: int) -> jax.Array:
    size = plane.shape[axis]
    if radius < size:
        before = lax.rev(lax.slice_in_dim(plane, 1, radius + 1, axis=axis), (axis,))
        after = lax.rev(lax.slice_in_dim(plane, size - 1 - radius, size - 1, axis=axis), (axis,))
        return jnp.concatenate([before, plane, after], axis)
    return jnp.take(plane, inward(jnp.arange(-radius, size + radius), size, "reflect"), axis=axis)
