"""Kernels of colour: gray, brightness, contrast, saturation and hue, on the channels of one image.

8-bit channels come out as Pillow's ``ImageEnhance`` and its conversions make them, to the last bit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradxform.augment.pixels.arithmetic import exact, quotient, whole, within
from gradxform.augment.pixels.canvas import Planes, real, true_size
from gradxform.core.types import Scalar, Size

COLORS = (1, 3)
"""Channels of images whose colours are known: gray, and red, green and blue."""


def is_8_bit(planes: Planes) -> bool:
    """Whether the channels are integers in 0..255 (else floats in [0, 1])."""
    return planes[0].dtype == jnp.int32


def check_channels(channels: int) -> None:
    """Refuses an image that is neither gray nor of three colours.

    Raises:
      ValueError: for another number of channels.
    """
    if channels not in COLORS:
        raise ValueError(
            f"image: expected 1 channel (gray) or 3 (red, green, blue) for a change of colours, got {channels}"
        )


def blend(degenerate: jax.Array, plane: jax.Array, factor: Scalar) -> jax.Array:
    """``degenerate + factor * (plane - degenerate)`` within the range: 0 is degenerate, 1 as it was, 2 twice as far."""
    factor = jnp.asarray(factor, jnp.float32)
    if plane.dtype != jnp.int32:
        return within(degenerate + factor * (plane - degenerate), 0.0, 1.0)
    # The product and the sum are rounded one after the other, and the result toward zero, as Pillow's are.
    moved = exact(factor * (plane - degenerate).astype(jnp.float32))
    return whole(within(degenerate.astype(jnp.float32) + moved, 0.0, 255.0))


def luma(planes: Planes) -> jax.Array:
    """The brightness that the eye sees, (H, W): ITU-R 601, ``0.299 R + 0.587 G + 0.114 B``."""
    check_channels(len(planes))
    if len(planes) == 1:
        return planes[0]
    r, g, b = planes
    if is_8_bit(planes):
        return (19595 * r + 38470 * g + 7471 * b + 32768) >> 16
    return 0.299 * r + 0.587 * g + 0.114 * b


def grayscale(planes: Planes) -> Planes:
    """The image without its colours, in as many channels."""
    return [luma(planes)] * len(planes)


def brightness(planes: Planes, factor: Scalar) -> Planes:
    """Away from black, or toward it."""
    return [blend(jnp.zeros((), plane.dtype), plane, factor) for plane in planes]


def contrast(planes: Planes, factor: Scalar) -> Planes:
    """Away from the mean gray of the image, or toward it; the mean is rounded to a level for 8 bits.

    Of neither gray nor three colours it is the mean of all channels.
    """
    grays, counted = [luma(planes)] if len(planes) in COLORS else list(planes), real(planes)
    if counted is not None:
        grays = [jnp.where(counted, gray, 0) for gray in grays]
    height, width = true_size(planes)
    gray, height = jnp.concatenate(grays), height * len(grays)
    mean = _rounded_mean(gray, height, width) if is_8_bit(planes) else jnp.sum(gray) / (height * width)
    return [blend(mean, plane, factor) for plane in planes]


def saturation(planes: Planes, factor: Scalar) -> Planes:
    """Away from the gray image, or toward it."""
    gray = luma(planes)
    return planes if len(planes) == 1 else [blend(gray, plane, factor) for plane in planes]


def adjust_hue(planes: Planes, turns: Scalar) -> Planes:
    """Every colour turned about the colour wheel.

    8-bit channels go through Pillow's 8-bit hue, saturation and value, and the hue moves by ``int(255 * turns)``
    levels, as torchvision has it for Pillow images.

    Args:
      planes: the channels.
      turns: how far, in turns, -0.5 to 0.5.

    Returns:
      The channels.
    """
    check_channels(len(planes))
    if len(planes) == 1:
        return planes
    turns = jnp.asarray(turns, jnp.float32)
    if is_8_bit(planes):
        hue, chroma, value = _to_hsv(planes)
        return _from_hsv((hue + jnp.trunc(turns * 255).astype(jnp.int32)) & 255, chroma, value)
    return _turned(planes, turns)


def _rounded_mean(gray: jax.Array, height: Size, width: Size) -> jax.Array:
    """``int(mean + 0.5)`` of integers in 0..255, zeros beyond height and width, exact for up to 850 million pixels."""
    height, width = (jnp.asarray(side, jnp.uint32) for side in (height, width))
    # The sum is rows * width + rest, and rows is mean * height + left, in numbers that all fit into 32 bits.
    sums = jnp.sum(gray, axis=1, dtype=jnp.uint32)
    rows = jnp.sum(sums // width, dtype=jnp.uint32)
    rest = jnp.sum(sums % width, dtype=jnp.uint32)
    mean, left = rows // height, rows % height
    half = height * width
    return (mean + (2 * (left * width + rest) + half) // (2 * half)).astype(jnp.int32)


def _to_hsv(planes: Planes) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pillow's hue, saturation and value, 0..255."""
    r, g, b = planes
    value, sector, leaning, spread = _hexagon(r, g, b)
    spread = jnp.maximum(spread, 1)
    around = sector * spread + leaning
    around = around + jnp.where(around < 0, 6 * spread, 0)
    hue = quotient(85 * around, 2 * spread)
    # Where the hue is a whole level, Pillow's floats may fall short of it.
    hue -= ((2 * spread * hue == 85 * around) & _falls_short(hue)).astype(jnp.int32)
    saturation = quotient(255 * (value - jnp.minimum(r, jnp.minimum(g, b))), jnp.maximum(value, 1))
    return hue, saturation, value


