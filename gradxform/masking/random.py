"""Masks that remove tokens at random: each example keeps a fixed number of its own."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core import arrays
from gradxform.core.arrays import one_key


class RandomMask(NamedTuple):
    """Which tokens are kept, and how to put them back.

    Attributes:
      ids_keep: the positions that are kept, in random order, int32 of shape (batch, num_keep); for ``gather_tokens``.
      ids_restore: for each position its place among the kept and, behind them, the removed ones, int32 of shape
        (batch, length); for ``scatter_tokens``.
      mask: where a token is removed, bool of shape (batch, length); for the masked losses.

    Example:
      >>> import gradxform as gx, jax
      >>> gx.masking.random_masking(jax.random.key(0), batch=1, length=4, num_keep=1).mask.sum()
      Array(3, dtype=int32)
    """

    ids_keep: jax.Array
    ids_restore: jax.Array
    mask: jax.Array


def num_kept(length: int, ratio: float) -> int:
    """How many tokens stay when a share of them is removed: ``int(length * (1 - ratio))``.

    The product is rounded down as it comes out in floating point, as in the published code of MAE: of 100 tokens
    with a ratio of 0.9, 9 stay.

    Args:
      length: the number of tokens, >= 1.
      ratio: the share to remove, > 0 and < 1.

    Returns:
      The number of tokens to keep.

    Raises:
      TypeError: an argument is not a number.
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> gx.masking.num_kept(196, 0.75)
      49
    """
    length = arrays.size("length", length)
    return int(length * (1 - arrays.number("ratio", ratio, above=0, below=1)))


def random_masking(key: jax.Array, batch: int, length: int, num_keep: int) -> RandomMask:
    """Keeps a random subset of the tokens of every example, all subsets equally likely.

    He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022), section 3: the positions are sorted by
    uniform noise, each example by its own, and the first ``num_keep`` are kept.

    Args:
      key: a random key.
      batch: the number of examples, >= 1; static.
      length: the number of tokens of an example, >= 1; static.
      num_keep: how many of them are kept, 0 to ``length``; static. ``num_kept`` makes it of a ratio.

    Returns:
      A ``RandomMask`` with ``ids_keep`` of shape (batch, num_keep), and ``ids_restore`` and ``mask`` of shape
      (batch, length); in the mask, true is removed.

    Raises:
      TypeError: ``key`` is no random key, or a size is not a static integer.
      ValueError: a size out of its range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> chosen = gx.masking.random_masking(jax.random.key(0), batch=2, length=8, num_keep=2)
      >>> x = jnp.ones((2, 8, 3))
      >>> visible = gx.masking.gather_tokens(x, chosen.ids_keep)
      >>> visible.shape
      (2, 2, 3)
      >>> again = gx.masking.scatter_tokens(visible, chosen.ids_restore, fill=0.0)
      >>> bool(jnp.all(again == jnp.where(chosen.mask[:, :, None], 0.0, x)))
      True
    """
    key = one_key("key", key)
    length = arrays.size("length", length)
    return _random_masking(key, arrays.size("batch", batch), length,
                           arrays.size("num_keep", num_keep, at_least=0, at_most=length))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _random_masking(key: jax.Array, batch: int, length: int, num_keep: int) -> RandomMask:
    ids = shuffled(key, batch, length)
    # The inverse of a permutation is the order that sorts it.
    ids_restore = jnp.argsort(ids, axis=1).astype(jnp.int32)
    return RandomMask(ids[:, :num_keep], ids_restore, ids_restore >= num_keep)


def shuffled(key: jax.Array, batch: int, length: int) -> jax.Array:
    """The numbers below ``length`` in a random order for each example, int32 of shape (batch, length)."""
    # Plain bits are uniform noise like any other, and tie less often than the floats made of them.
    return jnp.argsort(jax.random.bits(key, (batch, length), jnp.uint32), axis=1).astype(jnp.int32)
