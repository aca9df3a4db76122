"""The affine map at the end of every norm, with a backward pass that keeps the input and nothing else of its size."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core.isolate import isolated
from gradxform.core.manual import varying_like
from gradxform.core.numbers import wide_dtype, widen
from gradxform.core.types import DType
from gradxform.norm.moments import Across, Spread, cleaned, spread


@functools.partial(jax.jit, static_argnames=("across", "dtype"))
def standardize(x: jax.Array, across: Across, mask: jax.Array | None, scale: jax.Array | None, bias: jax.Array | None,
                epsilon: Any, dtype: DType) -> jax.Array:
    """``x`` normalized by its own statistics across ``across``; the other arguments are those of ``normalize``."""
    if mask is None and across.axis_name is None and across.axes == (x.ndim - 1,):
        return _standardize(across, jnp.dtype(dtype), x, scale, bias, epsilon)
    carrier = widen(x)
    return normalize(x, carrier, spread(x, carrier, across, mask), scale, bias, epsilon, dtype, mask)


@functools.partial(jax.jit, static_argnames="dtype")
def normalize(x: jax.Array, carrier: jax.Array, stats: Spread, scale: jax.Array | None, bias: jax.Array | None,
              epsilon: Any, dtype: DType, mask: jax.Array | None = None) -> jax.Array:
    """``(x - mean) / sqrt(var + epsilon) * scale + bias``, computed in float32 at least and cast once.

    Args:
      x: the input.
      carrier: ``widen(x)``, through which its gradient flows.
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
    small = (stats.shift, stats.rest, factor, scale, bias)
    return _normalize(jnp.dtype(dtype), x, carrier, mask, *varying_like(x, small))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _normalize(dtype: DType, x: jax.Array, carrier: jax.Array, mask: jax.Array | None, shift: jax.Array,
               rest: jax.Array, factor: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    return _affine((cleaned(x, mask) - shift) - rest, factor, scale, bias).astype(dtype)


@_normalize.defjvp
def _normalize_jvp(dtype: DType, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    x, _, mask, shift, rest, factor, scale, _ = primals
    _, d_carrier, _, _, d_rest, d_factor, d_scale, d_bias = tangents

    # The tangent is linear in every change, one summand each. Transposed, each is a reduction of the incoming gradient
    # to the shape of a mean or a scale, and a pass over memory of its own.
    def tangent(x: jax.Array, mask: jax.Array | None, shift: jax.Array, rest: jax.Array, factor: jax.Array,
                scale: jax.Array | None, d_carrier: jax.Array, d_rest: jax.Array, d_factor: jax.Array,
                d_scale: jax.Array | None, d_bias: jax.Array | None) -> jax.Array:
        def term(fun: Any, *args: Any) -> jax.Array:
            return isolated(lambda *args: _broadcast_like(x, fun(*args)).astype(dtype), *args)

        def scaled(value: jax.Array, scale: jax.Array | None) -> jax.Array:
            return value if scale is None else value * scale

        change = (scaled(factor, scale) * d_carrier).astype(dtype)
        # What the rest of the mean has to do with the factor is a matter of the small arrays.
        d_shift = -factor * d_rest - rest * d_factor
        if scale is None and d_bias is not None and d_bias.shape == d_shift.shape:
            d_shift, d_bias = d_shift + d_bias, None
        change += term(scaled, d_shift, scale)
        change += term(lambda x, mask, m, s, d: scaled((cleaned(x, mask) - m) * d, s), x, mask, shift, scale, d_factor)
        if scale is not None:
            change += term(lambda x, mask, m, r, f, d: ((cleaned(x, mask) - m) - r) * f * d,
                           x, mask, shift, rest, factor, d_scale)
        if d_bias is not None:
            change += term(lambda d: d, d_bias)
        return change

    return _normalize(dtype, *primals), jax.checkpoint(tangent)(x, mask, shift, rest, factor, scale, d_carrier, d_rest,
                                                                d_factor, d_scale, d_bias)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _standardize(across: Across, dtype: DType, x: jax.Array, scale: jax.Array | None, bias: jax.Array | None,
                 epsilon: Any) -> jax.Array:
    """Statistics of rows and affine map in one expression; without a gradient that asks for parts, one kernel."""
    centered = widen(x)
    if across.centered:
        # float32 holds the mean of narrower numbers far finer than they are themselves. To hold that of its own, it
        # takes numbers near zero.
        if wide_dtype(x.dtype) == x.dtype:
            centered = centered - _near(x)
        centered = centered - jnp.mean(centered, across.axes, keepdims=True)
    var = jnp.mean(jnp.square(centered), across.axes, keepdims=True)
    return _affine(centered, lax.rsqrt(var + epsilon), *(None if a is None else widen(a) for a in (scale, bias)),
                   ).astype(dtype)


@_standardize.defjvp
def _standardize_jvp(across: Across, dtype: DType, primals: tuple[Any, ...], tangents: tuple[Any, ...],
                     ) -> tuple[jax.Array, jax.Array]:
    def parts(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, epsilon: Any) -> jax.Array:
        carrier = widen(x)
        return normalize(x, carrier, spread(x, carrier, across), scale, bias, epsilon, dtype)

    return jax.jvp(parts, primals, tangents)


def _broadcast_like(x: jax.Array, array: jax.Array) -> jax.Array:
    """``array`` in the shape of ``x``, and laid out as ``x`` is where the mesh has axes that programs name."""
    sharding = jax.typeof(x).sharding
    named = any(part is not None for part in sharding.spec)
    return jnp.broadcast_to(array, x.shape, out_sharding=sharding if named else None)


def _near(x: jax.Array) -> jax.Array:
    """A number near those of each row: the first of them."""
    spec = jax.typeof(x).sharding.spec
    if len(spec) == x.ndim and spec[-1] is not None:
        # Which device has the first one is not for each of them to know.
        return jnp.mean(x, -1, keepdims=True)
    return x[..., :1]


def _affine(centered: jax.Array, factor: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    y = centered * factor
    y = y if scale is None else y * scale
    return y if bias is None else y + bias
