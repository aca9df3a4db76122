"""Random masks: exact counts, and every subset equally likely."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from mask_checks import assert_uniform

from gradxform import masking


@pytest.mark.parametrize(("length", "num_keep"), [(16, 5), (16, 0), (16, 16), (1, 1)])
def test_the_three_parts_agree(length: int, num_keep: int) -> None:
    batch = 6
    got = masking.random_masking(jax.random.key(0), batch, length, num_keep)
    ids_keep, ids_restore, mask = (np.asarray(part) for part in got)
    assert ids_keep.shape == (batch, num_keep)
    assert ids_restore.shape == mask.shape == (batch, length)
    assert ids_keep.dtype == ids_restore.dtype == np.int32
    assert mask.dtype == bool
    assert np.all(mask.sum(1) == length - num_keep)
    np.testing.assert_array_equal(np.sort(ids_restore, 1), np.tile(np.arange(length), (batch, 1)))
    for i in range(batch):
        np.testing.assert_array_equal(np.sort(ids_keep[i]), np.flatnonzero(~mask[i]))
        np.testing.assert_array_equal(ids_restore[i, ids_keep[i]], np.arange(num_keep))


def test_padding_is_never_removed_and_kept_last() -> None:
    lengths = np.array([10, 4, 1, 0, 10])
    got = masking.random_masking(jax.random.key(0), 5, 10, 3, lengths=jnp.asarray(lengths))
    within = np.arange(10) < lengths[:, None]
    assert not np.any(np.asarray(got.mask) & ~within)
    np.testing.assert_array_equal(got.mask.sum(1), np.maximum(lengths - 3, 0))
    for ids, length in zip(np.asarray(got.ids_keep), lengths, strict=True):
        assert len(set(ids[:length])) == min(length, 3)
        assert np.all(ids[:length] < length)
        assert np.all(ids[length:] >= length)
    np.testing.assert_array_equal(np.sort(got.ids_restore, 1), np.tile(np.arange(10), (5, 1)))
    whole = masking.random_masking(jax.random.key(0), 5, 10, 3)
    for part, all_ in zip(got, whole, strict=True):
        np.testing.assert_array_equal(part[np.array([0, 4])], all_[np.array([0, 4])])


def test_every_subset_of_a_short_example_is_equally_likely() -> None:
    draw = lambda: masking.random_masking(jax.random.key(1), 4000, 9, 2, lengths=jnp.full(4000, 5))  # noqa: E731
    outcomes = dict.fromkeys(itertools.permutations(range(5), 2), 0)
    for pair in map(tuple, np.asarray(draw().ids_keep).tolist()):
        outcomes[pair] += 1
    assert_uniform(list(outcomes.values()))


def test_every_ordered_subset_is_equally_likely() -> None:
    ids = np.asarray(masking.random_masking(jax.random.key(1), 4000, 5, 2).ids_keep)
    outcomes = dict.fromkeys(itertools.permutations(range(5), 2), 0)
    for pair in map(tuple, ids.tolist()):
        outcomes[pair] += 1
    assert_uniform(list(outcomes.values()))


def test_examples_are_independent_of_each_other() -> None:
    keys = jax.random.split(jax.random.key(2), 2000)
    ids = np.asarray(jax.vmap(lambda key: masking.random_masking(key, 2, 4, 1).ids_keep[:, 0])(keys))
    assert_uniform(np.bincount(4 * ids[:, 0] + ids[:, 1], minlength=16))


def test_the_mask_is_that_of_maes_code() -> None:
    """Its lines in NumPy: the mask in the shuffled order, unshuffled."""
    length, num_keep = 12, 4
    got = masking.random_masking(jax.random.key(3), 3, length, num_keep)
    shuffled = np.ones((3, length))
    shuffled[:, :num_keep] = 0
    np.testing.assert_array_equal(got.mask, np.take_along_axis(shuffled, np.asarray(got.ids_restore), 1))


@settings(derandomize=True, database=None, deadline=None)
@given(st.integers(1, 10_000), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_num_kept(length: int, ratio: float) -> None:
    kept = masking.num_kept(length, ratio)
    assert kept == int(length * (1 - ratio))
    assert 0 <= kept <= length
    assert abs(kept - math.floor(length * (1 - ratio))) <= 1


def test_num_kept_of_a_numpy_number() -> None:
    assert masking.num_kept(np.int64(196), np.float32(0.75)) == 49  # type: ignore[arg-type]
    assert type(masking.num_kept(np.int64(196), 0.75)) is int  # type: ignore[arg-type]
    assert masking.random_masking(jax.random.key(0), np.int64(2), 4, jnp.asarray(1)).mask.shape == (2, 4)
