"""Losses of masked prediction: means over the masked positions alone, of all devices together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from gradxform.core import arrays, checks
from gradxform.core.numbers import scalar, wide_dtype
from gradxform.core.types import Scalar

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Integer, Shaped

AxisName = str | Sequence[str] | None


def masked_mse(
    predictions: Float[Array, "*batch features"],
    targets: Float[Array, "*batch features"],
    mask: Shaped[Array, "*batch"],
    *,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The mean squared error over masked positions, as in MAE.

    ``sum(mask * mean((predictions - targets)**2, -1)) / sum(mask)`` (He et al., 2022, section 3), accumulated in
    float32 at least. Where nothing is masked, loss and gradients are 0; what stands at positions that do not count,
    NaN and infinity included, has no influence.

    Args:
      predictions: of shape (..., features), e.g. (batch, patches, patch size**2 * channels).
      targets: of the same shape.
      mask: what counts, of shape (...): truth values, or weights >= 0. A constant: no gradient flows into it.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which the positions are spread. Numerator and
        denominator are summed over them, so that every device returns the loss of all. Gradients are JAX's own: taken
        inside a ``shard_map`` with ``check_vma=False``, or inside a ``vmap``, they are those of the sum of what all
        devices return; the mean over devices of the gradients of shared parameters is right everywhere.

    Returns:
      A scalar of dtype float32, or float64 if an input is.

    Raises:
      TypeError: an array is of the wrong kind.
      ValueError: shapes that do not fit, or no features.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> predictions = jnp.array([[[1.0, 3.0], [jnp.nan, 0.0]]])
      >>> gx.losses.masked_mse(predictions, jnp.zeros((1, 2, 2)), mask=jnp.array([[1, 0]]))
      Array(5., dtype=float32)
    """
    return _regression(*_pair(predictions, targets, mask), _names(axis_name), _square)


