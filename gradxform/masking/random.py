"""Masks that remove tokens at random: each example keeps a fixed number of its own."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core import arrays
from gradxform.core.arrays import one_key

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Integer


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


def random_masking(
    key: jax.Array, batch: int, length: int, num_keep: int, *, lengths: Integer[Array, " batch"] | None = None
) -> RandomMask:
    """Keeps a random subset of the tokens of every example, all subsets equally likely.

    He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022), section 3: the positions are sorted by
    uniform noise, each example by its own, and the first ``num_keep`` are kept.

    Args:
      key: a random key.
      batch: the number of examples, >= 1; static.
      length: the number of tokens of an example, >= 1; static.
      num_keep: how many of them are kept, 0 to ``length``; static. ``num_kept`` makes it of a ratio.
      lengths: how many tokens of each example are no padding, integers of shape (batch,), 0 to ``length``; None where
        there is no padding. Padding stands behind the tokens, is never in the mask, and is kept only where an example
        has fewer tokens than ``num_keep``: then all of them, and padding behind them in ``ids_keep``.

    Returns:
      A ``RandomMask`` with ``ids_keep`` of shape (batch, num_keep), and ``ids_restore`` and ``mask`` of shape
      (batch, length); in the mask, true is removed.

    Raises:
      TypeError: ``key`` is no random key, a size is not a static integer, or ``lengths`` are no integers.
      ValueError: a size out of its range, or ``lengths`` of another shape.

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
    batch = arrays.size("batch", batch)
    lengths = None if lengths is None else sizes("lengths", lengths, batch)
    return _random_masking(key, lengths, batch, length, arrays.size("num_keep", num_keep, at_least=0, at_most=length))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _random_masking(key: jax.Array, lengths: jax.Array | None, batch: int, length: int, num_keep: int) -> RandomMask:
    ids = shuffled(key, batch, length, lengths)
    # The inverse of a permutation is the order that sorts it.
    ids_restore = jnp.argsort(ids, axis=1).astype(jnp.int32)
    mask = ids_restore >= num_keep
    return RandomMask(ids[:, :num_keep], ids_restore, mask if lengths is None else mask & within(lengths, length))


def shuffled(
    key: jax.Array, batch: int, length: int, lengths: Integer[Array, " batch"] | None = None
) -> Integer[Array, "batch length"]:
    """The numbers below ``length`` in a random order for each example, int32 of shape (batch, length).

    With ``lengths``, those below that of the example come first, in random order, and behind them the others in theirs.
    """
    # Plain bits are uniform noise like any other, and tie less often than the floats made of them.
    bits = jax.random.bits(key, (batch, length), jnp.uint32)
    if lengths is not None:
        # The sort is stable, so that even a tie leaves what is within before what is not.
        bits = jnp.where(within(lengths, length), bits, jnp.uint32(2**32 - 1))
    return jnp.argsort(bits, axis=1).astype(jnp.int32)


def within(lengths: Integer[Array, " batch"], length: int) -> Bool[Array, "batch length"]:
    """Which of ``length`` places are among the first ``lengths`` of each example: bool of shape (batch, length)."""
    return jnp.arange(length) < lengths[:, None]


def sizes(name: str, value: int | jax.Array, batch: int) -> Integer[Array, " batch"]:
    """A number for each example as an array.

    Raises:
      TypeError: it is no array of integers.
      ValueError: its shape is not (batch,).
    """
    value = arrays.integers(name, value)
    arrays.same_shape(name, value, (batch,), "a number for each example")
    return value.astype(jnp.int32)
