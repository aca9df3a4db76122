"""What JPEG makes of an image: there and back, as libjpeg does it, to the bit, and so Pillow.

Colours as luminance and two of chrominance at half the size, blocks of 8 x 8, an integer cosine transform (the slow and
accurate one of libjpeg), quotients rounded, and back with the chrominance interpolated. The lossless part, Huffman's
code, is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradxform.augment.pixels.arithmetic import quotient
from gradxform.augment.pixels.canvas import Planes, true_size
from gradxform.augment.pixels.color import check_channels
from gradxform.core.isolate import isolated
from gradxform.core.types import Scalar, Size

LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.int32,
)
"""Divisors of the standard, annex K, at a quality of 50; a row for each frequency down."""
CHROMINANCE = np.full((8, 8), 99, np.int32)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
BITS, FIRST_PASS = 13, 2
"""Behind the point of the transform's constants, and of what its first pass gives."""
COLOR_BITS = 16
"""Behind the point of the constants of colours."""
PLAIN = 2
"""Chrominance of up to so many columns is repeated, not interpolated."""
Rows = list[jax.Array]
"""Eight arrays that are transformed with each other."""


def jpeg(planes: Planes, quality: Scalar) -> Planes:
    """The channels after JPEG; of floats as of their 8-bit image.

    Args:
      planes: one channel, or red, green and blue.
      quality: an integer from 1 to 100, libjpeg's.

    Returns:
      The channels.
    """
    check_channels(len(planes))
    if planes[0].dtype != jnp.int32:
        levels = [jnp.floor(plane * 255 + 0.5).astype(jnp.int32) for plane in planes]
        return [plane.astype(jnp.float32) / 255 for plane in _coded(levels, quality, *true_size(planes))]
    return _coded(list(planes), quality, *true_size(planes))


def _coded(planes: Planes, quality: Scalar, height: Size, width: Size) -> Planes:
    """Channels of an image of a true height and width."""
    rows, columns = planes[0].shape

    if len(planes) == 1:
        whole = _extended(planes[0], height, width, 8)
        return [_there_and_back(whole, _divisors(LUMINANCE, quality))[:rows, :columns]]
    luminance, *chrominance = _to_luminance(*planes)
    whole = _extended(luminance, height, width, 8)
    restored = [_there_and_back(whole, _divisors(LUMINANCE, quality))[:rows, :columns]]
    half = (height + 1) // 2, (width + 1) // 2
    for plane in chrominance:
        small = _there_and_back(_halved(plane, height, width), _divisors(CHROMINANCE, quality))
        restored.append(_doubled(_extended(small, *half, 1), half[1])[:rows, :columns])
    return _to_colors(*restored)


