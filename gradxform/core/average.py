"""Averages of params along a run: trees that follow other trees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradxform.core import checks, trees
from gradxform.core.numbers import cast, widen
from gradxform.core.types import Params, Scalar


def incremental_update(new_tensors: Params, old_tensors: Params, step_size: Scalar) -> Params:
    """An exponential moving average of the weights, after a step: ``step_size * new + (1 - step_size) * old``.

    Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), with weights that fade, as in
    torch's ``swa_utils`` and timm's ``ModelEma``: a decay of 0.999 there is a ``step_size`` of 0.001 here. Keep the
    average beside the params, update it after each step, and evaluate with it. Added up in float32 at least; in an
    average narrower than that a step too small for its dtype is lost.

    Args:
      new_tensors: the params after a step.
      old_tensors: the average so far, a tree of the same structure and shapes; it starts as a copy of the params.
      step_size: the share of the new, in [0, 1]; may be traced.

    Returns:
      The new average, each leaf in the dtype it had; leaves that are not floating-point are the new ones.

    Raises:
      TypeError: ``step_size`` is no number.
      ValueError: the trees do not match, or ``step_size`` is out of range.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.incremental_update({"w": jnp.ones(2)}, {"w": jnp.zeros(2)}, 0.25)
      {'w': Array([0.25, 0.25], dtype=float32)}
    """
    checks.real("step_size", step_size, at_least=0, at_most=1)
    return weighted(old_tensors, new_tensors, 1 - step_size, step_size, "old_tensors", "new_tensors")


def weighted(old: Params, new: Params, stays: Scalar, comes: Scalar, old_name: str, new_name: str) -> Params:
    """``stays * old + comes * new`` in the dtypes of ``old``; where it has no floating-point numbers, what is new.

    Raises:
      ValueError: the trees do not match, with the first path that differs.
    """
    treedef = trees.structure(old)
    followers = jax.tree.leaves(old)
    leaders = trees.align(treedef, old, new, new_name, old_name)
    trees.check_shapes(old, followers, leaders, old_name, new_name)

    def follow(a: Any, b: Any) -> jax.Array:
        a, b = jnp.asarray(a), jnp.asarray(b)
        return cast(widen(a) * stays + widen(b) * comes, a.dtype) if trees.is_inexact(a) else b

    return jax.tree.unflatten(treedef, list(map(follow, followers, leaders)))
