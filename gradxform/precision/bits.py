"""Floats as their bits, and what rounds them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIGN, MAGNITUDE, INFINITY = np.uint32(1 << 31), np.uint32((1 << 31) - 1), np.uint32(255 << 23)
HALF = np.uint32(1 << 31)
"""The noise that rounds to the nearest."""
ROUNDINGS = ("stochastic", "nearest")


def bits_of(x: jax.Array) -> jax.Array:
    """The bits of float32 numbers."""
    return lax.bitcast_convert_type(x, jnp.uint32)


def float_of(bits: jax.Array) -> jax.Array:
    """The float32 numbers of some bits."""
    return lax.bitcast_convert_type(bits, jnp.float32)


def unit(noise: jax.Array) -> jax.Array:
    """Noise as float32 numbers in [0, 1)."""
    return (noise >> 9).astype(jnp.int32).astype(jnp.float32) * 2.0**-23


def noise_for(rounding: str, noise: jax.Array) -> jax.Array:
    """The noise of a rounding: what was given, or the constant that rounds to the nearest."""
    return noise if rounding == "stochastic" else jnp.full_like(noise, HALF)