def _divisors(table: np.ndarray, quality: Scalar) -> jax.Array:
    quality = jnp.asarray(quality, jnp.int32)
    percent = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return jnp.clip((table * percent + 50) // 100, 1, 255)


# Colours: constants with 16 bits behind the point, and sums shifted.


def _fixed(number: float, bits: int = COLOR_BITS) -> int:
    return int(number * (1 << bits) + 0.5)


def _to_luminance(r: jax.Array, g: jax.Array, b: jax.Array) -> Planes:
    half, middle = 1 << (COLOR_BITS - 1), 128 << COLOR_BITS
    sums = (
        _fixed(0.299) * r + _fixed(0.587) * g + _fixed(0.114) * b + half,
        -_fixed(0.16874) * r - _fixed(0.33126) * g + _fixed(0.5) * b + (middle + half - 1),
        _fixed(0.5) * r - _fixed(0.41869) * g - _fixed(0.08131) * b + (middle + half - 1),
    )
    return [one >> COLOR_BITS for one in sums]


def _to_colors(y: jax.Array, blue: jax.Array, red: jax.Array) -> Planes:
    blue, red, half = blue - 128, red - 128, 1 << (COLOR_BITS - 1)
    colors = (
        y + ((_fixed(1.402) * red + half) >> COLOR_BITS),
        y + ((-_fixed(0.34414) * blue - _fixed(0.71414) * red + half) >> COLOR_BITS),
        y + ((_fixed(1.772) * blue + half) >> COLOR_BITS),
    )
    return [jnp.clip(color, 0, 255) for color in colors]


# Sizes: what a block or a pair lacks is its last row or column again.


def _extended(plane: jax.Array, height: Size, width: Size, step: int) -> jax.Array:
    """A plane whose size is a multiple, with the last true row and column repeated beyond them."""
    for axis, size in enumerate((height, width)):
        more = -plane.shape[axis] % step
        plane = jnp.pad(plane, [(0, more * (i == axis)) for i in range(2)])
        if isinstance(size, jax.Array) or size < plane.shape[axis]:
            last = lax.dynamic_slice_in_dim(plane, size - 1, 1, axis)
            plane = jnp.where(lax.broadcasted_iota(jnp.int32, plane.shape, axis) < size, plane, last)
    return plane


def _halved(plane: jax.Array, height: Size, width: Size) -> jax.Array:
    """The mean of four pixels, rounded up and down in turns."""
    # Columns beyond the rim are halved with the others; rows are repeated once they are halved.
    plane = _extended(plane, height, width, 16)
    fours = plane[::2, ::2] + plane[::2, 1::2] + plane[1::2, ::2] + plane[1::2, 1::2]
    means = (fours + (1 + jnp.arange(fours.shape[1], dtype=jnp.int32) % 2)) >> 2
    return _extended(means, (height + 1) // 2, means.shape[1], 1)


def _doubled(plane: jax.Array, width: Size) -> jax.Array:
    """Twice the size: three parts of the pixel and one of the nearest neighbour, down and then across."""

    def across(sums: jax.Array) -> jax.Array:
        left, right = _neighbours(sums, 1)
        return _in_turn((3 * sums + left + 8) >> 4, (3 * sums + right + 7) >> 4, 1)

    above, below = _neighbours(plane, 0)
    smooth = _in_turn(across(3 * plane + above), across(3 * plane + below), 0)
    return jnp.where(width > PLAIN, smooth, jnp.repeat(jnp.repeat(plane, 2, 0), 2, 1))


def _neighbours(plane: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """What stands before each row or column and behind it; on the rim itself."""
    size = plane.shape[axis]
    first, last = lax.slice_in_dim(plane, 0, 1, axis=axis), lax.slice_in_dim(plane, size - 1, size, axis=axis)
    before = jnp.concatenate([first, lax.slice_in_dim(plane, 0, size - 1, axis=axis)], axis)
    return before, jnp.concatenate([lax.slice_in_dim(plane, 1, size, axis=axis), last], axis)


def _in_turn(one: jax.Array, other: jax.Array, axis: int) -> jax.Array:
    shape = [2 * size if i == axis else size for i, size in enumerate(one.shape)]
    return jnp.stack([one, other], axis + 1).reshape(shape)


# Blocks: a frequency (8, 8) in front, so that each step is of whole arrays.


def _there_and_back(plane: jax.Array, divisors: jax.Array) -> jax.Array:
    """A plane of blocks there and back."""
    rows, columns = (size // 8 for size in plane.shape)
    blocks = plane.reshape(rows, 8, columns, 8).transpose(1, 3, 0, 2) - 128
    blocks = _along(1, _forward, BITS - FIRST_PASS, blocks)
    blocks = _along(0, _forward, BITS + FIRST_PASS, blocks)
    table = divisors[:, :, None, None]
    blocks = isolated(_divided, blocks, table)
    blocks = _along(0, _backward, BITS - FIRST_PASS, blocks)
    blocks = _along(1, _backward, BITS + FIRST_PASS + 3, blocks)
    return jnp.clip(blocks + 128, 0, 255).transpose(2, 0, 3, 1).reshape(plane.shape)


def _divided(blocks: jax.Array, table: jax.Array) -> jax.Array:
    """To multiples of the table, the nearest; a half is rounded away from 0. The transform has 8 for 1."""
    parts = quotient(jnp.abs(blocks) + 4 * table, 8 * table)
    return jnp.where(blocks < 0, -parts, parts) * table


def _along(axis: int, transform: Callable[[Rows, int], Rows], bits: int, blocks: jax.Array) -> jax.Array:
    def transformed(blocks: jax.Array) -> jax.Array:
        return jnp.stack(transform([lax.index_in_dim(blocks, i, axis, False) for i in range(8)], bits), axis)

    return isolated(transformed, blocks)


def _rounded(x: jax.Array, bits: int) -> jax.Array:
    return (x + (1 << (bits - 1))) >> bits


_298, _390, _541, _765, _899, _1175, _1501, _1847, _1961, _2053, _2562, _3072 = (
    _fixed(number, BITS)
    for number in (
        0.298631336,
        0.390180644,
        0.541196100,
        0.765366865,
        0.899976223,
        1.175875602,
        1.501321110,
        1.847759065,
        1.961570560,
        2.053119869,
        2.562915447,
        3.072711026,
    )
)


def _odd(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> Rows:
    """The odd half of Loeffler, Ligtenberg and Moschytz (1989): twelve products; it is its own way back."""
    both = (a + b + c + d) * _1175
    ad, bc = -_899 * (a + d), -_2562 * (b + c)
    ac, bd = both - _1961 * (a + c), both - _390 * (b + d)
    return [_298 * a + ad + ac, _2053 * b + bc + bd, _3072 * c + bc + ac, _1501 * d + ad + bd]


def _forward(x: Rows, bits: int) -> Rows:
    """Eight samples as frequencies; of 13 bits behind the point as many are dropped as are asked for."""
    sums, differences = [x[i] + x[7 - i] for i in range(4)], [x[i] - x[7 - i] for i in range(4)]
    outer, inner = sums[0] + sums[3], sums[1] + sums[2]
    beyond, within = sums[0] - sums[3], sums[1] - sums[2]
    turned = (within + beyond) * _541
    second, sixth = turned + beyond * _765, turned - within * _1847
    seventh, fifth, third, first = _odd(*differences[::-1])
    return [
        _whole(outer + inner, bits),
        _rounded(first, bits),
        _rounded(second, bits),
        _rounded(third, bits),
        _whole(outer - inner, bits),
        _rounded(fifth, bits),
        _rounded(sixth, bits),
        _rounded(seventh, bits),
    ]


def _whole(x: jax.Array, bits: int) -> jax.Array:
    """A sum without a product, whose bits behind the point are 0."""
    return x << (BITS - bits) if bits < BITS else _rounded(x, bits - BITS)


def _backward(x: Rows, bits: int) -> Rows:
    """Eight frequencies as samples."""
    turned = (x[2] + x[6]) * _541
    beyond, within = turned + x[2] * _765, turned - x[6] * _1847
    outer, inner = (x[0] + x[4]) << BITS, (x[0] - x[4]) << BITS
    even = [outer + beyond, inner + within, inner - within, outer - beyond]
    odd = _odd(x[7], x[5], x[3], x[1])[::-1]
    firsts = [_rounded(a + b, bits) for a, b in zip(even, odd, strict=True)]
    lasts = [_rounded(a - b, bits) for a, b in zip(even, odd, strict=True)]
    return firsts + lasts[::-1]
