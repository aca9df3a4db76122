"""Steps that are not finite: skipped, counted, and refused when there are too many."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradxform.core import checks, stages
from gradxform.core.foreign import stage_of
from gradxform.core.manual import (
    AxisName,
    check_axis_name,
    everywhere,
    known_devices,
    refuse_pieces,
    spread,
    varying_like,
)
from gradxform.core.numbers import increment
from gradxform.core.run import guarded
from gradxform.core.stages import Around, is_final
from gradxform.core.transformation import transformation
from gradxform.core.trees import is_inexact
from gradxform.core.types import AnyTransformation, Params, PyTree, State, Updates


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

    def recorded(self) -> dict[str, jax.Array]:
        """What ``metrics`` shows."""
        return {"skipped_steps": self.skipped_steps, "consecutive_skips": self.consecutive_skips}


@transformation
def skip_nonfinite(
    tx: AnyTransformation, max_consecutive: int, *, raise_in_jit: bool = False, axis_name: AxisName = None
) -> Around:
    """Leaves params and state as they are in a step with NaN or inf in it.

    A step with NaN or inf in its gradients, or with NaN as one of its numbers (the factor of a clip whose norm
    overflows, a rate), is not made: it returns updates of zero, keeps the state of ``tx`` bit for bit and is counted.
    In a step that is made, an element whose update, or what is kept of it, would become NaN or infinite all the same (a
    finite float32 that is infinite in the float16 of its param, a square that overflows) gets no update and keeps what
    was kept of it; the others move, and the step counts as made. To know of it before anything moves, the whole step
    would have to be worked out twice.

    After more than ``max_consecutive`` steps in a row that were not made, ``update`` raises where it is not compiled. A
    compiled one leaves that to the host: call ``check_finite(state)`` or ``metrics(state)`` in the training loop.

    Args:
      tx: the transformation to guard.
      max_consecutive: how many skipped steps in a row are allowed, >= 0.
      raise_in_jit: whether a compiled step raises by itself, by a host callback that is only reached once the limit is
        passed (under ``vmap`` in every step). For one device: on several, one that raises leaves the others waiting
        for it. A program with it cannot be exported.
      axis_name: the named axes of ``shard_map`` along which leaves are in pieces: all devices along them skip a step or
        make it together. Under ``check_vma=True`` pieces without it are refused, and ``()`` lets each device skip by
        itself; under ``check_vma=False`` it cannot be known.

    Returns:
      A transformation.

    Raises:
      TypeError: ``tx`` is not a transformation, ``max_consecutive`` not an integer or ``axis_name`` no axis.
      ValueError: ``max_consecutive`` is negative; from ``update``, ``raise_in_jit`` in a compiled step that is known to
        be for several devices.
      ShardingError: from ``update``, a piece of a leaf without ``axis_name``, with its path.
      NonfiniteError: from ``update``, once the limit is passed.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.skip_nonfinite(gx.sgd(1.0), max_consecutive=3)
      >>> updates, state = tx.update({"w": float("nan")}, tx.init({"w": 0.0}))
      >>> updates, int(state.skipped_steps)
      ({'w': Array(-0., dtype=float32)}, 1)
    """
    stage = stage_of(tx)
    checks.integer("max_consecutive", max_consecutive, at_least=0)
    check_axis_name(axis_name)

    def init(params: Params) -> SkipNonfiniteState:
        zeros = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), jnp.zeros([], bool)
        consecutive, total, too_many = varying_like(params, zeros) if axis_name == () else zeros
        return SkipNonfiniteState(consecutive, total, too_many, stages.init(stage, params))

    def update(
        updates: Updates,
        state: SkipNonfiniteState,
        params: Params | None = None,
        *,
        fine: bool | jax.Array = True,
        **extra: object,
    ) -> tuple[Updates, SkipNonfiniteState]:
        refuse_pieces("skip_nonfinite", axis_name, updates)
        new, inner_state, fine = guarded(
            stage,
            updates,
            state.inner_state,
            params,
            extra,
            "skip_nonfinite",
            fine & all_finite(updates, axis_name),
            axis_name,
        )
        consecutive = jnp.where(fine, jnp.zeros_like(state.consecutive_skips), increment(state.consecutive_skips))
        total = jnp.where(fine, state.skipped_steps, increment(state.skipped_steps))
        too_many = consecutive > max_consecutive
        state = SkipNonfiniteState(consecutive, total, too_many, inner_state)
        if not isinstance(too_many, jax.core.Tracer):
            check_finite(state)
        elif raise_in_jit:
            if (devices := known_devices(updates)) > 1:
                raise ValueError(
                    f"raise_in_jit: expected False in a step for several devices, got True on a mesh of "
                    f"{devices}; call check_finite(state) on the host"
                )
            # Under vmap both sides of the cond are carried out, so the callback has to look for itself.
            jax.lax.cond(
                too_many,
                lambda *told: jax.debug.callback(_check, *told),
                lambda *told: None,
                too_many,
                consecutive,
                total,
            )
        return new, state

    return Around(
        init,
        update,
        lambda state: {"tx": (tx, state.inner_state)},
        SkipNonfiniteState,
        final=is_final(stage),
        guarded=True,
    )


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


def all_finite(tree: PyTree, axis_name: AxisName = None) -> jax.Array:
    """Whether no leaf of a tree has NaN or inf in it.

    Args:
      tree: a tree of arrays.
      axis_name: the named axes of ``shard_map`` along which leaves are in pieces, which are taken together. Under
        ``check_vma=True`` pieces without it are refused, and ``()`` is each device by itself; under ``check_vma=False``
        it cannot be known.

    Returns:
      A bool scalar; True for a tree without elements.

    Raises:
      ShardingError: a piece of a leaf without ``axis_name``, with its path.

    Example:
      >>> import gradxform as gx
      >>> gx.all_finite({"a": 1.0, "b": float("inf")})
      Array(False, dtype=bool)
    """
    check_axis_name(axis_name)
    refuse_pieces("all_finite", axis_name, tree)
    flags: dict[tuple[str, ...], list[jax.Array]] = {}
    for leaf in filter(is_inexact, jax.tree.leaves(tree)):
        leaf = jnp.asarray(leaf)
        flags.setdefault(spread(leaf, axis_name), []).append(jnp.all(jnp.isfinite(leaf)))
    parts = [everywhere(functools.reduce(jnp.logical_and, own), along) for along, own in flags.items()]
    return functools.reduce(jnp.logical_and, parts, jnp.ones([], bool))


def _check(too_many: ArrayLike, consecutive: ArrayLike, total: ArrayLike) -> None:
    """Raises for the member of a population that has skipped the most steps in a row; a single run is one of one."""
    if not np.any(too_many):
        return
    worst = np.unravel_index(np.argmax(consecutive), np.shape(consecutive))
    which = f"member {', '.join(map(str, worst))}: " if worst else ""
    raise NonfiniteError(
        f"skip_nonfinite: {which}{np.asarray(consecutive)[worst]} steps in a row had NaN or inf in their gradients or "
        f"numbers ({np.asarray(total)[worst]} in all); params and state are as they were before them"
    )
