"""Stochastic gradient descent."""

from __future__ import annotations

from gradxform.core import checks
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.types import DType, Mask, Scalar, ScalarOrSchedule
from gradxform.optimizers.recipe import decayed, rate_with_momentum
from gradxform.transforms.combine import chain


@transformation
def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    accumulator_dtype: DType = None,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
) -> Transformation:
    """Gradient descent, with momentum if asked for.

    ``w -= learning_rate * t`` with ``t = g + momentum t``. Sutskever et al., "On the importance of initialization and
    momentum in deep learning" (ICML 2013).

    Args:
      learning_rate: a number, or a schedule of it.
      momentum: the factor on the past updates, in [0, 1]; None for none.
      nesterov: whether the momentum looks ahead.
      accumulator_dtype: dtype to store the momentum in; by default that of the leaf, float32 at least.
      weight_decay: multiple of the params that is added to the gradient before the momentum, as in torch, or a
        schedule of it; None for none.
      mask: which leaves decay; None for all.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.sgd(0.1, momentum=0.9)
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}))[0]
      {'w': Array(-0.05, dtype=float32)}
    """
    checks.inexact_dtype("accumulator_dtype", accumulator_dtype)
    return chain(
        *decayed(weight_decay, mask), *rate_with_momentum(learning_rate, momentum, nesterov, accumulator_dtype)
    )
