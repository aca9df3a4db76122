"""What a TPU does with a block of rows beside blocks of columns; ``tiles_tpu`` calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core.pallas import pl
from gradxform.losses.sums import FLOOR
from gradxform.losses.tiles_tpu_plan import LANES, SUBLANES, Plan
from gradxform.losses.walks import Index

Ref: TypeAlias = Any
"""Memory of the chip that a kernel reads and writes by index, for which JAX has no public type; or several."""
At: TypeAlias = Any
"""Where in it: places of a block, or all of them."""


def log_sum_exp(plan: Plan, where: Ref, scale: Ref, x: Ref, row_ids: Ref, y: Ref, column_ids: Ref, *refs: Ref) -> None:
    """The log-sum-exps of a block of rows, and what it adds to those of columns."""
    *so_far, row_lse, column_lse, ids = refs[: 3 + (plan.parts > 1)]
    sums = refs[3 + (plan.parts > 1) :]
    i, factor = row_of_turn(plan, pl.program_id(0), where), scale[0, 0]
    by_row, by_column = sums[: len(sums) // 2], sums[len(sums) // 2 :]
    _clear(by_row, slice(None))
    _by_block(plan, 0, lambda at: _clear(by_column, at))
    ids[...] = _turned(row_ids)

    def tile(j: jax.Array, diagonal: Index) -> None:
        logits = _dot(plan, x[...], y[_block(plan, j), :], 1, 1) * factor
        strips = []
        for lanes, at in _strips(plan, j):
            kept = _within(plan, ids[...] != column_ids[:, at], i, where[0] * plan.together + at.start)
            strip = logits[:, lanes : lanes + LANES]
            strips.append(
                jnp.where(kept, jnp.exp(strip - factor), 0) if plan.tiling.bounded else jnp.where(kept, strip, -jnp.inf)
            )
        _grow(by_row, slice(None), jnp.stack(strips), True)
        if plan.by_column:
            for strip, (_, at) in zip(strips, _strips(plan, j), strict=True):
                _grow(by_column, at, strip.reshape(-1, SUBLANES, LANES), ~diagonal if plan.tiling.triangle else True)

    _for_tiles(plan, where, i, tile)
    found = _joined([one[...].T for one in by_row], factor)
    for before in so_far:
        top = jnp.maximum(before[0], found)
        found = top + jnp.log(jnp.exp(before[0] - top) + jnp.exp(found - top))
    row_lse[0] = found

    def ended(at: At) -> None:
        column_lse[:, at] = _joined([one[:, at] for one in by_column], factor)

    _by_block(plan, plan.turns - 1, ended)


def log_sum_exp_gradient(
    plan: Plan, where: Ref, scale: Ref, x: Ref, row_ids: Ref, y: Ref, column_ids: Ref, *refs: Ref
) -> None:
    """The gradient of a block of rows, without the scale, and what it adds to that of columns."""
    count = 1 if plan.tiling.bounded else 2
    by_row, refs = refs[:count], refs[count:]
    by_column, refs = (refs[:count], refs[count:]) if plan.by_column else ((), refs)
    *so_far, d_rows, d_columns, ids = refs[: len(refs) - count]
    weights = refs[len(refs) - count :]
    i, factor = row_of_turn(plan, pl.program_id(0), where), scale[0, 0]
    for here, there in ((ids, row_ids), *zip(weights, by_row, strict=True)):
        here[...] = _turned(there)
    d_rows[...] = so_far[0][...] if so_far else jnp.zeros_like(d_rows)

    def cleared(at: At) -> None:
        d_columns[at, :] = jnp.zeros((plan.block, plan.width), jnp.float32)

    _by_block(plan, 0, cleared)

    def tile(j: jax.Array, diagonal: Index) -> None:
        here = _block(plan, j)
        logits = _dot(plan, x[...], y[here, :], 1, 1) * factor
        strips = []
        for lanes, at in _strips(plan, j):
            strip = logits[:, lanes : lanes + LANES]
            columns = [one[:, at] for one in by_column]
            if plan.tiling.triangle:
                columns[-1] = jnp.where(diagonal, 0, columns[-1])
            if plan.tiling.bounded:
                g = jnp.exp(strip - factor) * (weights[0][...] + columns[0] if columns else weights[0][...])
            else:
                g = jnp.exp(strip - weights[0][...]) * weights[1][...]
                if columns:
                    g += jnp.exp(strip - columns[0]) * columns[1]
            strips.append(jnp.where(ids[...] != column_ids[:, at], g, 0).astype(x.dtype))
        g = jnp.concatenate(strips, 1)
        d_rows[...] += _dot(plan, g, y[here, :], 1, 0)
        d_columns[here, :] += _dot(plan, g, x[...], 0, 0)

    _for_tiles(plan, where, i, tile)


def _for_tiles(plan: Plan, where: Ref, i: Index, tile: Callable[[jax.Array, Index], None]) -> None:
    """Calls ``tile`` with the blocks of columns of this part that a block of rows is put beside.

    In the triangle those are as many as half of all, from that of the rows itself on, and from the first after the
    last: of two blocks one is beside the other, and on every device there are as many tiles.
    """
    start = where[0] * plan.part
    stop = jnp.minimum(start + plan.part, plan.across)
    own = where[1] + i
    if not plan.tiling.triangle:
        lax.fori_loop(0, stop - start, lambda j, _: tile(j, False), None)
        return
    half = plan.across // 2
    end = own + half + (1 if plan.across % 2 else (own < half).astype(jnp.int32))
    begin = jnp.maximum(own, start)
    before = jnp.maximum(jnp.minimum(end, stop) - begin, 0)
    again = jnp.maximum(jnp.minimum(end - plan.across, stop) - start, 0)

    def turn(t: Index, _: Index) -> None:
        j = jnp.where(t < before, begin - start + t, t - before)
        tile(j, start + j == own)

    lax.fori_loop(0, before + again, turn, None)


def row_of_turn(plan: Plan, i: Index, where: Ref) -> Index:
    """The block of rows of a turn."""
    if plan.turns == plan.down:
        return i
    return lax.rem(where[0] * plan.part + (plan.down - plan.across // 2) + i, plan.down)


def _block(plan: Plan, j: jax.Array) -> At:
    return pl.ds(pl.multiple_of(j * plan.block, plan.block), plan.block)


def _strips(plan: Plan, j: jax.Array) -> list[tuple[int, At]]:
    """Of a block of columns 128 at a time: where they start in it, and where they are in the part."""
    return [(lane, pl.ds(pl.multiple_of(j * plan.block + lane, LANES), LANES)) for lane in range(0, plan.block, LANES)]


def _within(plan: Plan, kept: jax.Array, i: Index, column: Index) -> jax.Array:
    """``kept`` but for what blocks are filled up with."""
    if plan.rows % plan.block:
        kept &= lax.broadcasted_iota(jnp.int32, kept.shape, 0) < plan.rows - i * plan.block
    if plan.columns % plan.block:
        kept &= lax.broadcasted_iota(jnp.int32, kept.shape, 1) < plan.columns - column
    return kept


def _by_block(plan: Plan, turn: int, act: Callable[[At], None]) -> None:
    """At a row of tiles, ``act`` for each block of columns."""

    @pl.when(pl.program_id(0) == turn)
    def _() -> None:
        lax.fori_loop(0, plan.part, lambda j, _: act(_block(plan, j)), None)


def _clear(sums: Ref, at: At) -> None:
    *tops, totals = sums
    totals[:, at] = jnp.zeros_like(totals[:, at])
    for top in tops:
        top[:, at] = jnp.full_like(top[:, at], FLOOR)


def _grow(sums: Ref, at: At, new: jax.Array, counts: Index) -> None:
    """Adds to sums those over the first axis of ``new``: exponentials, or logits where there are maxima."""
    *tops, totals = sums
    total = totals[:, at]
    if not tops:
        totals[:, at] = total + jnp.where(counts, new.sum(0), 0)
        return
    top = tops[0][:, at]
    higher = jnp.where(counts, jnp.maximum(top, new.max(0)), top)
    grown = total * jnp.exp(top - higher) + jnp.exp(new - higher[None]).sum(0)
    totals[:, at], tops[0][:, at] = jnp.where(counts, grown, total), higher


def _joined(sums: list[jax.Array], factor: Index) -> jax.Array:
    """The log-sum-exps of sums that lie below each other."""
    *tops, totals = sums
    top = tops[0].max(0, keepdims=True) if tops else factor
    total = jnp.sum(totals * jnp.exp(tops[0] - top) if tops else totals, 0, keepdims=True)
    return jnp.where(total > 0, top + jnp.log(total), FLOOR)


def _turned(row: Ref) -> jax.Array:
    """A row (1, 1, n) as n rows of one number each."""
    return jnp.broadcast_to(row[0], (LANES, row.shape[-1])).T


def _dot(plan: Plan, a: jax.Array, b: jax.Array, of_a: int, of_b: int) -> jax.Array:
    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return lax.dot_general(
            a,
            b,
            (((of_a,), (of_b,)), ((), ())),
            preferred_element_type=jnp.float32,
            precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT,
        )

    precision = plan.tiling.precision
    if a.dtype != jnp.float32 or precision == lax.Precision.HIGHEST:
        return product(a, b)
    (high_a, low_a), (high_b, low_b) = _in_two(a), _in_two(b)
    found = product(high_a, high_b)
    if precision == lax.Precision.HIGH:  # in three passes, which Mosaic has no word for
        found += product(high_a, low_b) + product(low_a, high_b)
    return found


def _in_two(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``x`` rounded to 16 bits, and the rest."""
    high = x.astype(jnp.bfloat16)
    return high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)
