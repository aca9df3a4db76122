"""LARS and LAMB: rates that follow the norm of each layer, for large batches."""

from __future__ import annotations

from typing import Any

import jax

from gradxform.core import checks
from gradxform.core.manual import AxisName
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.types import Mask, Scalar, ScalarOrSchedule
from gradxform.core.which import as_mask, mask_tree
from gradxform.optimizers.recipe import rate_with_momentum
from gradxform.transforms.adam import scale_by_adam
from gradxform.transforms.combine import chain
from gradxform.transforms.decay import add_decayed_weights
from gradxform.transforms.masking import masked
from gradxform.transforms.scale import scale_by_learning_rate
from gradxform.transforms.trust_ratio import scale_by_trust_ratio


@transformation
def lars(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    trust_coefficient: Scalar = 0.001,
    eps: Scalar = 0.0,
    trust_ratio_mask: Mask | None = None,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
    *,
    norm_of_sum: bool = True,
    rate_in_momentum: bool = True,
    stacked: Mask | None = None,
    axis_name: AxisName = None,
) -> Transformation:
    """Momentum whose step in each layer is a fixed fraction of the norm of its weights.

    You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks" (2017), algorithm 1:
    ``ratio = eta ||w|| / (||g|| + beta ||w||)``, ``m = mu m + learning_rate * ratio * (g + beta w)``. optax divides by
    ``||g + beta w||`` instead; the paper's divisor is ``norm_of_sum=False``.

    Args:
      learning_rate: a number, or a schedule of it.
      weight_decay: the paper's beta, or (with ``norm_of_sum``) a schedule of it; >= 0 without ``norm_of_sum``.
      mask: which leaves decay; None for all (optax: ``weight_decay_mask``).
      trust_coefficient: the paper's eta, >= 0.
      eps: added to the divisor, >= 0.
      trust_ratio_mask: which leaves have their step scaled; None for all. Biases and norms are usually left out:
        ``ndim_at_least(2)``.
      momentum: the factor on the past updates, in [0, 1].
      nesterov: whether the momentum looks ahead.
      norm_of_sum: whether the divisor is ``||g + beta w||`` (optax) or ``||g|| + beta ||w||`` (the paper, timm).
      rate_in_momentum: whether the momentum sums updates that the learning rate has scaled (the paper, optax) or is
        scaled after (timm).
      stacked: which leaves are layers stacked along their first axis, as by a scan over them, such as
        ``path_matches("^blocks/")``: each layer has a ratio of its own. None for none.
      axis_name: as in ``scale_by_trust_ratio``.

    Returns:
      A transformation that needs params.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a number out of its range; a mask or a schedule of the decay with ``norm_of_sum=False``.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.lars(1.0, trust_coefficient=0.1)
      >>> tx.update({"w": 0.5}, tx.init({"w": 2.0}), {"w": 2.0})[0]
      {'w': Array(-0.2, dtype=float32)}
    """
    of = {"trust_coefficient": trust_coefficient, "eps": eps, "axis_name": axis_name}
    if norm_of_sum:
        rule = [add_decayed_weights(weight_decay, mask), _ratio(trust_ratio_mask, stacked, **of)]
    elif callable(weight_decay) or mask is not None:
        raise ValueError(
            "norm_of_sum: expected True with a mask or a schedule of weight_decay, got False; "
            "trust_ratio_mask leaves leaves out of ratio and decay together"
        )
    else:
        rule = [_ratio(trust_ratio_mask, stacked, **of, weight_decay=weight_decay)]
    return chain(*rule, *rate_with_momentum(learning_rate, momentum, nesterov, rate_in_momentum=rate_in_momentum))


@transformation
def lamb(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    *,
    trust_ratio_mask: Mask | None = None,
    max_trust_ratio: Scalar | None = None,
    stacked: Mask | None = None,
    axis_name: AxisName = None,
) -> Transformation:
    """Adam whose step in each layer has the norm of its weights.

    You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (ICLR 2020), algorithm 2:
    ``u = m^ / (sqrt(v^) + eps) + lambda w``, ``w -= learning_rate * ||w|| / ||u|| * u``.

    Args:
      learning_rate: a number, or a schedule of it.
      b1, b2, eps, eps_root: as in ``scale_by_adam``.
      weight_decay, mask: as in ``adam``.
      trust_ratio_mask: which leaves have their step scaled; None for all (timm leaves out what does not decay).
      max_trust_ratio: the largest ratio, > 0 (timm's trust_clip: 1); None for no limit.
      stacked: as in ``lars``.
      axis_name: as in ``scale_by_trust_ratio``.

    Returns:
      A transformation that needs params.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.lamb(0.1)
      >>> tx.update({"w": 0.5}, tx.init({"w": 2.0}), {"w": 2.0})[0]
      {'w': Array(-0.2, dtype=float32)}
    """
    if max_trust_ratio is not None:
        checks.real("max_trust_ratio", max_trust_ratio, above=0)
    ratio = _ratio(trust_ratio_mask, stacked, max_ratio=max_trust_ratio, axis_name=axis_name)
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        ratio,
        scale_by_learning_rate(learning_rate),
    )


def _ratio(mask: Mask | None, stacked: Mask | None, **of: Any) -> Transformation:
    """The trust ratio where ``mask`` is True, of each layer where ``stacked`` is."""
    as_mask("trust_ratio_mask", mask)
    stacked = as_mask("stacked", stacked)
    rule = scale_by_trust_ratio(**of)
    if stacked is not None:
        rest = lambda tree: jax.tree.map(lambda flag: not flag, mask_tree(stacked, tree, "stacked"))  # noqa: E731
        rule = chain(masked(scale_by_trust_ratio(**of, layer_axis=0), stacked), masked(rule, rest))
    return rule if mask is None else masked(rule, mask)
