"""Resampling: the pixels of an image at the places that a map of positions names.

Three ways, by what the map can be: whole pixels along the axes are slices, other maps along the axes are two weighted
sums of rows and of columns, and the rest are look-ups. All work on any arrays (H, W, ...) alike: the words of packed
pixels, channels, masks.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradxform.augment.geometry.borders import Border, colors, framed
from gradxform.augment.geometry.lookup import bilinear, picked, where_inside
from gradxform.augment.geometry.placement import Affine, Map, Rim
from gradxform.augment.pixels.arithmetic import exact, inward, within
from gradxform.augment.pixels.canvas import Canvas, Planes
from gradxform.core.isolate import isolated
from gradxform.core.platform import by_platform
from gradxform.core.types import Scalar, Size

FIXED = 22
"""Bits behind the point of the weights of 8-bit images, as Pillow has them."""
ROUNDING = 2.0**-17
"""By so much at most weighted means of 1 are above it."""
MOST_TAPS = 8
"""Up to so many pixels a weighted sum is spelled out; beyond, it is a product of matrices."""
MOST_EXACT = 256
"""So many products of two bytes add up exactly in float32."""
NARROW = (jnp.uint8, jnp.bool_, jnp.uint16)
"""Types whose numbers are one or two that bfloat16 has, and which a TPU cuts out badly."""


class Method(NamedTuple):
    """How to resample, known before the program runs.

    Attributes:
      kind: ``"shift"`` for whole pixels along the axes and mirror images, ``"scale"`` for other maps along the axes,
        ``"any"`` for all.
      interpolation: ``"nearest"``, ``"bilinear"`` or, along the axes, ``"bicubic"``.
      border: what lies beyond the rim; None where nothing of it is asked for.
      reach: how far beyond the rim a shift goes at most, in pixels down and across.
      shrink: by which factor the image shrinks at most, down and across; 1 where it may alias.
      mirrors: whether a shift may mirror, down and across.
      fixed: whether nearest pixels are found in Pillow's arithmetic.
      frames: whether the border begins where the image ends, and nothing of it counts for the pixels inside.
      turns: whether rows and columns may be exchanged in the end; of square results.
    """

    kind: str
    interpolation: str
    border: Border | None
    reach: tuple[int, int]
    shrink: tuple[float, float]
    mirrors: tuple[bool, bool]
    fixed: bool
    frames: bool = False
    turns: bool = False


def resampled(image: Canvas, method: Method, maps: list[Map], height: int, width: int) -> Canvas:
    """An image of (height, width) whose pixels come from where the maps name."""
    if method.turns and method.kind != "any":
        unturned, swapped = _unturned(maps)
        result = resampled(image, method._replace(turns=False), unturned, height, width)
        return result.with_words(jnp.where(swapped, word.T, word) for word in result.words)
    fills = word_fills(image, method.border)
    if method.kind == "scale" and method.interpolation != "nearest":
        return _scaled(image, method, maps, height, width)
    if method.kind == "any" and max(method.shrink) > 1 and method.interpolation != "nearest":
        image = _smoothed(image, method, maps)
    if method.kind != "any" or method.interpolation == "nearest":
        return image.with_words(
            nearest(word, method, maps, height, width, fill) for word, fill in zip(image.words, fills, strict=True)
        )
    return bilinear(image, method.border, maps, height, width)


def nearest(array: jax.Array, method: Method, maps: list[Map], height: int, width: int, fill: jax.Array) -> jax.Array:
    """An array (height, width, ...) of the nearest elements of an array (H, W, ...)."""
    if method.turns and method.kind != "any":
        unturned, swapped = _unturned(maps)
        result = nearest(array, method._replace(turns=False), unturned, height, width, fill)
        return jnp.where(swapped, result.swapaxes(0, 1), result)
    if method.kind == "shift":
        return _shifted(array, method, maps, height, width, fill)
    mode = "constant" if method.border is None else method.border.mode
    filled = method.border is not None and mode == "constant"
    rows, columns = array.shape[:2]
    if method.kind == "scale":
        y, x = _axes(maps, height, width)
        row, column = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
        result = _picked(
            lambda array, row, column: _taken(_taken(array, row, 0), column, 1),
            array,
            inward(row, rows, mode),
            inward(column, columns, mode),
        )
        inside = ((row >= 0) & (row < rows))[:, None] & ((column >= 0) & (column < columns))
        return where_inside(inside, result, fill) if filled else result

    return picked(array, method.border, maps, height, width, fill, method.fixed)


def _unturned(maps: list[Map]) -> tuple[list[Map], jax.Array]:
    """The map along the axes that makes the same pixels, and whether its rows are the columns of the result."""
    (one,) = maps
    assert isinstance(one, Affine)
    swapped = jnp.asarray(one.xx == 0)
    along = Affine(jnp.where(swapped, one.xy, one.xx), 0.0, one.x0, 0.0, jnp.where(swapped, one.yx, one.yy), one.y0)
    return [along], swapped


def _shifted(array: jax.Array, method: Method, maps: list[Map], height: int, width: int, fill: jax.Array) -> jax.Array:
    (one,) = maps
    assert isinstance(one, Affine)
    starts = []
    for axis, (scale, start, size) in enumerate(((one.yy, one.y0, height), (one.xx, one.x0, width))):
        start = jnp.round(jnp.asarray(start)).astype(jnp.int32)
        starts.append(jnp.where(scale < 0, start - size, start) if method.mirrors[axis] else start)
    if any(method.reach) or array.shape[:2] != (height, width):
        array = _window(array, method, starts, height, width, fill)
    for axis, scale in enumerate((one.yy, one.xx)):
        if method.mirrors[axis]:
            array = jnp.where(scale < 0, jnp.flip(array, axis), array)
    return array


def _window(
    array: jax.Array, method: Method, starts: list[jax.Array], height: int, width: int, fill: jax.Array
) -> jax.Array:
    """The window (height, width, ...) that starts there."""
    rows, columns = (start + jnp.arange(size) for start, size in zip(starts, (height, width), strict=True))
    cut, picked = _windows(method, height, width)
    if array.dtype not in NARROW:
        return cut(array, fill, rows, columns)
    window: jax.Array = by_platform(cut, array, fill, rows, columns, tpu=picked)
    return window


def _windows(method: Method, height: int, width: int) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """A window of an array, from a fill, its rows and its columns: as a slice, and as products."""

    def cut(array: jax.Array, fill: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        array = framed(array, method.border, fill, method.reach) if any(method.reach) else array
        at = [start[0] + reach for start, reach in zip((rows, columns), method.reach, strict=True)]
        return lax.dynamic_slice(array, at + [0] * (array.ndim - 2), (height, width, *array.shape[2:]))

    def picked(array: jax.Array, fill: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        if not any(method.reach):
            return _picked_by_products(array, rows, columns)
        assert method.border is not None
        mode, sizes = method.border.mode, array.shape[:2]
        result = _picked_by_products(array, inward(rows, sizes[0], mode), inward(columns, sizes[1], mode))
        if mode != "constant":
            return result
        inside = ((rows >= 0) & (rows < sizes[0]))[:, None] & (columns >= 0) & (columns < sizes[1])
        return where_inside(inside, result, fill)

    return cut, picked


def _picked(otherwise: Callable[..., jax.Array], array: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The elements of these rows and columns, as a product where that is quicker."""
    if array.dtype not in NARROW:
        return otherwise(array, rows, columns)
    found: jax.Array = by_platform(otherwise, array, rows, columns, tpu=_picked_by_products)
    return found


