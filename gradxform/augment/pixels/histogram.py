"""Kernels that look at how the levels of each channel are spread: equalize and autocontrast.

8-bit channels come out as Pillow's ``ImageOps`` makes them, to the last bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.augment.pixels.arithmetic import quotient, within
from gradxform.augment.pixels.canvas import Planes, real, true_size
from gradxform.core.isolate import isolated

FEW_ROWS = 8
"""So many rows, and fewer, are reduced as they are."""


def equalize(planes: Planes) -> Planes:
    """Each channel's levels spread so that about as many pixels take each of them.

    A float image is equalized by the 256 levels that its values, times 255, are nearest to.
    """
    height, width = true_size(planes)
    return [_equalized(plane, height * width) for plane in planes]


def autocontrast(planes: Planes) -> Planes:
    """Each channel stretched so that its least value is black and its greatest white; a constant one stays.

    A float image is stretched as it is, not by levels.
    """
    counted = real(planes)
    return [_stretched(plane, counted) if plane.dtype == jnp.int32 else _stretched_floats(plane, counted)
            for plane in planes]


def histogram(levels: jax.Array) -> jax.Array:
    """How many pixels have each of the 256 levels, int32."""
    return jnp.zeros(256, jnp.int32).at[levels.ravel()].add(1, mode="promise_in_bounds")


def look_up(table: jax.Array, levels: jax.Array) -> jax.Array:
    """The entry of the table for each level."""
    return table.at[levels].get(mode="promise_in_bounds")


def _equalized(plane: jax.Array, pixels: int | jax.Array) -> jax.Array:
    levels = plane if plane.dtype == jnp.int32 else jnp.floor(plane * 255 + 0.5).astype(jnp.int32)
    identity = jnp.arange(256, dtype=jnp.int32)
    # Beyond the true size of the image there are zeros.
    counts = histogram(levels) - jnp.where(identity == 0, levels.size - pixels, 0)
    brightest = jnp.max(jnp.where(counts > 0, identity, 0))
    step = (pixels - jnp.sum(jnp.where(identity == brightest, counts, 0), dtype=jnp.int32)) // 255
    darker = _running_sum(counts) - counts

    def filled(step: jax.Array, darker: jax.Array) -> jax.Array:
        # A single level makes a step of 0.
        return jnp.where(step == 0, identity, jnp.minimum((step // 2 + darker) // jnp.maximum(step, 1), 255))

    # Apart, or XLA would put it into the loop over the pixels with all that leads to it.
    table = isolated(filled, step, darker)
    if plane.dtype == jnp.int32:
        return look_up(table, levels)
    return jnp.where(step == 0, plane, look_up(table.astype(jnp.float32) / 255, levels))


def _running_sum(counts: jax.Array) -> jax.Array:
    """The cumulative sum of 256 integers."""
    # XLA makes a cumulative sum of n * n additions on a CPU; sixteen by sixteen there are few.
    upto = jnp.tri(16, dtype=bool)
    rows = counts.reshape(16, 16)
    inner = jnp.sum(jnp.where(upto, rows[:, None, :], 0), axis=2, dtype=jnp.int32)
    before = jnp.sum(jnp.where(upto & ~jnp.eye(16, dtype=bool), inner[:, -1], 0), axis=1, dtype=jnp.int32)
    return (inner + before[:, None]).reshape(256)


def _bounds(plane: jax.Array, counted: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The least and the greatest value, of the pixels that count."""
    least, most = (plane, plane) if counted is None else (jnp.where(counted, plane, 255), jnp.where(counted, plane, 0))
    return _folded(jnp.minimum, jnp.min, least), _folded(jnp.maximum, jnp.max, most)


def _folded(combine: Callable[[jax.Array, jax.Array], jax.Array], reduce: Callable[[jax.Array], jax.Array],
            plane: jax.Array) -> jax.Array:
    """``reduce(plane)``, half of the rows combined with the other half while there are many.

    XLA's CPU backend takes one value after another where it reduces a plane to a number; two halves are vectorized.
    """
    found = []
    while plane.shape[0] > FEW_ROWS:
        half = plane.shape[0] // 2
        if plane.shape[0] % 2:
            found.append(reduce(plane[-1:]))
        plane = combine(plane[:half], plane[half:2 * half])
    return functools.reduce(combine, found, reduce(plane))


def _stretched(plane: jax.Array, counted: jax.Array | None) -> jax.Array:
    low, high = isolated(_bounds, plane, counted)
    return look_up(isolated(_stretch_table, low, high), plane)


def _stretched_floats(plane: jax.Array, counted: jax.Array | None) -> jax.Array:
    low, high = isolated(_bounds, plane, counted)
    spread = jnp.where(low < high, high - low, 1.0)
    return jnp.where(low < high, within((plane - low) / spread, 0.0, 1.0), plane)


def _stretch_table(low: jax.Array, high: jax.Array) -> jax.Array:
    """``int(i * scale - low * scale)`` in 0..255 with ``scale = 255 / (high - low)``, as float64 makes it.

    Where the exact result is a whole number, as for the greatest level, float64 may fall short of it, and Pillow
    with it.
    """
    starts, factors, short = _falls_short()
    spread = jnp.maximum(high - low, 1)
    above = jnp.clip(jnp.arange(256, dtype=jnp.int32) - low, 0, spread)
    factor = jnp.asarray(factors)[spread]
    which = quotient(factor * above, spread)
    place = jnp.asarray(starts)[spread] + low * factor + which - 1
    is_short = (jnp.asarray(short)[jnp.maximum(place, 0) // 8] >> (place & 7)) & 1
    is_whole = (which * spread == factor * above) & (above > 0)
    stretched = quotient(255 * above, spread) - jnp.where(is_whole, is_short.astype(jnp.int32), 0)
    return jnp.where(low < high, stretched, jnp.arange(256, dtype=jnp.int32))


@functools.cache
def _falls_short() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where float64 falls short of a whole number: a bit for each of 160,000 cases, packed.

    For a spread of d levels there is a whole number at each multiple of d / gcd(255, d) above the least level: gcd
    cases for each least level. Returned are the place of the first case of each d, each d's gcd, and the bits.
    """
    levels = np.arange(256)
    factors = np.gcd(255, levels).astype(np.int32)
    factors[0] = 1
    cases = [np.zeros((0,), bool)]
    for spread in range(1, 256):
        low = levels[:256 - spread, None]
        above = np.arange(1, factors[spread] + 1) * (spread // factors[spread])
        scale = np.float64(255.0) / spread
        cases.append((((low + above) * scale + -low * scale).astype(np.int64) < 255 * above // spread).ravel())
    starts = np.cumsum([0] + [len(case) for case in cases[:-1]], dtype=np.int32)
    return starts, factors, np.packbits(np.concatenate(cases), bitorder="little")
