"""What most recipes share: a rule, decoupled weight decay, a learning rate."""

from __future__ import annotations

from gradxform.core import checks
from gradxform.core.schedule import at_step
from gradxform.core.transformation import Transformation
from gradxform.core.types import DType, Mask, Scalar, ScalarOrSchedule, Step
from gradxform.core.which import as_mask
from gradxform.transforms.combine import chain, identity
from gradxform.transforms.decay import add_decayed_weights
from gradxform.transforms.momentum import trace
from gradxform.transforms.scale import scale_by_learning_rate


def decayed(weight_decay: ScalarOrSchedule | None, mask: Mask | None) -> tuple[Transformation, ...]:
    """The weight decay of a recipe, nothing at all for None."""
    as_mask("mask", mask)
    return () if weight_decay is None else (add_decayed_weights(weight_decay, mask),)


def rate_with_momentum(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None,
    nesterov: bool,
    dtype: DType = None,
    *,
    rate_in_momentum: bool = False,
) -> tuple[Transformation, Transformation]:
    """The momentum, which does nothing for None, and the learning rate after it, or before it."""
    if momentum is not None:
        checks.real("momentum", momentum, at_least=0, at_most=1)
    heavy_ball = identity() if momentum is None else trace(momentum, nesterov, dtype)
    rate = scale_by_learning_rate(learning_rate)
    return (rate, heavy_ball) if rate_in_momentum else (heavy_ball, rate)


def product(a: ScalarOrSchedule, b: ScalarOrSchedule) -> ScalarOrSchedule:
    """The product of two hyperparameters, each a number or a schedule."""
    if not callable(a) and not callable(b):
        return a * b

    def schedule(step: Step) -> Scalar:
        return at_step(a, step) * at_step(b, step)

    return schedule


def rule_with_decay(
    rule: Transformation, learning_rate: ScalarOrSchedule, weight_decay: ScalarOrSchedule | None, mask: Mask | None
) -> Transformation:
    """A rule, then decay that the rule does not rescale, then the learning rate on both."""
    return chain(rule, *decayed(weight_decay, mask), scale_by_learning_rate(learning_rate))
