"""Losses that predict one view's representation from the other's: BYOL and SimSiam."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

from gradxform.losses import vectors
from gradxform.losses.contrastive import AxisName

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def byol(
    prediction: Float[Array, "n d"], target: Float[Array, "n d"], *, axis_name: AxisName = None, reduction: str = "mean"
) -> Float[Array, "*each"]:
    """BYOL's loss: the squared distance of the directions of a prediction and of the target network's projection.

    ``2 - 2 cos(prediction, target)`` with no gradient through the target (Grill and others, 2020, eq. 2). The paper
    adds the same with the views exchanged.

    Args:
      prediction: (N, d), of the online network, in any floating-point dtype.
      target: (N, d), of the target network, whose params follow by ``ema_update``.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which images are spread.
      reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
      The loss in float32 at least, a scalar or (N,).

    Raises:
      TypeError: an array is not floating-point.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> gx.losses.byol(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 5.0]])).item()
      2.0
    """
    prediction, target = vectors.pair(("prediction", "target"), prediction, target)
    return vectors.reduced(2 - 2 * _cosines(prediction, target), reduction, axis_name)


def simsiam(
    p1: Float[Array, "n d"],
    p2: Float[Array, "n d"],
    z1: Float[Array, "n d"],
    z2: Float[Array, "n d"],
    *,
    axis_name: AxisName = None,
    reduction: str = "mean",
) -> Float[Array, "*each"]:
    """SimSiam's loss: each view's prediction points where the other view's projection does.

    ``-(cos(p1, z2) + cos(p2, z1)) / 2`` with no gradient through ``z1`` and ``z2`` (Chen and He, 2021, eq. 4).

    Args:
      p1: (N, d), the prediction from the first views, in any floating-point dtype.
      p2: (N, d), that from the second views.
      z1: (N, d), the projection of the first views.
      z2: (N, d), that of the second views.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which images are spread.
      reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
      The loss in float32 at least, a scalar or (N,), from -1 to 1.

    Raises:
      TypeError: an array is not floating-point.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> z = jnp.array([[3.0, 4.0]])
      >>> gx.losses.simsiam(z, z, z, z).round(4)
      Array(-1., dtype=float32)
    """
    p1, z2 = vectors.pair(("p1", "z2"), p1, z2)
    p2, z1 = vectors.pair(("p2", "z1"), p2, z1)
    vectors.pair(("p1", "p2"), p1, p2)
    return vectors.reduced(-(_cosines(p1, z2) + _cosines(p2, z1)) / 2, reduction, axis_name)


def _cosines(prediction: Float[Array, "n d"], target: Float[Array, "n d"]) -> Float[Array, " n"]:
    prediction, target = map(vectors.everywhere, (prediction, target))
    fixed = lax.stop_gradient(vectors.directions(target))
    return jnp.sum(vectors.directions(prediction) * fixed, axis=-1)
