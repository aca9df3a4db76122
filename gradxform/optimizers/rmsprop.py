"""RMSprop and Adagrad."""

from __future__ import annotations

from gradxform.core.transformation import Transformation, transformation
from gradxform.core.types import Mask, Scalar, ScalarOrSchedule
from gradxform.optimizers.recipe import decayed, rate_with_momentum, rule_with_decay
from gradxform.transforms.combine import chain
from gradxform.transforms.rms import scale_by_rms, scale_by_rss, scale_by_stddev


@transformation
def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    *,
    rate_in_momentum: bool = True,
) -> Transformation:
    """The gradient over the root of a moving average of its square.

    Tieleman and Hinton, "Lecture 6.5: RMSprop" (2012): ``v = decay v + (1-decay) g**2``,
    ``w -= learning_rate * g / sqrt(v + eps)``. torch has ``decay=0.99``, ``eps_in_sqrt=False`` and
    ``rate_in_momentum=False``; TensorFlow 1 had ``initial_scale=1``.

    Args:
      learning_rate: a number, or a schedule of it.
      decay, eps, initial_scale, eps_in_sqrt: as in ``scale_by_rms``.
      centered: whether to divide by an estimate of the variance (Graves, 2013).
      momentum: the factor on the past updates, in [0, 1]; None for none.
      nesterov: whether the momentum looks ahead.
      bias_correction: as in ``scale_by_rms``.
      weight_decay: factor of the decoupled decay, added after the division and before the momentum, or a
        schedule of it; None for none. (torch adds it to the gradient:
        ``chain(add_decayed_weights(...), rmsprop(...))``.)
      mask: which leaves decay; None for all.
      rate_in_momentum: whether the momentum sums updates that the learning rate has scaled (optax, Keras), so that a
        change of rate acts with delay, or is scaled after (torch).

    Example:
      >>> import gradxform as gx
      >>> tx = gx.rmsprop(0.1, decay=0.75)
      >>> tx.update({"w": 4.0}, tx.init({"w": 1.0}))[0]
      {'w': Array(-0.2, dtype=float32)}
    """
    rule = (scale_by_stddev if centered else scale_by_rms)(decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    return chain(
        rule,
        *decayed(weight_decay, mask),
        *rate_with_momentum(learning_rate, momentum, nesterov, rate_in_momentum=rate_in_momentum),
    )


@transformation
def adagrad(
    learning_rate: ScalarOrSchedule,
    initial_accumulator_value: Scalar = 0.1,
    eps: Scalar = 1e-7,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    *,
    eps_in_sqrt: bool = True,
) -> Transformation:
    """The gradient over the root of the sum of all its squares.

    Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization" (JMLR
    2011). torch has ``initial_accumulator_value=0``, ``eps=1e-10`` and ``eps_in_sqrt=False``.

    Args:
      learning_rate: a number, or a schedule of it.
      initial_accumulator_value, eps: as in ``scale_by_rss``.
      weight_decay, mask: as in ``adam``.
      eps_in_sqrt: as in ``scale_by_rss``.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.adagrad(0.1, initial_accumulator_value=9.0)
      >>> f"{float(tx.update({'w': 4.0}, tx.init({'w': 1.0}))[0]['w']):.3f}"
      '-0.080'
    """
    return rule_with_decay(
        scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt=eps_in_sqrt), learning_rate, weight_decay, mask
    )
