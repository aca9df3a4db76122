"""NAdam: Adam with a look-ahead and a momentum that warms up."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.numbers import abs_sq, debias, increment, lerp
from gradxform.core.slots import Slot
from gradxform.core.transformation import transformation
from gradxform.core.types import DType, PyTree, Scalar
from gradxform.transforms.adam import check_moments, over_root


class ScaleByNadamState(NamedTuple):
    """The state of ``scale_by_nadam``; ``momentum`` is the product of the momenta so far."""

    count: jax.Array  # type: ignore[assignment]  # optax names the step so, and tuple has a method of that name
    momentum: jax.Array
    mu: PyTree
    nu: PyTree


@transformation
def scale_by_nadam(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0,
                   mu_dtype: DType = None, momentum_decay: Scalar = 4e-3) -> Leafwise:
    """Adam with Nesterov's look-ahead and a momentum that warms up, as in torch.

    Dozat, "Incorporating Nesterov Momentum into Adam" (2016), algorithm 2 with the schedule of Sutskever et al.
    (2013): ``b1_t = b1 (1 - 0.5 * 0.96**(t * momentum_decay))``. With a constant ``b1``, as in optax, it is
    ``scale_by_adam(nesterov=True)``.

    Args:
      b1: the momentum that is approached, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, >= 0.
      eps_root: added under the root, >= 0.
      mu_dtype: dtype to store the first moment in; by default that of the leaf, float32 at least.
      momentum_decay: speed of the warm-up, >= 0.

    Returns:
      A transformation.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_nadam()
      >>> f"{float(tx.update({'w': 0.5}, tx.init({'w': 1.0}))[0]['w']):.3f}"
      '1.056'
    """
    check_moments(b1, b2, eps, eps_root)
    checks.inexact_dtype("mu_dtype", mu_dtype)
    checks.real("momentum_decay", momentum_decay, at_least=0)

    def momentum_at(count: jax.Array) -> jax.Array:
        steps = count.astype(jnp.result_type(float))
        return b1 * (1 - 0.5 * jnp.exp(math.log(0.96) * momentum_decay * steps))

    def at(count: jax.Array, momentum: jax.Array) -> Any:
        now, ahead = momentum_at(count), momentum_at(increment(count))
        product = momentum * now
        return ((1 - now) / (1 - product), ahead / (1 - product * ahead), 1 / debias(b2, count)), product

    def leaf(now: Any, g: jax.Array, p: Any, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
        on_gradient, on_moment, correct_nu = now
        mu = lerp(mu, g, 1 - b1)
        nu = lerp(nu, abs_sq(g), 1 - b2)
        return over_root(on_moment * mu + on_gradient * g, nu * correct_nu, eps, eps_root), mu, nu

    return Leafwise(leaf, {"mu": Slot(mu_dtype), "nu": Slot(real=True, nonnegative=True)}, at, ScaleByNadamState,
                    scalars={"momentum": 1.0}, elementwise=True)
