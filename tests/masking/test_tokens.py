"""Tokens: the shares of a corruption, and what is picked and put back."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from mask_checks import assert_share, assert_uniform

from gradxform import masking

VOCAB, MASK = 40, 4
SPECIAL = (0, 2, 39)


def text(seed: int = 0, shape: tuple[int, ...] = (64, 500)) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, VOCAB, shape).astype(np.int32)


def test_bert_s_shares() -> None:
    ids = text()
    ordinary = ~np.isin(ids, (*SPECIAL, MASK))
    seen, mask = (
        np.asarray(x)
        for x in masking.mlm_corrupt(
            jax.random.key(0), jnp.asarray(ids), mask_id=MASK, vocab_size=VOCAB, special_ids=SPECIAL
        )
    )
    assert seen.dtype == np.int32
    assert mask.dtype == bool
    assert not np.any(mask & ~ordinary)
    np.testing.assert_array_equal(seen[~mask], ids[~mask])
    assert_share(mask.sum(), ordinary.sum(), 0.15)
    chosen = mask.sum()
    # One in 36 of the random tokens is the original.
    assert_share((seen[mask] == MASK).sum(), chosen, 0.8)
    assert_share((seen[mask] == ids[mask]).sum(), chosen, 0.1 + 0.1 / 36)
    new = seen[mask & (seen != MASK) & (seen != ids)]
    assert_share(new.size, chosen, 0.1 * 35 / 36)
    assert not np.any(np.isin(new, (*SPECIAL, MASK)))


def test_random_tokens_are_uniform_over_ordinary_ones() -> None:
    ids = np.full((40, 100), 7, np.int32)
    seen, mask = masking.mlm_corrupt(
        jax.random.key(1),
        jnp.asarray(ids),
        mask_id=MASK,
        vocab_size=VOCAB,
        ratio=0.9,
        special_ids=SPECIAL,
        mask_share=0.0,
        random_share=1.0,
    )
    counts = np.bincount(np.asarray(seen)[np.asarray(mask)], minlength=VOCAB)
    special = [*SPECIAL, MASK]
    assert not counts[special].any()
    assert_uniform(np.delete(counts, special))


@pytest.mark.parametrize("dtype", ["int8", "uint32"])
def test_the_ends_of_the_vocabulary_and_narrow_ids(dtype: str) -> None:
    """With only the first, the middle and the last id ordinary, all of them are drawn."""
    ids = jnp.full((500,), 5, dtype)
    special = [i for i in range(11) if i not in (0, 5, 10)]
    seen, mask = masking.mlm_corrupt(
        jax.random.key(2),
        ids,
        mask_id=special[0],
        vocab_size=11,
        ratio=0.5,
        special_ids=np.array(special),
        mask_share=0,
        random_share=1,
    )
    assert seen.dtype == ids.dtype
    assert_uniform(np.bincount(np.asarray(seen)[np.asarray(mask)], minlength=11)[[0, 5, 10]])


def test_choices_of_tokens_are_independent() -> None:
    """Of each other, and of what the token becomes."""
    ids = jnp.full((20_000, 2), 7)
    seen, mask = (
        np.asarray(x)
        for x in masking.mlm_corrupt(
            jax.random.key(3), ids, mask_id=MASK, vocab_size=VOCAB, ratio=0.5, mask_share=0.5, random_share=0.0
        )
    )
    assert_uniform(np.bincount(2 * mask[:, 0] + mask[:, 1], minlength=4))
    kind = (seen == MASK)[mask.all(1)]
    assert_uniform(np.bincount(2 * kind[:, 0] + kind[:, 1], minlength=4))


@pytest.mark.parametrize("dtype", ["bool", "float32"])
def test_padding_is_never_chosen(dtype: str) -> None:
    ids = jnp.asarray(text(1, (4, 50)))
    real = jnp.broadcast_to(jnp.arange(50) < jnp.array([[0], [10], [30], [50]]), ids.shape)
    seen, mask = masking.mlm_corrupt(
        jax.random.key(4), ids, mask_id=MASK, vocab_size=VOCAB, ratio=0.9, attention_mask=real.astype(dtype)
    )
    assert not bool(jnp.any(mask & ~real))
    assert bool(jnp.all(jnp.where(real, True, seen == ids)))
    assert mask.sum(1)[0] == 0
    assert mask.sum(1)[3] > 30


def test_shares_may_be_traced() -> None:
    ids = jnp.asarray(text(2, (20, 50)))
    jitted = jax.jit(
        lambda ratio: masking.mlm_corrupt(
            jax.random.key(5), ids, mask_id=MASK, vocab_size=VOCAB, ratio=ratio
        ).mask.sum()
    )
    assert jitted(0.1) < jitted(0.5) < jitted(0.9)
    assert jitted._cache_size() == 1


def arrays_and_ids(data: st.DataObject) -> tuple[np.ndarray, np.ndarray]:
    batch, length, num, extra = (data.draw(st.integers(1, 4)) for _ in range(4))
    shape = (batch, length) + (extra,) * data.draw(st.integers(0, 2))
    x = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-1, 1, width=32)))
    return x, data.draw(hnp.arrays(np.int32, (batch, num), elements=st.integers(0, length - 1)))


@settings(max_examples=5, derandomize=True, database=None, deadline=None)
@given(st.data())
def test_gather_is_indexing(data: st.DataObject) -> None:
    x, ids = arrays_and_ids(data)
    got = masking.gather_tokens(jnp.asarray(x), jnp.asarray(ids))
    np.testing.assert_array_equal(got, np.stack([row[i] for row, i in zip(x, ids, strict=True)]))
    np.testing.assert_array_equal(masking.gather_tokens(x[0], ids[0]), x[0][ids[0]])


@settings(max_examples=4, derandomize=True, database=None, deadline=None)
@given(st.integers(0, 6), st.integers(0, 100), st.sampled_from(((), (3,), (2, 3))))
def test_scatter_undoes_gather(num_keep: int, seed: int, features: tuple[int, ...]) -> None:
    x = np.random.RandomState(seed).standard_normal((4, 6, *features)).astype(np.float32)
    chosen = masking.random_masking(jax.random.key(seed), 4, 6, num_keep)
    got = masking.scatter_tokens(masking.gather_tokens(x, chosen.ids_keep), chosen.ids_restore, -1.0)
    mask = np.asarray(chosen.mask).reshape(4, 6, *[1] * len(features))
    np.testing.assert_array_equal(got, np.where(mask, np.float32(-1), x))


def test_scatter_is_maes_append_and_unshuffle() -> None:
    chosen = masking.random_masking(jax.random.key(0), 3, 8, 3)
    visible, token, weights = (
        np.random.RandomState(0).standard_normal(shape).astype(np.float32) for shape in ((3, 3, 5), (5,), (3, 8, 5))
    )

    def mae(x: jax.Array, token: jax.Array) -> jax.Array:
        appended = jnp.concatenate([x, jnp.tile(token, (3, 5, 1))], axis=1)
        return jnp.sum(weights * jax.vmap(lambda x, ids: x[ids])(appended, chosen.ids_restore))

    def ours(x: jax.Array, token: jax.Array) -> jax.Array:
        return jnp.sum(weights * masking.scatter_tokens(x, chosen.ids_restore, token))

    parts = (jax.tree.leaves(jax.jit(jax.value_and_grad(f, (0, 1)))(visible, token)) for f in (ours, mae))
    for got, want in zip(*parts, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "int32"])
def test_dtypes_of_tokens_stay(dtype: str) -> None:
    chosen = masking.random_masking(jax.random.key(0), 2, 6, 3)
    x: Any = jnp.arange(24).reshape(2, 6, 2).astype(dtype)
    visible = masking.gather_tokens(x, chosen.ids_keep)
    assert visible.dtype == x.dtype
    assert masking.scatter_tokens(visible, chosen.ids_restore, jnp.float32(0)).dtype == x.dtype


def test_tokens_under_jit_and_vmap() -> None:
    chosen = masking.random_masking(jax.random.key(0), 3, 6, 2)
    x = np.random.RandomState(1).standard_normal((3, 6, 2)).astype(np.float32)
    there_and_back = lambda x, keep, restore: masking.scatter_tokens(  # noqa: E731
        masking.gather_tokens(x, keep), restore, np.ones(2)
    )
    want = jax.jit(there_and_back)(x, chosen.ids_keep, chosen.ids_restore)
    np.testing.assert_array_equal(jax.vmap(there_and_back)(x, chosen.ids_keep, chosen.ids_restore), want)
