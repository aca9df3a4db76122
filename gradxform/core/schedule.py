"""The schedule: a function of the step that is also a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradxform.core.numbers import MAX_STEP, float_dtype, scalar
from gradxform.core.pytree import register
from gradxform.core.types import ScalarOrSchedule, Step
from gradxform.core.value import Value, factory

P = ParamSpec("P")


@register
class Schedule(Value):
    """A pure function from the step to a number that prints, compares, pickles and is a pytree of its numbers.

    It is made by a factory in ``gradxform.schedules``. Steps count from 0 and are exact up to 2**31 - 1; a step below
    0 counts as 0. The result has the shape of the step and is float32 (float64 where jax has 64-bit types on).

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.linear(1.0, 0.0, 4)(jnp.arange(6))
      Array([1.  , 0.75, 0.5 , 0.25, 0.  , 0.  ], dtype=float32)
    """

    def __call__(self, step: Step) -> jax.Array:
        """The value at a step, or at each of an array of steps."""
        step = as_step(step)
        value = jnp.asarray(self.built(step))
        return jnp.broadcast_to(value.astype(jnp.promote_types(value.dtype, float_dtype())), step.shape)


def schedule(function: Callable[P, Callable[[jax.Array], ArrayLike]]) -> Callable[P, Schedule]:
    """Turns a factory of functions of the step into one of schedules.

    Args:
      function: a function of the hyperparameters that returns ``f(step)``; ``step`` comes as an integer array >= 0.

    Returns:
      The factory; its schedules are pytrees of their float and array arguments.

    Example:
      >>> import gradxform as gx
      >>> @gx.schedule
      ... def reciprocal(init_value: float):
      ...   return lambda step: init_value / (step + 1)
      >>> float(reciprocal(1)(3))
      0.25
    """
    return factory(Schedule, function)


def at_step(value: ScalarOrSchedule, step: Step) -> Any:
    """A hyperparameter at a step, ready for arithmetic: arrays in float32 at least.

    Args:
      value: a number, or a schedule: ours, optax's or any other function of a step.
      step: the step, or an array of steps.

    Returns:
      What the schedule returned, of the shape of ``step``, or the number; a Python number stays one.
    """
    if not callable(value):
        return scalar(value)
    if jnp.ndim(step) == 0 or isinstance(value, Schedule):
        return scalar(value(step))
    # Not every function of a step, nor every schedule of optax's, takes an array of steps.
    return scalar(jax.vmap(value)(jnp.reshape(step, -1)).reshape(jnp.shape(step)))


def as_step(step: ArrayLike) -> jax.Array:
    """A step as an array of signed integers that are not negative.

    Raises:
      TypeError: the step is not a number of steps.
      ValueError: it is beyond 2**31 - 1.
    """
    if isinstance(step, (int, np.integer, np.ndarray)) and not isinstance(step, bool) and np.any(step > MAX_STEP):
        raise ValueError(f"step: expected at most 2**31 - 1, got {step}")
    step = whole(step)
    if step.dtype == bool or not (jnp.issubdtype(step.dtype, jnp.integer) or jnp.issubdtype(step.dtype, jnp.floating)):
        raise TypeError(f"step: expected an integer or an array of integers, got {step.dtype}")
    return jnp.maximum(step, jnp.zeros_like(step))


def whole(steps: ArrayLike) -> jax.Array:
    """A count of steps as a signed integer of 32 bits at least, which can be subtracted; a float step stays one."""
    steps = jnp.asarray(steps)
    if not jnp.issubdtype(steps.dtype, jnp.integer):
        return steps
    if jnp.issubdtype(steps.dtype, jnp.unsignedinteger) and steps.dtype.itemsize >= 4:
        steps = jnp.minimum(steps, MAX_STEP)
    narrow = steps.dtype.itemsize < 4 or jnp.issubdtype(steps.dtype, jnp.unsignedinteger)
    return steps.astype(jnp.int32) if narrow else steps
