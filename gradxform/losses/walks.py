"""Which tiles of the matrix of pairs one device goes through, and in what order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core.numbers import wide_dtype
from gradxform.core.types import Size

Index: TypeAlias = int | jax.Array
"""The number of a tile or a device, traced where a loop goes through them."""
Ids: TypeAlias = jax.Array | None
"""An integer for each vector, of which those of equal ones are left out of each other's sums."""
Carry = TypeVar("Carry")
BLOCK = {"cpu": (512, 1024), "gpu": (4096, 4096), "tpu": (2048, 2048)}
"""Rows and columns of a tile, at least and at most: on a CPU from 1 MiB in float32 on, which a core's cache holds; on a
GPU, whose compiler divides the sums of small products and adds them up out of memory, 64 MiB."""
WHOLE = 2048
"""Up to so many rows and columns are one tile: its exponentials serve forward and backward pass, in 16 MiB at most."""


class Tiling(NamedTuple):
    """Which pairs count, and how they are gone through.

    Attributes:
      triangle: whether rows and columns are the same vectors: each unordered pair is taken once, on one device, and
        counts for its row and for its column; the whole of a vector is the sum of both, over devices. Else every row
        is taken with every column.
      columns: whether the log-sum-exps of columns are wanted too; in a triangle they are.
      bounded: whether no logit exceeds the scale and the scale is at most ``SAFE_SCALE``.
      group: without ids, so many vectors are left out of each other's sums; 0 for none.
      run: how far the vectors of a group stand apart: so many groups fill their places together.
      block: rows and columns of a tile, at most; None for what suits the platform.
      precision: of products of float32 vectors; narrower ones have one pass.
    """

    triangle: bool
    columns: bool
    bounded: bool
    group: int
    run: int = 1
    block: int | None = None
    precision: lax.Precision = lax.Precision.HIGHEST


