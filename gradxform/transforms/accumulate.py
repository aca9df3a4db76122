"""Gradient accumulation: one step for several micro-batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core import checks, stages
from gradxform.core.control import branch
from gradxform.core.foreign import stage_of
from gradxform.core.numbers import cast, no_update
from gradxform.core.run import run
from gradxform.core.slots import Slot
from gradxform.core.stages import Around
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.trees import align, check_shapes, refuse_integers
from gradxform.core.types import AnyTransformation, Params, State, Updates
from gradxform.transforms.combine import check_transformation


class AccumulateState(NamedTuple):
    """Micro-batches seen since the last step, their sum, and the state of the transformation inside."""

    micro_step: jax.Array
    total: Updates
    inner_state: State


@transformation
def accumulate(tx: AnyTransformation, every: int) -> Around | Transformation:
    """Averages the gradients of ``every`` micro-batches and runs a transformation once on their mean.

    The sum is kept in float32 at least. On the other micro-batches the updates are zero and the work of ``tx`` is not
    done (optax's MultiSteps does it and throws it away); its schedules count steps, not micro-batches.

    Args:
      tx: the transformation to run on the mean.
      every: micro-batches a step, >= 1.

    Returns:
      A transformation.

    Raises:
      TypeError: ``tx`` is not a transformation or ``every`` not an integer.
      ValueError: ``every`` is below 1.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.accumulate(gx.sgd(1.0), every=2)
      >>> first, state = tx.update({"w": 1.0}, tx.init({"w": 0.0}))
      >>> second, state = tx.update({"w": 3.0}, state)
      >>> first, second
      ({'w': Array(-0., dtype=float32)}, {'w': Array(-2., dtype=float32)})
    """
    check_transformation("tx", tx)
    checks.integer("every", every, at_least=1)
    stage = stage_of(tx)

    def init(params: Params) -> AccumulateState:
        return AccumulateState(jnp.zeros([], jnp.int32), Slot().new(params), stages.init(stage, params))

    def update(updates: Updates, state: AccumulateState, params: Params | None = None,
               **extra: Any) -> tuple[Updates, AccumulateState]:
        refuse_integers(updates, "updates")
        leaves, treedef = jax.tree.flatten(updates)
        sums = align(treedef, updates, state.total, "state")
        check_shapes(updates, leaves, sums, "updates", "state")
        total = jax.tree.unflatten(treedef, [cast(a + g, a.dtype) for a, g in zip(sums, leaves, strict=True)])

        def step() -> tuple[Updates, State, Updates]:
            mean = jax.tree.map(lambda a: a / every, total)
            new, inner_state = run(stage, mean, state.inner_state, params, extra, "accumulate")
            return new, inner_state, jax.tree.map(jnp.zeros_like, total)

        def wait() -> tuple[Updates, State, Updates]:
            return jax.tree.map(no_update, total), state.inner_state, total

        last = state.micro_step == every - 1
        new, inner_state, total = branch(last, step, wait)
        micro_step = jnp.where(last, jnp.zeros_like(state.micro_step), state.micro_step + 1)
        return new, AccumulateState(micro_step, total, inner_state)

    return Around(init, update, inner=lambda state: {"tx": (tx, state.inner_state)})
