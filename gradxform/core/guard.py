"""A step that is made or not: all that a run changes is chosen by a flag.

The choice, ``where(fine, new, old)``, is part of a leaf's expression, so it costs neither a pass over memory nor a
copy; a branch around the run costs both (AdamW on an H100: 32 bytes a param to and from HBM, not 52 and 4 of copies).
But what only becomes NaN or infinite in the course of the step is seen when the old values are gone. So the flag is of
what comes in and of the numbers of the step, and beyond it each element looks after itself: one that would become not
finite stays as it was. (Even to count those costs 2 bytes a param on an H100 and 10 on a v5e.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gradxform.core.numbers import cast, no_update
from gradxform.core.trees import is_inexact
from gradxform.core.types import State


def none_is_nan(numbers: Sequence[jax.Array]) -> jax.Array:
    """Whether a step may be made with these numbers. Infinite is what a bound may be."""
    return ~functools.reduce(jnp.logical_or, [jnp.any(jnp.isnan(x)) for x in numbers])


def keep(fine: jax.Array, new: State, old: State) -> State:
    """The new state of a step that is made, the old one of another."""
    return jax.tree.map(functools.partial(jnp.where, fine), new, old)


def hold(
    fine: jax.Array, update: jax.Array, dtype: DTypeLike, new: Sequence[jax.Array], old: Sequence[jax.Array]
) -> tuple[jax.Array, list[jax.Array]]:
    """The update of a leaf and what is kept of it, in a step that is made if ``fine``.

    Args:
      fine: whether anything changes.
      update: of the leaf.
      dtype: what the update has to be finite in.
      new: what is to be kept of the leaf. What has its shape goes element by element with the update.
      old: what was kept.
    """
    if update.dtype == jax.dtypes.float0 or jnp.issubdtype(update.dtype, jax.dtypes.extended):
        return update, keep(fine, list(new), list(old))
    finite = [_stays_finite(x, y) for x, y in zip(new, old, strict=True)]
    whole = jnp.isfinite(cast(update, dtype)) if is_inexact(update) else jnp.ones(update.shape, bool)
    whole = fine & functools.reduce(jnp.logical_and, [x for x in finite if x.shape == whole.shape], whole)
    kept = [
        jnp.where(whole if x.shape == whole.shape else fine & x, now, was)
        for x, now, was in zip(finite, new, old, strict=True)
    ]
    return jnp.where(whole, update, no_update(update)), kept


def _stays_finite(new: jax.Array, old: jax.Array) -> jax.Array:
    """Where a value does not become NaN or infinite; one that was may stay so."""
    return jnp.isfinite(new) | ~jnp.isfinite(old) if is_inexact(new) else jnp.ones(new.shape, bool)
