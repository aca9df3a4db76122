"""Tokens picked, put back, and corrupted for masked language models."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core import arrays, checks
from gradxform.core.arrays import one_key
from gradxform.core.numbers import cast, scalar
from gradxform.core.types import Scalar


class CorruptedTokens(NamedTuple):
    """What a masked language model sees, and where it is asked.

    Attributes:
      ids: the corrupted token ids, shaped and typed like the original ones, which are the labels.
      mask: where a token was chosen and is to be predicted, whatever it was replaced by: bool of the same shape.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> ids = jnp.array([[1, 7, 8, 9, 2, 0]])
      >>> seen = gx.masking.mlm_corrupt(jax.random.key(0), ids, mask_id=3, vocab_size=10, special_ids=(0, 1, 2))
      >>> bool(jnp.all(jnp.where(seen.mask, ids, seen.ids) == ids))
      True
    """

    ids: jax.Array
    mask: jax.Array


def mlm_corrupt(
    key: jax.Array,
    ids: jax.Array,
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int] | np.ndarray = (),
    ratio: Scalar = 0.15,
    mask_share: Scalar = 0.8,
    random_share: Scalar = 0.1,
    attention_mask: jax.Array | None = None,
) -> CorruptedTokens:
    """Corrupts token ids for masked language modelling.

    Devlin et al., "BERT" (NAACL 2019), section 3.1 and appendix A.1: of 15% of the tokens, 80% become the mask token,
    10% a random one and 10% stay as they are. Each token is chosen by itself, as in RoBERTa, so the number of chosen
    ones varies from example to example and may be 0; the masked losses are ready for that. Special tokens, the mask
    token and padding are never chosen, and the random token is never a special one nor the mask token (published
    codes draw it from the whole vocabulary); it may be the original by chance.

    Args:
      key: a random key.
      ids: token ids, integers of any shape, e.g. (batch, length).
      mask_id: the id of the mask token; static.
      vocab_size: how many ids there are; static.
      special_ids: ids that are left alone and never come in, e.g. those that start, end and pad a text; static.
      ratio: the probability with which a token is chosen, > 0 and < 1.
      mask_share: the share of the chosen tokens that become the mask token, 0 to 1.
      random_share: the share that become a random token, 0 to 1; at most 1 together with ``mask_share``.
      attention_mask: what is no padding, shaped like ``ids``; None where there is none, or where the padding's id is
        among the special ones.

    Returns:
      ``CorruptedTokens``: ``ids`` as the model sees them and ``mask``, where it is to predict; as in
      ``gx.losses.masked_cross_entropy(logits, labels=original_ids, mask=mask)``.

    Raises:
      TypeError: ``key`` is no random key, ``ids`` are no integers, or another argument is of the wrong type.
      ValueError: a number out of its range, a shape that does not fit, or no ordinary token to draw.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> ids = jnp.full((100, 128), 42)
      >>> seen = gx.masking.mlm_corrupt(jax.random.key(0), ids, mask_id=3, vocab_size=1000, special_ids=(0, 1, 2))
      >>> round(float(seen.mask.mean()), 2)
      0.15
      >>> round(float((seen.ids == 3).sum() / seen.mask.sum()), 2)
      0.8
    """
    key = one_key("key", key)
    ids = arrays.integers("ids", ids)
    vocab_size = arrays.size("vocab_size", vocab_size)
    if vocab_size - 1 > jnp.iinfo(ids.dtype).max:
        raise ValueError(f"vocab_size: expected ids that fit in the dtype of ids, {ids.dtype}, got {vocab_size}")
    mask_id = arrays.size("mask_id", mask_id, at_least=0, at_most=vocab_size - 1)
    special = sorted(
        {
            mask_id,
            *(
                arrays.size("special_ids", one, at_least=0, at_most=vocab_size - 1)
                for one in np.asarray(special_ids, dtype=object).ravel()
            ),
        }
    )
    if len(special) == vocab_size:
        raise ValueError(f"special_ids: expected some of the {vocab_size} ids to be ordinary tokens, got all")
    checks.real("ratio", ratio, above=0, below=1)
    for name, share in (("mask_share", mask_share), ("random_share", random_share)):
        checks.real(name, share, at_least=0, at_most=1)
    if checks.is_concrete(mask_share) and checks.is_concrete(random_share) and mask_share + random_share > 1 + 1e-6:
        raise ValueError(
            f"random_share: expected at most 1 together with mask_share, got {random_share!r} and {mask_share!r}"
        )
    if attention_mask is not None:
        attention_mask = arrays.mask("attention_mask", attention_mask, ids.shape, "that of ids")
    return _mlm_corrupt(
        key,
        ids,
        attention_mask,
        scalar(ratio),
        scalar(mask_share),
        scalar(random_share),
        mask_id,
        vocab_size,
        tuple(special),
    )


@functools.partial(jax.jit, static_argnums=(6, 7, 8))
def _mlm_corrupt(
    key: jax.Array,
    ids: jax.Array,
    attention_mask: jax.Array | None,
    ratio: Scalar,
    mask_share: Scalar,
    random_share: Scalar,
    mask_id: int,
    vocab_size: int,
    special: tuple[int, ...],
) -> CorruptedTokens:
    choice_key, kind_key, token_key = jax.random.split(key, 3)
    chosen = jax.random.uniform(choice_key, ids.shape) < ratio
    chosen &= ~jnp.isin(ids, jnp.array(special, ids.dtype))
    if attention_mask is not None:
        chosen &= attention_mask != 0
    kind = _placed_like(ids, jax.random.uniform(kind_key, ids.shape))
    # The n-th ordinary id: n, and one more for every special id that has at most n ordinary ones below it.
    token = jax.random.randint(token_key, ids.shape, 0, vocab_size - len(special))
    ordinary_below = np.array(special) - np.arange(len(special))
    token += jnp.searchsorted(jnp.array(ordinary_below, token.dtype), token, side="right").astype(token.dtype)
    token = _placed_like(ids, token.astype(ids.dtype))
    new = jnp.where(
        kind < mask_share, jnp.full_like(ids, mask_id), jnp.where(kind < mask_share + random_share, token, ids)
    )
    return CorruptedTokens(jnp.where(chosen, new, ids), chosen)


def _placed_like(x: jax.Array, new: jax.Array) -> jax.Array:
    """``new`` laid out as ``x`` is where the mesh has axes that programs name."""
    spec = jax.typeof(x).sharding.spec
    return jax.sharding.reshard(new, spec) if any(part is not None for part in spec) else new


def gather_tokens(x: jax.Array, ids: jax.Array) -> jax.Array:
    """The tokens at some positions.

    Args:
      x: tokens, of shape (batch, length, ...), or (length, ...) of a single example.
      ids: their positions from 0 on, integers of shape (batch, num) or (num,); those of ``random_masking`` keep the
        visible ones.

    Returns:
      An array of shape (batch, num, ...) or (num, ...).

    Raises:
      TypeError: ``ids`` are no integers, or ``x`` is no array.
      ValueError: the shapes do not fit.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.masking.gather_tokens(jnp.array([[5, 6, 7], [8, 9, 10]]), jnp.array([[2, 0], [1, 1]])).tolist()
      [[7, 5], [9, 9]]
    """
    ids = arrays.integers("ids", ids)
    x = _tokens(x, ids, "ids")
    return jnp.take_along_axis(x, ids.reshape(ids.shape + (1,) * (x.ndim - ids.ndim)), axis=ids.ndim - 1)


def scatter_tokens(x: jax.Array, ids_restore: jax.Array, fill: jax.Array | float) -> jax.Array:
    """Puts visible tokens back in their places and fills the others: the input of MAE's decoder.

    The same as to append copies of ``fill`` and to reorder all by ``ids_restore`` (He et al., 2022, section 3), without
    the copies. The gradient of ``fill`` is the sum over the filled places.

    Args:
      x: the visible tokens, of shape (batch, num_keep, ...), or (num_keep, ...) of a single example.
      ids_restore: from ``random_masking``, integers of shape (batch, length) or (length,).
      fill: what goes in the places of removed tokens, e.g. a learned mask token of shape (features,); anything that
        broadcasts to the shape of the result. It is cast to the dtype of ``x``.

    Returns:
      An array of shape (batch, length, ...) or (length, ...) and the dtype of ``x``.

    Raises:
      TypeError: ``ids_restore`` are no integers, or ``x`` is no array.
      ValueError: the shapes do not fit.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.masking.scatter_tokens(jnp.array([[5.0, 7.0]]), jnp.array([[0, 2, 1]]), fill=-1.0).tolist()
      [[5.0, -1.0, 7.0]]
    """
    ids = arrays.integers("ids_restore", ids_restore)
    x = _tokens(x, ids, "ids_restore")
    axis = ids.ndim - 1
    shape = ids.shape + x.shape[ids.ndim :]
    visible = x.shape[axis]
    if visible > ids.shape[axis]:
        raise ValueError(
            f"x: expected at most as many tokens as ids_restore of shape {ids.shape} has places, got shape {x.shape}"
        )
    fill = cast(fill, x.dtype)
    try:
        fill = jnp.broadcast_to(fill, shape)
    except ValueError:
        raise ValueError(f"fill: expected a shape that broadcasts to {shape}, got {jnp.shape(fill)}") from None
    if visible == 0:
        return fill
    ids = ids.reshape(ids.shape + (1,) * (x.ndim - ids.ndim))
    found = jnp.take_along_axis(x, jnp.minimum(ids, visible - 1), axis=axis)
    return jnp.where(ids < visible, found, _placed_like(found, fill))


def _tokens(x: jax.Array, ids: jax.Array, name: str) -> jax.Array:
    if not hasattr(x, "dtype"):
        raise TypeError(f"x: expected an array, got {x!r}")
    x = jnp.asarray(x)
    if ids.ndim == 0 or x.ndim < ids.ndim or x.shape[: ids.ndim - 1] != ids.shape[:-1]:
        raise ValueError(
            f"{name}: expected shape (*batch, num) for x of shape (*batch, length, ...), got {ids.shape} "
            f"for x of shape {x.shape}"
        )
    return x
