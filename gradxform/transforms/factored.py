"""Adafactor's second moment: a row and a column of statistics in place of a matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.manual import AxisName, spread
from gradxform.core.numbers import abs_sq, lerp, sqrt
from gradxform.core.slots import Axes, Shape, Slot
from gradxform.core.transformation import transformation
from gradxform.core.types import Scalar


@transformation
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: Scalar = 0.8,
    step_offset: int = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: Scalar = 1e-30,
    decay_rate_fn: Callable[[jax.Array, Scalar], Scalar] | None = None,
    *,
    factored_axes: str = "largest",
    clamp_epsilon: bool = False,
    axis_name: AxisName = None,
) -> Leafwise:
    """Divides by the root of a second moment that is kept as row and column means.

    Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (ICML 2018), algorithm 4:
    ``R = b R + (1-b) mean_col(g**2 + eps)``, ``C`` likewise, ``v = R C / mean(R)``, with ``b = 1 - t**-decay_rate``.

    Args:
      factored: whether matrices are factored at all.
      decay_rate: the exponent of the decay, > 0.
      step_offset: steps to leave out of ``t``, >= 0, for a run that goes on with another's count; the first steps of
        a fresh count have ``t = 1`` (optax: NaN).
      min_dim_size_to_factor: a leaf is factored if both of its two axes have at least this size, >= 1.
      epsilon: keeps the divisor from 0, >= 0.
      decay_rate_fn: ``f(step, decay_rate)``, the decay for a step counted from 0, in place of the above.
      factored_axes: ``"largest"`` factors the two largest axes, as optax does, ``"last"`` the last two, as torch and
        Keras do.
      clamp_epsilon: whether the square is held at ``epsilon`` or more, as in torch, instead of adding it.
      axis_name: as in ``adaptive_grad_clip``; whether a piece is factored depends on its own shape.

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx = gx.scale_by_factored_rms(min_dim_size_to_factor=2)
      >>> state = tx.init({"w": jnp.ones((4, 8))})
      >>> state.v_row["w"].shape, state.v_col["w"].shape
      ((4,), (8,))
    """
    checks.real("decay_rate", decay_rate, above=0)
    checks.integer("step_offset", step_offset, at_least=0)
    checks.integer("min_dim_size_to_factor", min_dim_size_to_factor, at_least=1, known=True)
    checks.real("epsilon", epsilon, at_least=0)
    if decay_rate_fn is not None:
        checks.function("decay_rate_fn", decay_rate_fn)
    checks.choice("factored_axes", factored_axes, ("largest", "last"))

    def axes_of(shape: tuple[int, ...]) -> tuple[int, int] | None:
        return _axes(shape, factored_axes == "last", min_dim_size_to_factor) if factored else None

    def without(which: int, shape: Shape) -> Axes:
        axes = axes_of(shape)
        return None if axes is None else tuple(axis for axis in range(len(shape)) if axis != axes[which])

    def whole(shape: Shape) -> Axes:
        return tuple(range(len(shape))) if axes_of(shape) is None else None

    def at(count: jax.Array) -> Scalar:
        step = jnp.maximum(count - 1 - step_offset, 0)
        return _power(step, decay_rate) if decay_rate_fn is None else 1 - decay_rate_fn(step, decay_rate)

    def leaf(
        weight: Scalar, g: jax.Array, p: object, v_row: jax.Array, v_col: jax.Array, v: jax.Array
    ) -> tuple[jax.Array, ...]:
        square = abs_sq(g)
        square = jnp.maximum(square, epsilon) if clamp_epsilon else square + epsilon
        axes = axes_of(g.shape)
        if axes is None:
            v = lerp(v, square, weight)
            return g / sqrt(v), v_row, v_col, v
        short, long = axes
        rows, cols = spread(g, axis_name, (long,)), spread(g, axis_name, (short,))
        v_row = lerp(v_row, _over(jnp.mean(square, axis=long), rows), weight)
        v_col = lerp(v_col, _over(jnp.mean(square, axis=short), cols), weight)
        mean = _over(jnp.mean(v_row, axis=short - (short > long), keepdims=True), cols)
        row, col = sqrt(v_row / mean), sqrt(v_col)
        return g / jnp.expand_dims(row, long) / jnp.expand_dims(col, short), v_row, v_col, v

    square = functools.partial(Slot, real=True, nonnegative=True)
    slots = {
        "v_row": square(axes=functools.partial(without, 1)),
        "v_col": square(axes=functools.partial(without, 0)),
        "v": square(axes=whole),
    }
    return Leafwise(leaf, slots, at, optax.FactoredState, axis_name=axis_name)


def _over(mean: jax.Array, along: tuple[str, ...]) -> jax.Array:
    """The mean of a whole leaf from those of its pieces, which are of one size."""
    return lax.pmean(mean, along) if along else mean


def _power(step: jax.Array, rate: Scalar) -> jax.Array:
    """``(step + 1)**-rate``, the weight of a new square; late in a run one minus the decay would lose its digits."""
    t = step.astype(jnp.result_type(float)) + 1
    return jnp.exp(-rate * jnp.log(t))


def _axes(shape: tuple[int, ...], last: bool, least: int) -> tuple[int, int] | None:
    """The axes to factor, the longer one second; None for a leaf that is kept whole."""
    if len(shape) < 2 or math.prod(shape) == 0:
        return None
    by_size = sorted(range(len(shape)), key=lambda axis: shape[axis])
    short, long = (len(shape) - 2, len(shape) - 1) if last else (by_size[-2], by_size[-1])
    return None if min(shape[short], shape[long]) < least else (short, long)
