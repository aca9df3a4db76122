"""``y = (x - mean) / sqrt(var + epsilon) * scale + bias``, and a backward pass that keeps x alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core.isolate import isolated
from gradxform.core.manual import varying_like
from gradxform.core.numbers import widen
from gradxform.core.types import DType, Scalar
from gradxform.norm import rows
from gradxform.norm.moments import Input, Moments, Reduction, cleaned, moments


@functools.partial(jax.jit, static_argnames=("over", "dtype"))
def standardize(
    x: jax.Array,
    over: Reduction,
    mask: jax.Array | None,
    scale: jax.Array | None,
    bias: jax.Array | None,
    epsilon: Scalar,
    dtype: DType,
) -> jax.Array:
    """``x`` normalized by its own statistics; the other arguments are those of ``normalize``."""
    if mask is None and rows.are(x, over, scale, bias):
        return rows.standardize(x, over.centered, scale, bias, epsilon, dtype)
    carried = Input.of(x)
    return normalize(carried, moments(carried, over, mask), scale, bias, epsilon, dtype, mask)


@functools.partial(jax.jit, static_argnames="dtype")
def normalize(
    x: Input,
    stats: Moments,
    scale: jax.Array | None,
    bias: jax.Array | None,
    epsilon: Scalar,
    dtype: DType,
    mask: jax.Array | None = None,
) -> jax.Array:
    """``(x - mean) / sqrt(var + epsilon) * scale + bias``, computed in float32 at least and cast once.

    Args:
      x: the input.
      stats: its statistics, of shapes that broadcast against ``x``.
      scale: the factor in a shape that broadcasts against ``x``, or None for 1.
      bias: the summand in a shape that broadcasts against ``x``, or None for 0.
      epsilon: added to the variance.
      dtype: of the result.
      mask: what counts; elsewhere ``x`` may hold anything.

    Returns:
      An array shaped like ``x``.
    """
    factor = lax.rsqrt(stats.var + epsilon)
    scale, bias = (None if array is None else widen(array) for array in (scale, bias))
    if scale is not None and all(n in (1, m) for n, m in zip(scale.shape, factor.shape, strict=True)):
        # One factor for each mean is as good as two, and its gradient is half the work.
        factor, scale = factor * scale, None
    small = (stats.mean_high, stats.mean_low, factor, scale, bias)
    return _normalize(jnp.dtype(dtype), x, mask, *varying_like(x.x, small))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _normalize(
    dtype: DType,
    x: Input,
    mask: jax.Array | None,
    high: jax.Array,
    low: jax.Array,
    factor: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    return rows.affine((cleaned(x.x, mask) - high) - low, factor, scale, bias).astype(dtype)


@_normalize.defjvp
def _normalize_jvp(dtype: DType, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    x, mask, high, low, factor, scale, _ = primals
    d_x, _, _, d_low, d_factor, d_scale, d_bias = tangents

    # The tangent is linear in every change, one summand each. Transposed, each is a reduction of the incoming gradient
    # to the shape of a mean or a scale, and a pass over memory of its own (see ``moments`` for what that gains).
    def tangent(
        x: jax.Array,
        mask: jax.Array | None,
        high: jax.Array,
        low: jax.Array,
        factor: jax.Array,
        scale: jax.Array | None,
        d_x: jax.Array,
        d_low: jax.Array,
        d_factor: jax.Array,
        d_scale: jax.Array | None,
        d_bias: jax.Array | None,
    ) -> jax.Array:
        def term(fun: Callable[..., jax.Array], *args: jax.Array | None) -> jax.Array:
            return isolated(lambda *args: _broadcast_like(x, fun(*args)).astype(dtype), *args)

        def scaled(value: jax.Array, scale: jax.Array | None) -> jax.Array:
            return value if scale is None else value * scale

        change = (scaled(factor, scale) * d_x).astype(dtype)
        # What the lower part of the mean has to do with the factor is a matter of the small arrays.
        d_high = -factor * d_low - low * d_factor
        if scale is None and d_bias is not None and d_bias.shape == d_high.shape:
            d_high, d_bias = d_high + d_bias, None
        change += term(scaled, d_high, scale)
        change += term(lambda x, mask, m, s, d: scaled((cleaned(x, mask) - m) * d, s), x, mask, high, scale, d_factor)
        if scale is not None:
            change += term(
                lambda x, mask, m, r, f, d: ((cleaned(x, mask) - m) - r) * f * d, x, mask, high, low, factor, d_scale
            )
        if d_bias is not None:
            change += term(lambda d: d, d_bias)
        return change

    kept = jax.checkpoint(tangent, prevent_cse=False)
    return _normalize(dtype, *primals), kept(
        x.x, mask, high, low, factor, scale, d_x.wide, d_low, d_factor, d_scale, d_bias
    )


def _broadcast_like(x: jax.Array, array: jax.Array) -> jax.Array:
    """``array`` in the shape of ``x``, and laid out as ``x`` is where the mesh has axes that programs name."""
    sharding = jax.typeof(x).sharding
    named = any(part is not None for part in sharding.spec)
    return jnp.broadcast_to(array, x.shape, out_sharding=sharding if named else None)