class Walk:
    """The tiles that one device takes, in order of their rows, each row from the diagonal on.

    A rectangle is every tile. Of a triangle of ``M`` tiles a side, row tile ``g`` takes the column tiles ``g, g + 1,
    .., g + M // 2`` modulo ``M``: each pair of tiles once, and as many on each device that has some of the rows. Where
    ``M`` is even the last of them, which stands opposite, is that of two row tiles: one of them takes it.
    """

    def __init__(
        self,
        tiling: Tiling,
        rows: jax.Array,
        columns: jax.Array,
        first: jax.Array,
        row_ids: Ids,
        column_ids: Ids,
        platform: str,
    ) -> None:
        self._tiling = tiling
        self._size, self._columns_size = rows.shape[0], columns.shape[0]
        # Where rows stand among the columns, so do tiles: the columns of each device are filled up to tiles of rows.
        aligned = tiling.triangle or tiling.group > 0 or row_ids is not None
        self._parts = self._columns_size // self._size if aligned and self._columns_size % self._size == 0 else 1
        part = self._columns_size // self._parts
        self.down = _block(tiling, self._size, platform, self._parts)
        self.across = self.down if part == self._size else _block(tiling, part, platform, 1)
        self._tiles, self._part_tiles = -(-self._size // self.down), -(-part // self.across)
        if tiling.triangle and self._parts % 2 == 0 and self._tiles % 2:
            # Halves of a device's tiles take what stands opposite: where rounding has left an odd number, one is empty.
            self._tiles = self._part_tiles = self._tiles + 1
        self.row_count = self._tiles * self.down
        self.column_count = self._parts * self._part_tiles * self.across
        self.like = jnp.zeros_like(rows[0, 0], wide_dtype(rows.dtype))
        # Zeros that differ from device to device where the vectors do.
        self._chip = first // self._size
        self._part = part
        self._rows, self._columns = self.filled_rows(rows), self.filled_columns(columns)
        self._ids = None
        if row_ids is not None and column_ids is not None:
            self._ids = self.filled_rows(row_ids), self.filled_columns(column_ids)

    @property
    def single(self) -> bool:
        """Whether there is a single tile."""
        return self.row_count == self.down and self.column_count == self.across

    def order(self) -> list[tuple[range | jax.Array, int]]:
        """Row tiles, and how many column tiles each of them takes."""
        everyone = self.column_count // self.across
        every: range | jax.Array = range(self._tiles)
        if not self._tiling.triangle:
            return [(every, everyone)]
        if everyone % 2:
            return [(every, everyone // 2 + 1)]
        half = self._tiles // 2
        if self._parts % 2 == 0:
            # Opposite tiles have the same place on their devices: the first half of these take theirs for the first
            # half of the devices, the second half for the second.
            begin = jnp.where(self._chip < self._parts // 2, 0, half)
            every = (begin + jnp.arange(self._tiles, dtype=jnp.int32)) % self._tiles
        return [(every[:half], everyone // 2 + 1), (every[half:], everyone // 2)]

    def column(self, i: Size, n: Size) -> Size:
        """The ``n``-th column tile of row tile ``i``, counted from the diagonal."""
        if self._part_tiles == self._tiles and self._parts > 1:
            i = self._chip * self._tiles + i
        elif self._part_tiles != self._tiles:
            return n
        everyone = self.column_count // self.across
        return (i + n) % everyone

    def rows(self, i: Size) -> jax.Array:
        """The rows of a tile."""
        return cut(self._rows, i, self.down)

    def columns(self, j: Size) -> jax.Array:
        """The columns of a tile."""
        return cut(self._columns, j, self.across)

    def kept(self, i: Size, j: Size, on_diagonal: bool) -> jax.Array | None:
        """Which pairs of a tile count; None for all of them."""
        down, across = (jnp.arange(n, dtype=jnp.int32) for n in (self.down, self.across))
        kept = None
        if self._ids is not None:
            row_ids, column_ids = self._ids
            kept = cut(row_ids, i, self.down)[:, None] != cut(column_ids, j, self.across)[None]
        elif on_diagonal and self._tiling.group:
            # From the places in all, for what a loop need not count anew is kept beside it: a matrix of a tile.
            here = i * self.down
            kept = group_of(self._tiling, here + down)[:, None] != group_of(self._tiling, here + across)[None]
        if self.row_count != self._size:
            kept = _both(kept, (i * self.down + down < self._size)[:, None])
        if self._part_tiles * self.across != self._part:
            kept = _both(kept, (j % self._part_tiles * self.across + across < self._part)[None])
        return kept

    def filled_rows(self, array: jax.Array) -> jax.Array:
        """Filled up to whole tiles."""
        return fill(array, self.row_count)

    def filled_columns(self, array: jax.Array) -> jax.Array:
        """Filled up to whole tiles, those of each device by themselves."""
        size = self._part_tiles * self.across
        if size == self._part:
            return array
        parts = array.reshape(self._parts, self._part, *array.shape[1:])
        return fill(parts, size, 1).reshape(self.column_count, *array.shape[1:])

    def of_rows(self, array: jax.Array) -> jax.Array:
        """Without what was filled up."""
        return array[: self._size]

    def of_columns(self, array: jax.Array) -> jax.Array:
        """Without what was filled up."""
        size = self._part_tiles * self.across
        if size == self._part:
            return array
        parts = array.reshape(self._parts, size, *array.shape[1:])[:, : self._part]
        return parts.reshape(self._columns_size, *array.shape[1:])


def group_of(tiling: Tiling, places: jax.Array) -> jax.Array:
    """A number of the group that a vector is of, by its place."""
    return places // (tiling.group * tiling.run) * tiling.run + places % tiling.run


def _block(tiling: Tiling, size: int, platform: str, parts: int) -> int:
    """The rows of a tile: tiles of one size with little to fill up, in whole vectors of the hardware."""
    everyone, (least, most) = size * parts, BLOCK[platform]
    if tiling.block is not None:
        largest = tiling.block
    else:
        # Larger ones are faster where their memory does not count beside that of the vectors.
        largest = size if everyone <= WHOLE else min(max(everyone // 16, least), most)
    tiles = -(-size // largest)
    if tiling.triangle and parts % 2 == 0 and tiles % 2:
        tiles += 1
    rows = -(-size // tiles)
    multiple = math.lcm(8 if rows >= 64 and tiles > 1 else 1, max(tiling.group, 1) * tiling.run)
    return -(-rows // multiple) * multiple


def cut(array: jax.Array, index: Size, block: int, axis: int = 0) -> jax.Array:
    """A block of an array."""
    return lax.dynamic_slice_in_dim(array, index * block, block, axis)


def put(array: jax.Array, part: jax.Array, index: Size, axis: int = 0) -> jax.Array:
    """The array with another block."""
    return lax.dynamic_update_slice_in_dim(array, part, index * part.shape[axis], axis)


def fill(array: jax.Array, size: int, axis: int = 0) -> jax.Array:
    """Zeros behind, up to a size."""
    if array.shape[axis] == size:
        return array
    return jnp.pad(array, [(0, size - n if k == axis else 0) for k, n in enumerate(array.shape)])


def repeat(step: Callable[[Carry, Index], Carry], carry: Carry, over: Sequence[int] | jax.Array) -> Carry:
    """``step(carry, i)`` for each ``i``; a single one is no loop."""
    if len(over) <= 1:
        return step(carry, over[0]) if len(over) else carry
    return lax.scan(lambda carry, i: (step(carry, i), None), carry, jnp.asarray(over, jnp.int32))[0]


def _both(a: jax.Array | None, b: jax.Array) -> jax.Array:
    return b if a is None else a & b
