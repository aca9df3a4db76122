"""Codecs without a scale in the state: bfloat16, and float8_e5m2 of what is within a fixed range."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradxform.core import checks
from gradxform.core.types import Scalar
from gradxform.precision.bits import INFINITY, MAGNITUDE, ROUNDINGS, SIGN, bits_of, float_of, noise_for, unit
from gradxform.precision.codec import Decode, Encode, Pairs, codec


@codec
def bf16(rounding: str = "stochastic") -> tuple[Encode, Decode]:
    """Two bytes a number, bfloat16: any range, for any optimizer.

    Args:
      rounding: ``"stochastic"``, or ``"nearest"`` for what moves by more than a code in a step.

    Returns:
      A codec.

    Raises:
      ValueError: an unknown rounding.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.precision.bf16().encode(jnp.array([1.0, 1e-20]))
      Array([1, 1.00056e-20], dtype=bfloat16)
    """
    checks.choice("rounding", rounding, ROUNDINGS)

    def encode(x: jax.Array, noise: jax.Array) -> jax.Array:
        bits = bits_of(x)
        magnitude = bits & MAGNITUDE
        rounded = jnp.minimum(magnitude + (noise_for(rounding, noise) >> 16), np.uint32(0x7F7FFFFF))
        # A NaN stays one: 0x7FC0 and not what the noise makes of it.
        rounded = jnp.where(magnitude > INFINITY, np.uint32(0x7FC00000), rounded) | (bits & SIGN)
        # On a CPU shifts vectorize and casts do not; elsewhere a cast is free and a bitcast is a copy.
        return lax.platform_dependent(
            rounded,
            cpu=lambda y: lax.bitcast_convert_type((y >> 16).astype(jnp.uint16), jnp.bfloat16),
            default=lambda y: float_of(y & np.uint32(0xFFFF0000)).astype(jnp.bfloat16),
        )

    return encode, lambda code: code.astype(jnp.float32)


@codec
def fp8(top: Scalar = 3.5, rounding: str = "stochastic") -> Pairs:
    """One byte a number, float8_e5m2 with a fixed power of two as its scale: one pass, no scale in the state.

    Numbers that are never negative are kept as their root, rounded so that the mean of the square is right; the bit of
    the sign, which they do not need, is a third one of the fraction. What is above ``top`` is stored as ``top``; it has
    30 binary orders below, 3.5 to 1e-9. That is right under a clip by global norm, after which no gradient, and so no
    root of a mean of squares, is above the clip: see ``saturated``.

    Args:
      top: the largest number (the largest root), > 0; held to a power of two times 1.75, not below what is given.
      rounding: ``"stochastic"``, or ``"nearest"`` for what moves by more than a code in a step.

    Returns:
      A codec.

    Raises:
      ValueError: ``top`` is not positive, or an unknown rounding.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> code = gx.precision.fp8().encode(jnp.array([1.0, 1e-12, 30.0]), nonnegative=True)
      >>> code.dtype, gx.precision.fp8().decode(code, nonnegative=True)
      (dtype(float8_e5m2), Array([1.000000e+00, 9.094947e-13, 1.225000e+01], dtype=float32))
    """
    checks.real("top", top, above=0)
    checks.choice("rounding", rounding, ROUNDINGS)
    # The largest float8_e5m2 is 57344 = 1.75 * 2**15.
    scale = 2.0 ** -math.ceil(math.log2(float(top) / 57344))

    def encode(x: jax.Array, noise: jax.Array) -> jax.Array:
        code = _code(jnp.abs(x) * scale, x, unit(noise_for(rounding, noise)), 2, square=False)
        return _stored(code | ((bits_of(x) >> 31) << 7).astype(jnp.int32))

    def encode_root(x: jax.Array, noise: jax.Array) -> jax.Array:
        code = _code(jnp.sqrt(x) * scale, x, unit(noise_for(rounding, noise)), 3, square=True)
        return _stored(code >> 1 | (code & 1) << 7)

    def decode(code: jax.Array) -> jax.Array:
        return _read(code) * (1 / scale)

    def decode_root(code: jax.Array) -> jax.Array:
        x = _read(code)
        size = jnp.abs(x)
        half_step = float_of(_exponent(size) - np.uint32(3 << 23))
        return jnp.square((size + jnp.where(x < 0, half_step, 0)) * (1 / scale))

    return (encode, decode), (encode_root, decode_root)


def _code(y: jax.Array, x: jax.Array, noise: jax.Array, fraction: int, *, square: bool) -> jax.Array:
    """The bits of float8_e5m2, or of one with more of them for the fraction, of ``y >= 0``, rounded up by chance.

    Between the neighbours ``k`` and ``k + 1`` in steps, ``k + t`` goes up with the chance ``t``. Where the mean of the
    square is to be right, it is ``((k + t)**2 - k**2) / ((k + 1)**2 - k**2)``.
    """
    y = jnp.minimum(y, 57344.0)
    exponent = _exponent(y)
    steps = y * float_of(np.uint32((254 + fraction) << 23) - exponent)  # four to eight of them, or twice as many
    k = jnp.floor(steps)
    t = steps - k
    up = noise * (2 * k + 1) < t * (2 * k + t) if square else noise < t
    code = (exponent >> (23 - fraction)).astype(jnp.int32) - (113 << fraction) + k.astype(jnp.int32) + up
    # A mean of squares above 0 stays above 0, at the least float8 or more: half of that would be a 0 with a sign. A
    # first moment may become 0: held at the least code, it would move a weight without a gradient for ever.
    one = 1 << (fraction - 2)
    code = jnp.where(y > 0, jnp.clip(code, one if square else 0, 0x7B * one), 0)
    return jnp.where(jnp.isnan(x), 0x7E * one, code)


def _exponent(y: jax.Array) -> jax.Array:
    """The bits of the power of two below ``y >= 0``; under the least that float8_e5m2 has, steps are equal."""
    return jnp.maximum(bits_of(y) & INFINITY, np.uint32(113 << 23))


def _stored(code: jax.Array) -> jax.Array:
    # A cast to float8 does not vectorize on a CPU; elsewhere it is free, and a bitcast is a copy.
    return lax.platform_dependent(
        code,
        cpu=lambda code: lax.bitcast_convert_type(code.astype(jnp.uint8), jnp.float8_e5m2),
        default=lambda code: _value(code).astype(jnp.float8_e5m2),
    )


def _read(code: jax.Array) -> jax.Array:
    return lax.platform_dependent(
        code,
        cpu=lambda code: _value(lax.bitcast_convert_type(code, jnp.uint8).astype(jnp.int32)),
        default=lambda code: code.astype(jnp.float32),
    )


def _value(code: jax.Array) -> jax.Array:
    """The float32 numbers of the bits of float8_e5m2."""
    size = code & 0x7F
    bits = jnp.where(size > 0x7C, np.int32(0x7FC00000), (size << 21) + (112 << 23))
    y = jnp.where(size < 4, size.astype(jnp.float32) * 2.0**-16, lax.bitcast_convert_type(bits, jnp.float32))
    return lax.bitcast_convert_type(lax.bitcast_convert_type(y, jnp.int32) | ((code >> 7) << 31), jnp.float32)
