"""What most recipes share: a rule, decoupled weight decay, a learning rate."""

from __future__ import annotations

from typing import Any

from gradxform.core.schedule import at_step
from gradxform.core.transformation import Transformation
from gradxform.core.types import Mask, ScalarOrSchedule
from gradxform.core.which import as_mask
from gradxform.transforms.combine import chain
from gradxform.transforms.decay import add_decayed_weights
from gradxform.transforms.scale import scale_by_learning_rate


def decayed(weight_decay: ScalarOrSchedule | None, mask: Mask | None) -> tuple[Transformation, ...]:
    """The weight decay of a recipe, nothing at all for None."""
    as_mask("mask", mask)
    return () if weight_decay is None else (add_decayed_weights(weight_decay, mask),)


def product(a: ScalarOrSchedule, b: ScalarOrSchedule) -> ScalarOrSchedule:
    """The product of two hyperparameters, each a number or a schedule."""
    if not callable(a) and not callable(b):
        return a * b

    def schedule(step: Any) -> Any:
        return at_step(a, step) * at_step(b, step)

    return schedule


def rule_with_decay(rule: Transformation, learning_rate: ScalarOrSchedule, weight_decay: ScalarOrSchedule | None,
                    mask: Mask | None) -> Transformation:
    """A rule, then decay that the rule does not rescale, then the learning rate on both."""
    return chain(rule, *decayed(weight_decay, mask), scale_by_learning_rate(learning_rate))
