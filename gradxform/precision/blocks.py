"""Codecs with an 8-bit exponent a row or a block: minifloats of 8 and 4 bits, and linear codes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gradxform.core import checks
from gradxform.precision.bits import INFINITY, MAGNITUDE, ROUNDINGS, bits_of, float_of, noise_for, unit
from gradxform.precision.codec import Pair, Pairs, codec
from gradxform.precision.dynamic import dynamic
from gradxform.precision.rows import largest, spread


@codec
def int8_blockwise(block: int | str = "row", code: str = "float", rounding: str = "stochastic") -> Pairs:
    """One byte a number, relative to an 8-bit exponent for a row or a block of the last axis.

    Under ``code="float"`` the byte is a minifloat: sign, 4 bits of exponent and 3 of fraction, or 5 and 3 for numbers
    that are never negative, 15 or 31 octaves below the largest of the block.

    Args:
      block: ``"row"`` for the whole last axis, which compilers read in one pass, or how many elements have an exponent
        together, >= 2: the largest divisor of the row up to that, and where there is none above a half of it, that
        with a shorter last block.
      code: ``"float"``; ``"linear"`` for equal steps, 128 of them, right for what is orthogonalized (numbers that are
        never negative are minifloats there too: a linear code of squares is 0 where their root is not); ``"dynamic"``
        for the codes of bitsandbytes, with a float32 scale a block.
      rounding: ``"stochastic"``, or ``"nearest"`` for what moves by more than a code in a step.

    Returns:
      A codec.

    Raises:
      TypeError: ``block`` is neither an integer nor ``"row"``.
      ValueError: it is below 2; an unknown code or rounding; from ``encode``, for a scalar.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> codes, exponents = gx.precision.int8_blockwise().encode(jnp.array([[1.0, -0.3, 0.0], [1e-9, 2e-9, 3e-9]]))
      >>> codes.dtype, codes.shape, exponents.dtype, exponents.shape
      (dtype('uint8'), (2, 3), dtype('uint8'), (2, 1))
    """
    size = check_block(block)
    checks.choice("code", code, ("float", "linear", "dynamic"))
    checks.choice("rounding", rounding, ROUNDINGS)
    if code == "dynamic":
        return dynamic(size, rounding)
    both = _linear(size, rounding) if code == "linear" else _minifloat(size, 4, 3, rounding, jnp.uint8, signed=True)
    return both, _minifloat(size, 5, 3, rounding, jnp.uint8, signed=False)


@codec
def int4_blockwise(block: int | str = 128, rounding: str = "stochastic") -> Pairs:
    """Half a byte a number, relative to an 8-bit exponent a block: a power of two.

    Sign and 3 bits of exponent, or 4 bits for numbers that are never negative.

    Args:
      block: as in ``int8_blockwise``.
      rounding: ``"stochastic"``, or ``"nearest"``, with which training is not stable.

    Returns:
      A codec.

    Raises:
      TypeError: ``block`` is neither an integer nor ``"row"``.
      ValueError: it is below 2; an unknown rounding; from ``encode``, for a scalar.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.precision.int4_blockwise("row").encode(jnp.array([1.0, -0.5, 0.0]))[0]
      Array([7, 14, 0], dtype=uint4)
    """
    size = check_block(block)
    checks.choice("rounding", rounding, ROUNDINGS)
    return (
        _minifloat(size, 3, 0, rounding, jnp.uint4, signed=True),
        _minifloat(size, 4, 0, rounding, jnp.uint4, signed=False),
    )


def check_block(block: int | str) -> int | None:
    """How many elements have a scale together; None for a whole row.

    Raises:
      TypeError: it is neither an integer nor ``"row"``.
      ValueError: it is below 2.
    """
    if block == "row":
        return None
    if isinstance(block, str):
        raise TypeError(f"block: expected an integer >= 2 or 'row', got {block!r}")
    checks.integer("block", block, at_least=2, known=True)
    return int(block)


def _minifloat(
    block: int | None, exponent: int, fraction: int, rounding: str, dtype: DTypeLike, *, signed: bool
) -> Pair:
    """Codes that count, in the bits of a float32, steps of ``2**-fraction`` of an octave above the block's least.

    Rounding does not depend on the block then, and the block's exponent is that of its largest number *after* it: a
    number goes up to the next power of two as to any other code, and what was decoded has the same exponent again.

    Below the least code a number of either sign becomes 0 or that code, right on average: a first moment that was held
    there would move a weight without a gradient for ever. A mean of squares is held there, not to be 0 under one.
    """
    span, drop = 2**exponent, 23 - fraction
    most, nan = (255 << fraction) - 1, 255 << fraction | (1 << fraction) // 2

    def encode(x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        bits, noise = bits_of(x), noise_for(rounding, noise)
        size = bits & MAGNITUDE
        steps = jnp.minimum(((size + (noise >> (32 - drop))) >> drop).astype(jnp.int32), most)
        steps = jnp.where(size > INFINITY, nan, steps)
        top = jnp.maximum(largest(steps, block) >> fraction, span)
        base = (spread(top, steps.shape, block) - (span - 1)) << fraction
        code = steps - base
        if not signed:
            return jnp.where(size > 0, jnp.maximum(code, 1), 0).astype(dtype), top.astype(jnp.uint8)
        least = (base + 1) << drop
        some = unit(noise) < jnp.abs(x) * (1 / lax.bitcast_convert_type(least, jnp.float32))
        code = jnp.where(size.astype(jnp.int32) < least, some, code)
        return (code | (bits >> 31).astype(jnp.int32) << (exponent + fraction)).astype(dtype), top.astype(jnp.uint8)

    def decode(coded: tuple[jax.Array, jax.Array]) -> jax.Array:
        code, top = (part.astype(jnp.int32) for part in coded)
        size = code & (2 ** (exponent + fraction) - 1) if signed else code
        bits = (size + ((spread(top, code.shape, block) - (span - 1)) << fraction)) << drop
        bits = jnp.where(size > 0, bits, 0)
        if signed:
            bits = bits | ((code >> (exponent + fraction)) << 31)
        return lax.bitcast_convert_type(bits, jnp.float32)

    return Pair(encode, decode)


def _linear(block: int | None, rounding: str) -> Pair:
    """Multiples of a power of two, 64 to 127 of which are the block's largest number."""

    def encode(x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise = noise_for(rounding, noise) >> 16 << 16  # no more digits than a sum with 127 holds
        # As in a minifloat of 6 bits of fraction: what is rounded up to 128 of the steps has 64 of the next.
        size = bits_of(x) & MAGNITUDE
        raised = jnp.where(size < INFINITY, jnp.minimum(size + (noise >> 15), INFINITY - 1), INFINITY)
        top = largest(raised.astype(jnp.int32), block) >> 23
        top = jnp.maximum(top, 8)
        per = float_of(((260 - spread(top, x.shape, block)) << 23).astype(jnp.uint32))
        code = jnp.minimum(jnp.floor(jnp.abs(x) * per + unit(noise)), 127)
        return jnp.where(x < 0, -code, code).astype(jnp.int8), top.astype(jnp.uint8)

    def decode(coded: tuple[jax.Array, jax.Array]) -> jax.Array:
        code, top = coded
        top = top.astype(jnp.int32)
        step = jnp.where(top == 255, jnp.nan, lax.bitcast_convert_type((top - 6) << 23, jnp.float32))
        return code.astype(jnp.float32) * spread(step, code.shape, block)

    return Pair(encode, decode)
