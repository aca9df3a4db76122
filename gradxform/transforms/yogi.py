"""Yogi: Adam whose second moment moves in bounded steps."""

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
from gradxform.core.types import Scalar
from gradxform.transforms.adam import check_moments, over_root


@transformation
def scale_by_yogi(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-3, eps_root: Scalar = 0.0,
                  initial_accumulator_value: Scalar = 1e-6, *, bias_correction: bool = True,
                  initialize_mu: bool = True) -> Leafwise:
    """Adam whose second moment moves by at most the squared gradient, towards it.

    Zaheer et al., "Adaptive Methods for Nonconvex Optimization" (NeurIPS 2018), algorithm 2:
    ``v = v - (1-b2) sign(v - g**2) g**2``. The paper corrects no bias and starts from a mean squared gradient.

    Args:
      b1, b2, eps, eps_root: as in ``scale_by_adam``.
      initial_accumulator_value: what the moments start from, >= 0.
      bias_correction: whether to correct both moments, as optax does and the paper does not.
      initialize_mu: whether the first moment starts from ``initial_accumulator_value`` too, as in optax, so that it
        moves a weight without a gradient, or from 0, as in TensorFlow Addons.

    Returns:
      A transformation with the state of optax's Adam.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_yogi(bias_correction=False, initialize_mu=False)
      >>> tx.update({"w": 0.0}, tx.init({"w": 1.0}))[0]
      {'w': Array(0., dtype=float32)}
    """
    check_moments(b1, b2, eps, eps_root)
    checks.real("initial_accumulator_value", initial_accumulator_value, at_least=0)

    def at(count: jax.Array) -> Any:
        return (1 / debias(b1, count), 1 / debias(b2, count)) if bias_correction else (1, 1)

    def leaf(correct: Any, g: jax.Array, p: Any, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
        correct_mu, correct_nu = correct
        mu = lerp(mu, g, 1 - b1)
        square = abs_sq(g)
        nu = nu - (1 - b2) * jnp.sign(nu - square) * square
        return over_root(mu * correct_mu, nu * correct_nu, eps, eps_root), mu, nu

    slots = {"mu": Slot(fill=initial_accumulator_value if initialize_mu else 0.0),
             "nu": Slot(real=True, nonnegative=True, fill=initial_accumulator_value)}
    return Leafwise(leaf, slots, at, optax.ScaleByAdamState, elementwise=True)
