"""Blocks, units and spans: exact counts, and the distributions they are drawn from."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mask_checks import assert_share, assert_uniform

from gradxform import masking
from gradxform.masking import blocks

# Blocks.


@pytest.mark.parametrize(
    ("grid", "num_masked", "options"), [((14, 14), 75, {}), ((5, 4), 20, {}), (6, 30, {"min_block": 1, "max_block": 4})]
)
def test_the_count_of_blocks_is_exact(grid: Any, num_masked: int, options: dict[str, Any]) -> None:
    mask = masking.block_masking(jax.random.key(0), 24, grid, num_masked, **options)
    assert mask.shape == (24, *(grid if isinstance(grid, tuple) else (grid, grid)))
    assert mask.dtype == jnp.bool_
    np.testing.assert_array_equal(mask.sum((1, 2)), num_masked)


def test_a_single_block_has_its_aspect_and_lies_anywhere() -> None:
    height, width = 2, 8
    mask = np.asarray(masking.block_masking(jax.random.key(1), 1500, (9, 10), 16, min_block=16, aspect=(1 / 4, 1 / 4)))
    rows, columns = mask.any(2), mask.any(1)
    assert np.all(rows.sum(1) == height)
    assert np.all(columns.sum(1) == width)
    np.testing.assert_array_equal(mask, rows[:, :, None] & columns[:, None, :])
    places = (10 - height, 11 - width)
    assert_uniform(np.bincount(rows.argmax(1) * places[1] + columns.argmax(1), minlength=places[0] * places[1]))


def test_areas_are_uniform_and_aspects_log_uniform() -> None:
    """Of blocks as they are drawn: 0.3 to 1 / 0.3 as in BEiT, where rounding to whole patches blurs the bounds."""
    size = 5000
    uniform = jax.random.uniform(jax.random.key(2), (4, size))
    low, high = 0.3, 1 / 0.3
    draw = jax.jit(lambda uniform: blocks._block(uniform, 30, 30, 64, jnp.full(size, 256), low, high))
    block, fits = (np.asarray(x) for x in draw(uniform))
    assert fits.all()
    height, width = block.any(2).sum(1), block.any(1).sum(1)
    np.testing.assert_array_equal(block.sum((1, 2)), height * width)
    area, ratio = height * width, height / width
    for share in (0.25, 0.5, 0.75):
        # Rounding moves an area by up to half a row and a column, and what lies near a bound across it.
        assert abs(np.mean(area <= 64 + share * 192) - share) < 0.03
        assert abs(np.mean(np.log(ratio) <= np.log(low) + share * np.log(high / low)) - share) < 0.05
    assert ratio.min() > 0.3 * 0.85
    assert ratio.max() < 1 / 0.3 / 0.85
    # Drawn apart: a large block is as often tall as a small one.
    assert abs(np.corrcoef(area, np.log(ratio))[0, 1]) < 5 / np.sqrt(area.size)


def beit(rng: random.Random, rows: int, columns: int, num_masked: int, min_block: int = 4) -> np.ndarray:
    """A mask as BEiT's published code draws it, with ``<=`` where it does not let a block touch both sides."""
    mask, low = np.zeros((rows, columns), bool), math.log(0.3)
    while mask.sum() < num_masked:
        left = num_masked - int(mask.sum())
        for _ in range(10):
            area, ratio = rng.uniform(min_block, left), math.exp(rng.uniform(low, -low))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height > rows or width > columns:
                continue
            top, start = rng.randint(0, rows - height), rng.randint(0, columns - width)
            new = height * width - int(mask[top : top + height, start : start + width].sum())
            if 0 < new <= left:
                mask[top : top + height, start : start + width] = True
                break
        else:
            break
    return mask


def test_masks_are_distributed_as_beits() -> None:
    rng, size = random.Random(0), 500
    want = np.stack([beit(rng, 8, 8, 26) for _ in range(size)])
    assert abs(want.sum((1, 2)).mean() - 26) < 0.5, "it seldom stops before the count"
    got = np.asarray(masking.block_masking(jax.random.key(3), size, 8, 26))

    def edges(masks: np.ndarray) -> np.ndarray:
        """How many pairs of neighbors a mask tells apart: few for large blocks."""
        return (masks[:, 1:] != masks[:, :-1]).sum((1, 2)) + (masks[:, :, 1:] != masks[:, :, :-1]).sum((1, 2))

    deviation = math.sqrt(edges(want).var() / size + edges(got).var() / size)
    assert abs(edges(want).mean() - edges(got).mean()) < 4 * deviation
    share = want.mean(0)
    assert np.all(np.abs(got.mean(0) - share) < 5 * np.sqrt(2 * share * (1 - share) / size))


def test_where_no_block_fits_every_choice_is_equally_likely() -> None:
    mask = np.asarray(masking.block_masking(jax.random.key(4), 1500, 3, 2, aspect=(1e6, 1e6)))
    pairs = dict.fromkeys(itertools.combinations(range(9), 2), 0)
    for row in mask.reshape(-1, 9):
        pairs[tuple(np.flatnonzero(row).tolist())] += 1
    assert_uniform(list(pairs.values()))


