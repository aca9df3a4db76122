"""Momentum: a running sum, or a running average, of the updates."""

from __future__ import annotations

import jax
import optax

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.numbers import debias as bias_correction
from gradxform.core.numbers import lerp
from gradxform.core.slots import Slot
from gradxform.core.transformation import transformation
from gradxform.core.types import DType, Scalar


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

    def leaf(now: object, g: jax.Array, p: object, total: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = g + decay * total
        return (g + decay * total if nesterov else total), total

    return Leafwise(leaf, {"trace": Slot(accumulator_dtype)}, state=optax.TraceState, elementwise=True)


@transformation
def ema(decay: Scalar, debias: bool = True, accumulator_dtype: DType = None) -> Leafwise:
    """Replaces updates by their exponential moving average.

    ``m = decay m + (1 - decay) g``; debiased, the update is ``m / (1 - decay**t)``. (It averages updates; the average
    of the weights along a run is ``incremental_update``.)

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

    def at(count: jax.Array) -> Scalar:
        return 1 / bias_correction(decay, count) if debias else 1

    def leaf(correct: Scalar, g: jax.Array, p: object, average: jax.Array) -> tuple[jax.Array, jax.Array]:
        average = lerp(average, g, 1 - decay)
        return average * correct, average

    return Leafwise(leaf, {"ema": Slot(accumulator_dtype)}, at, optax.EmaState, elementwise=True)
