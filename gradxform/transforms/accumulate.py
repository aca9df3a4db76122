"""Gradient accumulation: one step for several micro-batches."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gradxform.core import checks, stages
from gradxform.core.control import branch
from gradxform.core.foreign import stage_of
from gradxform.core.guard import keep
from gradxform.core.numbers import cast, float_dtype, increment, no_update
from gradxform.core.run import run
from gradxform.core.slots import Slot
from gradxform.core.stages import Around, is_final
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.trees import align, check_shapes, flatten, refuse_integers
from gradxform.core.types import AnySchedule, AnyTransformation, Params, Scalar, State, Updates


class AccumulateState(NamedTuple):
    """Micro-batches since the last step, their weighted sum, the inner state, their weight, and the steps made.

    The last two are None in a state from before they were kept; the next update fills them in.
    """

    micro_step: jax.Array
    total: Updates
    inner_state: State
    weight: jax.Array | None = None
    count: jax.Array | None = None  # type: ignore[assignment]  # tuple has a method of that name


@transformation
def accumulate(tx: AnyTransformation, every: int | AnySchedule) -> Around | Transformation:
    """Averages the gradients of ``every`` micro-batches and runs a transformation once on their mean.

    The sum is kept in float32 at least. On the other micro-batches the updates are zero and the work of ``tx`` is not
    done (optax's MultiSteps does it and throws it away); its schedules count steps, not micro-batches.

    ``update`` takes two more arguments, in a chain and in ``nnx.Optimizer.update`` too:

    - ``weight``, a number >= 0: the step is made on ``sum(weight * gradient) / sum(weight)``. Give the number of
      tokens for the mean over tokens of gradients that are each a mean over tokens. What comes with weight 0 counts
      for nothing, NaN included, and a window of no weight makes no step. Without it every micro-batch weighs 1.
    - ``flush``, a bool, traced or not: whether the step is due now, on the micro-batches that there are, as at the end
      of an epoch. With ``weight=0`` nothing is added before.

    Args:
      tx: the transformation to run on the mean.
      every: micro-batches a step, >= 1, or a schedule of it: any function from the number of steps made to the
        micro-batches of the next one, rounded to a whole number (optax: ``every_k_schedule``).

    Returns:
      A transformation. Its state may be carried on with another ``every``: a step is due once there are as many
      micro-batches as that or more.

    Raises:
      TypeError: ``tx`` is not a transformation or ``every`` not an integer; from ``update``, ``weight`` is not a real
        number or ``flush`` not a bool.
      ValueError: ``every`` is below 1; from ``update``, ``weight`` is negative or not a scalar.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.accumulate(gx.sgd(1.0), every=2)
      >>> first, state = tx.update({"w": 1.0}, tx.init({"w": 0.0}))
      >>> second, state = tx.update({"w": 3.0}, state)
      >>> first, second
      ({'w': Array(-0., dtype=float32)}, {'w': Array(-2., dtype=float32)})
      >>> last, state = tx.update({"w": 5.0}, state, flush=True)
      >>> last
      {'w': Array(-5., dtype=float32)}
    """
    stage = stage_of(tx)
    if not callable(every):
        checks.integer("every", every, at_least=1)

    def init(params: Params) -> AccumulateState:
        return AccumulateState(
            jnp.zeros([], jnp.int32),
            Slot().new(params),
            stages.init(stage, params),
            jnp.zeros([], float_dtype()),
            jnp.zeros([], jnp.int32),
        )

    def update(
        updates: Updates,
        state: AccumulateState,
        params: Params | None = None,
        *,
        weight: Scalar | None = None,
        flush: bool | jax.Array = False,
        fine: jax.Array | None = None,
        **extra: object,
    ) -> tuple[Updates, AccumulateState]:
        _check(weight, flush)
        refuse_integers(updates, "updates")
        leaves, treedef = flatten(updates)
        sums = align(treedef, updates, state.total, "state")
        check_shapes(updates, leaves, sums, "updates", "state")
        total = jax.tree.unflatten(treedef, [_plus(a, g, weight) for a, g in zip(sums, leaves, strict=True)])
        before = cast(state.micro_step, float_dtype()) if state.weight is None else state.weight
        weights = cast(before + (1 if weight is None else weight), before.dtype)
        if fine is not None:  # a micro-batch that is not counts for nothing, its place in the window included
            total, weights = keep(fine, (total, weights), (treedef.unflatten(sums), before))
        count = jnp.zeros_like(state.micro_step) if state.count is None else state.count
        if weight is not None:
            extra["weight"] = weights  # of one micro-batch, for an accumulate inside
        if flush is not False:
            extra["flush"] = flush

        def step() -> tuple[Updates, State, Updates]:
            mean = jax.tree.map(lambda a: cast(a / weights, a.dtype), total)
            new, inner_state = run(stage, mean, state.inner_state, params, extra, "accumulate")
            return new, inner_state, jax.tree.map(jnp.zeros_like, total)

        def wait() -> tuple[Updates, State, Updates]:
            return jax.tree.map(no_update, total), state.inner_state, total

        window = jnp.round(every(count)) if callable(every) else every
        # Not ==: the state may come from a longer window.
        over = (state.micro_step >= window - 1) | flush
        over = over if fine is None else over & fine
        due = over & (weights != 0)
        micro_step = increment(state.micro_step)
        micro_step = micro_step if fine is None else keep(fine, micro_step, state.micro_step)
        new, inner_state, total = branch(due, step, wait)
        return new, AccumulateState(
            jnp.where(over, jnp.zeros_like(state.micro_step), micro_step),
            total,
            inner_state,
            jnp.where(over, jnp.zeros_like(weights), weights),
            jnp.where(due, increment(count), count),
        )

    return Around(
        init,
        update,
        lambda state: {"tx": (tx, state.inner_state)},
        AccumulateState,
        final=is_final(stage),
        guarded=True,
    )


def _plus(total: jax.Array, gradient: ArrayLike, weight: Scalar | None) -> jax.Array:
    """``total + weight * gradient``; nothing is added with weight 0, where the mean over no tokens is NaN."""
    gradient = cast(gradient, total.dtype)
    if weight is None:
        return cast(total + gradient, total.dtype)
    return jnp.where(weight == 0, total, cast(total + weight * gradient, total.dtype))


def _check(weight: Scalar | None, flush: bool | jax.Array) -> None:
    if weight is not None:
        checks.real("weight", weight, at_least=0)
        if jnp.shape(weight) != ():
            raise ValueError(f"weight: expected one number for the micro-batch, got shape {jnp.shape(weight)}")
    if not isinstance(flush, bool) and (getattr(flush, "dtype", None) != jnp.bool_ or jnp.shape(flush) != ()):
        raise TypeError(f"flush: expected a bool, got {flush!r}")
