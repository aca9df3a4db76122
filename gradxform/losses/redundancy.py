"""Losses without negatives that keep features apart: Barlow Twins and VICReg."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core import arrays, checks
from gradxform.core.numbers import widen
from gradxform.core.types import Scalar
from gradxform.losses import vectors
from gradxform.losses.contrastive import AxisName

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def barlow_twins(
    z1: Float[Array, "n d"],
    z2: Float[Array, "n d"],
    *,
    off_diagonal: Scalar = 5e-3,
    epsilon: Scalar = 1e-5,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Barlow Twins: the features of two views correlate with themselves and with no other.

    ``sum_i (1 - C_ii)**2 + off_diagonal * sum_{i != j} C_ij**2`` with ``C`` the correlations of the features of the
    first views with those of the second over the batch (Zbontar and others, 2021, eq. 1 and 2).

    Args:
      z1: (N, d), the first views, in any floating-point dtype.
      z2: (N, d), the second views in the same order.
      off_diagonal: the weight of the second sum, lambda in the paper, at least 0.
      epsilon: added to the variances, as the paper's batch normalization does.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which images are spread.

    Returns:
      The loss, a scalar in float32 at least.

    Raises:
      TypeError: an array is not floating-point.
      ValueError: shapes differ, there is a single image, or a number is out of range.

    Example:
      >>> import jax
      >>> import gradxform as gx
      >>> z = jax.random.normal(jax.random.key(0), (64, 4))
      >>> gx.losses.barlow_twins(z, z).item() < gx.losses.barlow_twins(z, z[::-1]).item()
      True
    """
    z1, z2 = map(vectors.everywhere, vectors.pair(("z1", "z2"), z1, z2, at_least=2 if axis_name is None else 1))
    checks.real("off_diagonal", off_diagonal, at_least=0)
    checks.real("epsilon", epsilon, at_least=0)
    a, b = (_centered(z, axis_name) for z in (z1, z2))
    a, b = (z * lax.rsqrt(_mean(jnp.square(z), axis_name) + epsilon) for z in (a, b))
    correlations = _total(jnp.dot(a.T, b, precision=lax.Precision.HIGHEST), axis_name) / _count(a, axis_name)
    diagonal = jnp.diagonal(correlations)
    return jnp.sum(jnp.square(1 - diagonal)) + off_diagonal * _off_diagonal(correlations)


def vicreg(
    z1: Float[Array, "n *positions d"],
    z2: Float[Array, "n *positions d"],
    *,
    invariance: Scalar = 25.0,
    variance: Scalar = 25.0,
    covariance: Scalar = 1.0,
    target_std: Scalar = 1.0,
    epsilon: Scalar = 1e-4,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """VICReg: two views agree, each feature varies, and no two vary together.

    ``invariance * mean((z1 - z2)**2) + variance * (v(z1) + v(z2)) / 2 + covariance * (c(z1) + c(z2))`` with ``v`` the
    mean of ``max(0, target_std - sqrt(var + epsilon))`` over features and ``c`` the squares of the covariances of
    different features over ``d`` (Bardes, Ponce and LeCun, 2022, eq. 1 to 6). Variances are unbiased. The half is that
    of the authors' code, as is the mean over features in the first term; the paper has sums. Of several positions it is
    the mean of the losses of each, over the batch (VICRegL; Bardes, Ponce and LeCun, 2022b); to take all positions for
    examples, reshape to (N * positions, d).

    Args:
      z1: (N, d) or (N, positions, d), the first views, in any floating-point dtype.
      z2: the second views in the same order, shaped like the first.
      invariance: weight of the first term, at least 0.
      variance: weight of the second, at least 0.
      covariance: weight of the third, at least 0.
      target_std: the standard deviation that every feature is to have, gamma in the paper.
      epsilon: added to the variances.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which images are spread.

    Returns:
      The loss, a scalar in float32 at least.

    Raises:
      TypeError: an array is not floating-point.
      ValueError: shapes differ, there is a single image, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> z = jnp.array([[3.0, 3.0], [3.0, -3.0], [-3.0, 3.0], [-3.0, -3.0]])
      >>> gx.losses.vicreg(z, z).item()
      0.0
    """
    for name, value in (
        ("invariance", invariance),
        ("variance", variance),
        ("covariance", covariance),
        ("target_std", target_std),
        ("epsilon", epsilon),
    ):
        checks.real(name, value, at_least=0)
    z1, z2 = (vectors.everywhere(arrays.floating(name, z)) for name, z in (("z1", z1), ("z2", z2)))
    if z1.ndim == z2.ndim == 3 and z1.shape[1]:
        arrays.same_shape("z2", z2, z1.shape, "that of z1")
        of_one = functools.partial(
            vicreg,
            invariance=invariance,
            variance=variance,
            covariance=covariance,
            target_std=target_std,
            epsilon=epsilon,
            axis_name=axis_name,
        )
        return jnp.mean(jax.vmap(of_one, in_axes=1)(z1, z2))
    z1, z2 = vectors.pair(("z1", "z2"), z1, z2, at_least=2 if axis_name is None else 1)
    a, b = widen(z1), widen(z2)
    loss = invariance * jnp.mean(_mean(jnp.square(a - b), axis_name))
    for z in (a, b):
        centered = _centered(z, axis_name)
        freedom = _count(z, axis_name) - 1
        products = _total(jnp.dot(centered.T, centered, precision=lax.Precision.HIGHEST), axis_name) / freedom
        spread = jnp.sqrt(jnp.diagonal(products) + epsilon)
        loss += variance * jnp.mean(jax.nn.relu(target_std - spread)) / 2
        loss += covariance * _off_diagonal(products) / z.shape[1]
    return loss


def _off_diagonal(matrix: Float[Array, "d d"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(jnp.eye(matrix.shape[0], dtype=bool), 0, jnp.square(matrix)))


def _total(array: jax.Array, axis_name: AxisName) -> jax.Array:
    return array if axis_name is None else lax.psum(array, axis_name)


def _count(z: jax.Array, axis_name: AxisName) -> jax.Array | int:
    return z.shape[0] if axis_name is None else z.shape[0] * lax.axis_size(axis_name)


def _mean(z: Float[Array, "n d"], axis_name: AxisName) -> Float[Array, " d"]:
    return _total(jnp.sum(z, axis=0), axis_name) / _count(z, axis_name)


def _centered(z: Float[Array, "n d"], axis_name: AxisName) -> Float[Array, "n d"]:
    z = widen(z)
    return z - _mean(z, axis_name)
