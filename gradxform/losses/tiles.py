"""Log-sum-exps over all pairs of two sets of vectors, tile by tile: memory linear in the number of vectors."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradxform.core.manual import varying_like
from gradxform.core.numbers import wide_dtype, widen

FLOOR = -1e30
"""A maximum before the first number: finite, so that the difference of two is no NaN."""
SAFE_SCALE = 30.0
"""Up to this scale ``exp(scale * (s - 1))`` of a cosine ``s`` and its inverse are far from the ends of float32."""


class Tiling(NamedTuple):
    """How the matrix of pairs is walked through.

    Attributes:
      block: the rows and columns of a tile.
      symmetric: whether rows and columns are the same vectors; then each tile serves both triangles.
      columns: whether the log-sum-exps of columns are wanted too.
      bounded: whether no logit exceeds the scale and the scale is at most ``SAFE_SCALE``: then one exponential an
        element serves rows and columns, and no maximum is needed.
    """

    block: int
    symmetric: bool
    columns: bool
    bounded: bool


class Sums(NamedTuple):
    """Running sums of exponentials: ``exp(top) * total``."""

    top: jax.Array
    total: jax.Array


def tiled_lse(tiling: Tiling, rows: jax.Array, columns: jax.Array, scale: jax.Array, row_ids: jax.Array,
              column_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``log sum_j exp(scale * rows_i . columns_j)`` over all ``j`` whose id is not that of ``i``; likewise by column.

    Args:
      tiling: how the pairs are walked through.
      rows: (R, d).
      columns: (K, d); the rows again if symmetric.
      scale: the factor of the inner products, a scalar in float32 at least.
      row_ids: (R,) integers.
      column_ids: (K,) integers.

    Returns:
      (R,) and (K,) log-sum-exps in float32 at least, -inf where there is no pair; the second is the first if symmetric,
      and zeros where it is not wanted.
    """
    arrays = (rows, columns, scale, row_ids, column_ids)
    # The rule for the gradient has to find all of them differing alike.
    return _tiled_lse(tiling, *varying_like(arrays, arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled_lse(tiling: Tiling, rows: jax.Array, columns: jax.Array, scale: jax.Array, row_ids: jax.Array,
               column_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _forward(tiling, rows, columns, scale, row_ids, column_ids)[0]


@functools.partial(jax.jit, static_argnums=0)
def _forward(tiling: Tiling, rows: jax.Array, columns: jax.Array, scale: jax.Array, row_ids: jax.Array,
             column_ids: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    padded = _Padded(tiling, rows, columns, row_ids, column_ids)
    # Zeros that differ from device to device where the vectors do.
    like = jnp.zeros_like(rows[0, 0], wide_dtype(rows.dtype))
    row_sums, column_sums = (Sums(jnp.full(n, FLOOR, like.dtype) + like, jnp.zeros(n, like.dtype) + like)
                             for n in (padded.row_count, padded.column_count))

    def step(sums: tuple[Sums, Sums], tile: tuple[jax.Array, jax.Array]) -> tuple[tuple[Sums, Sums], None]:
        by_row, by_column = sums
        i, j = tile
        x, y, kept = padded.tile(i, j)
        logits = _dot(x, y.T) * scale
        if tiling.bounded:
            e = jnp.where(kept, jnp.exp(logits - scale), 0)
            by_row = _grown(by_row, i, tiling.block, e.sum(1), scale)
            if padded.mirrored:
                by_row = _grown(by_row, j, tiling.block, jnp.where(i == j, 0, e.sum(0)), scale)
            elif tiling.columns:
                by_column = _grown(by_column, j, tiling.block, e.sum(0), scale)
            return (by_row, by_column), None
        logits = jnp.where(kept, logits, -jnp.inf)
        by_row = _merged(by_row, i, tiling.block, logits, 1)
        if padded.mirrored:
            by_row = _merged(by_row, j, tiling.block, jnp.where(i == j, -jnp.inf, logits), 0)
        elif tiling.columns:
            by_column = _merged(by_column, j, tiling.block, logits, 0)
        return (by_row, by_column), None

    (by_row, by_column), _ = lax.scan(step, (row_sums, column_sums), padded.order())
    row_lse = (by_row.top + jnp.log(by_row.total))[:rows.shape[0]]
    column_lse = row_lse
    if not tiling.symmetric:
        column_lse = (by_column.top + jnp.log(by_column.total) if tiling.columns else by_column.total)
        column_lse = column_lse[:columns.shape[0]]
    return (row_lse, column_lse), (rows, columns, scale, row_ids, column_ids, row_lse, column_lse)


@functools.partial(jax.jit, static_argnums=0)
def _backward(tiling: Tiling, residuals: tuple[Any, ...], cotangents: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    rows, columns, scale, row_ids, column_ids, row_lse, column_lse = residuals
    row_ct, column_ct = cotangents
    if tiling.symmetric:
        row_ct = row_ct + column_ct
    padded = _Padded(tiling, rows, columns, row_ids, column_ids)

    def weights(lse: jax.Array, ct: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        some = lse > -jnp.inf
        lse, ct = jnp.where(some, lse, 0), jnp.where(some, ct, 0)
        if tiling.bounded:
            # exp(logit - scale) times this is the cotangent of the logit.
            ct = ct * jnp.exp(scale - lse)
        return _fill(lse, size), _fill(ct, size)

    row_lse, row_ct = weights(row_lse, row_ct, padded.row_count)
    column_lse, column_ct = ((row_lse, row_ct) if tiling.symmetric
                             else weights(column_lse, column_ct, padded.column_count))

    def step(sums: tuple[jax.Array, jax.Array], tile: tuple[jax.Array, jax.Array],
             ) -> tuple[tuple[jax.Array, jax.Array], None]:
        d_rows, d_columns = sums
        i, j = tile
        x, y, kept = padded.tile(i, j)
        logits = _dot(x, y.T) * scale
        by_row = _cut(row_ct, i, tiling.block)[:, None]
        by_column = _cut(column_ct, j, tiling.block)[None]
        if tiling.bounded:
            # As in the forward pass: a single tile is computed once.
            e = jnp.where(kept, jnp.exp(logits - scale), 0)
            g = e * (by_row + by_column if tiling.symmetric or tiling.columns else by_row)
        else:
            g = jnp.exp(logits - _cut(row_lse, i, tiling.block)[:, None]) * by_row
            if tiling.symmetric or tiling.columns:
                g += jnp.exp(logits - _cut(column_lse, j, tiling.block)[None]) * by_column
            g = jnp.where(kept, g, 0)
        g = g.astype(x.dtype)
        d_rows = _add(d_rows, i, tiling.block, _dot(g, y))
        if tiling.symmetric and not padded.mirrored:
            return (d_rows, d_columns), None
        # Of a product whose first factor is transposed CPUs are slow: what is transposed is made apart. They are slow
        # to add the transpose of each tile's too: the sums of the columns are transposed once, at the end.
        back = _dot(lax.optimization_barrier(x.T), g)
        if tiling.symmetric:
            back = jnp.where(i == j, 0, back)
        return (d_rows, _add(d_columns, j, tiling.block, back, 1)), None

    def joined(d_rows: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        return _add(d_rows, i, tiling.block, _cut(d_columns, i, tiling.block, 1).T), None

    like = jnp.zeros_like(rows[0, 0], wide_dtype(rows.dtype))
    start = (jnp.zeros((padded.row_count, rows.shape[1]), like.dtype) + like,
             jnp.zeros((rows.shape[1], padded.column_count), like.dtype) + like)
    (d_rows, d_columns), _ = lax.scan(step, start, padded.order())
    if padded.mirrored:
        # In place, block by block: the sum of the two wholes would be a third array.
        d_rows, _ = lax.scan(joined, d_rows, jnp.arange(padded.row_count // tiling.block, dtype=jnp.int32))
    d_rows, d_columns = d_rows[:rows.shape[0]], d_columns.T[:columns.shape[0]]
    # The logits' cotangents contracted with the inner products: no pass of its own.
    d_scale = jnp.sum(widen(rows) * d_rows) * (0.5 if tiling.symmetric else 1.0)
    d_columns = jnp.zeros_like(columns) if tiling.symmetric else (scale * d_columns).astype(columns.dtype)
    return (scale * d_rows).astype(rows.dtype), d_columns, d_scale.astype(scale.dtype), None, None


_tiled_lse.defvjp(_forward, _backward)


class _Padded:
    """Vectors and ids filled up to whole tiles."""

    def __init__(self, tiling: Tiling, rows: jax.Array, columns: jax.Array, row_ids: jax.Array,
                 column_ids: jax.Array) -> None:
        self._tiling = tiling
        self._shape = rows.shape[0], columns.shape[0]
        self.row_count, self.column_count = (-(-n // tiling.block) * tiling.block for n in self._shape)
        # A single tile has both triangles already; XLA would spend seconds on folding its masked maxima.
        self.mirrored = tiling.symmetric and self.row_count > tiling.block
        self._rows, self._row_ids = _fill(rows, self.row_count), _fill(row_ids, self.row_count)
        self._columns, self._column_ids = _fill(columns, self.column_count), _fill(column_ids, self.column_count)

    def order(self) -> tuple[jax.Array, jax.Array]:
        """The tiles in the order they are visited in, as indices of rows and of columns."""
        down, across = self.row_count // self._tiling.block, self.column_count // self._tiling.block
        i, j = np.triu_indices(down) if self._tiling.symmetric else np.indices((down, across)).reshape(2, -1)
        return jnp.asarray(i, jnp.int32), jnp.asarray(j, jnp.int32)

    def tile(self, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The vectors of a tile, and which of its pairs count."""
        block = self._tiling.block
        places = jnp.arange(block, dtype=jnp.int32)
        kept = _cut(self._row_ids, i, block)[:, None] != _cut(self._column_ids, j, block)[None]
        if self.row_count != self._shape[0]:
            kept &= (i * block + places < self._shape[0])[:, None]
        if self.column_count != self._shape[1]:
            kept &= (j * block + places < self._shape[1])[None]
        return _cut(self._rows, i, block), _cut(self._columns, j, block), kept


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST, preferred_element_type=wide_dtype(a.dtype))


def _fill(array: jax.Array, size: int) -> jax.Array:
    return jnp.pad(array, [(0, size - array.shape[0])] + [(0, 0)] * (array.ndim - 1))


def _cut(array: jax.Array, index: jax.Array, block: int, axis: int = 0) -> jax.Array:
    return lax.dynamic_slice_in_dim(array, index * block, block, axis)


def _add(array: jax.Array, index: jax.Array, block: int, change: jax.Array, axis: int = 0) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(array, _cut(array, index, block, axis) + change, index * block, axis)


def _grown(sums: Sums, index: jax.Array, block: int, change: jax.Array, scale: jax.Array) -> Sums:
    return Sums(jnp.zeros_like(sums.top) + scale, _add(sums.total, index, block, change))


def _merged(sums: Sums, index: jax.Array, block: int, logits: jax.Array, axis: int) -> Sums:
    top, total = _cut(sums.top, index, block), _cut(sums.total, index, block)
    new = jnp.maximum(top, logits.max(axis))
    total = total * jnp.exp(top - new) + jnp.exp(logits - jnp.expand_dims(new, axis)).sum(axis)
    place = functools.partial(lax.dynamic_update_slice_in_dim, start_index=index * block, axis=0)
    return Sums(place(sums.top, new), place(sums.total, total))
