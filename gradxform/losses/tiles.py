"""Log-sum-exps over all pairs of two sets of vectors, tile by tile: memory linear in the number of vectors.

With ``l_ij = scale * rows_i . columns_j``

    row_lse_i = log sum_j exp(l_ij)        column_lse_j = log sum_i exp(l_ij)
    g_ij = row_ct_i exp(l_ij - row_lse_i) + column_ct_j exp(l_ij - column_lse_j)
    d_rows = scale * g @ columns           d_columns = scale * g.T @ rows

One loop goes through the tiles of a row, beginning on the diagonal, and one through the rows. ``sums.py`` says how the
exponentials are added up, ``walks.py`` which tiles there are. ``forward`` and ``backward`` are pure functions of what
one device has: where a platform has a form of its own, it stands in for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core.divide import is_local
from gradxform.core.manual import varying_like
from gradxform.core.numbers import wide_dtype, widen
from gradxform.core.platform import by_platform
from gradxform.core.types import PyTree
from gradxform.losses.sums import Bounded, Running, Sums
from gradxform.losses.walks import Ids, Index, Tiling, Walk, cut, put, repeat

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Integer


def tiled_lse(
    tiling: Tiling,
    rows: Float[Array, "r d"],
    columns: Float[Array, "k d"],
    scale: Float[Array, ""],
    first: Index,
    row_ids: Integer[Array, " r"] | None,
    column_ids: Integer[Array, " k"] | None,
) -> tuple[Float[Array, " r"], Float[Array, " k"]]:
    """The log-sum-exps of the rows and of the columns over the pairs that are taken here.

    Args:
      tiling: see there.
      rows: (R, d).
      columns: (K, d); in a triangle, and where a group is left out, K is a multiple of R.
      scale: the factor of the inner products, a scalar in float32 at least.
      first: where the rows stand among the columns, a multiple of R.
      row_ids: (R,) integers, of which those of equal id are left out; or None.
      column_ids: (K,) integers, or None.

    Returns:
      (R,) and (K,) log-sum-exps in float32 at least, ``FLOOR`` where there is no pair.
    """
    arrays = (rows, columns, scale, jnp.asarray(first, jnp.int32), row_ids, column_ids)
    # The rule for the gradient has to find all of them differing alike.
    return _tiled_lse(tiling, *varying_like(arrays, arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled_lse(tiling: Tiling, *arrays: Ids) -> tuple[jax.Array, jax.Array]:
    return _forward(tiling, *arrays)[0]


@functools.partial(jax.jit, static_argnums=0)
def _forward(tiling: Tiling, *arrays: Ids) -> tuple[tuple[jax.Array, jax.Array], tuple[Ids, ...]]:
    lses: tuple[jax.Array, jax.Array] = _by_platform(forward, tiling, *arrays)
    return lses, (*arrays, *lses)


@functools.partial(jax.jit, static_argnums=0)
def _backward(tiling: Tiling, residuals: tuple[Ids, ...], cotangents: tuple[jax.Array, jax.Array]) -> tuple[Ids, ...]:
    return (*_by_platform(backward, tiling, *residuals, *cotangents), None, None, None)


_tiled_lse.defvjp(_forward, _backward)


def _by_platform(portable: Callable[..., PyTree], tiling: Tiling, *arrays: Ids) -> PyTree:
    """``portable`` in the form of the platform: on a TPU the kernel of its name."""

    def kernel(*arrays: Ids) -> PyTree:
        from gradxform.losses import tiles_tpu, tiles_tpu_plan  # what they import takes a while

        rows, columns = arrays[:2]
        assert rows is not None and columns is not None
        plan = tiles_tpu_plan.planned(tiling, rows, columns)
        if plan is None or not is_local(rows):
            return portable(tiling, *arrays, platform="tpu")
        return getattr(tiles_tpu, portable.__name__)(plan, *arrays)

    return by_platform(
        functools.partial(portable, tiling),
        *arrays,
        tpu=kernel,
        gpu=functools.partial(portable, tiling, platform="gpu"),
    )


def forward(
    tiling: Tiling,
    rows: jax.Array,
    columns: jax.Array,
    scale: jax.Array,
    first: jax.Array,
    row_ids: Ids,
    column_ids: Ids,
    *,
    platform: str = "cpu",
) -> tuple[jax.Array, jax.Array]:
    """Both log-sum-exps: see ``tiled_lse``."""
    walk = Walk(tiling, rows, columns, first, row_ids, column_ids, platform)
    sums = (Bounded if tiling.bounded else Running)(scale)

    def tile(by_row: Sums, by_column: Sums, i: Index, j: Index, on_diagonal: bool) -> tuple[Sums, Sums]:
        logits = _dot(tiling, walk.rows(i), walk.columns(j).T) * scale
        seen = sums.seen(logits, walk.kept(i, j, on_diagonal))
        if _for_columns(tiling, on_diagonal):
            there = jax.tree.map(lambda total: cut(total, j, walk.across), by_column)
            by_column = jax.tree.map(lambda total, part: put(total, part, j), by_column, sums.add(there, seen, 0))
        return sums.add(by_row, seen, 1), by_column

    def row(carry: tuple[Sums, Sums], i: Index, count: int) -> tuple[Sums, Sums]:
        row_sums, by_column = carry
        found = tile(sums.start(walk.down, walk.like), by_column, i, walk.column(i, 0), True)
        by_row, by_column = repeat(
            lambda found, n: tile(found[0], found[1], i, walk.column(i, n), False), found, range(1, count)
        )
        return jax.tree.map(lambda whole, part: put(whole, part, i), row_sums, by_row), by_column

    carry: tuple[Sums, Sums] = sums.start(walk.row_count, walk.like), sums.start(walk.column_count, walk.like)
    for some, count in walk.order():
        carry = repeat(functools.partial(row, count=count), carry, some)
    return walk.of_rows(sums.lse(carry[0])), walk.of_columns(sums.lse(carry[1]))


def backward(
    tiling: Tiling,
    rows: jax.Array,
    columns: jax.Array,
    scale: jax.Array,
    first: jax.Array,
    row_ids: Ids,
    column_ids: Ids,
    row_lse: jax.Array,
    column_lse: jax.Array,
    row_ct: jax.Array,
    column_ct: jax.Array,
    *,
    platform: str = "cpu",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of rows, columns and scale, from what ``forward`` returned and its cotangents."""
    walk = Walk(tiling, rows, columns, first, row_ids, column_ids, platform)
    sums = (Bounded if tiling.bounded else Running)(scale)
    of_rows = jax.tree.map(walk.filled_rows, sums.weight(row_lse, row_ct))
    of_columns = jax.tree.map(walk.filled_columns, sums.weight(column_lse, column_ct))
    # Of a product whose first factor is transposed CPUs are slow, and to add the transpose of each tile's: what is
    # transposed is made apart, and the sums of the columns are transposed once, at the end.
    turned = platform == "cpu"
    axis = 1 if turned else 0

    def tile(
        d_x: jax.Array, d_columns: jax.Array, i: Index, j: Index, on_diagonal: bool
    ) -> tuple[jax.Array, jax.Array]:
        x, y = walk.rows(i), walk.columns(j)
        by_row = jax.tree.map(lambda weight: cut(weight, i, walk.down), of_rows)
        by_column = None
        if tiling.triangle and on_diagonal:
            by_column = by_row
        elif _for_columns(tiling, on_diagonal):
            by_column = jax.tree.map(lambda weight: cut(weight, j, walk.across), of_columns)
        g = sums.cotangents(_dot(tiling, x, y.T) * scale, walk.kept(i, j, on_diagonal), by_row, by_column)
        g = g.astype(x.dtype)
        if not (tiling.triangle and on_diagonal):
            back = _dot(tiling, lax.optimization_barrier(x.T), g) if turned else _dot(tiling, g.T, x)
            d_columns = put(d_columns, cut(d_columns, j, walk.across, axis) + back, j, axis)
        return d_x + _dot(tiling, g, y), d_columns

    def row(
        carry: tuple[jax.Array, jax.Array, jax.Array], i: Index, count: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        d_rows, d_columns, d_scale = carry
        x = widen(walk.rows(i))
        found = tile(jnp.zeros_like(x) + walk.like, d_columns, i, walk.column(i, 0), True)
        # The logits' cotangents contracted with the inner products; on the diagonal they are those of both triangles.
        twice = jnp.sum(x * found[0]) / 2 if tiling.triangle else 0
        d_x, d_columns = repeat(
            lambda found, n: tile(found[0], found[1], i, walk.column(i, n), False), found, range(1, count)
        )
        return put(d_rows, d_x, i), d_columns, d_scale + jnp.sum(x * d_x) - twice

    width, dtype = rows.shape[1], walk.like.dtype
    carry = (
        jnp.zeros((walk.row_count, width), dtype) + walk.like,
        jnp.zeros((width, walk.column_count) if turned else (walk.column_count, width), dtype) + walk.like,
        walk.like,
    )
    for some, count in walk.order():
        carry = repeat(functools.partial(row, count=count), carry, some)
    d_rows, d_columns, d_scale = carry
    d_rows, d_columns = walk.of_rows(d_rows), walk.of_columns(d_columns.T if turned else d_columns)
    return (scale * d_rows).astype(rows.dtype), (scale * d_columns).astype(columns.dtype), d_scale.astype(scale.dtype)


def _for_columns(tiling: Tiling, on_diagonal: bool) -> bool:
    # A tile on the diagonal of a triangle has both triangles in it.
    return not on_diagonal if tiling.triangle else tiling.columns


def _dot(tiling: Tiling, a: jax.Array, b: jax.Array) -> jax.Array:
    wide = wide_dtype(a.dtype)
    return jnp.dot(a, b, precision=tiling.precision if a.dtype == wide else None, preferred_element_type=wide)
