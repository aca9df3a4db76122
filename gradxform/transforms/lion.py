"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.numbers import lerp
from gradxform.core.slots import Slot
from gradxform.core.transformation import transformation
from gradxform.core.types import DType, Scalar


@transformation
def scale_by_lion(
    b1: Scalar = 0.9, b2: Scalar = 0.99, mu_dtype: DType = None, *, mode: str = "hard", smooth_beta: Scalar = 1.0
) -> Leafwise:
    """Replaces updates by the sign of an interpolation between them and their moving average.

    Chen et al., "Symbolic Discovery of Optimization Algorithms" (NeurIPS 2023), algorithm 2:
    ``c = b1 m + (1-b1) g``, ``sign(c)``, then ``m = b2 m + (1-b2) g``.

    Args:
      b1: weight of the average in the interpolation, in [0, 1).
      b2: decay of the average, in [0, 1).
      mu_dtype: dtype to store the average in; by default that of the leaf, float32 at least.
      mode: ``"hard"`` for the sign, ``"smooth"`` for ``tanh(smooth_beta c)``, ``"refined"`` for ``c`` clipped to
        [-1, 1].
      smooth_beta: steepness of the smooth mode, > 0.

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: a number out of its range or an unknown mode.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_lion()
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}))[0]
      {'w': Array(1., dtype=float32)}
    """
    checks.real("b1", b1, at_least=0, below=1)
    checks.real("b2", b2, at_least=0, below=1)
    checks.real("smooth_beta", smooth_beta, above=0)
    checks.inexact_dtype("mu_dtype", mu_dtype)
    checks.choice("mode", mode, ("hard", "smooth", "refined"))
    squash = {
        "hard": jnp.sign,
        "smooth": lambda c: jnp.tanh(smooth_beta * c),
        "refined": lambda c: jnp.where(jnp.abs(c) < 1, c, jnp.sign(c)),
    }[mode]

    def leaf(now: object, g: jax.Array, p: object, mu: jax.Array) -> tuple[jax.Array, jax.Array]:
        return squash((1 - b1) * g + b1 * mu), lerp(mu, g, 1 - b2)

    return Leafwise(leaf, {"mu": Slot(mu_dtype)}, state=optax.ScaleByLionState, elementwise=True)
