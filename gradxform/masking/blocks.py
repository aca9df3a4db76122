"""Masks made of larger pieces: blocks and units of an image's patches, spans of a sequence."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core import arrays
from gradxform.core.arrays import one_key
from gradxform.masking.random import shuffled, sizes, within

ATTEMPTS = 10


def block_masking(
    key: jax.Array,
    batch: int,
    grid: int | tuple[int, int],
    num_masked: int,
    *,
    min_block: int = 4,
    max_block: int | None = None,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> jax.Array:
    """Masks rectangular blocks of an image's patches, an exact number of patches in all.

    Bao et al., "BEiT: BERT Pre-Training of Image Transformers" (ICLR 2022), algorithm 1. Blocks are laid one after
    another, each with a uniform area and a log-uniform aspect ratio, at a uniform place. As in the published code, the
    area is at most what is still to be masked; a block that does not fit in the grid, masks nothing new or masks too
    much is drawn again; and after 10 such draws in a row there are no more blocks. That code then masks too few
    patches. Here the count is made exact: what is missing, mostly nothing or a patch, is added at the rim of the
    blocks, in random order those patches first that have most masked neighbors. No block is ever cut. (On a grid much
    longer than it is wide few blocks of the usual aspect fit, and most is added that way.)

    Args:
      key: a random key.
      batch: the number of examples, >= 1; each has blocks of its own; static.
      grid: the rows and columns of patches, or one number for both; static.
      num_masked: how many patches are masked in each example, 0 to all; static.
      min_block: the smallest area to draw, in patches, >= 1; less where less is left to mask. Sides are rounded, so a
        block may come out a little smaller or larger. Static.
      max_block: the largest area to draw, in patches; None for no limit but ``num_masked``. Static.
      aspect: the smallest and the largest ratio of height to width. Static.

    Returns:
      The mask, true where a patch is masked: bool of shape (batch, rows, columns). ``mask.reshape(batch, -1)`` is
      in the order of ``patchify``.

    Raises:
      TypeError: ``key`` is no random key, or an argument is of the wrong type or not static.
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx, jax
      >>> mask = gx.masking.block_masking(jax.random.key(0), batch=2, grid=(14, 14), num_masked=75)
      >>> mask.shape, mask.sum((1, 2)).tolist()
      ((2, 14, 14), [75, 75])
    """
    key = one_key("key", key)
    rows, columns = arrays.pair("grid", grid)
    num_masked = arrays.size("num_masked", num_masked, at_least=0, at_most=rows * columns)
    min_block = arrays.size("min_block", min_block)
    if max_block is not None:
        max_block = arrays.size("max_block", max_block, at_least=min_block)
    if not isinstance(aspect, (tuple, list)) or len(aspect) != 2:
        raise TypeError(f"aspect: expected a pair of numbers, got {aspect!r}")
    low, high = (arrays.number("aspect", value, above=0, below=math.inf) for value in aspect)
    if low > high:
        raise ValueError(f"aspect: expected the smallest ratio before the largest, got {aspect!r}")
    return _block_masking(
        key,
        arrays.size("batch", batch),
        rows,
        columns,
        num_masked,
        min_block,
        num_masked if max_block is None else max_block,
        low,
        high,
    )


@functools.partial(jax.jit, static_argnums=tuple(range(1, 9)))
def _block_masking(
    key: jax.Array,
    batch: int,
    rows: int,
    columns: int,
    num_masked: int,
    min_block: int,
    max_block: int,
    low: float,
    high: float,
) -> jax.Array:
    fill_key, block_key = jax.random.split(key)
    noise = jax.random.uniform(fill_key, (batch, rows, columns))

    def missing(mask: jax.Array) -> jax.Array:
        return num_masked - jnp.sum(mask, (1, 2), dtype=jnp.int32)

    def active(mask: jax.Array, failures: jax.Array) -> jax.Array:
        return (missing(mask) > 0) & (failures < ATTEMPTS)

    def lay(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        draw, mask, failures = carry
        left = missing(mask)
        block, fits = _block(
            jax.random.uniform(jax.random.fold_in(block_key, draw), (4, batch)),
            rows,
            columns,
            min_block,
            jnp.minimum(left, max_block),
            low,
            high,
        )
        new = jnp.sum(block & ~mask, (1, 2), dtype=jnp.int32)
        lays = active(mask, failures) & fits & (new > 0) & (new <= left)
        return draw + 1, mask | (block & lays[:, None, None]), jnp.where(lays, 0, failures + 1)

    # Of the noise, so that inside shard_map they vary with the devices as the key does.
    nothing, never = noise < 0, jnp.zeros_like(noise[:, 0, 0], jnp.int32)
    start = jnp.zeros([], jnp.int32), nothing, never
    _, mask, _ = lax.while_loop(lambda carry: jnp.any(active(carry[1], carry[2])), lay, start)

    # The count of masked neighbors decides, the noise between equals.
    beside = jnp.pad(mask, ((0, 0), (1, 1), (1, 1))).astype(noise.dtype)
    beside = (beside[:, :-2, 1:-1] + beside[:, 2:, 1:-1] + beside[:, 1:-1, :-2] + beside[:, 1:-1, 2:]) + noise
    order = jnp.argsort(jnp.where(mask, -1, beside).reshape(batch, -1), axis=1, descending=True)
    rank = jnp.argsort(order, axis=1).reshape(mask.shape)
    return mask | (rank < missing(mask)[:, None, None])


def _block(
    uniform: jax.Array, rows: int, columns: int, min_block: int, largest: jax.Array, low: float, high: float
) -> tuple[jax.Array, jax.Array]:
    """A block for each example, of shape (batch, rows, columns), and whether it fits in the grid."""
    area = min_block + uniform[0] * (largest - min_block)
    ratio = jnp.exp(math.log(low) + uniform[1] * (math.log(high) - math.log(low)))
    height, width = (jnp.maximum(jnp.round(jnp.sqrt(side)), 1) for side in (area * ratio, area / ratio))

    def within(count: int, side: jax.Array, place: jax.Array) -> jax.Array:
        start = jnp.floor(place * (count - side + 1))
        at = jnp.arange(count, dtype=side.dtype)
        return (at >= start[:, None]) & (at < (start + side)[:, None])

    block = within(rows, height, uniform[2])[:, :, None] & within(columns, width, uniform[3])[:, None, :]
    return block, (height <= rows) & (width <= columns)


def grid_masking(
    key: jax.Array, batch: int, grid: int | tuple[int, int], unit: int | tuple[int, int], ratio: float = 0.6
) -> jax.Array:
    """Masks square units of an image's patches, drawn from the coarser grid that they form.

    Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling" (CVPR 2022), section 3.2: of the units,
    ``ceil(ratio * count)`` are masked, all choices equally likely. SimMIM's own units are of 32 pixels: 8 patches of
    4 pixels, or 2 of 16.

    Args:
      key: a random key.
      batch: the number of examples, >= 1; each has units of its own; static.
      grid: the rows and columns of patches, or one number for both; static.
      unit: the rows and columns of patches of a unit, or one number for both; they divide those of the grid. Static.
      ratio: the share of the units to mask, > 0 and < 1; static.

    Returns:
      The mask, true where a patch is masked: bool of shape (batch, rows, columns), with
      ``ceil(ratio * count)`` units in each example. ``mask.reshape(batch, -1)`` is in the order of ``patchify``.

    Raises:
      TypeError: ``key`` is no random key, or an argument is of the wrong type or not static.
      ValueError: a number out of its range, or units that do not divide the grid.

    Example:
      >>> import gradxform as gx, jax
      >>> mask = gx.masking.grid_masking(jax.random.key(0), batch=2, grid=(12, 12), unit=2, ratio=0.6)
      >>> mask.shape, mask.sum((1, 2)).tolist()
      ((2, 12, 12), [88, 88])
    """
    key = one_key("key", key)
    grid, unit = arrays.pair("grid", grid), arrays.pair("unit", unit)
    if grid[0] % unit[0] or grid[1] % unit[1]:
        raise ValueError(
            f"unit: expected a divisor of the grid of {grid[0]} x {grid[1]} patches, got {unit[0]} x {unit[1]}"
        )
    ratio = arrays.number("ratio", ratio, above=0, below=1)
    count = (grid[0] // unit[0]) * (grid[1] // unit[1])
    return _grid_masking(key, arrays.size("batch", batch), grid, unit, math.ceil(count * ratio))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _grid_masking(
    key: jax.Array, batch: int, grid: tuple[int, int], unit: tuple[int, int], num_units: int
) -> jax.Array:
    rows, columns = grid[0] // unit[0], grid[1] // unit[1]
    mask = (shuffled(key, batch, rows * columns) < num_units).reshape(batch, rows, 1, columns, 1)
    return jnp.broadcast_to(mask, (batch, rows, unit[0], columns, unit[1])).reshape(batch, *grid)


def span_masking(
    key: jax.Array,
    batch: int,
    length: int,
    num_masked: int | jax.Array,
    mean_span: float = 3.0,
    *,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """Masks spans of a sequence, an exact number of tokens in all.

    As in Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (JMLR
    2020), section 3.1.4, the numbers of tokens and of spans, ``round(num_masked / mean_span)``, are fixed; every way
    to lay so many tokens in so many spans apart from each other is equally likely. The lengths are those of
    independent geometric draws, as in Joshi et al., "SpanBERT" (TACL 2020), section 3.1, with the right sum: the count
    is exact, and nothing is cut or drawn again. Unlike in T5's published code, a sequence may begin with a span and
    need not end with one.

    Args:
      key: a random key.
      batch: the number of examples, >= 1; each has spans of its own; static.
      length: the number of tokens of an example, >= 1; static.
      num_masked: how many of them are masked, 0 to ``length``: a static integer, or a number for each example, integers
        of shape (batch,), such as a share of ``lengths``. Of an example that has fewer tokens, all are.
      mean_span: the mean length of a span, >= 1; T5's is 3, SpanBERT's 3.8. Spans are longer where so many do not
        fit apart from each other. Static.
      lengths: how many tokens of each example are no padding, integers of shape (batch,), 0 to ``length``; None where
        there is no padding. Padding stands behind the tokens and is never masked.

    Returns:
      The mask, true where a token is masked: bool of shape (batch, length).

    Raises:
      TypeError: ``key`` is no random key, or an argument is of the wrong type or not static.
      ValueError: a number out of its range, or an array of another shape.

    Example:
      >>> import gradxform as gx, jax
      >>> gx.masking.span_masking(jax.random.key(0), batch=2, length=40, num_masked=6).sum(1).tolist()
      [6, 6]
      >>> lengths = jax.numpy.array([40, 10])
      >>> mask = gx.masking.span_masking(jax.random.key(0), 2, 40, lengths // 5, lengths=lengths)
      >>> mask.sum(1).tolist(), int(mask[1, 10:].sum())
      ([8, 2], 0)
    """
    key = one_key("key", key)
    batch, length = arrays.size("batch", batch), arrays.size("length", length)
    mean_span = arrays.number("mean_span", mean_span, at_least=1, below=math.inf)
    if jnp.ndim(num_masked) == 0:
        most = arrays.size("num_masked", num_masked, at_least=0, at_most=length)
        counts, least = jnp.full((batch,), most), most
    else:
        counts, most, least = sizes("num_masked", num_masked, batch), length, 0
    # From how many tokens on there are so many spans, rounded as Python rounds.
    spans = [max(1, round(count / mean_span)) for count in range(most + 1)]
    further = tuple(count for count in range(1, most + 1) for _ in range(spans[count] - spans[count - 1]))
    lengths = None if lengths is None else sizes("lengths", lengths, batch)
    return _span_masking(key, counts, lengths, batch, length, most, least, further)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _span_masking(
    key: jax.Array,
    counts: jax.Array,
    lengths: jax.Array | None,
    batch: int,
    length: int,
    most: int,
    least: int,
    further: tuple[int, ...],
) -> jax.Array:
    if most == 0:
        return jnp.zeros((batch, length), jnp.bool_)
    lengths = jnp.full_like(counts, length) if lengths is None else jnp.clip(lengths, 0, length)
    counts = jnp.clip(counts, 0, lengths)
    num_spans = 1 + jnp.sum(counts[:, None] >= jnp.asarray(further, jnp.int32), axis=1, dtype=jnp.int32)
    num_spans = jnp.minimum(num_spans, lengths - counts + 1)
    widest = min(1 + len(further), length - least + 1)
    cut_key, gap_key = jax.random.split(key)
    # The masked tokens in a row are cut at distinct places into spans. Between the others, and at both ends, there is
    # a gap for at most one of them. Spans beyond those of an example are empty, behind its tokens.
    cuts = 1 + _some(cut_key, counts - 1, num_spans - 1, most - 1)[:, : widest - 1]
    gaps = _some(gap_key, lengths - counts + 1, num_spans, length - least + 1)[:, :widest]
    starts = gaps + jnp.pad(cuts, ((0, 0), (1, 0)))
    ends = gaps + jnp.concatenate([cuts, counts[:, None]], axis=1)
    steps = jax.vmap(lambda starts, ends: jnp.zeros(length + 1, jnp.int32).at[starts].add(1).at[ends].add(-1))
    return jnp.cumsum(steps(starts, ends)[:, :length], axis=1) > 0


def _some(key: jax.Array, places: jax.Array, count: jax.Array, width: int) -> jax.Array:
    """For each example ``count`` of the numbers below ``places``, in order, and ``places`` behind them as filling."""
    order = shuffled(key, len(places), width, places)
    return jnp.sort(jnp.where(within(count, width), order, places[:, None]), axis=1)