def _from_hsv(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> Planes:
    """The colours of Pillow's hue, saturation and value, 0..255."""
    sector = quotient(6 * hue, jnp.int32(255))
    gone = 6 * hue - 255 * sector
    odd = sector & 1 == 1
    low = quotient(2 * value * (255 - saturation) + 255, jnp.int32(510))
    share = value * (65025 - saturation * jnp.where(odd, gone, 255 - gone))
    middle = ((2 * share + 65025).astype(jnp.uint32) // 130050).astype(jnp.int32)

    def channel(high: tuple[int, int], between: tuple[int, int]) -> jax.Array:
        is_high = (sector == high[0]) | (sector == high[1])
        is_between = (sector == between[0]) | (sector == between[1])
        return jnp.where(is_high, value, jnp.where(is_between, middle, low))

    sector = jnp.where(sector == 6, 0, sector)
    return [channel((0, 5), (1, 4)), channel((1, 2), (0, 3)), channel((3, 4), (2, 5))]


def _hexagon(r: jax.Array, g: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The largest channel, the corner of the colour hexagon that it is, the lean from there, and the spread."""
    value = jnp.maximum(r, jnp.maximum(g, b))
    spread = value - jnp.minimum(r, jnp.minimum(g, b))
    red, green = r == value, g == value
    sector = jnp.where(red, 0, jnp.where(green, 2, 4)).astype(r.dtype)
    return value, sector, jnp.where(red, g - b, jnp.where(green, b - r, r - g)), spread


def _falls_short(hue: jax.Array) -> jax.Array:
    """Whether Pillow's division in floats takes a hue that is exactly this level for a little less."""
    return (
        ((hue >= 1) & (hue <= 31))
        | ((hue >= 129) & (hue <= 149) & (hue & 1 == 1))
        | ((hue >= 153) & (hue <= 209) & (hue & 3 == 1))
        | ((hue >= 88) & (hue <= 104) & (hue & 3 == 0))
        | (hue == 176)
        | (hue == 184)
    )


def _turned(planes: Planes, turns: jax.Array) -> Planes:
    value, sector, leaning, spread = _hexagon(*planes)
    # Six per turn; at gray the hue does not matter.
    hue = sector + leaning / jnp.where(spread == 0, 1.0, spread) + 6 * turns

    def channel(highest: float) -> jax.Array:
        # How far the hue is from where the channel is highest, the shorter way round; a remainder is not vectorized.
        away = hue - highest
        away = jnp.abs(away - 6 * jnp.round(away * (1 / 6)))
        return within(value - spread * within(away - 1, 0.0, 1.0), 0.0, 1.0)

    return [channel(0.0), channel(2.0), channel(4.0)]
