"""Look-ups on a TPU, where a gather of single elements takes a tile of memory for each: a walk over rows instead.

An image stays in VMEM. For each 8 x 128 pixels of the result, a register, the rows that they come from are gone
through; of each, 128 columns at a time, one gather along the lanes has for every pixel what it would find there, and a
choice takes it where the row is the pixel's. What costs is the number of rows that a register touches.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core.manual import varying_like
from gradxform.core.pallas import kernel_call, pl, pltpu
from gradxform.core.types import Size

SUBLANES, LANES = 8, 128
"""Of a register of 32-bit elements."""
ROWS = 256
"""Of a result that are written at a time."""
AHEAD = 8
"""Rows that a turn of the loop goes through, so that gathers do not wait for each other."""
FEW_TILES = 2
"""Up to so many tiles of columns are spelled out, so that their bounds are found side by side."""
VMEM = 14 * 2**20
"""Bytes of VMEM that a call may take, of the 16 MiB that compilers let it have."""
MOST_WORDS = 4
"""Arrays that are looked up together, since each has four registers of pixels found."""


class How(Protocol):
    """The arithmetic of a look-up, on arrays of pixels of any shape; known before the program runs."""

    @property
    def rows(self) -> int:
        """Of the image."""
        ...

    @property
    def columns(self) -> int:
        """Of the image."""
        ...

    @property
    def across(self) -> bool:
        """Whether the pixel to the right counts too."""
        ...

    @property
    def down(self) -> bool:
        """Whether those below do."""
        ...

    def sources(self, numbers: Sequence[jax.Array], i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The positions in the image of the pixels in rows i and columns j, from six numbers."""
        ...

    def first(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The column and the row of the pixel, or of the upper left one of four."""
        ...

    def result(self, corners: list[jax.Array], x: jax.Array, y: jax.Array, fill: jax.Array, which: int) -> jax.Array:
        """The word of a pixel in the array ``which`` from the words around its source, the lower ones last."""
        ...


def fits(how: How, height: int, width: int) -> bool:
    """Whether an image stays in VMEM: up to 1,024 x 1,024 pixels do."""
    return _most_words(how, height, width) > 0


def looked_up(
    how: How,
    words: tuple[jax.Array, ...],
    where: tuple[jax.Array, ...],
    fills: tuple[jax.Array, ...],
    height: int,
    width: int,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Arrays (height, width) made of arrays (H, W) of 32 bits.

    Args:
      how: the arithmetic.
      words: the arrays (H, W), of int32 or float32.
      where: six numbers, (6,), or the positions in the image of all pixels, x and y.
      fills: what there is beyond the rim, for each array.
      height: of the result.
      width: of the result.
      interpret: whether to run it without a TPU.

    Returns:
      The arrays.
    """
    few = min(_most_words(how, height, width), len(words))
    parts: tuple[jax.Array, ...] = ()
    for start in range(0, len(words), few):
        parts += _some(
            how,
            start,
            words[start : start + few],
            where,
            jnp.stack(fills[start : start + few])[None],
            height,
            width,
            interpret,
        )
    return parts


def _most_words(how: How, height: int, width: int) -> int:
    def room(height: int, width: int) -> int:
        # Twice: the next block comes in meanwhile; an image is there as it came in and in tiles apart.
        return 2 * 4 * _up(height, SUBLANES) * _up(width, LANES)

    out = room(min(height, ROWS), width)
    image = room(how.rows, how.columns)
    return min(MOST_WORDS, max(VMEM - 2 * out, 0) // (image + out))


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


@functools.partial(jax.jit, static_argnums=(0, 1, 5, 6, 7))
def _some(
    how: How,
    which: int,
    words: tuple[jax.Array, ...],
    where: tuple[jax.Array, ...],
    fills: jax.Array,
    height: int,
    width: int,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    rows = min(_up(height, SUBLANES), ROWS)
    image = pl.BlockSpec(
        (_up(how.rows, SUBLANES), _up(how.columns, LANES)), lambda r: (0, 0), pipeline_mode=pl.Buffered(1)
    )  # what the next one waits for is little beside the walk
    strip = pl.BlockSpec((rows, _up(width, LANES)), lambda r: (r, 0))
    scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
    if len(where) == 1:
        where = (where[0][None],)
    # Inside ``shard_map`` all differ from device to device as any of them does.
    words, where, fills = varying_like((words, where, fills), (words, where, fills))
    alike = [
        jax.ShapeDtypeStruct((height, width), word.dtype, manual_axis_type=jax.typeof(word).manual_axis_type)
        for word in words
    ]
    return tuple(
        kernel_call(
            functools.partial(_kernel, how, which, len(words), height, width, rows),
            grid=(pl.cdiv(height, rows),),
            in_specs=[scalars, *[scalars if len(where) == 1 else strip] * len(where), *[image] * len(words)],
            out_specs=[strip] * len(words),
            out_shape=alike,
            interpret=interpret,
            scratch_shapes=[
                pltpu.VMEM((-(-how.columns // LANES), _up(how.rows, SUBLANES), LANES), word.dtype) for word in words
            ],
            name="look_up",
        )(fills, *where, *words)
    )


class _Block(NamedTuple):
    """Pixels of a result, 8 x 128: their positions, and the column and row of the first pixel that each looks up."""

    x: jax.Array
    y: jax.Array
    left: jax.Array
    top: jax.Array
    bounds: list[tuple[jax.Array, jax.Array]]


Found: TypeAlias = tuple[list[jax.Array], ...]
"""Words that have been looked up, a list for each of one or two rows."""


def _kernel(
    how: How, which: int, count: int, height: int, width: int, rows: int, fills: jax.Ref, *refs: jax.Ref
) -> None:
    where, (images, results, words) = refs[: -3 * count], (refs[n * count :][:count] for n in (-3, -2, -1))
    tiles, across = -(-how.columns // LANES), -(-width // LANES)
    start = pl.program_id(0) * rows

    # A single row can be read from where rows follow each other: tiles of columns apart.
    def apart(strip: Size, _: None) -> None:
        at = pl.ds(_at(strip, SUBLANES), SUBLANES)
        for image, word in zip(images, words, strict=True):
            for t in range(tiles):
                word[t, at, :] = image[at, t * LANES : (t + 1) * LANES]

    lax.fori_loop(0, -(-how.rows // SUBLANES), apart, None)

    def begun(strip: Size, tile: Size) -> _Block:
        down, beside = _at(strip, SUBLANES), _at(tile, LANES)
        i = lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 0) + (start + down)
        j = lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 1) + beside
        if len(where) == 1:
            x, y = how.sources([where[0][0, n] for n in range(6)], i, j)
        else:
            x, y = (one[pl.ds(down, SUBLANES), pl.ds(beside, LANES)] for one in where)
        left, top = how.first(x, y)
        # Beyond the rim of the result there is nothing to look up.
        top = jnp.where((i < height) & (j < width), top, -1)
        block = _Block(x, y, left, top, [])
        return block._replace(bounds=[bounds(block, t) for t in range(tiles)]) if tiles <= FEW_TILES else block

    def keys(block: _Block, tile: Size) -> tuple[jax.Array, ...]:
        """The row of the pixels whose left, or right, neighbour is in a tile of columns; of others -1."""
        if tiles == 1:
            return (block.top,) * (1 + how.across)
        sides = (block.left, jnp.minimum(block.left + 1, how.columns - 1))[: 1 + how.across]
        return tuple(jnp.where(side >> 7 == tile, block.top, -1) for side in sides)

    def bounds(block: _Block, tile: Size) -> tuple[jax.Array, jax.Array]:
        highest = functools.reduce(jnp.maximum, keys(block, tile))
        return jnp.min(jnp.where(highest < 0, how.rows, highest)), jnp.max(highest)

    def walked(block: _Block, tile: Size, first: jax.Array, last: jax.Array, found: Found) -> Found:
        """What is found in the columns of a tile, for each array those above and then those below."""
        key = keys(block, tile)
        lanes = (block.left & (LANES - 1), jnp.minimum(block.left + 1, how.columns - 1) & (LANES - 1))[: len(key)]

        def row(k: jax.Array) -> list[jax.Array]:
            k = jnp.minimum(k, how.rows - 1)
            lines = [jnp.broadcast_to(word[tile, pl.ds(k, 1), :], (SUBLANES, LANES)) for word in words]
            return [_along_lanes(line, lane) for line in lines for lane in lanes]

        def turn(m: jax.Array, carry: Found) -> Found:
            here, *found = carry
            for k in [first + m * AHEAD + ahead for ahead in range(AHEAD)]:
                hit = [one == k for one in key] if len(key) == 1 or key[0] is not key[1] else [key[0] == k] * 2
                hits = hit * count
                if how.down:
                    below = row(k + 1)
                    found = [_chosen(hits, here, found[0]), _chosen(hits, below, found[1])]
                    here = below
                else:
                    found = [_chosen(hits, row(k), found[0])]
            return here, *found

        carry = (row(first) if how.down else [], *found)
        return lax.fori_loop(0, lax.div(last - first + AHEAD, AHEAD), turn, carry)[1:]

    def ended(strip: Size, tile: Size, block: _Block) -> None:
        nothing = [jnp.zeros((SUBLANES, LANES), word.dtype) for word in words for _ in range(1 + how.across)]
        found: Found = (nothing,) * (1 + how.down)
        if tiles <= FEW_TILES:
            for t, (first, last) in enumerate(block.bounds):
                found = walked(block, t, first, last, found)
        else:
            seen = block.top >= 0
            least = jnp.min(jnp.where(seen, block.left, how.columns)) >> 7
            most = jnp.max(jnp.where(seen, jnp.minimum(block.left + how.across, how.columns - 1), -1)) >> 7
            found = lax.fori_loop(least, most + 1, lambda t, found: walked(block, t, *bounds(block, t), found), found)
        wide = 1 + how.across
        for n, result in enumerate(results):
            corners = [one for row in found for one in row[n * wide : (n + 1) * wide]]
            result[pl.ds(_at(strip, SUBLANES), SUBLANES), pl.ds(_at(tile, LANES), LANES)] = how.result(
                corners, block.x, block.y, fills[0, n], which + n
            )

    def one(strip: Size, _: None) -> None:
        if across <= FEW_TILES:
            blocks = [begun(strip, tile) for tile in range(across)]
            for tile, block in enumerate(blocks):
                ended(strip, tile, block)
        else:
            lax.fori_loop(0, across, lambda tile, _: ended(strip, tile, begun(strip, tile)), None)

    lax.fori_loop(0, lax.div(jnp.minimum(rows, height - start + SUBLANES - 1), SUBLANES), one, None)


def _at(tile: Size, size: int) -> Size:
    return tile * size if isinstance(tile, int) else pl.multiple_of(tile * size, size)


def _chosen(hits: list[jax.Array], new: list[jax.Array], old: list[jax.Array]) -> list[jax.Array]:
    return [jnp.where(hit, a, b) for hit, a, b in zip(hits, new, old, strict=True)]


def _along_lanes(line: jax.Array, lane: jax.Array) -> jax.Array:
    """``take_along_axis`` along the last axis, for lanes that there are."""
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=(1,),
        start_index_map=(1,),
        operand_batching_dims=(0,),
        start_indices_batching_dims=(0,),
    )
    return lax.gather(line, lane[..., None], numbers, (1, 1), mode="promise_in_bounds")
