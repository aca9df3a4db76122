"""RAdam: Adam with a rectified adaptive rate."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.numbers import abs_sq, debias, lerp, sqrt
from gradxform.core.slots import Slot
from gradxform.core.transformation import transformation
from gradxform.core.types import Scalar
from gradxform.transforms.adam import check_moments, first_moment, over_root


@transformation
def scale_by_radam(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0,
                   threshold: Scalar = 5.0, *, nesterov: bool = False) -> Leafwise:
    """Adam whose adaptive rate is rectified while its variance is still large, and left out before that.

    Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond" (ICLR 2020), algorithm 2:
    ``rho = rho_inf - 2 t b2**t / (1 - b2**t)`` with ``rho_inf = 2 / (1 - b2) - 1``; from ``rho >= threshold`` on the
    update is Adam's times ``sqrt((rho-4)(rho-2)rho_inf / ((rho_inf-4)(rho_inf-2)rho))``, before that it is ``m^``.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in (0, 1).
      eps: added to the root, >= 0.
      eps_root: added under the root, >= 0.
      threshold: the least ``rho`` at which the rate adapts, >= 4 (torch: strictly above 5).
      nesterov: whether the first moment looks ahead.

    Returns:
      A transformation with the state of optax's Adam.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_radam()
      >>> f"{float(tx.update({'w': 0.5}, tx.init({'w': 1.0}))[0]['w']):.3f}"
      '0.500'
    """
    check_moments(b1, b2, eps, eps_root)
    checks.real("b2", b2, above=0, below=1)
    checks.real("threshold", threshold, at_least=4)

    def at(count: jax.Array) -> Any:
        rho, rho_inf = _effective_length(b2, count)
        adaptive = rho >= threshold
        safe = jnp.where(adaptive, rho, 5.0)  # the root of a negative number would poison gradients through where
        rectifier = sqrt((safe - 4) * (safe - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * safe))
        return first_moment(b1, count, nesterov), 1 / debias(b2, count), adaptive, rectifier

    def leaf(now: Any, g: jax.Array, p: Any, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
        correct_mu, correct_nu, adaptive, rectifier = now
        mu = lerp(mu, g, 1 - b1)
        nu = lerp(nu, abs_sq(g), 1 - b2)
        plain = correct_mu(mu, g)
        return jnp.where(adaptive, rectifier * over_root(plain, nu * correct_nu, eps, eps_root), plain), mu, nu

    return Leafwise(leaf, {"mu": Slot(), "nu": Slot(real=True, nonnegative=True)}, at, optax.ScaleByAdamState,
                    elementwise=True)


def _effective_length(b2: Scalar, count: jax.Array) -> tuple[jax.Array, Any]:
    """RAdam's ``rho`` and ``rho_inf``.

    In the paper's form ``rho`` is a difference of numbers near 2000 that is wrong by 0.03 in float32 when it is 5.
    With ``x = -t log b2`` it is ``(2/(1-b2) - 1 - 2/L) + 2/L (1 - x/expm1(x))``, ``L = -log b2``: the bracket is a
    constant near ``(1-b2)/6``, and the rest has no cancellation left but in ``1 - x/expm1(x)`` for small x, which is
    ``x/2 - x**2/12 + x**4/720 - ...``, the series of the Bernoulli numbers.
    """
    if isinstance(b2, (int, float)):
        rate: Any = -math.log(b2)
        rho_inf: Any = 2 / (1 - b2) - 1
        constant: Any = rho_inf - 2 / rate
    else:
        rate, rho_inf = -jnp.log(b2), 2 / (1 - b2) - 1
        constant = (1 - b2) / 6
    x = count.astype(jnp.result_type(float)) * rate
    small = x < 0.3
    series = jnp.where(small, x, 0.0)
    direct = jnp.where(small, 1.0, x)
    fraction = jnp.where(small, series / 2 - _bernoulli(series**2), 1 - direct / jnp.expm1(direct))
    return constant + 2 / rate * fraction, rho_inf


def _bernoulli(square: jax.Array) -> jax.Array:
    """The even terms of ``x / expm1(x)`` but the first: to 1e-14 for ``x**2`` below 0.09."""
    return square * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square * (1 / 1209600 - square / 47900160))))
