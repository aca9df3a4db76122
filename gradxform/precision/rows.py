"""Rows in blocks: the largest of each block, and what a block has for each of its elements."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P


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
        x = x if _of_whole_blocks(x, count, size) else _undivided(x)
        lies = jax.typeof(x).sharding
        x = lax.reshape(
            _padded(x, count * size),
            (*x.shape[:-1], count, size),
            out_sharding=lies.update(spec=P(*lies.spec, None)) if _is_divided(x) else None,
        )
    if _is_divided(x):
        return jnp.max(x, axis=-1, keepdims=True)
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
    lies = jax.typeof(blocks).sharding if _is_divided(blocks) else None
    return jnp.repeat(blocks, size, axis=-1, out_sharding=lies)[..., : shape[-1]]


# On an Explicit mesh types say how arrays lie, and what cannot be done piece by piece has to be said.


def _is_divided(x: jax.Array) -> bool:
    """Whether the type of an array says that its rows are in pieces."""
    spec = jax.typeof(x).sharding.spec
    return len(spec) == x.ndim > 0 and spec[-1] is not None


def _of_whole_blocks(x: jax.Array, count: int, size: int) -> bool:
    """Whether no block lies on two devices."""
    lies = jax.typeof(x).sharding
    if not _is_divided(x):
        return True
    along = (lies.spec[-1],) if isinstance(lies.spec[-1], str) else lies.spec[-1]
    return count * size == x.shape[-1] and count % math.prod(lies.mesh.shape[name] for name in along) == 0


def _undivided(x: jax.Array) -> jax.Array:
    lies = jax.typeof(x).sharding
    return jax.sharding.reshard(x, lies.update(spec=P(*lies.spec[:-1], None)))
