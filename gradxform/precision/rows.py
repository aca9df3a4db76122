"""Rows in blocks: the largest of each block, and what a block has for each of its elements."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax


def blocks_of(row: int, block: int | None) -> tuple[int, int]:
    """How many blocks a row has, and how many elements a block."""
    if block is None or block >= row:
        return 1, row
    divisor = max(size for size in range(1, block + 1) if row % size == 0)
    size = divisor if 2 * divisor > block else block
    return -(-row // size), size


def largest(x: jax.Array, block: int | None) -> jax.Array:
    """The largest of the integers >= 0 of each block: an array with the blocks as its last axis."""
    if x.ndim == 0:
        raise ValueError("blockwise: expected an array of one axis at least to divide into blocks, got a scalar")
    count, size = blocks_of(x.shape[-1], block)
    if count > 1:
        x = _padded(x, count * size).reshape(*x.shape[:-1], count, size)
    largest = lax.platform_dependent(x, cpu=_by_parts, default=functools.partial(jnp.max, axis=-1))
    return largest if count > 1 else largest[..., None]


def _by_parts(x: jax.Array) -> jax.Array:
    """The largest along the last axis, 32 at a time.

    On a CPU a reduction over more than that becomes windows, which do not fuse with what they read.
    """
    size = x.shape[-1]
    if size > 32:
        parts = jnp.max(_padded(x, -(-size // 32) * 32).reshape(*x.shape[:-1], -1, 32), axis=-1)
        x = lax.optimization_barrier(parts)
    return jnp.max(x, axis=-1)


def _padded(x: jax.Array, size: int) -> jax.Array:
    room = size - x.shape[-1]
    return x if room == 0 else jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, room)])


def spread(blocks: jax.Array, shape: tuple[int, ...], block: int | None) -> jax.Array:
    """What each block has, for each of its elements."""
    count, size = blocks_of(shape[-1], block)
    if count == 1:
        return blocks  # broadcasts
    return jnp.repeat(blocks, size, axis=-1)[..., : shape[-1]]
