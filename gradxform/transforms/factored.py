"""Adafactor's second moment: a row and a column of statistics in place of a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradxform.core import checks
from gradxform.core.numbers import abs_sq, increment, lerp, real_dtype, scalar, sqrt
from gradxform.core.stages import Leafwise, Rule
from gradxform.core.transformation import transformation
from gradxform.core.trees import refuse_integers
from gradxform.core.types import Params, Scalar


@transformation
def scale_by_factored_rms(factored: bool = True, decay_rate: Scalar = 0.8, step_offset: int = 0,
                          min_dim_size_to_factor: int = 128, epsilon: Scalar = 1e-30,
                          decay_rate_fn: Callable[[Any, Any], Any] | None = None, *,
                          factored_axes: str = "largest", clamp_epsilon: bool = False) -> Leafwise:
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
    checks.integer("min_dim_size_to_factor", min_dim_size_to_factor, at_least=1)
    checks.real("epsilon", epsilon, at_least=0)
    if decay_rate_fn is not None:
        checks.function("decay_rate_fn", decay_rate_fn)
    checks.choice("factored_axes", factored_axes, ("largest", "last"))

    def axes_of(shape: tuple[int, ...]) -> tuple[int, int] | None:
        return _axes(shape, factored_axes == "last", min_dim_size_to_factor) if factored else None

    def init(params: Params) -> optax.FactoredState:
        refuse_integers(params, "params")
        unused = lambda p: jnp.zeros((1,), real_dtype(jnp.result_type(p)))  # noqa: E731

        def without(p: Any, axis: int) -> jax.Array:
            return jnp.zeros(jnp.shape(p)[:axis] + jnp.shape(p)[axis + 1:], real_dtype(jnp.result_type(p)))

        def row(p: Any) -> jax.Array:
            axes = axes_of(jnp.shape(p))
            return unused(p) if axes is None else without(p, axes[1])

        def col(p: Any) -> jax.Array:
            axes = axes_of(jnp.shape(p))
            return unused(p) if axes is None else without(p, axes[0])

        def full(p: Any) -> jax.Array:
            whole = axes_of(jnp.shape(p)) is None
            return jnp.zeros(jnp.shape(p), real_dtype(jnp.result_type(p))) if whole else unused(p)

        return optax.FactoredState(count=jnp.zeros([], jnp.int32), v_row=jax.tree.map(row, params),
                                   v_col=jax.tree.map(col, params), v=jax.tree.map(full, params))

    def rule(state: optax.FactoredState) -> Rule:
        step = jnp.maximum(state.count - step_offset, 0)
        weight = _power(step, decay_rate) if decay_rate_fn is None else 1 - decay_rate_fn(step, decay_rate)

        def leaf(g: jax.Array, p: Any, v_row: jax.Array, v_col: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            square = abs_sq(g)
            square = jnp.maximum(square, scalar(epsilon)) if clamp_epsilon else square + scalar(epsilon)
            axes = axes_of(g.shape)
            if axes is None:
                v = lerp(v, square, weight)
                return g / sqrt(v), v_row, v_col, v
            short, long = axes
            v_row = lerp(v_row, jnp.mean(square, axis=long), weight)
            v_col = lerp(v_col, jnp.mean(square, axis=short), weight)
            mean = jnp.mean(v_row, axis=short - (short > long), keepdims=True)
            row, col = sqrt(v_row / mean), sqrt(v_col)
            return g / jnp.expand_dims(row, long) / jnp.expand_dims(col, short), v_row, v_col, v

        return Rule(leaf, (state.v_row, state.v_col, state.v),
                    lambda *new: optax.FactoredState(increment(state.count), *new), same_shape=False)

    return Leafwise(rule, init)


def _power(step: jax.Array, rate: Scalar) -> jax.Array:
    """``(step + 1)**-rate``, the weight of a new square; late in a run one minus the decay would lose its digits."""
    t = step.astype(jnp.result_type(float)) + 1
    return jnp.exp(-scalar(rate) * jnp.log(t))


def _axes(shape: tuple[int, ...], last: bool, least: int) -> tuple[int, int] | None:
    """The axes to factor, the longer one second; None for a leaf that is kept whole."""
    if len(shape) < 2 or math.prod(shape) == 0:
        return None
    by_size = sorted(range(len(shape)), key=lambda axis: shape[axis])
    short, long = (len(shape) - 2, len(shape) - 1) if last else (by_size[-2], by_size[-1])
    return None if min(shape[short], shape[long]) < least else (short, long)
