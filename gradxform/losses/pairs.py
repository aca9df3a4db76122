"""Log-sum-exps over the vectors of all devices, of which each has its own: gathered once, and their gradient added up
and spread again once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.losses.tiles import Tiling, tiled_lse

AxisName = str | tuple[str, ...] | None


def everyone(tree: Any, axis_name: AxisName) -> Any:
    """Arrays of all devices, one device after the other."""
    return tree if axis_name is None else lax.all_gather(tree, axis_name, tiled=True)


def place(count: int, axis_name: AxisName) -> Any:
    """Where the first of ``count`` vectors of this device stands among those of all."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * count


def lse_of_rows(tiling: Tiling, scale: jax.Array, rows: jax.Array, columns: jax.Array, ids: Any,
                axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    """The log-sum-exps of this device's rows over the columns of all, and of its columns over the rows of all.

    Args:
      tiling: a triangle is of ``rows`` beside themselves; the second result is then the first.
      scale: the factor of inner products.
      rows: (R, d).
      columns: (R, d) of this device, or those of all of them.
      ids: (R,) integers of this device, those of all of them, or None; vectors of equal ids are left out of each
        other's sums.
      axis_name: the axes over which they are spread.

    Returns:
      (R,), and (R,) where the tiling says so.
    """
    count = rows.shape[0]
    first = place(count, axis_name)
    columns, all_ids = (everyone(part, axis_name) if part is not None and len(part) == count else part
                        for part in (columns, ids))
    ids = None if ids is None else lax.dynamic_slice_in_dim(all_ids, first, count)
    by_row, by_column = tiled_lse(tiling, rows, columns, scale, first, ids, all_ids)
    if not (tiling.triangle or tiling.columns):
        return by_row, by_row
    if axis_name is not None:
        # What all devices found of this one's columns.
        by_column = lax.all_to_all(by_column, axis_name, 0, 0, tiled=True)
    parts = by_column.reshape(-1, count)
    if tiling.triangle:
        by_row = _log_sum(jnp.concatenate([by_row[None], parts]))
        return by_row, by_row
    return by_row, _log_sum(parts)


def _log_sum(parts: jax.Array) -> jax.Array:
    return parts[0] if len(parts) == 1 else jax.nn.logsumexp(parts, axis=0)
