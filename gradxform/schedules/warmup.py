"""The schedules that begin with a rise."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.numbers import scalar, sqrt
from gradxform.core.schedule import Schedule, schedule
from gradxform.core.types import Scalar, ScalarOrSchedule
from gradxform.schedules.counting import (
    between,
    check_steps,
    gone_and_left,
    half_cosine,
    portion,
    since,
    value_at,
    whole,
)

DECAYS = ("linear", "cosine", "sqrt")


@schedule
def warmup(
    steps: int | jax.Array, schedule: ScalarOrSchedule, init_value: Scalar = 0.0
) -> Callable[[jax.Array], Scalar]:
    """Rises in a straight line to the first value of a schedule, then follows the schedule.

    ``init_value + (schedule(0) - init_value) * t / steps`` up to step ``steps``, from there ``schedule(t - steps)``.
    Where no steps are left to a schedule that has an end, as to ``cosine(1e-3, 0)``, the rise is to the value it would
    have begun with, and its end value follows.

    Args:
      steps: the steps of the rise, >= 0; with 0 it is the schedule itself. The first update, at step 0, is made with
        ``init_value``.
      schedule: what follows: a schedule, ours or optax's, any other function of the step, or a number to stay at.
      init_value: the value at step 0.

    Returns:
      A schedule.

    Raises:
      TypeError: ``steps`` is not an integer, ``schedule`` is neither a schedule nor a number, or ``init_value`` is
        not a real number.
      ValueError: ``steps`` is negative.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.warmup(2, gx.schedules.linear(1.0, 0.0, 4))(jnp.arange(7))
      Array([0.  , 0.5 , 1.  , 0.75, 0.5 , 0.25, 0.  ], dtype=float32)
    """
    check_steps("steps", steps, at_least=0)
    checks.real("schedule", schedule, schedule=True)
    checks.real("init_value", init_value)

    def value(t: jax.Array) -> jax.Array:
        later = value_at(schedule, since(t, steps))
        rise = between(init_value, _start(schedule), *gone_and_left(t, steps))
        return jnp.where(whole(t) < whole(steps), rise, later)

    return value


def _start(schedule: ScalarOrSchedule) -> jax.Array:
    """The value that a schedule sets out from: that at step 0, or where it is over by then the one it would have had.

    A trial as short as its warm-up leaves no steps to a cosine. It has to rise to the peak all the same.
    """
    first = value_at(schedule, jnp.zeros([], jnp.int32))
    if isinstance(schedule, Schedule) and {"init_value", "end_value", "steps"} <= schedule.arguments.keys():
        first = jnp.where(whole(schedule.arguments["steps"]) == 0, scalar(schedule.arguments["init_value"]), first)
    return first


@schedule
def inverse_sqrt(peak_value: Scalar, warmup_steps: int | jax.Array) -> Callable[[jax.Array], Scalar]:
    """Rises in a straight line from 0, then decays with the root of the step.

    Vaswani et al., "Attention Is All You Need" (NeurIPS 2017), equation 3, in terms of its largest value:
    ``peak_value * min(t / warmup_steps, sqrt(warmup_steps / t))``. The paper's ``d_model ** -0.5`` is
    ``peak_value * warmup_steps ** 0.5``.

    Args:
      peak_value: the value at step ``warmup_steps``.
      warmup_steps: the steps of the rise, >= 1.

    Returns:
      A schedule.

    Raises:
      TypeError: ``warmup_steps`` is not an integer, or ``peak_value`` is not a real number.
      ValueError: ``warmup_steps`` is less than 1.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.inverse_sqrt(1.0, warmup_steps=4)(jnp.array([0, 2, 4, 16]))
      Array([0. , 0.5, 1. , 0.5], dtype=float32)
    """
    checks.real("peak_value", peak_value)
    check_steps("warmup_steps", warmup_steps)

    def value(t: jax.Array) -> jax.Array:
        gone, _ = gone_and_left(t, warmup_steps)
        falling = jnp.sqrt(portion(whole(warmup_steps), jnp.maximum(whole(t), whole(warmup_steps))))
        return peak_value * jnp.where(gone < 1, gone, falling)

    return value


@schedule
def warmup_stable_decay(
    peak_value: Scalar,
    warmup_steps: int | jax.Array,
    stable_steps: int | jax.Array,
    decay_steps: int | jax.Array,
    *,
    init_value: Scalar = 0.0,
    end_value: Scalar = 0.0,
    decay: str = "linear",
) -> Callable[[jax.Array], Scalar]:
    """Rises in a straight line, stays, and falls at the end.

    Hu et al., "MiniCPM" (2024), section 4; the falls are those of Haegele et al., "Scaling Laws and Compute-Optimal
    Training Beyond Fixed Training Durations" (NeurIPS 2024), section 3. The fraction x of the fall that is over leaves
    ``1 - x`` ("linear"), ``(1 + cos(pi x)) / 2`` ("cosine") or ``1 - sqrt(x)`` ("sqrt") of the way to ``end_value``.

    Args:
      peak_value: the value between the rise and the fall.
      warmup_steps: the steps of the rise, >= 0.
      stable_steps: the steps at ``peak_value``, >= 0.
      decay_steps: the steps of the fall, >= 0.
      init_value: the value at step 0.
      end_value: the value from step ``warmup_steps + stable_steps + decay_steps`` on.
      decay: "linear", "cosine" or "sqrt".

    Returns:
      A schedule.

    Raises:
      TypeError: a count of steps is not an integer, or a value is not a real number.
      ValueError: a count out of its range, or an unknown ``decay``.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.warmup_stable_decay(1.0, 2, 2, 4, decay="sqrt")(jnp.arange(9)).round(3)
      Array([0.   , 0.5  , 1.   , 1.   , 1.   , 0.5  , 0.293, 0.134, 0.   ],      dtype=float32)
    """
    checks.real("peak_value", peak_value)
    check_steps("warmup_steps", warmup_steps, at_least=0)
    check_steps("stable_steps", stable_steps, at_least=0)
    check_steps("decay_steps", decay_steps, at_least=0)
    checks.real("init_value", init_value)
    checks.real("end_value", end_value)
    checks.choice("decay", decay, DECAYS)

    def value(t: jax.Array) -> jax.Array:
        after = since(t, warmup_steps)
        gone, left = gone_and_left(since(after, stable_steps), decay_steps)
        if decay == "cosine":
            gone, left = half_cosine(gone, left)
        elif decay == "sqrt":
            root = sqrt(gone)
            gone, left = root, left / (1 + root)
        rise = between(init_value, peak_value, *gone_and_left(t, warmup_steps))
        # A fall of no steps is over, but not before it begins.
        fall = jnp.where(after < whole(stable_steps), peak_value, between(peak_value, end_value, gone, left))
        return jnp.where(whole(t) < whole(warmup_steps), rise, fall)

    return value
