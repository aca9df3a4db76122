"""Steps that are not finite: skipped, counted, and refused when there are too many."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core import checks, stages
from gradxform.core.control import branch
from gradxform.core.foreign import stage_of
from gradxform.core.numbers import cast, increment, no_update
from gradxform.core.run import run
from gradxform.core.stages import Around, is_final
from gradxform.core.transformation import transformation
from gradxform.core.trees import widened
from gradxform.core.types import AnyTransformation, Params, PyTree, State, Updates
from gradxform.transforms.combine import check_transformation


class NonfiniteError(FloatingPointError):
    """Too many steps in a row had NaN or inf in them; raised by ``skip_nonfinite`` and ``check_finite``.

    Example:
      >>> import gradxform as gx
      >>> issubclass(gx.NonfiniteError, FloatingPointError)
      True
    """


class SkipNonfiniteState(NamedTuple):
    """Skipped steps in a row and in all, whether the limit was passed, and the state of the transformation inside."""

    consecutive_skips: jax.Array
    skipped_steps: jax.Array
    too_many: jax.Array
    inner_state: State


@transformation
def skip_nonfinite(tx: AnyTransformation, max_consecutive: int, *, raise_in_jit: bool = True) -> Around:
    """Leaves params and state as they are in a step with NaN or inf in it.

    A step counts as not finite if the gradients or the updates made of them are not. It returns updates of zero, keeps
    the state of ``tx`` and is counted. After more than ``max_consecutive`` such steps in a row it raises.

    Args:
      tx: the transformation to guard.
      max_consecutive: how many skipped steps in a row are allowed, >= 0.
      raise_in_jit: whether a compiled step raises by itself. It does so by a host callback that is only reached once
        the limit is passed (under ``vmap`` in every step, for every member); a program with it cannot be exported. With
        False, call ``check_finite(state)`` in the training loop.

    Returns:
      A transformation.

    Raises:
      TypeError: ``tx`` is not a transformation or ``max_consecutive`` not an integer.
      ValueError: ``max_consecutive`` is negative.
      NonfiniteError: from ``update``, once the limit is passed.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.skip_nonfinite(gx.sgd(1.0), max_consecutive=3)
      >>> updates, state = tx.update({"w": float("nan")}, tx.init({"w": 0.0}))
      >>> updates, int(state.skipped_steps)
      ({'w': Array(-0., dtype=float32)}, 1)
    """
    check_transformation("tx", tx)
    checks.integer("max_consecutive", max_consecutive, at_least=0)
    stage = stage_of(tx)

    def init(params: Params) -> SkipNonfiniteState:
        return SkipNonfiniteState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), jnp.zeros([], bool),
                                  stages.init(stage, params))

    def update(updates: Updates, state: SkipNonfiniteState, params: Params | None = None,
               **extra: Any) -> tuple[Updates, SkipNonfiniteState]:
        zeros = jax.tree.map(no_update, widened(updates))  # as the updates leave a run

        def step() -> tuple[Updates, State, jax.Array]:
            new, inner_state = run(stage, updates, state.inner_state, params, extra, "skip_nonfinite")
            # What counts is what reaches the params: a finite float32 may be infinite in float16.
            like = updates if params is None else params
            fine = all_finite(jax.tree.map(lambda u, x: cast(u, jnp.result_type(x)), new, like))
            keep = functools.partial(jax.tree.map, functools.partial(jnp.where, fine))
            return keep(new, zeros), keep(inner_state, state.inner_state), fine

        def skip() -> tuple[Updates, State, jax.Array]:
            return zeros, state.inner_state, jnp.zeros([], bool)

        new, inner_state, fine = branch(all_finite(updates), step, skip)
        consecutive = jnp.where(fine, jnp.zeros_like(state.consecutive_skips), increment(state.consecutive_skips))
        total = jnp.where(fine, state.skipped_steps, increment(state.skipped_steps))
        too_many = consecutive > max_consecutive
        state = SkipNonfiniteState(consecutive, total, too_many, inner_state)
        if not isinstance(too_many, jax.core.Tracer):
            check_finite(state)
        elif raise_in_jit:
            # Under vmap both sides of the cond are carried out, so the callback has to look for itself.
            jax.lax.cond(too_many, lambda *told: jax.debug.callback(_check, *told), lambda *told: None,
                         too_many, consecutive, total)
        return new, state

    return Around(init, update, lambda state: {"tx": (tx, state.inner_state)}, SkipNonfiniteState,
                  final=is_final(stage))


def check_finite(state: State) -> None:
    """Raises on the host if a state says that too many steps in a row were not finite.

    Args:
      state: the state of a transformation with ``skip_nonfinite`` in it, or of a population of them; reading it waits
        for the step to finish.

    Raises:
      NonfiniteError: the limit was passed.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.skip_nonfinite(gx.sgd(1.0), max_consecutive=3)
      >>> gx.check_finite(tx.init({"w": 0.0}))
    """
    is_guard = lambda x: isinstance(x, SkipNonfiniteState)  # noqa: E731
    for guard in filter(is_guard, jax.tree.leaves(state, is_leaf=is_guard)):
        _check(guard.too_many, guard.consecutive_skips, guard.skipped_steps)
        check_finite(guard.inner_state)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether no leaf of a tree has NaN or inf in it.

    Args:
      tree: a tree of arrays.

    Returns:
      A bool scalar; True for a tree without elements.

    Example:
      >>> import gradxform as gx
      >>> gx.all_finite({"a": 1.0, "b": float("inf")})
      Array(False, dtype=bool)
    """
    flags = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, flags, jnp.ones([], bool))


def _check(too_many: Any, consecutive: Any, total: Any) -> None:
    """Raises for the member of a population that has skipped the most steps in a row; a single run is one of one."""
    if not np.any(too_many):
        return
    worst = np.unravel_index(np.argmax(consecutive), np.shape(consecutive))
    which = f"member {', '.join(map(str, worst))}: " if worst else ""
    raise NonfiniteError(
        f"skip_nonfinite: {which}{np.asarray(consecutive)[worst]} steps in a row had NaN or inf in their gradients or "
        f"updates ({np.asarray(total)[worst]} in all); params and state are as they were before them")
