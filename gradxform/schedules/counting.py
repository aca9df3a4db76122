"""The arithmetic that the schedules share: steps counted in integers, values met exactly at both ends.

A float32 cannot tell 2**24 from 2**24 + 1, so every difference, quotient and comparison of steps is made between
integers, and only the result becomes a float. No sum or product of two step counts is formed, since it could pass
2**31 - 1; a step moves from phase to phase by subtraction.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradxform.core import checks
from gradxform.core.numbers import MAX_STEP, float_dtype
from gradxform.core.schedule import at_step, whole
from gradxform.core.types import Scalar, ScalarOrSchedule


def check_steps(name: str, value: object, at_least: int = 1) -> None:
    """Refuses what is not a count of steps from ``at_least`` to 2**31 - 1."""
    checks.integer(name, value, at_least=at_least, at_most=MAX_STEP)


def real(x: ArrayLike) -> jax.Array:
    """``x`` in the dtype of a schedule's value."""
    return jnp.asarray(x).astype(float_dtype())


def since(step: jax.Array, start: int | jax.Array) -> jax.Array:
    """The steps made since ``start``; 0 before it."""
    steps = whole(step) - whole(start)
    return jnp.maximum(steps, jnp.zeros_like(steps))


def portion(part: jax.Array, total: int | jax.Array) -> jax.Array:
    """The fraction ``part / total`` of two counts; a total of 0 is taken as 1."""
    return real(part) / real(jnp.maximum(whole(total), 1))


def gone_and_left(step: jax.Array, steps: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """How much of a phase of ``steps`` is over at ``step``, and how much is left: fractions that add up to 1.

    A phase of no steps is over. Each is a quotient of its own. One minus the other would be wrong by 6e-8, which is
    everything in the last of a million steps toward 0.
    """
    steps = whole(steps)
    step = jnp.minimum(whole(step), steps)
    return jnp.where(steps == 0, 1, portion(step, steps)), portion(steps - step, steps)


def between(start: Scalar, end: Scalar, gone: jax.Array, left: jax.Array) -> jax.Array:
    """``left * start + gone * end`` for weights that add up to 1.

    It is exactly ``start`` at ``gone = 0`` and ``end`` at ``left = 0``, and no rounding takes it outside of the two.
    """
    span = end - start
    return jnp.where(gone <= left, start + gone * span, end - left * span)


def half_cosine(gone: jax.Array, left: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weights ``(1 - cos(pi gone)) / 2`` and ``(1 + cos(pi gone)) / 2``, as squared sines that do not cancel."""
    return jnp.square(jnp.sin(0.5 * jnp.pi * gone)), jnp.square(jnp.sin(0.5 * jnp.pi * left))


def powered(gone: jax.Array, left: jax.Array, power: Scalar) -> tuple[jax.Array, jax.Array]:
    """The weights ``1 - left ** power`` and ``left ** power``, neither a difference of nearly equal numbers."""
    over = left == 0
    left = jnp.where(over, 1, left)  # 0 ** power has an infinite logarithm in its derivative
    log_left = jnp.where(gone < 0.5, jnp.log1p(-jnp.minimum(gone, 0.5)), jnp.log(left))
    return jnp.where(over, 1, -jnp.expm1(power * log_left)), jnp.where(over, 0, jnp.power(left, power))


def raised(base: Scalar, exponent: jax.Array) -> jax.Array:
    """``base ** exponent`` for a positive base and a whole exponent of any size."""
    exponent = real(exponent)
    if not isinstance(base, float):
        return jnp.power(base, exponent)
    near = float(np.asarray(base, float_dtype()))
    if near in (0.0, base):
        return jnp.power(near, exponent)
    # float32 keeps 0.99994 to 3e-8, which a hundred thousand factors turn into 3e-3: put back what it lost. With yet
    # more factors the two parts could overflow one by one.
    few = exponent < 2**24
    product = jnp.power(near, exponent) * jnp.exp(jnp.where(few, exponent, 0) * math.log(base / near))
    return jnp.where(few, product, jnp.exp(exponent * math.log(base)))


def value_at(schedule: ScalarOrSchedule, step: jax.Array) -> jax.Array:
    """The value of a schedule, ours or any other function of the step, or of a number taken as a constant one."""
    return real(at_step(schedule, step))
