"""Log-sum-exps over all pairs, and their gradients, on a TPU: a kernel each.

A block of rows ``x`` beside one block of columns ``y`` after the other, of those that stay in VMEM::

    l = scale x y'
    forward:   sums of exp(l) by row and by column
    backward:  g = a_i exp(l - lse_i) + b_j exp(l - lse_j),  d_x += g y,  d_y += g' x

All sums stay in VMEM while they grow. The products limit: what is left out is masked in every tile, behind them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core.manual import varying_like
from gradxform.core.pallas import kernel_call, pl, pltpu
from gradxform.losses.sums import FLOOR
from gradxform.losses.tiles_tpu_kernels import log_sum_exp, log_sum_exp_gradient, row_of_turn
from gradxform.losses.tiles_tpu_plan import LANES, SUBLANES, Plan
from gradxform.losses.walks import group_of

NEVER = 1e30
"""A log-sum-exp in whose place exponentials are 0."""


def forward(
    plan: Plan,
    rows: jax.Array,
    columns: jax.Array,
    scale: jax.Array,
    first: jax.Array,
    row_ids: jax.Array | None,
    column_ids: jax.Array | None,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """What ``tiles.forward`` gives."""
    given = _given(plan, rows, columns, scale, first, row_ids, column_ids)
    sums = 1 if plan.tiling.bounded else 2
    by_row, by_column = _called(
        plan,
        log_sum_exp,
        given,
        [_of_rows(plan, 1, 1, plan.block), _of_part(1, plan.together)],
        [(plan.down, 1, plan.block), (1, plan.together)],
        [
            _upright(plan, jnp.int32),
            *[_upright(plan)] * sums,
            *[pltpu.VMEM((SUBLANES, plan.together), jnp.float32)] * sums,
        ],
        first,
        FLOOR,
        interpret,
    )
    return by_row.reshape(-1)[: plan.rows], by_column.reshape(-1)[: plan.columns]


def backward(
    plan: Plan,
    rows: jax.Array,
    columns: jax.Array,
    scale: jax.Array,
    first: jax.Array,
    row_ids: jax.Array | None,
    column_ids: jax.Array | None,
    row_lse: jax.Array,
    column_lse: jax.Array,
    row_ct: jax.Array,
    column_ct: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What ``tiles.backward`` gives."""
    given = _given(plan, rows, columns, scale, first, row_ids, column_ids)
    weights = _weights(plan, scale, row_lse, row_ct)
    given += [(_in_rows(plan, weight), _of_rows(plan, 1, 1, plan.block)) for weight in weights]
    if plan.by_column:
        given += [
            (_in_columns(plan, weight), _of_part(1, plan.together, axis=1))
            for weight in _weights(plan, scale, column_lse, column_ct)
        ]
    d_rows, d_columns = _called(
        plan,
        log_sum_exp_gradient,
        given,
        [_of_rows(plan, plan.block, plan.width), _of_part(plan.together, plan.width)],
        [(plan.down * plan.block, plan.width), (plan.together, plan.width)],
        [_upright(plan, jnp.int32), *[_upright(plan)] * len(weights)],
        first,
        0.0,
        interpret,
        lambda found: (scale * found).astype(columns.dtype),
    )
    d_rows = d_rows[: plan.rows, : rows.shape[1]]
    # The cotangents of the logits contracted with the inner products: no pass of its own.
    d_scale = jnp.sum(rows.astype(jnp.float32) * d_rows)
    d_columns = d_columns.reshape(-1, plan.width)[: plan.columns, : rows.shape[1]]
    return (scale * d_rows).astype(rows.dtype), d_columns, d_scale


def _given(
    plan: Plan,
    rows: jax.Array,
    columns: jax.Array,
    scale: jax.Array,
    first: jax.Array,
    row_ids: jax.Array | None,
    column_ids: jax.Array | None,
) -> list[tuple[jax.Array, pl.BlockSpec]]:
    """What both kernels are given: the scale, vectors, and the numbers whose equals leave each other out."""
    if row_ids is None or column_ids is None:
        column_ids = jnp.arange(plan.columns, dtype=jnp.int32)
        row_ids = first + jnp.arange(plan.rows, dtype=jnp.int32)
        if plan.tiling.group:
            row_ids, column_ids = (group_of(plan.tiling, places) for places in (row_ids, column_ids))
        else:
            row_ids = jnp.full_like(row_ids, -1)
    more = 0, plan.width - rows.shape[1]
    return [
        (scale.astype(jnp.float32).reshape(1, 1), pl.BlockSpec(memory_space=pltpu.SMEM)),
        (_filled(rows, plan.down * plan.block, more), _of_rows(plan, plan.block, plan.width)),
        (_in_rows(plan, row_ids.astype(jnp.int32)), _of_rows(plan, 1, 1, plan.block)),
        (_filled(columns, plan.parts * plan.together, more), _of_part(plan.together, plan.width, axis=0)),
        (_in_columns(plan, column_ids.astype(jnp.int32)), _of_part(1, plan.together, axis=1)),
    ]


