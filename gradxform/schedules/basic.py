"""The schedules that decay once: constant, step, exponential, polynomial, linear, cosine."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.schedule import schedule
from gradxform.core.types import Scalar
from gradxform.schedules.counting import between, check_steps, gone_and_left, half_cosine, powered, raised, real, whole


@schedule
def constant(value: Scalar) -> Callable[[jax.Array], Scalar]:
    """The same value at every step.

    Args:
      value: the value.

    Returns:
      A schedule.

    Raises:
      TypeError: ``value`` is not a real number.

    Example:
      >>> import gradxform as gx
      >>> gx.schedules.constant(0.5)(100)
      Array(0.5, dtype=float32)
    """
    checks.real("value", value)
    return lambda step: value


@schedule
def step(init_value: Scalar, gamma: Scalar, every: int | jax.Array) -> Callable[[jax.Array], Scalar]:
    """Multiplies the value by ``gamma`` every so many steps: ``init_value * gamma ** floor(t / every)``.

    Args:
      init_value: the value at step 0.
      gamma: the factor, > 0; less than 1 to decay.
      every: the steps from one change to the next, >= 1.

    Returns:
      A schedule.

    Raises:
      TypeError: ``every`` is not an integer, or a value is not a real number.
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.step(1.0, 0.5, every=2)(jnp.arange(6))
      Array([1.  , 1.  , 0.5 , 0.5 , 0.25, 0.25], dtype=float32)
    """
    checks.real("init_value", init_value)
    checks.real("gamma", gamma, above=0)
    check_steps("every", every)
    return lambda t: init_value * raised(gamma, whole(t) // whole(every))


@schedule
def exponential(init_value: Scalar, rate: Scalar) -> Callable[[jax.Array], Scalar]:
    """Decays continuously: ``init_value * exp(-rate * t)``.

    Args:
      init_value: the value at step 0.
      rate: the decay per step; negative to grow, as a range test of learning rates does. A decay by the factor
        ``gamma`` a step has the rate ``-log(gamma)``.

    Returns:
      A schedule.

    Raises:
      TypeError: an argument is not a real number.

    Example:
      >>> import gradxform as gx
      >>> round(float(gx.schedules.exponential(1.0, rate=0.1)(10)), 4)
      0.3679
    """
    checks.real("init_value", init_value)
    checks.real("rate", rate)
    return lambda t: init_value * jnp.exp(-rate * real(t))


@schedule
def polynomial(
    init_value: Scalar, end_value: Scalar, steps: int | jax.Array, power: Scalar
) -> Callable[[jax.Array], Scalar]:
    """Goes from one value to another along a power.

    ``end_value + (init_value - end_value) * (1 - t / steps) ** power``.

    Args:
      init_value: the value at step 0.
      end_value: the value from step ``steps`` on.
      steps: the steps between them, >= 0; with 0 it is ``end_value`` throughout.
      power: the exponent, > 0; 1 is a straight line, more falls early, less falls late.

    Returns:
      A schedule.

    Raises:
      TypeError: ``steps`` is not an integer, or a value is not a real number.
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.polynomial(1.0, 0.0, steps=4, power=2.0)(jnp.arange(6))
      Array([1.    , 0.5625, 0.25  , 0.0625, 0.    , 0.    ], dtype=float32)
    """
    checks.real("init_value", init_value)
    checks.real("end_value", end_value)
    check_steps("steps", steps, at_least=0)
    checks.real("power", power, above=0)
    return lambda t: between(init_value, end_value, *powered(*gone_and_left(t, steps), power))


@schedule
def linear(init_value: Scalar, end_value: Scalar, steps: int | jax.Array) -> Callable[[jax.Array], Scalar]:
    """Goes from one value to another in a straight line: ``init_value + (end_value - init_value) * t / steps``.

    Args:
      init_value: the value at step 0.
      end_value: the value from step ``steps`` on.
      steps: the steps between them, >= 0; with 0 it is ``end_value`` throughout.

    Returns:
      A schedule.

    Raises:
      TypeError: ``steps`` is not an integer, or a value is not a real number.
      ValueError: ``steps`` is negative.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.linear(0.0, 1.0, steps=4)(jnp.arange(6))
      Array([0.  , 0.25, 0.5 , 0.75, 1.  , 1.  ], dtype=float32)
    """
    checks.real("init_value", init_value)
    checks.real("end_value", end_value)
    check_steps("steps", steps, at_least=0)
    return lambda t: between(init_value, end_value, *gone_and_left(t, steps))


@schedule
def cosine(
    init_value: Scalar, steps: int | jax.Array, end_value: Scalar = 0.0, exponent: Scalar = 1.0
) -> Callable[[jax.Array], Scalar]:
    """Goes from one value to another along half a cosine.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (ICLR 2017), equation 5, without a
    restart: ``end_value + (init_value - end_value) * ((1 + cos(pi t / steps)) / 2) ** exponent``. The third argument is
    the value at the end; that of optax's ``cosine_decay_schedule``, ``alpha``, is ``end_value / init_value``.

    Args:
      init_value: the value at step 0.
      steps: the steps to ``end_value``, >= 0; with 0 it is ``end_value`` throughout.
      end_value: the value from step ``steps`` on. A run of ``steps`` updates makes its last one at ``steps - 1``.
      exponent: the power of the cosine, > 0; more than 1 falls earlier.

    Returns:
      A schedule.

    Raises:
      TypeError: ``steps`` is not an integer, or a value is not a real number.
      ValueError: ``steps`` is negative, or ``exponent`` is not positive.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.cosine(1.0, steps=4, end_value=0.2)(jnp.arange(0, 6, 2))
      Array([1. , 0.6, 0.2], dtype=float32)
    """
    checks.real("init_value", init_value)
    check_steps("steps", steps, at_least=0)
    checks.real("end_value", end_value)
    checks.real("exponent", exponent, above=0)

    def value(t: jax.Array) -> jax.Array:
        weights = half_cosine(*gone_and_left(t, steps))
        if not (checks.is_concrete(exponent) and exponent == 1):
            weights = powered(*weights, exponent)
        return between(init_value, end_value, *weights)

    return value
