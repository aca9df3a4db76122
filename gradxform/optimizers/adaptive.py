"""AdaBelief, Yogi and Lion."""

from __future__ import annotations

from gradxform.core.transformation import Transformation, transformation
from gradxform.core.types import DType, Mask, Scalar, ScalarOrSchedule
from gradxform.optimizers.recipe import rule_with_decay
from gradxform.transforms.adam import scale_by_belief, scale_by_yogi
from gradxform.transforms.lion import scale_by_lion


@transformation
def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
) -> Transformation:
    """Adam that steps far where the gradient is near its average and little where it surprises.

    Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients" (NeurIPS 2020),
    algorithm 2.

    Args:
      learning_rate: a number, or a schedule of it.
      b1, b2, eps: as in ``scale_by_adam``.
      eps_root: as in ``scale_by_belief``.
      weight_decay, mask, nesterov: as in ``adam``.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.adabelief(0.9)
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}))[0]["w"].round(4)
      Array(-1., dtype=float32)
    """
    return rule_with_decay(scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov), learning_rate, weight_decay, mask)


@transformation
def yogi(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    *,
    bias_correction: bool = True,
    initialize_mu: bool = True,
) -> Transformation:
    """Adam whose second moment grows and shrinks in bounded steps.

    Zaheer et al., "Adaptive Methods for Nonconvex Optimization" (NeurIPS 2018), algorithm 2. The paper's form has
    ``bias_correction=False`` and ``initialize_mu=False``.

    Args:
      learning_rate: a number, or a schedule of it.
      b1, b2, eps: as in ``scale_by_adam``.
      weight_decay, mask: as in ``adam``.
      bias_correction: whether to correct both moments, as optax does.
      initialize_mu: whether the first moment starts from 1e-6, as in optax, or from 0, as in TensorFlow Addons.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.yogi(0.1, bias_correction=False, initialize_mu=False)
      >>> tx.update({"w": 0.0}, tx.init({"w": 1.0}))[0]["w"] == 0
      Array(True, dtype=bool)
    """
    rule = scale_by_yogi(b1, b2, eps, bias_correction=bias_correction, initialize_mu=initialize_mu)
    return rule_with_decay(rule, learning_rate, weight_decay, mask)


@transformation
def lion(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mu_dtype: DType = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Mask | None = None,
) -> Transformation:
    """Steps of one size: the sign of an interpolated momentum.

    Chen et al., "Symbolic Discovery of Optimization Algorithms" (NeurIPS 2023), algorithm 2. Good rates are 3 to 10
    times smaller than AdamW's, with a decay as much larger.

    Args:
      learning_rate: a number, or a schedule of it.
      b1, b2, mu_dtype: as in ``scale_by_lion``.
      weight_decay, mask: as in ``adam``.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.lion(0.1, weight_decay=0.0)
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}), {"w": 1.0})[0]
      {'w': Array(-0.1, dtype=float32)}
    """
    return rule_with_decay(scale_by_lion(b1, b2, mu_dtype), learning_rate, weight_decay, mask)
