"""Kernels of tone: each level becomes another, whatever its neighbours; levels are counted 0..255.

A float image is taken on the same scale, 255 times its values, so that one made of an 8-bit image comes out as that
does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradxform.augment.pixels.arithmetic import whole, within
from gradxform.augment.pixels.canvas import Planes
from gradxform.core.types import Scalar

_NEARLY = 2.0**-10
"""What a level may lack: 255 * (n / 255) need not be n in floats, nor n in a narrow dtype."""


def invert(planes: Planes) -> Planes:
    """White for black: 255 less each level, or 1 less each value."""
    return [(255 if plane.dtype == jnp.int32 else 1.0) - plane for plane in planes]


def posterize(planes: Planes, bits: Scalar) -> Planes:
    """The highest bits of each level; the others are 0.

    Args:
      planes: the channels.
      bits: how many bits stay, an integer 0 (black) to 8 (as it was).

    Returns:
      The channels.
    """
    dropped = jnp.maximum(8 - jnp.asarray(bits).astype(jnp.int32), 0)

    def kept(plane: jax.Array) -> jax.Array:
        if plane.dtype == jnp.int32:
            return plane >> dropped << dropped
        step = (1 << dropped).astype(jnp.float32)
        return jnp.floor((plane * 255 + _NEARLY) / step) * step / 255

    return [kept(plane) for plane in planes]


def solarize(planes: Planes, threshold: Scalar) -> Planes:
    """The levels from a threshold on inverted.

    Args:
      planes: the channels.
      threshold: a level, 0 (all inverted) to 256 (none), for float images too.

    Returns:
      The channels.
    """
    return [
        jnp.where(_below(plane, threshold), plane, inverted)
        for plane, inverted in zip(planes, invert(planes), strict=True)
    ]


def solarize_add(planes: Planes, addition: Scalar, threshold: Scalar = 128) -> Planes:
    """The levels below a threshold raised.

    Args:
      planes: the channels.
      addition: how many levels; a whole number for 8 bits, rounded down.
      threshold: the level from which on they stay.

    Returns:
      The channels.
    """

    def raised(plane: jax.Array) -> jax.Array:
        if plane.dtype == jnp.int32:
            return jnp.clip(plane + jnp.floor(jnp.asarray(addition)).astype(jnp.int32), 0, 255)
        return within(plane + jnp.asarray(addition, jnp.float32) / 255, 0.0, 1.0)

    return [jnp.where(_below(plane, threshold), raised(plane), plane) for plane in planes]


def gamma(planes: Planes, power: Scalar) -> Planes:
    """Every value to a power, ``int(255.999 (i / 255) ** power)`` of the levels of 8 bits.

    Args:
      planes: the channels.
      power: above 0.

    Returns:
      The channels.
    """
    power = jnp.asarray(power, jnp.float32)

    def raised(x: jax.Array) -> jax.Array:
        # By logarithms, which are vectorized; black has none.
        return jnp.where(x > 0, jnp.exp(power * jnp.log(jnp.where(x > 0, x, 1.0))), 0.0)

    return [
        whole(255.999 * raised(plane.astype(jnp.float32) / 255)) if plane.dtype == jnp.int32 else raised(plane)
        for plane in planes
    ]


def _below(plane: jax.Array, threshold: Scalar) -> jax.Array:
    if plane.dtype == jnp.int32:
        return plane < jnp.asarray(threshold)
    return plane * 255 + _NEARLY < jnp.asarray(threshold, jnp.float32)