def _picked_by_products(array: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The elements of rows and columns of bytes: products with matrices of 0 and a 1 a row, exact in bfloat16.

    A TPU cuts bytes out of an image after a copy of the whole batch for each image, since their tiles have 32 rows.
    """
    if array.dtype == jnp.uint16:
        high, low = (
            _picked_by_products(part.astype(jnp.uint8), rows, columns).astype(jnp.uint16)
            for part in (array >> 8, array & 255)
        )
        return high << 8 | low

    def one_hot(index: jax.Array, size: int) -> jax.Array:
        return (index[:, None] == jnp.arange(size)).astype(jnp.bfloat16)

    def product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
        return lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.bfloat16)

    found = product(one_hot(rows, array.shape[0]), array.astype(jnp.bfloat16), (1, 0))
    found = jnp.moveaxis(product(found, one_hot(columns, array.shape[1]), (1, 1)), -1, 1)
    return found != 0 if array.dtype == jnp.bool_ else found.astype(jnp.int32).astype(array.dtype)


Numbers: TypeAlias = Any
"""Numbers of NumPy where they are known before the program runs, of JAX where they are not."""


def _axes(maps: list[Map], height: int, width: int) -> tuple[Numbers, Numbers]:
    """The sources of the rows and of the columns of a map along the axes; NumPy's if known before the program runs."""
    (one,) = maps
    assert isinstance(one, Affine)
    xp, dtype = _numpy_of(one.yy, one.y0, one.xx, one.x0)
    return (
        exact(one.yy * (xp.arange(height, dtype=dtype) + 0.5)) + one.y0,
        exact(one.xx * (xp.arange(width, dtype=dtype) + 0.5)) + one.x0,
    )


def _numpy_of(*numbers: Scalar) -> tuple[Numbers, Numbers]:
    return (jnp, jnp.float32) if any(isinstance(x, jax.Array) for x in numbers) else (np, np.float64)


def _scaled(image: Canvas, method: Method, maps: list[Map], height: int, width: int) -> Canvas:
    *rim, one = maps
    y, x = _axes([one], height, width)
    assert isinstance(one, Affine)
    rows, columns = rim[0].size if rim and isinstance(rim[0], Rim) else image.shape[:2]
    # Columns first, rounded, and then rows: Pillow's order.
    image = _weighted(image, 1, columns, x, abs(one.xx), method)
    return _weighted(image, 0, rows, y, abs(one.yy), method)


def _smoothed(image: Canvas, method: Method, maps: list[Map]) -> Canvas:
    """The image smoothed in place by the least factor by which the map shrinks it in any direction."""
    *rim, one = maps
    assert isinstance(one, Affine)
    larger = jnp.hypot(one.xx + one.yy, one.yx - one.xy)
    shrink = jnp.abs(larger - jnp.hypot(one.xx - one.yy, one.yx + one.xy)) / 2
    border = None if method.border is None or method.border.mode == "constant" else method.border
    for axis in (1, 0):
        centers = jnp.arange(image.shape[axis], dtype=jnp.float32) + 0.5
        size = rim[0].size[axis] if rim and isinstance(rim[0], Rim) else image.shape[axis]
        image = _weighted(image, axis, size, centers, shrink, method._replace(border=border, interpolation="bilinear"))
    return image


def _weighted(image: Canvas, axis: int, size: Size, centers: Numbers, scale: Numbers, method: Method) -> Canvas:
    """Weighted means along an axis around each centre: Pillow's filters, with its weights and its rounding."""
    border = method.border
    table = functools.partial(_table, method.shrink[axis], method, image.packed)
    # The table and the pixels apart: XLA would make the table anew for each pixel, and the columns for each row.
    if isinstance(size, jax.Array):
        tables = isolated(table, size, centers, scale)
    elif isinstance(centers, jax.Array):
        tables = isolated(functools.partial(table, size), centers, scale)
    else:
        tables = table(size, centers, scale)
    index, weights, missing = (_along(jnp.asarray(one), axis) for one in tables)

    def summed(image: Canvas, index: jax.Array, weights: jax.Array, missing: jax.Array) -> Canvas:
        planes = _sums(image, axis, index, weights)
        if border is not None and border.mode == "constant":
            planes = [
                plane + exact(missing[0] * fill) for plane, fill in zip(planes, _fills(image, border), strict=True)
            ]
        if image.packed:
            planes = [within((plane + (1 << (FIXED - 1))) >> FIXED, 0, 255) for plane in planes]
            return image.with_planes(planes)
        # Floats may be any, and a mean is between them; but white stays white.
        return image.with_planes([jnp.where((plane > 1) & (plane < 1 + ROUNDING), 1.0, plane) for plane in planes])

    return isolated(summed, image, index, weights, missing)


def _table(
    shrink: float, method: Method, packed: bool, size: Size, centers: Numbers, scale: Numbers
) -> tuple[Numbers, Numbers, Numbers]:
    """For each centre the pixels (N, T) that count, their weights, and what they lack of 1."""
    xp, dtype = _numpy_of(centers)
    reach, falling = FILTERS[method.interpolation]
    # Rounding may leave the scale of a whole image a little above what it shrinks by.
    support = xp.clip(scale, 1, shrink * (1 + 2.0**-20) if shrink > 1 else 1.0).astype(dtype)
    first = xp.floor(centers - reach * support + 0.5).astype(xp.int32)
    taps = first[:, None] + xp.arange(math.ceil(2 * reach * shrink))
    # A factor, since compilers turn some quotients into products, and a product has another rounding.
    weights = falling(exact(abs(taps + 0.5 - centers[:, None]) * (1 / support)), xp)
    inside = (taps >= 0) & (taps < size)
    border = method.border
    constant = border is not None and border.mode == "constant"
    framed = constant and method.frames
    if border is None or framed:
        weights = xp.where(inside, weights, 0)
    if framed:
        # Outside all is the border; a weight for what is not there keeps the sum from being 0.
        seen = (centers > 0) & (centers < size)
        weights = xp.where(seen[:, None], weights, xp.where(xp.arange(weights.shape[1]) == 0, 1, 0))
    weights = weights * (1 / _in_order(weights))
    if framed:
        weights = xp.where(seen[:, None], weights, 0)
    elif constant:
        weights = xp.where(inside, weights, 0)
    index = xp.clip(taps, 0, size - 1) if border is None or constant else inward(taps, size, border.mode)
    if packed:
        weights = xp.round(weights * 2**FIXED).astype(xp.int32)
    one = (1 << FIXED) if packed else 1
    return index, weights, xp.where(seen[:, None], 0, one).astype(weights.dtype) if framed else one - _in_order(weights)


def _linear(distance: Numbers, xp: ModuleType) -> Numbers:
    return xp.maximum(1 - distance, 0)


def _cubic(distance: Numbers, xp: ModuleType) -> Numbers:
    """Keys' piecewise cubic with a slope of -1/2 at the first zero (1981), as Pillow has it."""
    inner = exact(exact((exact(1.5 * distance) - 2.5) * distance) * distance) + 1
    outer = -0.5 * (exact((exact((distance - 5) * distance) + 8) * distance) - 4)
    return xp.where(distance < 1, inner, xp.where(distance < 2, outer, 0))


FILTERS: dict[str, tuple[int, Callable[[Numbers, ModuleType], Numbers]]] = {
    "bilinear": (1, _linear),
    "bicubic": (2, _cubic),
}
"""How far a filter reaches, in pixels of the coarser grid, and its weights by the distance."""


def _along(table: jax.Array, axis: int) -> jax.Array:
    """(N, T) as (T, N, 1) or (T, 1, N), to go with rows or with columns."""
    table = table.T if jnp.issubdtype(table.dtype, jnp.integer) else table.astype(jnp.float32).T
    return table[:, :, None] if axis == 0 else table[:, None, :]


def _in_order(weights: Numbers) -> Numbers:
    """The sums of rows, added up in order, so that all programs round alike."""
    return functools.reduce(operator.add, (weights[:, t : t + 1] for t in range(weights.shape[1])))


def _sums(image: Canvas, axis: int, index: jax.Array, weights: jax.Array) -> Planes:
    """For each channel the sums over ``t`` of ``weights[t]`` times the rows (or columns) ``index[t]``."""
    taps = index.shape[0]
    in_turn = functools.partial(_summed_in_turn if taps <= MOST_TAPS else _summed_in_halves, axis)
    if not image.packed or taps > MOST_EXACT:
        return in_turn(image, index, weights)
    planes: Planes = by_platform(
        lambda image, index, weights, _: in_turn(image, index, weights),
        image,
        index,
        weights,
        image.planes(),
        tpu=lambda image, index, weights, planes: _summed_in_bytes(axis, planes, index, weights),
    )
    return planes


def _summed_in_turn(axis: int, image: Canvas, index: jax.Array, weights: jax.Array) -> Planes:
    taps = index.shape[0]
    found = [
        image.with_words(_taken(word, index[t].reshape(-1), axis) for word in image.words).planes() for t in range(taps)
    ]
    return [
        functools.reduce(operator.add, (exact(weights[t] * found[t][i]) for t in range(taps)))
        for i in range(image.channels)
    ]


def _summed_in_halves(axis: int, image: Canvas, index: jax.Array, weights: jax.Array) -> Planes:
    taps = index.shape[0]
    count, size = max(index.shape[1:]), image.shape[axis]
    matrix = (
        jnp.zeros((count, size), weights.dtype)
        .at[jnp.arange(count), index.reshape(taps, count)]
        .add(weights.reshape(taps, count), mode="promise_in_bounds")
    )
    matrix = matrix if axis == 0 else matrix.T

    def product(part: jax.Array, plane: jax.Array) -> jax.Array:
        pair = (part, plane) if axis == 0 else (plane, part)
        return jnp.dot(*(one.astype(jnp.float32) for one in pair), precision=lax.Precision.HIGHEST)

    if not image.packed:
        return [product(matrix, plane) for plane in image.planes()]
    # In halves of 11 bits, whose products with 8 bits add up exactly in float32.
    high, low = matrix >> 11, matrix & 2047
    return [
        (product(high, plane).astype(jnp.int32) << 11) + product(low, plane).astype(jnp.int32)
        for plane in image.planes()
    ]


def _summed_in_bytes(axis: int, planes: Planes, index: jax.Array, weights: jax.Array) -> Planes:
    """The sums of 8-bit channels as products of bytes, which bfloat16 has exactly and whose sums float32 has."""
    taps = index.shape[0]
    count, size = max(index.shape[1:]), planes[0].shape[axis]
    source = lax.broadcasted_iota(jnp.int32, (count, size), 1)
    matrix = functools.reduce(
        operator.add,
        (jnp.where(index[t].reshape(count, 1) == source, weights[t].reshape(count, 1), 0) for t in range(taps)),
    )
    # The highest byte has the sign. Made once, not for each product.
    parts = lax.optimization_barrier(
        [part.astype(jnp.bfloat16) for part in (matrix >> 16, (matrix >> 8) & 255, matrix & 255)]
    )

    def product(part: jax.Array, plane: jax.Array) -> jax.Array:
        pair = ((part, plane), ((1,), (0,))) if axis == 0 else ((plane, part), ((1,), (1,)))
        return lax.dot_general(*pair[0], (pair[1], ((), ())), preferred_element_type=jnp.float32).astype(jnp.int32)

    sums = []
    for plane in planes:
        high, middle, low = (product(part, plane.astype(jnp.bfloat16)) for part in parts)
        sums.append((high << 16) + (middle << 8) + low)
    return sums


def _taken(array: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    return (array.at[index] if axis == 0 else array.at[:, index]).get(mode="promise_in_bounds")


def _fills(image: Canvas, border: Border | None) -> list[jax.Array]:
    return colors(0.0 if border is None else border.fill, image.channels, image.packed)


def word_fills(image: Canvas, border: Border | None) -> list[jax.Array]:
    """The colour in each word of a canvas."""
    planes = _fills(image, border)
    return [word.reshape(()) for word in image.with_planes([plane.reshape(1, 1) for plane in planes]).words]
