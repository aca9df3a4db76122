"""Scaling by a number or by a schedule of one."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import optax

from gradxform.core import checks
from gradxform.core.bricks import LeafRule, Leafwise
from gradxform.core.manual import AxisName, size, total
from gradxform.core.numbers import abs_sq, sqrt
from gradxform.core.schedule import Schedule, at_step
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.types import AnySchedule, Scalar, ScalarOrSchedule
from gradxform.transforms.combine import identity


@transformation
def scale(step_size: Scalar) -> Leafwise:
    """Multiplies updates by a number.

    Args:
      step_size: the factor.

    Returns:
      A transformation without state.

    Raises:
      TypeError: ``step_size`` is not a real number.

    Example:
      >>> import gradxform as gx
      >>> gx.scale(-0.5).update({"w": 2.0}, gx.scale(-0.5).init({"w": 1.0}))[0]
      {'w': Array(-1., dtype=float32)}
    """
    checks.real("step_size", step_size)
    return Leafwise(lambda now, g, p: step_size * g, elementwise=True)


@transformation
def scale_by_schedule(step_size_fn: AnySchedule) -> Leafwise:
    """Multiplies updates by a schedule's value at the number of updates made before.

    Args:
      step_size_fn: a schedule, ours or optax's: any function from the step to a number.

    Returns:
      A transformation that counts its updates.

    Raises:
      TypeError: ``step_size_fn`` is not a function.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_schedule(gx.schedules.linear(1.0, 0.0, 4))
      >>> state = tx.init({"w": 1.0})
      >>> _, state = tx.update({"w": 1.0}, state)
      >>> tx.update({"w": 1.0}, state)[0]
      {'w': Array(0.75, dtype=float32)}
    """
    checks.function("step_size_fn", step_size_fn)
    return scheduled(step_size_fn, lambda factor, g, p: factor * g)


@transformation
def scale_by_learning_rate(
    learning_rate: ScalarOrSchedule | None = None, *, flip_sign: bool = True
) -> Leafwise | Transformation:
    """Multiplies updates by the negated learning rate, so that adding them descends.

    Args:
      learning_rate: a number, a schedule of it, or None for no scaling at all. A ``schedules.cosine`` that rises from
        a value above 0 is warned of.
      flip_sign: whether to negate.

    Returns:
      A transformation; it counts its updates if the learning rate is a schedule.

    Raises:
      TypeError: ``learning_rate`` is neither a number nor a schedule.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_learning_rate(0.1)
      >>> tx.update({"w": 1.0}, tx.init({"w": 1.0}))[0]
      {'w': Array(-0.1, dtype=float32)}
    """
    if learning_rate is None:
        return identity()
    checks.real("learning_rate", learning_rate, schedule=True)
    _warn_if_it_rises(learning_rate)
    sign = -1 if flip_sign else 1
    return scheduled(learning_rate, lambda rate, g, p: (sign * rate) * g)


def _warn_if_it_rises(rate: ScalarOrSchedule) -> None:
    """Warns of a cosine that rises: whoever comes from optax has given its ``alpha`` for the value at the end."""
    while isinstance(rate, Schedule) and rate.name == "schedules.warmup":
        rate = rate.arguments["schedule"]
    if not (isinstance(rate, Schedule) and rate.name == "schedules.cosine"):
        return
    first, last = (rate.arguments[name] for name in ("init_value", "end_value"))
    if checks.is_concrete(first) and checks.is_concrete(last) and 0 < first < last:
        warnings.warn(
            f"learning_rate: expected a cosine that falls, got one from {first} to {last}; the third "
            f"argument is the value at the end, and optax's alpha={last} is end_value={first * last:.6g}",
            UserWarning,
            stacklevel=2,
        )


@transformation
def scale_by_param_block_rms(min_scale: Scalar = 1e-3, *, axis_name: AxisName = None) -> Leafwise:
    """Multiplies the update of each leaf by the root mean square of that leaf of the params.

    Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (2018), section 8, where
    ``min_scale`` is eps_2.

    Args:
      min_scale: the least factor, >= 0.
      axis_name: as in ``global_norm``.

    Returns:
      A transformation without state that needs params.

    Raises:
      ValueError: ``min_scale`` is negative.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx, params = gx.scale_by_param_block_rms(), {"w": jnp.array([3.0, 4.0])}
      >>> tx.update({"w": jnp.array([1.0, 0.0])}, tx.init(params), params)[0]["w"]
      Array([3.535..., 0...], dtype=float32)
    """
    checks.real("min_scale", min_scale, at_least=0)
    return Leafwise(
        lambda now, g, p: g * jnp.maximum(block_rms(p, axis_name), min_scale), needs_params=True, axis_name=axis_name
    )


def block_rms(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The root mean square of one leaf; 0 for a leaf without elements."""
    return sqrt(total(abs_sq(x), axis_name) / max(size(x, axis_name), 1))


def scheduled(value: ScalarOrSchedule, leaf: LeafRule, *, needs_params: bool = False) -> Leafwise:
    """An elementwise brick with one number that may be a schedule; the state counts updates only if it is."""
    if not callable(value):
        return Leafwise(lambda now, g, p: leaf(value, g, p), needs_params=needs_params, elementwise=True)

    return Leafwise(
        leaf,
        at=lambda count: at_step(value, count - 1),
        state=optax.ScaleByScheduleState,
        needs_params=needs_params,
        elementwise=True,
    )
