"""Floats as their bits, and the noise that rounds them."""

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


def noise_of(seed: int, step: jax.Array, leaf: int, shape: tuple[int, ...]) -> jax.Array:
    """32 random bits for each element of a leaf in one step.

    A hash of the seed, the step, the number of the leaf and that of the element: there is no key to carry, and what an
    element gets does not depend on where it lies. Two rounds of MurmurHash3's finalizer, one for what a leaf's elements
    share and one for each of them, match the binomial and are uncorrelated over steps and neighbours.
    """
    # The seed far from any step: seed 1 at step 0 is not seed 0 at step 1.
    start = np.uint32((seed * 0xC2B2AE3D + 0x27D4EB2F) & 0xFFFFFFFF)
    key = _mix(step.astype(jnp.uint32) ^ start) + np.uint32(leaf * 0x9E3779B9 & 0xFFFFFFFF)
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index = index + lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride & 0xFFFFFFFF)
        stride *= shape[axis]
    return _mix(index ^ key)


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def noise_for(rounding: str, noise: jax.Array) -> jax.Array:
    """The noise of a rounding: what was given, or the constant that rounds to the nearest."""
    return noise if rounding == "stochastic" else jnp.full_like(noise, HALF)
