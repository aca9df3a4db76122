"""Losses that make the predictions for several views of an image agree: AugMix."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core import arrays, checks
from gradxform.core.numbers import scalar, wide_dtype
from gradxform.core.types import Scalar
from gradxform.losses import vectors
from gradxform.losses.contrastive import AxisName

SERIES = tuple(1.0 / denominator for denominator in (45360, 5760, 840, 144, 30, 8, 3, 2))
"""The coefficients ``(k - 1) / k!`` of ``d**k`` in ``d exp(d) - exp(d) + 1``, from the ninth down to the second."""


def jensen_shannon(
    *logits: jax.Array, weight: Scalar = 12.0, axis: int = -1, reduction: str = "mean", axis_name: AxisName = None
) -> jax.Array:
    """The Jensen-Shannon divergence of predictions, AugMix's consistency loss.

    ``weight * (KL(p_1 | M) + ... + KL(p_n | M)) / n`` with ``p_i`` the softmax of the i-th logits and ``M`` the mean of
    all (Hendrycks and others, 2020, section 3, with the clean image and two augmented ones; the weight is theirs). It
    is added to the cross-entropy of the clean image. Their code clamps ``M`` to 1e-7 from below; here it need not, for
    all is computed from logarithms. Gradients flow into all logits, and are finite for finite logits.

    Args:
      *logits: two or more arrays of one shape, (N, classes) as a rule, in any floating-point dtype. Logits of -inf rule
        a class out.
      weight: the factor of the divergence, at least 0.
      axis: where the classes are.
      reduction: ``"mean"``, ``"sum"`` or ``"none"``.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which images are spread.

    Returns:
      The loss in float32 at least, a scalar or of the shape of the logits without ``axis``: from 0, where all
      predictions are equal, to ``weight * log(n)``.

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: there are fewer than two arrays, shapes differ, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> clean, augmented, other = jnp.array([[[4.0, 0.0]], [[3.0, 0.0]], [[0.0, 1.0]]])
      >>> gx.losses.jensen_shannon(clean, augmented, other).round(2)
      Array(3.49, dtype=float32)
      >>> gx.losses.jensen_shannon(clean, clean, clean).item()
      0.0
    """
    if len(logits) < 2:
        raise ValueError(f"logits: expected at least two arrays, got {len(logits)}")
    views = tuple(arrays.floating(f"logits[{i}]", one) for i, one in enumerate(logits))
    shape = views[0].shape
    for i, one in enumerate(views):
        arrays.same_shape(f"logits[{i}]", one, shape, "that of logits[0]")
    if not shape or 0 in shape:
        raise ValueError(f"logits: expected arrays with at least one class and none of their axes 0, got shape {shape}")
    axis = arrays.size("axis", axis, at_least=-len(shape), at_most=len(shape) - 1)
    checks.real("weight", weight, at_least=0)
    vectors.number("weight", weight)
    checks.choice("reduction", reduction, vectors.REDUCTIONS)
    return vectors.reduced(scalar(weight) * _divergence(views, axis), reduction, axis_name)


@functools.partial(jax.jit, static_argnums=1)
def _divergence(logits: tuple[jax.Array, ...], axis: int) -> jax.Array:
    dtype = wide_dtype(jnp.result_type(*logits))

    # Recomputed in the backward pass, which needs nothing but the logits.
    @jax.checkpoint
    def divergence(*logits: jax.Array) -> jax.Array:
        return _from_wide(axis, tuple(one.astype(dtype) for one in logits))

    return divergence(*logits)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _from_wide(axis: int, logits: tuple[jax.Array, ...]) -> jax.Array:
    return _value(axis, *_ratios(axis, logits))


@_from_wide.defjvp
def _from_wide_jvp(
    axis: int, primals: tuple[tuple[jax.Array, ...]], tangents: tuple[tuple[jax.Array, ...]]
) -> tuple[jax.Array, jax.Array]:
    # The slope in closed form: p_i (d_i - KL(p_i | M)) / n, which is 0 where all agree.
    (logits,), (changes,) = primals, tangents
    ps, ds = _ratios(axis, logits)
    slopes = [p * (d - jnp.sum(p * d, axis, keepdims=True)) / len(ps) for p, d in zip(ps, ds, strict=True)]
    return _value(axis, ps, ds), sum(
        (jnp.sum(slope * change, axis) for slope, change in zip(slopes, changes, strict=True)),
        jnp.zeros((), ps[0].dtype),
    )


def _ratios(axis: int, logits: tuple[jax.Array, ...]) -> tuple[list[jax.Array], list[jax.Array]]:
    """The probabilities, and the logarithms of their ratios to the mean."""
    log_ps = [jax.nn.log_softmax(one, axis) for one in logits]
    top = lax.stop_gradient(functools.reduce(jnp.maximum, log_ps))
    # A class that all rule out has no ratios; one that is nearly ruled out by some keeps finite ones, which count 0.
    some = top > -jnp.inf
    tops = jnp.where(some, top, 0)
    above = [jnp.where(some, jnp.maximum(log_p - tops, -1e4), 0) for log_p in log_ps]
    # Close to 0, where predictions agree, these two keep all digits.
    mean = jnp.log1p(sum(jnp.expm1(one) for one in above) / len(above))
    return [jnp.exp(log_p) for log_p in log_ps], [one - mean for one in above]


def _value(axis: int, ps: list[jax.Array], ds: list[jax.Array]) -> jax.Array:
    """The mean of the divergences from the mean, as a sum of terms that are not negative.

    ``sum(p d)`` would be a small difference of large terms where predictions agree. With ``sum(p) = sum(m)`` it is the
    sum of ``p d - p + m``, that is ``m (d exp(d) - exp(d) + 1)``.
    """
    m = sum(ps) / len(ps)
    terms = [
        jnp.where(jnp.abs(d) < 0.1, m * d * d * jnp.polyval(jnp.array(SERIES, d.dtype), d), p * d - p + m)
        for p, d in zip(ps, ds, strict=True)
    ]
    return jnp.sum(sum(terms), axis) / len(ps)
