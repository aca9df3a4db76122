"""Layer-wise rates: updates scaled to the norm of the weights they move."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.manual import AxisName, total
from gradxform.core.numbers import abs_sq, sqrt
from gradxform.core.transformation import transformation
from gradxform.core.types import Scalar


@transformation
def scale_by_trust_ratio(
    min_norm: Scalar = 0.0,
    trust_coefficient: Scalar = 1.0,
    eps: Scalar = 0.0,
    *,
    weight_decay: Scalar = 0.0,
    max_ratio: Scalar | None = None,
    layer_axis: int | None = None,
    axis_name: AxisName = None,
) -> Leafwise:
    """Scales the update of each leaf by the norm of the leaf over the norm of its update.

    You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks" (2017), equation 6 (LARS), and You et
    al., "Large Batch Optimization for Deep Learning" (ICLR 2020), algorithm 2 (LAMB): ``c ||w|| / (||u|| + eps)``.
    Where either norm is 0 the ratio is 1.

    Args:
      min_norm: the least value of both norms, >= 0.
      trust_coefficient: the factor c, >= 0.
      eps: added to the norm of the update, >= 0.
      weight_decay: LARS's own form of decay: the update becomes ``u + weight_decay w``, and the divisor is
        ``||u|| + weight_decay ||w|| + eps``. With 0, decay added before (as in optax) counts in ``||u||``.
      max_ratio: the largest ratio, > 0; None for no limit.
      layer_axis: the axis along which layers are stacked in every leaf, as by a scan over them: each has a ratio of
        its own. None where a leaf is one layer.
      axis_name: as in ``global_norm``; with ``layer_axis`` as in ``adaptive_grad_clip``.

    Returns:
      A transformation without state that needs params.

    Raises:
      TypeError: ``layer_axis`` is not an integer.
      ValueError: a number out of its range; from ``update``, a leaf without the axis ``layer_axis``.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx, params = gx.scale_by_trust_ratio(), {"w": jnp.array([3.0, 4.0])}
      >>> tx.update({"w": jnp.array([0.0, 0.5])}, tx.init(params), params)[0]
      {'w': Array([0., 5.], dtype=float32)}
    """
    checks.real("min_norm", min_norm, at_least=0)
    checks.real("trust_coefficient", trust_coefficient, at_least=0)
    checks.real("eps", eps, at_least=0)
    checks.real("weight_decay", weight_decay, at_least=0)
    if max_ratio is not None:
        checks.real("max_ratio", max_ratio, above=0)
    if layer_axis is not None:
        checks.integer("layer_axis", layer_axis)

    def leaf(now: object, u: jax.Array, p: jax.Array) -> jax.Array:
        p_norm, u_norm = (_norm(x, min_norm, layer_axis, axis_name) for x in (p, u))
        moving = (p_norm > 0) & (u_norm > 0)
        divisor = u_norm + weight_decay * p_norm + eps
        ratio = trust_coefficient * p_norm / jnp.where(moving, divisor, 1)
        if max_ratio is not None:
            ratio = jnp.minimum(ratio, max_ratio)
        return (u + weight_decay * p) * jnp.where(moving, ratio, 1)

    return Leafwise(leaf, needs_params=True, axis_name=axis_name)


def _norm(x: jax.Array, least: Scalar, layer_axis: int | None, axis_name: AxisName) -> jax.Array:
    """The norm of the whole array, or of each of the layers along an axis, with axes of length 1 beside it."""
    if layer_axis is not None and not -x.ndim <= layer_axis < x.ndim:
        raise ValueError(f"layer_axis: expected leaves with an axis {layer_axis}, got shape {x.shape}")
    within = None if layer_axis is None else tuple(axis for axis in range(x.ndim) if axis != layer_axis % x.ndim)
    return jnp.maximum(sqrt(total(abs_sq(x), axis_name, within, keepdims=within is not None)), least)
