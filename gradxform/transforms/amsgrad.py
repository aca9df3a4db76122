"""AMSGrad: Adam whose divisor never shrinks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.numbers import abs_sq, debias, lerp
from gradxform.core.slots import Slot
from gradxform.core.transformation import transformation
from gradxform.core.types import DType, Scalar
from gradxform.transforms.adam import check_moments, over_root


@transformation
def scale_by_amsgrad(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0,
                     mu_dtype: DType = None, bias_correction_mu: bool = True, bias_correction_nu: bool = True, *,
                     max_of_corrected: bool = True) -> Leafwise:
    """Adam whose divisor never shrinks: it uses the largest second moment so far.

    Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond" (ICLR 2018), algorithm 2, which corrects no bias.

    Args:
      b1, b2, eps, eps_root, mu_dtype: as in ``scale_by_adam``.
      bias_correction_mu: whether to correct the first moment (the paper does not).
      bias_correction_nu: whether to correct the second moment (the paper does not).
      max_of_corrected: whether the largest is taken of the corrected moments, as in optax, or of the raw ones and then
        corrected, as in torch.

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_amsgrad()
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}))[0]
      {'w': Array(1., dtype=float32)}
    """
    check_moments(b1, b2, eps, eps_root)
    checks.inexact_dtype("mu_dtype", mu_dtype)

    def at(count: jax.Array) -> Any:
        return (1 / debias(b1, count) if bias_correction_mu else 1,
                1 / debias(b2, count) if bias_correction_nu else 1)

    def leaf(correct: Any, g: jax.Array, p: Any, mu: jax.Array, nu: jax.Array, nu_max: jax.Array) -> tuple[Any, ...]:
        correct_mu, correct_nu = correct
        mu = lerp(mu, g, 1 - b1)
        nu = lerp(nu, abs_sq(g), 1 - b2)
        nu_max = jnp.maximum(nu_max, nu * correct_nu if max_of_corrected else nu)
        divisor = nu_max if max_of_corrected else nu_max * correct_nu
        return over_root(mu * correct_mu, divisor, eps, eps_root), mu, nu, nu_max

    square = Slot(real=True, nonnegative=True)
    return Leafwise(leaf, {"mu": Slot(mu_dtype), "nu": square, "nu_max": square}, at, optax.ScaleByAmsgradState,
                    elementwise=True)
