"""Look-ups: the elements of arrays at places, and pixels blended of those around their source.

What is done for each pixel is split into passes over the image: where it comes from, what is there, and the blend. In
one pass XLA's CPU backend would find the place anew for each look-up, in a loop that it vectorizes badly. A TPU does
the same arithmetic in one kernel, ``lookup_tpu``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradxform.augment.geometry.borders import Border, colors, inward_position
from gradxform.augment.geometry.placement import Addends, Affine, Map, added, centers, moves, sources
from gradxform.augment.pixels.arithmetic import exact, inward, whole
from gradxform.augment.pixels.canvas import Canvas
from gradxform.core.divide import is_local
from gradxform.core.isolate import isolated
from gradxform.core.platform import by_platform
from gradxform.core.types import PyTree, Scalar

POSITION_BITS = 16
"""Bits behind the point of positions of nearest pixels, as Pillow has them."""
Words = tuple[jax.Array, ...]
"""Arrays (H, W) that are looked up at the same places."""


def elements_at(array: jax.Array, place: jax.Array) -> jax.Array:
    """The elements of an array (N, ...) at places; before and beyond it the first and the last."""
    return array.at[place].get(mode="clip", wrap_negative_indices=False)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """What a program knows: the image's size, what lies beyond its rim, and some numbers of the map.

    Attributes:
      rows: of the image.
      columns: of the image.
      mode: of the border.
      filled: whether there is a colour beyond the rim.
      known: the numbers of a map that are known before the program runs.
    """

    rows: int
    columns: int
    mode: str
    filled: bool
    known: tuple[float | None, ...]

    @classmethod
    def of(cls, shape: Sequence[int], border: Border | None, maps: list[Map], **more: Any) -> Self:
        """The rule of an image (H, W, ...)."""
        mode = "constant" if border is None else border.mode
        known = tuple(None if isinstance(one, jax.Array) else float(one) for one in _affine(maps))
        return cls(shape[0], shape[1], mode, border is not None and mode == "constant", known, **more)

    def sources(self, numbers: Sequence[jax.Array], i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where pixels come from by an affine map."""
        one = Affine(*(number if known is None else known for number, known in zip(numbers, self.known, strict=True)))
        return one(j.astype(jnp.float32) + 0.5, i.astype(jnp.float32) + 0.5)

    def inside(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Whether positions are in the image."""
        return (x >= 0) & (x < self.columns) & (y >= 0) & (y < self.rows)


def _affine(maps: list[Map]) -> tuple[Scalar, ...]:
    """The numbers of the map, if it is an affine one."""
    return tuple(maps[0]) if len(maps) == 1 and isinstance(maps[0], Affine) else ()


@dataclasses.dataclass(frozen=True)
class _Nearest(_Rule):
    """The pixel that a position lies in; ``fixed`` for positions in Pillow's arithmetic."""

    fixed: bool
    across = down = False

    def sources(self, numbers: Sequence[jax.Array], i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The column and the row of the source."""
        if not self.fixed:
            return super().sources(numbers, i, j)
        xx, xy, x0, yx, yy, y0 = numbers
        return (x0 + xx * j + xy * i) >> POSITION_BITS, (y0 + yx * j + yy * i) >> POSITION_BITS

    def pixel(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The column and the row of a position, beyond the rim too."""
        return (x, y) if self.fixed else (jnp.floor(x).astype(jnp.int32), jnp.floor(y).astype(jnp.int32))

    def first(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The column and the row that are looked up."""
        column, row = self.pixel(x, y)
        return inward(column, self.columns, self.mode), inward(row, self.rows, self.mode)

    def result(
        self, corners: Sequence[jax.Array], x: jax.Array, y: jax.Array, fill: jax.Array, which: int
    ) -> jax.Array:
        """The element found, or the fill."""
        return jnp.where(self.inside(*self.pixel(x, y)), corners[0], fill) if self.filled else corners[0]


@dataclasses.dataclass(frozen=True)
class _Bilinear(_Rule):
    """What lies between pixels.

    Attributes:
      across: whether it lies between two columns.
      down: whether it lies between two rows.
      bytes: how many channels there are in each word; none of floats.
    """

    across: bool
    down: bool
    bytes: tuple[int, ...]

    def position(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Positions from the centre of the first pixel, up to that of the last."""
        return inward_position(x - 0.5, self.columns, self.mode), inward_position(y - 0.5, self.rows, self.mode)

    def first(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The column and the row of the upper left of four pixels."""
        left, top = self.position(x, y)
        return whole(left), whole(top)

    def blended(self, corners: Sequence[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        """Channels from those of the pixels around the source."""
        fx, fy = (part - jnp.floor(part) for part in self.position(x, y))
        values = [corner.astype(jnp.float32) for corner in corners]
        if self.across:
            values = [one + exact((other - one) * fx) for one, other in zip(values[::2], values[1::2], strict=True)]
        return values[0] if len(values) == 1 else values[0] + exact((values[1] - values[0]) * fy)

    def result(
        self, corners: Sequence[jax.Array], x: jax.Array, y: jax.Array, fill: jax.Array, which: int
    ) -> jax.Array:
        """A word, or channels of floats."""
        if not self.bytes:
            value = self.blended(corners, x, y)
            # Products, for with a choice between the two the loop over pixels would not be vectorized.
            inside = self.inside(x, y).astype(jnp.float32) if self.mode == "constant" else None
            return value if inside is None else value * inside + fill * (1 - inside)
        canvas = Canvas((corners[0],), self.bytes[which], jnp.uint8)
        planes = [canvas.with_words([corner]).planes() for corner in corners]
        word = canvas.with_planes([whole(self.blended(one, x, y)) for one in zip(*planes, strict=True)]).words[0]
        return jnp.where(self.inside(x, y), word, fill) if self.mode == "constant" else word


def bilinear(image: Canvas, border: Border | None, maps: list[Map], height: int, width: int) -> Canvas:
    """An image of (height, width) whose pixels come from between those that the maps name."""
    rows, columns, channels = image.shape
    # At the centre of the last pixel of a row or column the one after it has no weight, whichever it is. Where a map
    # leaves columns or rows as they are, no other ever has any.
    across, down = moves(maps)
    offsets = [below + beside for below in ((0, columns) if down else (0,)) for beside in ((0, 1) if across else (0,))]
    rule: _Bilinear = _Bilinear.of(
        (rows, columns),
        border,
        maps,
        across=across,
        down=down,
        bytes=tuple(min(4, channels - start) for start in range(0, channels, 4)) if image.packed else (),
    )
    # What a single map adds up for each pixel is quicker added again than its result is read.
    found: Addends = (
        maps[0].addends(*centers(height, width))
        if len(maps) == 1
        else isolated(lambda maps: tuple((part,) for part in sources(maps, height, width)), maps)
    )
    fills = colors(0.0 if border is None else border.fill, channels, image.packed)

    def first(found: Addends) -> jax.Array:
        left, top = rule.first(*added(found))
        return jnp.broadcast_to(top * columns + left, (height, width))

    def around(words: Words, place: jax.Array) -> Words:
        places = place + jnp.array(offsets, jnp.int32)[:, None, None]
        return tuple(elements_at(word.reshape(-1), places) for word in words)

    def packed(corners: Words, found: Addends, fills: Words) -> Words:
        return tuple(
            rule.result([word[i] for i in range(len(offsets))], *added(found), fill, n)
            for n, (word, fill) in enumerate(zip(corners, fills, strict=True))
        )

    def side_by_side(pixels: jax.Array, place: jax.Array, found: Addends, fill: jax.Array) -> jax.Array:
        x, y = (part[:, :, None] for part in added(found))
        place, channel, flat = place[:, :, None], jnp.arange(channels), pixels.reshape(-1)
        return rule.result([elements_at(flat, (place + one) * channels + channel) for one in offsets], x, y, fill, 0)

    def portable(words: Words, found: Addends, fills: Words) -> Words:
        place = isolated(first, found)
        if image.packed:
            return isolated(packed, isolated(around, words, place), found, fills)
        # The channels of a pixel are near in memory.
        pixels = isolated(side_by_side, jnp.stack(words, -1), place, found, jnp.stack(fills))
        return tuple(pixels[..., i] for i in range(channels))

    colored = tuple(word.reshape(()) for word in image.with_planes([fill.reshape(1, 1) for fill in fills]).words)
    return image.with_words(
        _looked_up(rule, portable, added, _numbers(maps), image.words, found, colored, height, width)
    )


def picked(
    array: jax.Array, border: Border | None, maps: list[Map], height: int, width: int, fill: jax.Array, fixed: bool
) -> jax.Array:
    """An array (height, width, ...) of the nearest elements of an array (H, W, ...).

    Args:
      array: whose elements are taken.
      border: what lies beyond the rim; None where nothing of it is asked for.
      maps: from positions in the result to positions in the array.
      height: of the result.
      width: of the result.
      fill: the element beyond the rim.
      fixed: whether positions are found in Pillow's arithmetic; then the map is one affine map.

    Returns:
      The array.
    """
    fixed = fixed and max(height, width) < 1 << (31 - POSITION_BITS - 2)
    *rim, _ = maps
    rule: _Nearest = _Nearest.of(array.shape, border, maps, fixed=fixed and not rim)
    numbers = _numbers(maps) if not fixed else () if rim else _fixed(maps)
    found: PyTree = (_fixed(maps[-1:])[0], tuple(rim)) if fixed else tuple(maps)

    def positions(found: PyTree) -> tuple[jax.Array, jax.Array]:
        if not fixed:
            return sources(found, height, width)
        (xx, xy, x0, yx, yy, y0), rim = found
        i, j = jnp.arange(height, dtype=jnp.int32)[:, None], jnp.arange(width, dtype=jnp.int32)
        x, y = (x0 + xx * j + xy * i) >> POSITION_BITS, (y0 + yx * j + yy * i) >> POSITION_BITS
        for one in rim:
            x, y = one(x + 0.5, y + 0.5)
        return x, y

    def place(found: PyTree) -> jax.Array:
        x, y = positions(found)
        column, row = rule.first(x, y)
        pixel = row * rule.columns + column
        return lax.select(rule.inside(*rule.pixel(x, y)), pixel, jnp.full_like(pixel, -1)) if rule.filled else pixel

    def portable(words: Words, found: PyTree, fills: Words) -> Words:
        # Apart, as bilinear pixels are: where they come from, what is there, and the fill.
        at = isolated(place, found)
        results = tuple(elements_at(word.reshape(-1, *word.shape[2:]), at) for word in words)
        return (
            tuple(
                isolated(lambda at, *args: where_inside(at >= 0, *args), at, result, fill)
                for result, fill in zip(results, fills, strict=True)
            )
            if rule.filled
            else results
        )

    fills = (fill.astype(array.dtype),)
    return _looked_up(rule, portable, positions, numbers, (array,), found, fills, height, width)[0]


def where_inside(inside: jax.Array, array: jax.Array, fill: jax.Array) -> jax.Array:
    """The elements (H, W, ...) of pixels (H, W) that are inside, and the fill for the others."""
    return jnp.where(inside.reshape(inside.shape + (1,) * (array.ndim - 2)), array, fill.astype(array.dtype))


def _numbers(maps: list[Map]) -> tuple[jax.Array, ...]:
    """The numbers of the map, if it is an affine one, as an array."""
    numbers = _affine(maps)
    return (jnp.stack([jnp.asarray(one, jnp.float32) for one in numbers]),) if numbers else ()


def _fixed(maps: list[Map]) -> tuple[jax.Array]:
    """The numbers of an affine map of rows and columns, with bits behind the point."""
    (one,) = maps
    assert isinstance(one, Affine)
    x0, y0 = one(0.5, 0.5)
    numbers = jnp.stack([jnp.asarray(number, jnp.float32) for number in one._replace(x0=x0, y0=y0)])
    return (jnp.floor(numbers * 2**POSITION_BITS + 0.5).astype(jnp.int32),)


def _looked_up(
    rule: _Nearest | _Bilinear,
    portable: Callable[..., Words],
    positions: Callable[[PyTree], tuple[jax.Array, jax.Array]],
    numbers: Words,
    words: Words,
    found: PyTree,
    fills: Words,
    height: int,
    width: int,
) -> Words:
    """Words as ``portable`` makes them of words, what says where they come from, and fills; by a kernel on a TPU."""
    from gradxform.augment.geometry import lookup_tpu  # what it imports takes a while

    if words[0].dtype.itemsize > 4 or not lookup_tpu.fits(rule, height, width) or not is_local(words[0]):
        return portable(words, found, fills)

    def walked(words: Words, found: PyTree, fills: Words, numbers: Words) -> Words:
        where = numbers or tuple(jnp.broadcast_to(one, (height, width)) for one in positions(found))
        look = functools.partial(lookup_tpu.looked_up, rule, where=where, height=height, width=width)
        wide = [_wide(word) for word in words]
        filled = tuple(_wide(fill) for fill in fills)
        if words[0].ndim == 2:
            return tuple(_narrow(one, words[0].dtype) for one in look(tuple(wide), fills=filled))
        planes = jnp.moveaxis(wide[0].reshape(*words[0].shape[:2], -1), -1, 0)
        (result,) = jax.vmap(lambda plane: look((plane,), fills=filled))(planes)
        return (_narrow(jnp.moveaxis(result, 0, -1).reshape(height, width, *words[0].shape[2:]), words[0].dtype),)

    return by_platform(lambda *args: portable(*args[:3]), words, found, fills, numbers, tpu=walked)


def _wide(array: jax.Array) -> jax.Array:
    """The same bits in 32."""
    size = array.dtype.itemsize
    if size == 4:
        return array
    unsigned = (
        array.astype(jnp.uint8)
        if array.dtype == bool
        else lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * size}"))
    )
    return unsigned.astype(jnp.int32)


def _narrow(array: jax.Array, dtype: np.dtype) -> jax.Array:
    if array.dtype == dtype:
        return array
    if jnp.issubdtype(dtype, jnp.bool_):
        return array != 0
    return lax.bitcast_convert_type(array.astype(jnp.dtype(f"uint{8 * dtype.itemsize}")), dtype)
