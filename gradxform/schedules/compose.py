"""Schedules made of pieces."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.schedule import schedule
from gradxform.core.types import Scalar, ScalarOrSchedule
from gradxform.schedules.counting import check_steps, since, value_at, whole


@schedule
def piecewise(
    init_value: Scalar, boundaries_and_scales: Mapping[int, Scalar] | None = None
) -> Callable[[jax.Array], Scalar]:
    """A constant that is multiplied by a factor at each of some steps.

    The same as ``optax.piecewise_constant_schedule``: at step t the value is ``init_value`` times the product of the
    factors of all boundaries b with ``t >= b``, so a factor holds at its boundary already.

    Args:
      init_value: the value before the first boundary.
      boundaries_and_scales: the factor of each boundary: a dict from a step >= 0 to a number >= 0, in any order.

    Returns:
      A schedule.

    Raises:
      TypeError: ``boundaries_and_scales`` is not a dict, or a boundary in it not an integer, or a factor not a real
        number.
      ValueError: a negative boundary or factor.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.piecewise(1.0, {2: 0.5, 4: 0.5})(jnp.arange(6))
      Array([1.  , 1.  , 0.5 , 0.5 , 0.25, 0.25], dtype=float32)
    """
    checks.real("init_value", init_value)
    if not isinstance(boundaries_and_scales, (dict, type(None))):
        raise TypeError(
            f"boundaries_and_scales: expected a dict from a step to a factor, got {boundaries_and_scales!r}"
        )
    for boundary, factor in (boundaries_and_scales or {}).items():
        check_steps("boundaries_and_scales: a boundary", boundary, at_least=0)
        checks.real(f"boundaries_and_scales[{boundary}]", factor, at_least=0)

    def value(t: jax.Array) -> Scalar:
        level = now = init_value
        for boundary, factor in sorted((boundaries_and_scales or {}).items(), key=lambda item: item[0]):
            level = level * factor
            now = jnp.where(whole(t) >= boundary, level, now)
        return now

    return value


@schedule
def join(schedules: Sequence[ScalarOrSchedule], boundaries: Sequence[int]) -> Callable[[jax.Array], Scalar]:
    """One schedule after another, each counting its steps from where it begins.

    The same as ``optax.join_schedules``: from step ``boundaries[i]`` on the value is that of
    ``schedules[i + 1](t - boundaries[i])``.

    Args:
      schedules: the schedules, ours or optax's, any other functions of the step, or numbers to stay at.
      boundaries: the steps >= 0, increasing, at which the second and each later one begins.

    Returns:
      A schedule.

    Raises:
      TypeError: ``schedules`` or ``boundaries`` is not a sequence, or an element is of the wrong type.
      ValueError: the boundaries do not increase, or there are not as many as schedules less one.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.join([gx.schedules.linear(0.0, 1.0, 2), gx.schedules.linear(1.0, 0.0, 4)], [2])(jnp.arange(7))
      Array([0.  , 0.5 , 1.  , 0.75, 0.5 , 0.25, 0.  ], dtype=float32)
    """
    for name, sequence in (("schedules", schedules), ("boundaries", boundaries)):
        if not isinstance(sequence, (tuple, list)):
            raise TypeError(f"{name}: expected a list, got {sequence!r}")
    for i, part in enumerate(schedules):
        checks.real(f"schedules[{i}]", part, schedule=True)
    for i, boundary in enumerate(boundaries):
        check_steps(f"boundaries[{i}]", boundary, at_least=0)
    if not schedules:
        raise ValueError("schedules: expected at least one schedule, got none")
    if len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"boundaries: expected {len(schedules) - 1} for {len(schedules)} schedules, got {len(boundaries)}"
        )
    for before, after in itertools.pairwise(boundaries):
        if checks.is_concrete(before) and checks.is_concrete(after) and before >= after:
            raise ValueError(f"boundaries: expected increasing steps, got {before} before {after}")

    def value(t: jax.Array) -> jax.Array:
        now = value_at(schedules[0], t)
        for boundary, part in zip(boundaries, schedules[1:], strict=True):
            now = jnp.where(whole(t) < whole(boundary), now, value_at(part, since(t, boundary)))
        return now

    return value
