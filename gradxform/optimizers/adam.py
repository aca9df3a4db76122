"""Adam, AdamW and their Nesterov forms; AMSGrad and RAdam."""

from __future__ import annotations

from gradxform.core import checks
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.types import DType, Mask, Scalar, ScalarOrSchedule
from gradxform.optimizers.recipe import product, rule_with_decay
from gradxform.transforms.adam import scale_by_adam, scale_by_amsgrad, scale_by_nadam, scale_by_radam


@transformation
def adam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DType = None,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
) -> Transformation:
    """Adam: a moving average of the gradient over the root of a moving average of its square.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015), algorithm 1:
    ``w -= learning_rate * m^ / (sqrt(v^ + eps_root) + eps)``.

    Args:
      learning_rate: a number, or a schedule of it.
      b1, b2, eps, eps_root, mu_dtype: as in ``scale_by_adam``.
      weight_decay: factor of the decoupled decay, >= 0, or a schedule of it, which makes this AdamW; None for none.
        Decay needs params. (torch's Adam adds it to the gradient: ``chain(add_decayed_weights(...), adam(...))``.)
      mask: which leaves decay; None for all.
      nesterov: whether the first moment looks ahead.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.adam(0.1)
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}))[0]
      {'w': Array(-0.1, dtype=float32)}
    """
    return rule_with_decay(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov), learning_rate, weight_decay, mask
    )


@transformation
def adamw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DType = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
    base_learning_rate: Scalar | None = None,
) -> Transformation:
    """Adam with weight decay that the adaptive rule does not rescale.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019), algorithm 2:
    ``w -= eta_t (alpha * m^ / (sqrt(v^) + eps) + lambda w)``, where only the schedule multiplier ``eta_t`` scales the
    decay. optax and torch multiply it by the whole learning rate ``eta_t alpha``, and so does the default here; with
    ``base_learning_rate=alpha`` it is the paper's.

    Args:
      learning_rate: a number, or a schedule of it: ``eta_t alpha``.
      b1, b2, eps, eps_root, mu_dtype: as in ``scale_by_adam``.
      weight_decay: factor of the decay, >= 0, or a schedule of it (the default is optax's; torch has 1e-2).
      mask, nesterov: as in ``adam``.
      base_learning_rate: the ``alpha`` by which the decay is not multiplied, > 0: a step decays by
        ``weight_decay * learning_rate / base_learning_rate``. For a constant learning rate give that rate, for a
        schedule its peak. None multiplies the decay by the learning rate.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.adamw(0.5, weight_decay=0.25, base_learning_rate=0.5)
      >>> tx.update({"w": 0.0}, tx.init({"w": 1.0}), {"w": 1.0})[0]
      {'w': Array(-0.25, dtype=float32)}
    """
    if base_learning_rate is not None:
        checks.real("base_learning_rate", base_learning_rate, above=0)
        checks.real("weight_decay", weight_decay, schedule=True)
        weight_decay = product(weight_decay, 1 / base_learning_rate)
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov)


@transformation
def nadam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DType = None,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    *,
    momentum_decay: Scalar | None = None,
) -> Transformation:
    """Adam with Nesterov's look-ahead.

    Dozat, "Incorporating Nesterov Momentum into Adam" (2016), algorithm 2; with a constant ``b1`` as in optax, or
    with a momentum that warms up as in torch.

    Args:
      learning_rate: a number, or a schedule of it.
      b1, b2, eps, eps_root, mu_dtype: as in ``scale_by_adam``.
      weight_decay, mask: as in ``adam``.
      momentum_decay: speed of the momentum's warm-up, >= 0 (torch: 4e-3); None for a constant ``b1``.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.nadam(0.1)
      >>> f"{float(tx.update({'w': 0.5}, tx.init({'w': 1.0}))[0]['w']):.3f}"
      '-0.147'
    """
    rule = (
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=True)
        if momentum_decay is None
        else scale_by_nadam(b1, b2, eps, eps_root, mu_dtype, momentum_decay)
    )
    return rule_with_decay(rule, learning_rate, weight_decay, mask)


@transformation
def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DType = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask | None = None,
    *,
    momentum_decay: Scalar | None = None,
) -> Transformation:
    """AdamW with Nesterov's look-ahead.

    Dozat, "Incorporating Nesterov Momentum into Adam" (2016), with decay as in Loshchilov and Hutter (ICLR 2019).

    Args:
      learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, momentum_decay: as in ``nadam``.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.nadamw(0.5, weight_decay=0.25)
      >>> tx.update({"w": 0.0}, tx.init({"w": 1.0}), {"w": 1.0})[0]
      {'w': Array(-0.125, dtype=float32)}
    """
    return nadam(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, momentum_decay=momentum_decay)


@transformation
def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DType = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    *,
    max_of_corrected: bool = True,
) -> Transformation:
    """Adam whose divisor never shrinks.

    Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond" (ICLR 2018), algorithm 2.

    Args:
      learning_rate: a number, or a schedule of it.
      b1, b2, eps, eps_root, mu_dtype: as in ``scale_by_adam``.
      bias_correction_mu, bias_correction_nu: as in ``scale_by_amsgrad``.
      weight_decay, mask: as in ``adam``.
      max_of_corrected: as in ``scale_by_amsgrad``.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.amsgrad(0.1)
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}))[0]
      {'w': Array(-0.1, dtype=float32)}
    """
    rule = scale_by_amsgrad(
        b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu, max_of_corrected=max_of_corrected
    )
    return rule_with_decay(rule, learning_rate, weight_decay, mask)


@transformation
def radam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
) -> Transformation:
    """Adam whose adaptive rate is rectified while its variance is large: a warm-up of its own.

    Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond" (ICLR 2020), algorithm 2.

    Args:
      learning_rate: a number, or a schedule of it.
      b1, b2, eps, eps_root, threshold: as in ``scale_by_radam``.
      weight_decay, mask, nesterov: as in ``adam``.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.radam(0.1)
      >>> f"{float(tx.update({'w': 0.5}, tx.init({'w': 1.0}))[0]['w']):.3f}"
      '-0.050'
    """
    return rule_with_decay(
        scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov), learning_rate, weight_decay, mask
    )
