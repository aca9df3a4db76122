"""Weight standardization: a norm for kernels instead of activations."""

from __future__ import annotations

import jax

from gradxform.core.arrays import floating
from gradxform.core.types import DType, Scalar
from gradxform.norm import arguments
from gradxform.norm.arguments import Axes
from gradxform.norm.moments import Reduction
from gradxform.norm.normalize import standardize


def weight_standardize(
    kernel: jax.Array,
    scale: jax.Array | None = None,
    *,
    epsilon: Scalar = 1e-5,
    axis: Axes = -1,
    mask: jax.Array | None = None,
    dtype: DType = None,
) -> jax.Array:
    """A kernel with zero mean and unit variance over the inputs of each output.

    ``(kernel - mean) / sqrt(var + epsilon) * scale`` (Qiao and others, 2019, eq. 5 to 8): used in place of the kernel
    in each forward pass, together with group normalization. A ``scale`` of ``1 / sqrt(inputs)`` keeps the variance of
    activations (Brock and others, 2021).

    Args:
      kernel: the kernel of a dense layer or a convolution, of any floating-point dtype.
      scale: a number for each output, or None for 1.
      epsilon: added to the variance, at least 0.
      axis: the output axis or axes; in Flax's kernels the last.
      mask: what counts, in a shape that broadcasts to that of the kernel, for pruned ones.
      dtype: of the result; by default that of ``kernel``.

    Returns:
      An array shaped like ``kernel``.

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: a shape does not fit, a number is out of range, or an output has no inputs, or a single
        one without a mask.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> gx.norm.weight_standardize(jnp.array([[1.0, 5.0], [3.0, 5.0]])).round(3)
      Array([[-1.,  0.],
             [ 1.,  0.]], dtype=float32)
    """
    kernel = floating("kernel", kernel)
    outputs = arguments.canonical("axis", axis, kernel.ndim)
    axes = arguments.others(outputs, kernel.ndim)
    arguments.several(kernel, axes, "kernel", known=mask is None)
    scale = arguments.feature_array("scale", scale, kernel, outputs)
    mask = arguments.boolean(mask, kernel)
    return standardize(
        kernel,
        Reduction(axes),
        mask,
        scale,
        None,
        arguments.nonnegative("epsilon", epsilon),
        arguments.result_dtype(dtype, kernel),
    )
