"""Kernels that mix neighbouring pixels: sharpness and the Gaussian blur."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gradxform.augment.pixels.arithmetic import inward, whole, within
from gradxform.augment.pixels.canvas import Canvas, Padded, Planes, true_size
from gradxform.augment.pixels.color import blend
from gradxform.core.platform import by_platform
from gradxform.core.types import Scalar, Size


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
        rows, columns = (
            inward(jnp.arange(side + radius), true, "reflect")
            for side, true in zip(planes[0].shape, planes.size, strict=True)
        )
        padded = gaussian_blur([plane[rows][:, columns] for plane in planes], sigma, radius)
        return [plane[: rows.size - radius, : columns.size - radius] for plane in padded]
    result: Planes = by_platform(
        functools.partial(_blurred, radius),
        _above_0(sigma),
        planes,
        tpu=lambda sigma, planes: [_blurred_by_products(radius, sigma, plane[None])[0] for plane in planes],
    )
    return result


def blurred(canvas: Canvas, sigma: Scalar, radius: int) -> Canvas:
    """``gaussian_blur`` of a canvas; a TPU takes 8-bit channels as they are in memory, and does not pack them."""
    if not canvas.packed or canvas.size is not None:
        return canvas.with_planes(gaussian_blur(canvas.planes(), sigma, radius))

    def portable(sigma: jax.Array, planes: Planes, _: jax.Array) -> tuple[Planes, jax.Array]:
        planes = _blurred(radius, sigma, planes)
        return planes, jnp.stack(planes)

    def by_products(sigma: jax.Array, _: Planes, levels: jax.Array) -> tuple[Planes, jax.Array]:
        levels = _blurred_by_products(radius, sigma, levels)
        return list(levels), levels

    # From the words, even where channels are at hand: a GPU keeps fewer arrays then.
    planes, levels = by_platform(portable, _above_0(sigma), canvas.unpacked(), canvas.stacked(), tpu=by_products)
    return canvas.with_planes(planes).with_levels(levels)


def _smoothed(plane: jax.Array, height: Size, width: Size) -> jax.Array:
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


def _above_0(sigma: Scalar) -> jax.Array:
    # A sigma of 0 is a Gaussian with all its weight in the middle.
    return jnp.maximum(jnp.asarray(sigma, jnp.float32), 1e-3)


def _ended(values: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Blurred values as channels of a type."""
    return whole(within(values + 0.5, 0.0, 255.0)) if dtype == jnp.int32 else within(values, 0.0, 1.0)


def _blurred(radius: int, sigma: jax.Array, planes: Planes) -> Planes:
    return [_ended(value, planes[0].dtype) for value in _convolved_in_turn(radius, sigma, planes)]


def _blurred_by_products(radius: int, sigma: jax.Array, image: jax.Array) -> jax.Array:
    return _ended(_convolved_by_products(radius, sigma, image), image.dtype)


def _convolved_in_turn(radius: int, sigma: jax.Array, planes: Planes) -> Planes:
    """Both passes, one pixel of the Gaussian after another."""
    weights = _gaussian(jnp.arange(radius + 1, dtype=jnp.float32), sigma)
    weights /= 2 * jnp.sum(weights) - 1
    return [_convolved(_convolved(plane.astype(jnp.float32), weights, 0), weights, 1) for plane in planes]


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


def _gaussian(distance: jax.Array, sigma: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * jnp.square(distance / sigma))


def _convolved_by_products(radius: int, sigma: jax.Array, image: jax.Array) -> jax.Array:
    """Both passes of channels (C, H, W) as products with a matrix, for machines that are made for them."""
    # A matrix for each channel: a product that has them in front has the order of the image in memory.
    rows, columns = (
        jnp.broadcast_to(_band(size, radius, sigma), (image.shape[0], size, size)) for size in image.shape[1:]
    )
    # 8-bit levels have a third of the parts that a float32 is multiplied in, and the compiler knows from bfloat16.
    exact = jnp.bfloat16 if image.dtype == jnp.int32 else jnp.float32

    def product(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
        return lax.dot_general(a, b, (((2,), (axis,)), ((0,), (0,))), precision=lax.Precision.HIGHEST)

    return product(product(rows, image.astype(exact).astype(jnp.float32), 1), columns, 2)


def _band(size: int, radius: int, sigma: jax.Array) -> jax.Array:
    """How much each pixel of a row (a column of the matrix) adds to each blurred one, beyond the rim mirrored."""
    if size == 1:
        return jnp.ones((1, 1), jnp.float32)
    to, source = (lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    period = 2 * size - 2
    # The row goes on to both sides with a period, and in each period once mirrored, but for the pixels of the rim.
    again = range(-(radius // period) - 1, radius // period + 2)
    places = [jnp.abs(to - source - k * period) for k in again if abs(k) * period - (size - 1) <= radius]
    places += [
        jnp.where((source > 0) & (source < size - 1), jnp.abs(to + source - k * period), radius + 1)
        for k in again
        if max(1 - k * period, (k - 1) * period + 1) <= radius
    ]
    weights = [jnp.where(place <= radius, _gaussian(place.astype(jnp.float32), sigma), 0) for place in places]
    total = 2 * jnp.sum(_gaussian(jnp.arange(radius + 1, dtype=jnp.float32), sigma)) - 1
    # Made once, not for each piece of the product.
    return lax.optimization_barrier(functools.reduce(operator.add, weights) / total)
