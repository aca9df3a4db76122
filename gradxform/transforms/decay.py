"""Weight decay."""

from __future__ import annotations

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.types import Mask, ScalarOrSchedule
from gradxform.transforms.masking import masked
from gradxform.transforms.scale import scheduled


@transformation
def add_decayed_weights(weight_decay: ScalarOrSchedule = 0.0, mask: Mask | None = None) -> Leafwise | Transformation:
    """Adds a multiple of the params to the updates.

    After an adaptive rule this is the decoupled decay of Loshchilov and Hutter, "Decoupled Weight Decay
    Regularization" (ICLR 2019), algorithm 2; before it, it is L2 regularization.

    Args:
      weight_decay: the factor, or a schedule of it. A negative one, which a schedule may have too, makes params grow.
      mask: which leaves decay; None for all. A tree of bools, a function from params to one, or a selector such as
        ``ndim_at_least(2)``.

    Returns:
      A transformation that needs params; it counts its updates if the factor is a schedule.

    Raises:
      TypeError: ``weight_decay`` is neither a number nor a schedule, or the mask has a leaf that is not a bool.
      ValueError: ``weight_decay`` is NaN.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.add_decayed_weights(0.5)
      >>> tx.update({"w": 1.0}, tx.init({"w": 2.0}), {"w": 2.0})[0]
      {'w': Array(2., dtype=float32)}
    """
    checks.real("weight_decay", weight_decay, schedule=True)
    if mask is not None:
        return masked(add_decayed_weights(weight_decay), mask)
    if isinstance(weight_decay, float) and weight_decay == 0:
        return Leafwise(lambda now, g, p: g, elementwise=True)
    return scheduled(weight_decay, lambda decay, g, p: g + decay * p, needs_params=True)
