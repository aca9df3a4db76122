"""The Adam family: a first moment over the root of a second."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.numbers import abs_sq, debias, increment, lerp
from gradxform.core.slots import Slot
from gradxform.core.transformation import transformation
from gradxform.core.types import DType, Scalar


@transformation
def scale_by_adam(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0,
                  mu_dtype: DType = None, *, nesterov: bool = False) -> Leafwise:
    """Divides a moving average of the gradient by the root of a moving average of its square.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015), algorithm 1:
    ``m = b1 m + (1-b1) g``, ``v = b2 v + (1-b2) g**2``, ``update = m^ / (sqrt(v^ + eps_root) + eps)`` with
    ``m^ = m / (1-b1**t)`` and ``v^ = v / (1-b2**t)``.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, >= 0.
      eps_root: added under the root, >= 0.
      mu_dtype: dtype to store the first moment in; by default that of the leaf, float32 at least. The second moment
        is always stored in float32 at least: in bfloat16 a ``b2`` of 0.999 would be 1, and it could not decay.
      nesterov: look ahead: ``m^ = b1 m / (1-b1**(t+1)) + (1-b1) g / (1-b1**t)`` (Dozat, "Incorporating Nesterov
        Momentum into Adam", 2016, with a constant ``b1``).

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_adam()
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}))[0]
      {'w': Array(1., dtype=float32)}
    """
    check_moments(b1, b2, eps, eps_root)
    checks.inexact_dtype("mu_dtype", mu_dtype)

    def at(count: jax.Array) -> Any:
        return first_moment(b1, count, nesterov), 1 / debias(b2, count)

    def leaf(correct: Any, g: jax.Array, p: Any, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
        correct_mu, correct_nu = correct
        mu = lerp(mu, g, 1 - b1)
        nu = lerp(nu, abs_sq(g), 1 - b2)
        return over_root(correct_mu(mu, g), nu * correct_nu, eps, eps_root), mu, nu

    return Leafwise(leaf, {"mu": Slot(mu_dtype), "nu": Slot(real=True, nonnegative=True)}, at, optax.ScaleByAdamState,
                    elementwise=True)


def check_moments(b1: Scalar, b2: Scalar, eps: Scalar, eps_root: Scalar) -> None:
    """Refuses decays outside [0, 1) and negative epsilons."""
    checks.real("b1", b1, at_least=0, below=1)
    checks.real("b2", b2, at_least=0, below=1)
    checks.real("eps", eps, at_least=0)
    checks.real("eps_root", eps_root, at_least=0)


def first_moment(b1: Scalar, count: jax.Array, nesterov: bool) -> Any:
    """The bias-corrected first moment of step ``count``, as a function of the moment and the gradient."""
    now = 1 / debias(b1, count)
    if not nesterov:
        return lambda mu, g: mu * now
    ahead = 1 / debias(b1, increment(count))
    return lambda mu, g: mu * (b1 * ahead) + g * ((1 - b1) * now)


def over_root(mu: jax.Array, nu: jax.Array, eps: Scalar, eps_root: Scalar = 0.0) -> jax.Array:
    """``mu / (sqrt(nu + eps_root) + eps)``, 0 where all of them are 0."""
    if not (isinstance(eps_root, float) and eps_root == 0):
        nu = nu + eps_root
    # A weight that never had a gradient has no slope to differentiate, and with eps = 0 nothing to divide by.
    moved = nu > 0
    least = eps if isinstance(eps, float) and eps > 0 else jnp.where(jnp.asarray(eps) > 0, eps, 1)
    return mu / jnp.where(moved, jnp.sqrt(jnp.where(moved, nu, 1)) + eps, least)
