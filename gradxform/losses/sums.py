"""How the exponentials of logits are added up, and what that makes of a cotangent: in two ways."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Sums: TypeAlias = Any
"""Of some rows or columns a total each, or the largest logit so far and a total: each of the two ways has its own."""
FLOOR = -1e30
"""A maximum before the first number, and the log-sum-exp of none: finite, so that the difference of two is no NaN."""
SAFE_SCALE = 30.0
"""Up to this scale ``exp(scale * (s - 1))`` of a cosine ``s`` and its inverse are far from the ends of float32."""


class Bounded:
    """Sums of ``exp(logit - scale)``, where no logit exceeds the scale and that is at most ``SAFE_SCALE``.

    One exponential an element serves its row and its column, and no maximum is needed.
    """

    def __init__(self, scale: jax.Array) -> None:
        self._scale = scale

    def start(self, count: int, like: jax.Array) -> jax.Array:
        """Those of ``count`` rows or columns before the first tile; ``like`` is a zero."""
        return jnp.zeros(count, like.dtype) + like

    def seen(self, logits: jax.Array, kept: jax.Array | None) -> jax.Array:
        """What a tile adds: a function of its logits, and of which of them count."""
        e = jnp.exp(logits - self._scale)
        return e if kept is None else jnp.where(kept, e, 0)

    def add(self, total: jax.Array, seen: jax.Array, axis: int) -> jax.Array:
        """Those of a block with what a tile adds, summed over an axis of the tile."""
        return total + seen.sum(axis)

    def lse(self, total: jax.Array) -> jax.Array:
        """Their logarithms, ``FLOOR`` where there was nothing to add."""
        return jnp.where(total == 0, FLOOR, self._scale + jnp.log(total))

    def weight(self, lse: jax.Array, ct: jax.Array) -> jax.Array:
        """What a log-sum-exp and its cotangent bring to the cotangents of logits."""
        # exp(logit - scale) times this is the cotangent of the logit.
        some = lse > FLOOR / 2
        return jnp.where(some, ct * jnp.exp(self._scale - jnp.where(some, lse, self._scale)), 0)

    def cotangents(
        self, logits: jax.Array, kept: jax.Array | None, by_row: jax.Array, by_column: jax.Array | None
    ) -> jax.Array:
        """Those of a tile's logits, from the weights of its rows and, unless None, of its columns."""
        weight = by_row[:, None] if by_column is None else by_row[:, None] + by_column[None]
        # As in the forward pass: a single tile is computed once.
        return self.seen(logits, kept) * weight


class Weight(NamedTuple):
    """The cotangent of a log-sum-exp, and that."""

    lse: jax.Array
    ct: jax.Array


class Running:
    """Sums of ``exp(logit - top)`` beside the largest logit so far, ``top``."""

    def __init__(self, scale: jax.Array) -> None:
        del scale

    def start(self, count: int, like: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Those of ``count`` rows or columns before the first tile; ``like`` is a zero."""
        return jnp.full(count, FLOOR, like.dtype) + like, jnp.zeros(count, like.dtype) + like

    def seen(self, logits: jax.Array, kept: jax.Array | None) -> jax.Array:
        """What a tile adds: a function of its logits, and of which of them count."""
        return logits if kept is None else jnp.where(kept, logits, -jnp.inf)

    def add(self, sums: tuple[jax.Array, jax.Array], seen: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        """Those of a block with what a tile adds, summed over an axis of the tile."""
        top, total = sums
        new = jnp.maximum(top, seen.max(axis))
        return new, total * jnp.exp(top - new) + jnp.exp(seen - jnp.expand_dims(new, axis)).sum(axis)

    def lse(self, sums: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Their logarithms, ``FLOOR`` where there was nothing to add."""
        top, total = sums
        return jnp.where(total == 0, FLOOR, top + jnp.log(total))

    def weight(self, lse: jax.Array, ct: jax.Array) -> Weight:
        """What a log-sum-exp and its cotangent bring to the cotangents of logits."""
        some = lse > FLOOR / 2
        return Weight(jnp.where(some, lse, -FLOOR), jnp.where(some, ct, 0))

    def cotangents(
        self, logits: jax.Array, kept: jax.Array | None, by_row: Weight, by_column: Weight | None
    ) -> jax.Array:
        """Those of a tile's logits, from the weights of its rows and, unless None, of its columns."""
        g = jnp.exp(logits - by_row.lse[:, None]) * by_row.ct[:, None]
        if by_column is not None:
            g += jnp.exp(logits - by_column.lse[None]) * by_column.ct[None]
        return g if kept is None else jnp.where(kept, g, 0)
