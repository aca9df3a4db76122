"""AdaBelief: Adam with the variance of the gradient around its average."""

from __future__ import annotations

from typing import Any

import jax
import optax

from gradxform.core.bricks import Leafwise
from gradxform.core.numbers import abs_sq, debias, lerp
from gradxform.core.slots import Slot
from gradxform.core.transformation import transformation
from gradxform.core.types import Scalar
from gradxform.transforms.adam import check_moments, first_moment, over_root


@transformation
def scale_by_belief(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-16, eps_root: Scalar = 1e-16, *,
                    nesterov: bool = False) -> Leafwise:
    """Adam with the variance of the gradient around its moving average in place of its second moment.

    Zhuang et al., "AdaBelief Optimizer" (NeurIPS 2020), algorithm 2: ``s = b2 s + (1-b2)(g - m)**2 + eps_root`` with
    the new, uncorrected ``m``; the update is ``m^ / (sqrt(s^) + eps)``. ``eps_root`` stays in ``s``, step by step.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the variance, in [0, 1).
      eps: added to the root, >= 0.
      eps_root: added to the variance in every step, >= 0.
      nesterov: whether the first moment looks ahead.

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_belief()
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}))[0]["w"].round(4)
      Array(1.1111, dtype=float32)
    """
    check_moments(b1, b2, eps, eps_root)

    def at(count: jax.Array) -> Any:
        return first_moment(b1, count, nesterov), 1 / debias(b2, count)

    def leaf(correct: Any, g: jax.Array, p: Any, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
        correct_mu, correct_nu = correct
        mu = lerp(mu, g, 1 - b1)
        nu = lerp(nu, abs_sq(g - mu), 1 - b2) + eps_root
        return over_root(correct_mu(mu, g), nu * correct_nu, eps), mu, nu

    return Leafwise(leaf, {"mu": Slot(), "nu": Slot(real=True, nonnegative=True)}, at, optax.ScaleByBeliefState,
                    elementwise=True)