def test_what_is_missing_grows_at_the_rim() -> None:
    """After an upright block of 8 x 2 no other fits that adds a single patch elsewhere."""
    mask = np.asarray(masking.block_masking(jax.random.key(5), 200, (9, 9), 17, min_block=16, aspect=(4.0, 4.0)))
    around = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    beside = around[:, :-2, 1:-1] | around[:, 2:, 1:-1] | around[:, 1:-1, :-2] | around[:, 1:-1, 2:]
    assert np.all(beside[mask])


# Units.


@pytest.mark.parametrize(("grid", "unit", "ratio"), [((8, 12), (4, 2), 0.6), (4, 2, 0.99)])
def test_units_are_whole_and_counted(grid: Any, unit: Any, ratio: float) -> None:
    mask = np.asarray(masking.grid_masking(jax.random.key(0), 5, grid, unit, ratio))
    (rows, columns), (high, wide) = (x if isinstance(x, tuple) else (x, x) for x in (grid, unit))
    assert mask.shape == (5, rows, columns)
    assert mask.dtype == bool
    units = mask.reshape(5, rows // high, high, columns // wide, wide).swapaxes(2, 3).reshape(5, -1, high * wide)
    np.testing.assert_array_equal(units.all(2), units.any(2))
    np.testing.assert_array_equal(units.all(2).sum(1), math.ceil(units.shape[1] * ratio))


def test_every_choice_of_units_is_equally_likely() -> None:
    mask = np.asarray(masking.grid_masking(jax.random.key(1), 3000, (4, 6), 2, 0.5))[:, ::2, ::2].reshape(-1, 6)
    choices = dict.fromkeys(itertools.combinations(range(6), 3), 0)
    for row in mask:
        choices[tuple(np.flatnonzero(row).tolist())] += 1
    assert_uniform(list(choices.values()))


# Spans.


def runs(mask: np.ndarray) -> list[int]:
    """The lengths of the spans of one sequence."""
    return [len(list(group)) for masked, group in itertools.groupby(mask.tolist()) if masked]


@pytest.mark.parametrize(
    ("length", "num_masked", "mean_span"), [(24, 20, 1.5), (24, 24, 1.0), (1, 1, 3.0), (7, 0, 2.0)]
)
def test_the_count_of_spans_is_exact(length: int, num_masked: int, mean_span: float) -> None:
    mask = np.asarray(masking.span_masking(jax.random.key(0), 3, length, num_masked, mean_span))
    assert mask.shape == (3, length)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask.sum(1), num_masked)
    spans = min(max(1, round(num_masked / mean_span)), length - num_masked + 1) if num_masked else 0
    assert all(len(runs(row)) == spans for row in mask)


def test_every_way_to_lay_spans_is_equally_likely() -> None:
    mask = np.asarray(masking.span_masking(jax.random.key(1), 3600, 7, 4, 2.0))
    codes = mask @ (1 << np.arange(7))
    seen, counts = np.unique(codes, return_counts=True)
    possible = [
        code
        for code in range(2**7)
        if code.bit_count() == 4 and len(runs(np.array([code >> i & 1 for i in range(7)]))) == 2
    ]
    assert seen.tolist() == possible
    assert_uniform(counts)


def test_lengths_of_spans_are_geometric() -> None:
    mask = np.asarray(masking.span_masking(jax.random.key(2), 40, 2000, 300, 3.0))
    lengths = np.array([length for row in mask for length in runs(row)])
    assert lengths.size == 40 * 100
    assert lengths.mean() == 3
    for length in range(1, 8):
        assert_share(np.sum(lengths == length), lengths.size, 1 / 3 * (2 / 3) ** (length - 1))


def test_spans_of_short_examples_are_within_them_and_counted() -> None:
    """A number for all, of which a shorter example has as many as it has tokens; and a number for each."""
    lengths = np.array([24, 12, 5, 1, 0, 24])
    within = np.arange(24) < lengths[:, None]
    for num_masked, counts in ((8, np.minimum(8, lengths)), (jnp.asarray(lengths // 3), lengths // 3)):
        mask = np.asarray(masking.span_masking(jax.random.key(0), 6, 24, num_masked, 2.0, lengths=jnp.asarray(lengths)))
        assert not np.any(mask & ~within)
        np.testing.assert_array_equal(mask.sum(1), counts)
        for row, count, length in zip(mask, counts, lengths, strict=True):
            assert len(runs(row)) == (min(max(1, round(count / 2)), length - count + 1) if count else 0)
    whole = masking.span_masking(jax.random.key(3), 2, 24, 8, 2.0)
    full = masking.span_masking(jax.random.key(3), 2, 24, 8, 2.0, lengths=jnp.full(2, 24))
    np.testing.assert_array_equal(full, whole)
    assert np.all(np.asarray(masking.span_masking(jax.random.key(3), 2, 24, jnp.array([8, 24]))).sum(1) == [8, 24])


def test_every_way_to_lay_spans_in_a_short_example_is_equally_likely() -> None:
    """Three tokens in two spans among six: ``2 * C(4, 2)`` ways."""
    mask = np.asarray(masking.span_masking(jax.random.key(1), 3000, 9, 3, 1.5, lengths=jnp.full(3000, 6)))
    assert len({row.tobytes() for row in mask}) == 12
    assert_uniform(np.unique(mask, axis=0, return_counts=True)[1])
