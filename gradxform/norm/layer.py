"""Layer normalization and its sibling without a mean."""

from __future__ import annotations

import jax

from gradxform.core.arrays import floating
from gradxform.core.types import DType, Scalar
from gradxform.norm import arguments
from gradxform.norm.arguments import Axes, AxisName, Groups
from gradxform.norm.moments import Reduction
from gradxform.norm.normalize import standardize


def layer_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    epsilon: Scalar = 1e-6,
    axis: Axes = -1,
    feature_axis: Axes | None = None,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Groups = None,
    dtype: DType = None,
) -> jax.Array:
    """Normalizes each example by the mean and variance over its own features.

    ``y = (x - mean) / sqrt(var + epsilon) * scale + bias`` (Ba, Kiros and Hinton, 2016, eq. 4). Stable under any
    offset and beside any outlier; computed in float32 at least; the gradient keeps ``x`` and nothing else of its size.
    Flax's epsilon is 1e-6, torch's 1e-5. On a TPU a kernel reads each row once where it is told what a device has: with
    one device, in ``shard_map``, and on a mesh of Explicit axes that divide the first axis of ``x``.

    Args:
      x: the input, of any rank and floating-point dtype.
      scale: a number for each feature, or None for 1.
      bias: a number for each feature, or None for 0.
      epsilon: added to the variance, at least 0.
      axis: the axis or axes to normalize over.
      feature_axis: the axes that ``scale`` and ``bias`` have a number for each place of; by default ``axis``.
      mask: what counts, in a shape that broadcasts to that of ``x``; an example of which nothing counts has mean 0
        and variance 1.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which the features are spread.
      axis_index_groups: groups of indices along that axis that share statistics, all by default.
      dtype: of the result; by default that of ``x``.

    Returns:
      An array shaped like ``x``.

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: a shape does not fit, a number is out of range, or an example has no value, or a single one where
        neither ``mask`` nor ``axis_name`` says more.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> gx.norm.layer_norm(jnp.array([[3001.0, 3002.0, 3003.0]])).round(3)
      Array([[-1.225,  0.   ,  1.225]], dtype=float32)
    """
    return _layer(
        x,
        scale,
        bias,
        centered=True,
        epsilon=epsilon,
        axis=axis,
        feature_axis=feature_axis,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )


def rms_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    *,
    epsilon: Scalar = 1e-6,
    axis: Axes = -1,
    feature_axis: Axes | None = None,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    axis_index_groups: Groups = None,
    dtype: DType = None,
) -> jax.Array:
    """Divides each example by the root of the mean square of its features.

    ``y = x / sqrt(mean(x**2) + epsilon) * scale`` (Zhang and Sennrich, 2019, eq. 4), computed in float32 at least.

    Args:
      x: the input, of any rank and floating-point dtype.
      scale: a number for each feature, or None for 1.
      epsilon: added to the mean square, at least 0.
      axis: the axis or axes to normalize over.
      feature_axis: the axes that ``scale`` has a number for each place of; by default ``axis``.
      mask: what counts, in a shape that broadcasts to that of ``x``; an example of which nothing counts has a mean
        square of 1.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which the features are spread.
      axis_index_groups: groups of indices along that axis that share statistics, all by default.
      dtype: of the result; by default that of ``x``.

    Returns:
      An array shaped like ``x``.

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: a shape does not fit, a number is out of range, or there is no value to take statistics of.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> gx.norm.rms_norm(jnp.array([[1.0, -7.0]])).round(1)
      Array([[ 0.2, -1.4]], dtype=float32)
    """
    return _layer(
        x,
        scale,
        None,
        centered=False,
        epsilon=epsilon,
        axis=axis,
        feature_axis=feature_axis,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )


def _layer(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    centered: bool,
    epsilon: Scalar,
    axis: Axes,
    feature_axis: Axes | None,
    mask: jax.Array | None,
    axis_name: AxisName,
    axis_index_groups: Groups,
    dtype: DType,
) -> jax.Array:
    x = floating("x", x)
    axes = arguments.canonical("axis", axis, x.ndim)
    features = axes if feature_axis is None else arguments.canonical("feature_axis", feature_axis, x.ndim)
    arguments.several(x, axes, known=centered and mask is None and axis_name is None)
    scale = arguments.feature_array("scale", scale, x, features)
    bias = arguments.feature_array("bias", bias, x, features)
    over = Reduction(axes, arguments.names(axis_name), arguments.index_groups(axis_index_groups), centered)
    mask = arguments.boolean(mask, x)
    return standardize(
        x, over, mask, scale, bias, arguments.nonnegative("epsilon", epsilon), arguments.result_dtype(dtype, x)
    )
