"""What a momentum encoder needs: params that follow others, and a queue of what it has seen."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core import checks
from gradxform.core.average import weighted
from gradxform.core.types import Params, Scalar
from gradxform.losses import vectors


def ema_update(target: Params, online: Params, momentum: Scalar = 0.996) -> Params:
    """The params of a momentum encoder after a step: ``momentum * target + (1 - momentum) * online``.

    (He and others, 2020, eq. 2; Grill and others, 2020, eq. 1, who raise the momentum from 0.996 to 1 along a cosine.)
    ``gx.incremental_update(online, target, 1 - momentum)`` is the same, in the order that optax has.
    Added up in float32 at least; in params narrower than that, a step too small for their dtype is lost, so keep the
    target in float32.

    Args:
      target: the params that follow.
      online: the params that are trained, a tree of the same structure and shapes.
      momentum: the share that stays, in [0, 1]; may be traced.

    Returns:
      The new target, each leaf in the dtype it had; leaves that are not floating-point are those of ``online``.

    Raises:
      TypeError: the momentum is no number.
      ValueError: the trees do not match, or the momentum is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> gx.losses.ema_update({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, 0.75)
      {'w': Array([0.25, 0.25], dtype=float32)}
    """
    checks.real("momentum", momentum, at_least=0, at_most=1)
    return weighted(target, online, momentum, 1 - momentum, "target", "online")


class MemoryQueue(NamedTuple):
    """The latest keys of a momentum encoder (He and others, 2020), a pytree to carry along with params.

    Attributes:
      vectors: (size, d), what to give ``info_nce`` as ``negatives``.
      place: where the next keys go.

    Example:
      >>> import jax
      >>> import gradxform as gx
      >>> gx.losses.init_queue(jax.random.key(0), 64, 16).vectors.shape
      (64, 16)
    """

    vectors: jax.Array
    place: jax.Array


def init_queue(key: jax.Array, size: int, features: int) -> MemoryQueue:
    """A queue of random directions, as MoCo starts with.

    Args:
      key: a random key.
      size: how many keys the queue holds.
      features: the number of their features.

    Returns:
      The queue.

    Raises:
      TypeError: a size is no integer.
      ValueError: a size is less than 1.

    Example:
      >>> import jax
      >>> import gradxform as gx
      >>> gx.losses.init_queue(jax.random.key(0), 64, 16).place
      Array(0, dtype=int32)
    """
    checks.integer("size", size, at_least=1)
    checks.integer("features", features, at_least=1)
    return MemoryQueue(vectors.directions(jax.random.normal(key, (size, features))), jnp.zeros((), jnp.int32))


def enqueue(queue: MemoryQueue, keys: jax.Array) -> MemoryQueue:
    """The queue with new keys in place of its oldest.

    Args:
      queue: the queue.
      keys: (N, d), of the momentum encoder, at most as many as the queue holds; directions are kept, and no gradient.

    Returns:
      The new queue.

    Raises:
      TypeError: ``keys`` are not floating-point.
      ValueError: there are more keys than places, or they have another number of features.

    Example:
      >>> import jax
      >>> import gradxform as gx
      >>> queue = gx.losses.init_queue(jax.random.key(0), 4, 2)
      >>> gx.losses.enqueue(queue, jax.numpy.ones((3, 2))).place
      Array(3, dtype=int32)
    """
    keys = vectors.everywhere(vectors.embeddings("keys", keys))
    size, features = queue.vectors.shape
    if keys.shape[1] != features or keys.shape[0] > size:
        raise ValueError(f"keys: expected at most {size} vectors of {features} features, got shape {keys.shape}")
    new = lax.stop_gradient(vectors.directions(keys)).astype(queue.vectors.dtype)
    places = (queue.place + jnp.arange(keys.shape[0], dtype=queue.place.dtype)) % size
    return MemoryQueue(queue.vectors.at[places].set(new), (queue.place + keys.shape[0]) % size)