def _weights(plan: Plan, scale: jax.Array, lse: jax.Array, ct: jax.Array) -> tuple[jax.Array, ...]:
    """What an exponential is multiplied by to be its part of a logit's cotangent, and before that is diminished by."""
    some = lse > FLOOR / 2
    lse, ct = jnp.where(some, lse, NEVER).astype(jnp.float32), jnp.where(some, ct, 0).astype(jnp.float32)
    return (ct * jnp.exp(scale - lse),) if plan.tiling.bounded else (lse, ct)


def _in_rows(plan: Plan, x: jax.Array) -> jax.Array:
    return _filled(x, plan.down * plan.block).reshape(plan.down, 1, plan.block)


def _in_columns(plan: Plan, x: jax.Array) -> jax.Array:
    return _filled(x, plan.parts * plan.together)[None]


def _of_rows(plan: Plan, *block: int) -> pl.BlockSpec:
    """The block of a turn's rows."""
    return pl.BlockSpec(block, lambda i, where: (row_of_turn(plan, i, where), *[0] * (len(block) - 1)))


def _of_part(*block: int, axis: int | None = None) -> pl.BlockSpec:
    """What stays while a part is gone through: the part's own along an axis, or all that is made in it."""
    return pl.BlockSpec(
        block,
        lambda i, where: tuple(where[0] if k == axis else 0 for k in range(len(block))),
        pipeline_mode=None if axis is None else pl.Buffered(1),
    )


def _upright(plan: Plan, dtype: Any = jnp.float32) -> Any:
    """Room for a number of each row, the same in all lanes."""
    return pltpu.VMEM((plan.block, LANES), dtype)


def _filled(x: jax.Array, size: int, *others: tuple[int, int]) -> jax.Array:
    return jnp.pad(x, [(0, size - x.shape[0]), *others])


def _called(
    plan: Plan,
    kernel: Any,
    given: list[tuple[jax.Array, pl.BlockSpec]],
    outs: list[pl.BlockSpec],
    shapes: list[tuple[int, ...]],
    scratch: list[Any],
    first: jax.Array,
    start: float,
    interpret: bool,
    made: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> tuple[jax.Array, jax.Array]:
    """The results of a kernel over all parts of the columns: the first, and what is made of the second of each.

    The first result is handed on from part to part, beginning with ``start``, where there are several.
    """
    arrays, specs = (list(some) for some in zip(*given, strict=True))
    # Inside ``shard_map`` all differ from device to device as any of them does.
    arrays = varying_like(arrays, arrays)
    types = [
        jax.ShapeDtypeStruct(shape, jnp.float32, manual_axis_type=jax.typeof(arrays[1]).manual_axis_type)
        for shape in shapes
    ]
    own = lax.div(jnp.asarray(first, jnp.int32), jnp.int32(plan.block))

    def part(so_far: jax.Array | None, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        before = [] if so_far is None else [so_far]
        by_row, by_column = kernel_call(
            functools.partial(kernel, plan),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(plan.turns,),
                in_specs=specs + outs[: len(before)],
                out_specs=outs,
                scratch_shapes=scratch,
            ),
            out_shape=types,
            input_output_aliases={1 + len(specs): 0} if before else {},
            interpret=interpret,
            name=kernel.__name__,
            compiler_params=pltpu.CompilerParams(vmem_limit_bytes=plan.vmem),
        )(varying_like(arrays, jnp.stack([number, own])), *arrays, *before)
        return by_row, made(by_column)

    if plan.parts == 1:
        return part(None, jnp.int32(0))
    so_far = varying_like(arrays, jnp.full(shapes[0], start, jnp.float32))
    found: tuple[jax.Array, jax.Array] = lax.scan(part, so_far, jnp.arange(plan.parts, dtype=jnp.int32))
    return found
