"""Dividing by the root of a second moment, without a first: RMSprop and Adagrad."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.numbers import abs_sq, debias, lerp, sqrt
from gradxform.core.slots import Slot
from gradxform.core.transformation import transformation
from gradxform.core.types import PyTree, Scalar


class ScaleByRmsWithCountState(NamedTuple):
    """The state of ``scale_by_rms`` with bias correction."""

    count: jax.Array  # type: ignore[assignment]  # optax names the step so, and tuple has a method of that name
    nu: PyTree


class ScaleByStddevWithCountState(NamedTuple):
    """The state of ``scale_by_stddev`` with bias correction."""

    count: jax.Array  # type: ignore[assignment]
    mu: PyTree
    nu: PyTree


@transformation
def scale_by_rms(
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Leafwise:
    """Divides by the root of a moving average of the squared gradient.

    Tieleman and Hinton, "Lecture 6.5: RMSprop" (2012): ``v = decay v + (1 - decay) g**2``, ``g / sqrt(v + eps)``.

    Args:
      decay: the weight of the past, in [0, 1).
      eps: keeps the divisor from 0, >= 0.
      initial_scale: what the average of squares starts from, >= 0 (TensorFlow 1 started from 1).
      eps_in_sqrt: whether ``eps`` is added under the root, as in optax and Keras, or to it, as in torch.
      bias_correction: whether to divide the average by ``1 - decay**t``.

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_rms(decay=0.75)
      >>> tx.update({"w": 4.0}, tx.init({"w": 0.0}))[0]
      {'w': Array(2., dtype=float32)}
    """
    return _scale_by_second_moment(decay, eps, initial_scale, eps_in_sqrt, bias_correction, centered=False)


@transformation
def scale_by_stddev(
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Leafwise:
    """Divides by the root of a moving estimate of the gradient's variance: centered RMSprop.

    Graves, "Generating Sequences With Recurrent Neural Networks" (2013), equations 38 to 41:
    ``g / sqrt(v - m**2 + eps)``. Rounding can make the variance negative; it is held at 0.

    Args:
      decay, eps, initial_scale, eps_in_sqrt: as in ``scale_by_rms``.
      bias_correction: whether to divide both averages by ``1 - decay**t``.

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_stddev(decay=0.5)
      >>> tx.update({"w": 4.0}, tx.init({"w": 0.0}))[0]
      {'w': Array(2., dtype=float32)}
    """
    return _scale_by_second_moment(decay, eps, initial_scale, eps_in_sqrt, bias_correction, centered=True)


def _scale_by_second_moment(
    decay: Scalar, eps: Scalar, initial_scale: Scalar, eps_in_sqrt: bool, bias_correction: bool, *, centered: bool
) -> Leafwise:
    checks.real("decay", decay, at_least=0, below=1)
    checks.real("eps", eps, at_least=0)
    checks.real("initial_scale", initial_scale, at_least=0)

    def at(count: jax.Array) -> jax.Array:
        return 1 / debias(decay, count)

    def leaf(correct: Scalar | None, g: jax.Array, p: object, nu: jax.Array, *mu: jax.Array) -> tuple[jax.Array, ...]:
        correct = 1 if correct is None else correct
        nu = lerp(nu, abs_sq(g), 1 - decay)
        mu = tuple(lerp(m, g, 1 - decay) for m in mu)
        variance = nu * correct
        for m in mu:
            variance = jnp.maximum(variance - abs_sq(m * correct), 0)
        return g / _root(variance, eps, eps_in_sqrt), nu, *mu

    slots = {"nu": Slot(real=True, nonnegative=True, fill=initial_scale)} | ({"mu": Slot()} if centered else {})
    if bias_correction:
        state = ScaleByStddevWithCountState if centered else ScaleByRmsWithCountState
        return Leafwise(leaf, slots, at, state, elementwise=True)
    return Leafwise(
        leaf, slots, state=optax.ScaleByRStdDevState if centered else optax.ScaleByRmsState, elementwise=True
    )


@transformation
def scale_by_rss(initial_accumulator_value: Scalar = 0.1, eps: Scalar = 1e-7, *, eps_in_sqrt: bool = True) -> Leafwise:
    """Divides by the root of the sum of all squared gradients so far.

    Duchi, Hazan and Singer, "Adaptive Subgradient Methods" (JMLR 2011): ``s = s + g**2``, ``g / sqrt(s + eps)``. An
    element whose sum is still 0 does not move.

    Args:
      initial_accumulator_value: what the sum starts from, >= 0.
      eps: keeps the divisor from 0, >= 0.
      eps_in_sqrt: whether ``eps`` is added under the root, as in optax, or to it, as in torch.

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_rss(initial_accumulator_value=0.0, eps=0.0)
      >>> tx.update({"w": 4.0}, tx.init({"w": 0.0}))[0]
      {'w': Array(1., dtype=float32)}
    """
    checks.real("initial_accumulator_value", initial_accumulator_value, at_least=0)
    checks.real("eps", eps, at_least=0)

    def leaf(now: object, g: jax.Array, p: object, total: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = total + abs_sq(g)
        return jnp.where(total > 0, g / _root(jnp.where(total > 0, total, 1), eps, eps_in_sqrt), 0), total

    return Leafwise(
        leaf,
        {"sum_of_squares": Slot(real=True, nonnegative=True, fill=initial_accumulator_value)},
        state=optax.ScaleByRssState,
        elementwise=True,
    )


def _root(x: jax.Array, eps: Scalar, eps_in_sqrt: bool) -> jax.Array:
    return sqrt(x + eps) if eps_in_sqrt else sqrt(x) + eps
