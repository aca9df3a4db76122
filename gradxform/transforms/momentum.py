"""Momentum: a running sum, or a running average, of the updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradxform.core import checks
from gradxform.core.numbers import debias as bias_correction
from gradxform.core.numbers import increment, lerp, scalar
from gradxform.core.stages import Leafwise, Rule
from gradxform.core.transformation import transformation
from gradxform.core.trees import zeros_like
from gradxform.core.types import DType, Params, Scalar


@transformation
def trace(decay: Scalar, nesterov: bool = False, accumulator_dtype: DType = None) -> Leafwise:
    """Replaces updates by their decayed running sum: classical momentum.

    Polyak (1964): ``t = g + decay t``. With Nesterov's look-ahead the update is ``g + decay t_new`` (Sutskever et
    al., "On the importance of initialization and momentum in deep learning", ICML 2013), as in torch.

    Args:
      decay: the factor on the past, in [0, 1].
      nesterov: whether to look ahead.
      accumulator_dtype: dtype to store the sum in; by default that of the leaf, float32 at least.

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: ``decay`` out of range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.trace(0.5)
      >>> _, state = tx.update({"w": 1.0}, tx.init({"w": 0.0}))
      >>> tx.update({"w": 1.0}, state)[0]
      {'w': Array(1.5, dtype=float32)}
    """
    checks.real("decay", decay, at_least=0, at_most=1)
    checks.inexact_dtype("accumulator_dtype", accumulator_dtype)

    def leaf(g: jax.Array, p: Any, total: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = g + scalar(decay) * total
        return (g + scalar(decay) * total if nesterov else total), total

    return Leafwise(lambda state: Rule(leaf, (state.trace,), optax.TraceState),
                    lambda params: optax.TraceState(zeros_like(params, accumulator_dtype)))


@transformation
def ema(decay: Scalar, debias: bool = True, accumulator_dtype: DType = None) -> Leafwise:
    """Replaces updates by their exponential moving average.

    ``m = decay m + (1 - decay) g``; debiased, the update is ``m / (1 - decay**t)``.

    Args:
      decay: the weight of the past, in [0, 1).
      debias: whether to correct for the start at zero.
      accumulator_dtype: dtype to store the average in; by default that of the leaf, float32 at least.

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: ``decay`` out of range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.ema(0.9)
      >>> f"{float(tx.update({'w': 1.0}, tx.init({'w': 0.0}))[0]['w']):.3f}"
      '1.000'
    """
    checks.real("decay", decay, at_least=0, below=1)
    checks.inexact_dtype("accumulator_dtype", accumulator_dtype)

    def init(params: Params) -> optax.EmaState:
        return optax.EmaState(count=jnp.zeros([], jnp.int32), ema=zeros_like(params, accumulator_dtype))

    def rule(state: optax.EmaState) -> Rule:
        count = increment(state.count)
        correct = 1 / bias_correction(decay, count) if debias else 1

        def leaf(g: jax.Array, p: Any, average: jax.Array) -> tuple[jax.Array, jax.Array]:
            average = lerp(average, g, 1 - scalar(decay))
            return average * correct, average

        return Rule(leaf, (state.ema,), lambda average: optax.EmaState(count, average))

    return Leafwise(rule, init)