def masked_l1(
    predictions: Float[Array, "*batch features"],
    targets: Float[Array, "*batch features"],
    mask: Shaped[Array, "*batch"],
    *,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The mean absolute error over masked positions, as in SimMIM.

    ``sum(mask * mean(abs(predictions - targets), -1)) / sum(mask)`` (Xie et al., 2022, equation 1), accumulated in
    float32 at least. Where nothing is masked, loss and gradients are 0; what stands at positions that do not count,
    NaN and infinity included, has no influence. The gradient at a difference of 0 is 0.

    Args:
      predictions: of shape (..., features).
      targets: of the same shape.
      mask: what counts, of shape (...): truth values, or weights >= 0. A constant: no gradient flows into it.
      axis_name: the named axes over which the positions are spread, as in ``masked_mse``.

    Returns:
      A scalar of dtype float32, or float64 if an input is.

    Raises:
      TypeError: an array is of the wrong kind.
      ValueError: shapes that do not fit, or no features.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.losses.masked_l1(jnp.array([[1.0, 3.0], [9.0, 9.0]]), jnp.zeros((2, 2)), mask=jnp.array([True, False]))
      Array(2., dtype=float32)
    """
    return _regression(*_pair(predictions, targets, mask), _names(axis_name), _absolute)


def masked_smooth_l1(
    predictions: Float[Array, "*batch features"],
    targets: Float[Array, "*batch features"],
    mask: Shaped[Array, "*batch"],
    *,
    beta: Scalar = 1.0,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The smooth L1 error over masked positions, as in data2vec.

    ``d**2 / (2 beta)`` of a difference up to ``beta`` and ``abs(d) - beta / 2`` beyond (Baevski et al., 2022, section
    3.3; torch's ``SmoothL1Loss``; the Huber loss divided by ``beta``), its mean over the features, and then the mean
    over what is masked, accumulated in float32 at least. Where nothing is masked, loss and gradients are 0; what stands
    at positions that do not count, NaN and infinity included, has no influence.

    Args:
      predictions: of shape (..., features).
      targets: of the same shape.
      mask: what counts, of shape (...): truth values, or weights >= 0. A constant: no gradient flows into it.
      beta: where the parabola becomes a line, >= 0; at 0 the loss is ``masked_l1``.
      axis_name: the named axes over which the positions are spread, as in ``masked_mse``.

    Returns:
      A scalar of dtype float32, or float64 if an input is.

    Raises:
      TypeError: an array is of the wrong kind, or ``beta`` is no real number.
      ValueError: shapes that do not fit, no features, or a negative ``beta``.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.losses.masked_smooth_l1(jnp.array([[1.0, 4.0]]), jnp.zeros((1, 2)), mask=jnp.array([True]), beta=2.0)
      Array(1.625, dtype=float32)
    """
    checks.real("beta", beta, at_least=0)
    return _regression(*_pair(predictions, targets, mask), _names(axis_name), _smooth, scalar(beta))


def masked_cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    mask: Shaped[Array, "*batch"],
    *,
    label_smoothing: Scalar = 0.0,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The cross entropy over masked positions, as in BERT and BEiT.

    ``sum(mask * (logsumexp(logits) - logits[label])) / sum(mask)``, accumulated in float32 at least. Where nothing is
    masked, loss and gradients are 0; what stands at positions that do not count, NaN, infinity and labels like -100
    included, has no influence. The gradient keeps the logits and nothing else of their size.

    Args:
      logits: of shape (..., classes).
      labels: the right classes, integers of shape (...). One out of range that counts makes the loss NaN.
      mask: what counts, of shape (...): truth values, or weights >= 0. A constant: no gradient flows into it.
      label_smoothing: the share of the target that is spread evenly over all classes, 0 to 1.
      axis_name: the named axes over which the positions are spread, as in ``masked_mse``.

    Returns:
      A scalar of dtype float32, or float64 if the logits are.

    Raises:
      TypeError: an array is of the wrong kind, or ``label_smoothing`` is no real number.
      ValueError: shapes that do not fit, no classes, or a number out of its range.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> logits = jnp.array([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
      >>> gx.losses.masked_cross_entropy(logits, jnp.array([2, -100]), mask=jnp.array([True, False]))
      Array(1.3862944, dtype=float32)
    """
    logits = arrays.floating("logits", logits)
    _features("logits", logits)
    labels = arrays.integers("labels", labels)
    arrays.same_shape("labels", labels, logits.shape[:-1], "that of logits without its last axis")
    mask = arrays.mask("mask", mask, logits.shape[:-1], "that of logits without its last axis")
    checks.real("label_smoothing", label_smoothing, at_least=0, at_most=1)
    smooth = not (checks.is_concrete(label_smoothing) and label_smoothing == 0)
    return _cross_entropy(logits, labels, mask, _names(axis_name), scalar(label_smoothing) if smooth else None)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _regression(
    predictions: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    axis_name: AxisName,
    penalty: Callable[..., jax.Array],
    *parameters: Scalar,
) -> jax.Array:
    dtype = wide_dtype(jnp.promote_types(predictions.dtype, targets.dtype))

    # Recomputed in the backward pass, which needs nothing but what is there anyway.
    @jax.checkpoint
    def errors(predictions: jax.Array, targets: jax.Array, counts: jax.Array, *parameters: Scalar) -> jax.Array:
        difference = predictions.astype(dtype) - targets.astype(dtype)
        return jnp.mean(penalty(jnp.where(counts[..., None], difference, 0), *parameters), -1)

    return _mean(errors(predictions, targets, mask != 0, *parameters), mask, axis_name)


def _square(difference: jax.Array) -> jax.Array:
    return jnp.square(difference)


def _absolute(difference: jax.Array) -> jax.Array:
    # Its derivative at 0 is 0, where that of jnp.abs is 1.
    return difference * lax.sign(difference)


def _smooth(difference: jax.Array, beta: Scalar) -> jax.Array:
    size = _absolute(difference)
    # The parabola up to beta, and all that lies above: no branch, and no division by 0.
    low = jnp.minimum(size, beta)
    return 0.5 * low * (low / jnp.where(beta > 0, beta, 1)) + (size - low)


@functools.partial(jax.jit, static_argnums=3)
def _cross_entropy(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, axis_name: AxisName, label_smoothing: Scalar | None
) -> jax.Array:
    classes = logits.shape[-1]
    # Narrow integers could not count the classes.
    labels = labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)

    # What the backward pass needs beside the logits is their log-sum-exps.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("log_sum_exp"))
    def errors(logits: jax.Array, labels: jax.Array, counts: jax.Array, label_smoothing: Scalar | None) -> jax.Array:
        logits = jnp.where(counts[..., None], logits.astype(wide_dtype(logits.dtype)), 0)
        error = _error(logits, labels, label_smoothing)
        return jnp.where(counts & ((labels < 0) | (labels >= classes)), jnp.nan, error)

    return _mean(errors(logits, labels, mask != 0, label_smoothing), mask, axis_name)


@jax.custom_jvp
def _error(logits: jax.Array, labels: jax.Array, label_smoothing: Scalar | None) -> jax.Array:
    return _log_sum_exp(logits) - _target(logits, labels, label_smoothing)


@_error.defjvp
def _error_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    # The three parts of the slope in one expression, where autodiff would add up arrays of the size of the logits.
    (logits, labels, label_smoothing), (change, _, d_smoothing) = primals, tangents
    total = _log_sum_exp(logits)
    right = _is_label(logits, labels)
    slope = jnp.exp(logits - total[..., None])
    if label_smoothing is None:
        return total - _target(logits, labels, None), jnp.sum((slope - right) * change, -1)
    slope -= (1 - label_smoothing) * right + label_smoothing / logits.shape[-1]
    further = (_target(logits, labels, None) - jnp.mean(logits, -1)) * d_smoothing
    return total - _target(logits, labels, label_smoothing), jnp.sum(slope * change, -1) + further


def _target(logits: jax.Array, labels: jax.Array, label_smoothing: Scalar | None) -> jax.Array:
    """The logit of the label, mixed with the mean of all."""
    if any(part is not None for part in jax.typeof(logits).sharding.spec[logits.ndim - 1 :]):
        # No device has all classes to look one up.
        target = jnp.sum(jnp.where(_is_label(logits, labels), logits, 0), -1)
    else:
        target = jnp.take_along_axis(logits, labels[..., None], -1, mode="clip")[..., 0]
    if label_smoothing is None:
        return target
    return (1 - label_smoothing) * target + label_smoothing * jnp.mean(logits, -1)


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]


def _log_sum_exp(logits: jax.Array) -> jax.Array:
    return checkpoint_name(jax.nn.logsumexp(logits, -1), "log_sum_exp")


def _mean(errors: jax.Array, mask: jax.Array, axis_name: AxisName) -> jax.Array:
    """The mean of the errors, weighted by the mask, over all positions of all devices; 0 where nothing counts."""
    if not jnp.issubdtype(mask.dtype, jnp.floating):
        # Integers count past 2**24, where float32 stops.
        count = jnp.sum(mask, dtype=jnp.int32).astype(errors.dtype)
    else:
        count = jnp.sum(lax.stop_gradient(mask).astype(errors.dtype))
    total = jnp.sum(errors * lax.stop_gradient(mask).astype(errors.dtype))
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)


def _pair(predictions: jax.Array, targets: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    predictions, targets = arrays.floating("predictions", predictions), arrays.floating("targets", targets)
    _features("predictions", predictions)
    arrays.same_shape("targets", targets, predictions.shape, "that of predictions")
    return (
        predictions,
        targets,
        arrays.mask("mask", mask, predictions.shape[:-1], "that of predictions without its last axis"),
    )


def _features(name: str, x: jax.Array) -> None:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: expected shape (..., features) with at least one feature, got {x.shape}")


def _names(axis_name: AxisName) -> str | tuple[str, ...] | None:
    return axis_name if axis_name is None or isinstance(axis_name, str) else tuple(axis_name)
