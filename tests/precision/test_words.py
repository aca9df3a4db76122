"""A float32 is a bfloat16 and 16 bits, for every pattern; random bits for rounding are uniform and independent."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import gradxform as gx
from gradxform.precision import words
from gradxform.precision.noise import noise

CHUNK = 2**22


def floats(first: Any, n: int = CHUNK) -> jax.Array:
    return lax.bitcast_convert_type(jnp.uint32(first) + jnp.arange(n, dtype=jnp.uint32), jnp.float32)


def bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.uint32)


@jax.jit
def wrong(first: jax.Array) -> dict[str, jax.Array]:
    """How many patterns of a chunk do not come back, and how many params are not as near as they can be."""
    x = floats(first)
    hi, low = words.split(x)
    nan = (bits(x) & words.MAGNITUDE) > words.INF
    back = words.join(hi, low)
    # Away from 0 at half: the same sign and magnitude bits, 0x8000 added to them.
    near = lax.bitcast_convert_type(hi, jnp.uint16) == ((bits(x) + 0x8000) >> 16).astype(jnp.uint16)
    rough, eight = words.split(x, low=8)
    off = jnp.abs(lax.bitcast_convert_type(bits(words.join(rough, eight)) - bits(x), jnp.int32))
    count = lambda flags: jnp.sum(flags, dtype=jnp.int32)  # noqa: E731
    return {
        "float32": count(~nan & (bits(back) != bits(x))),
        "nan": count(nan & ~jnp.isnan(back)),
        "nearest": count(~nan & ~near),
        "24 bits": count(~nan & (off > 128)),
        "24 bits, exact": count(~nan & (bits(x) & 0xFF == 0) & (off > 0)),
        "24 bits, nan": count(nan & ~jnp.isnan(words.join(rough, eight))),
    }


NONE_WRONG = dict.fromkeys(["float32", "nan", "nearest", "24 bits", "24 bits, exact", "24 bits, nan"], 0)


@pytest.mark.exhaustive
def test_every_pattern_of_float32_comes_back() -> None:
    """2**32 patterns, subnormals, infinities and NaN included: a minute and a half of one core."""
    for first in range(0, 2**32, CHUNK):
        assert {name: int(n) for name, n in wrong(jnp.uint32(first)).items()} == NONE_WRONG, hex(first)


# The patterns at which something changes: zeros, subnormals, ties of a bfloat16, the largest, infinities, NaN.
@pytest.mark.parametrize("first", [0, 0x3F000000, 0x7F400000, 0x7FC00000, 0x80000000, 0xFF400000, 0xFFC00000], ids=hex)
def test_some_patterns_come_back(first: int) -> None:
    assert {name: int(n) for name, n in wrong(jnp.uint32(first)).items()} == NONE_WRONG


@pytest.mark.parametrize("hi", [0x0000, 0x8000], ids=["0", "-0"])
def test_a_param_set_to_zero_outside_stays_zero(hi: int) -> None:
    """As by a mask of pruning, whatever was kept below it."""
    p = lax.bitcast_convert_type(jnp.full(2**16, hi, jnp.uint16), jnp.bfloat16)
    joined = words.join(p, jnp.arange(2**16, dtype=jnp.uint16))
    assert np.all(np.abs(np.asarray(joined)) < 1e-40)  # so that NaN counts


def test_an_update_between_two_params_gives_the_second() -> None:
    """p + (q - p) is q, to the last bit; to itself the way is one that leaves both zeros and infinities as they are."""
    every = lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), jnp.bfloat16)
    magnitude = jnp.arange(2**16) & 0x7FFF
    normal = (magnitude == 0) | (magnitude >= 0x80) & (magnitude <= 0x7F80)  # a CPU takes subnormals for 0
    moved = every + words.between(every, every).astype(jnp.bfloat16)
    assert not bool(jnp.any(normal & ~words.same(every, moved)))
    p = jnp.linspace(-4, 4, 2001, dtype=jnp.bfloat16)
    q = (p * jnp.linspace(-3, 3, 2001)).astype(jnp.bfloat16)
    assert bool(jnp.all((p + words.between(p, q)).astype(jnp.bfloat16) == q))


@pytest.mark.parametrize("apply", [gx.apply_updates, optax.apply_updates], ids=["gx", "optax"])
def test_out_of_reach_the_master_is_the_param_that_the_sum_gives(apply: Any) -> None:
    """Of a weight that shrinks by more than 2**16 in a step at most an ulp of the old one is lost."""
    p = jnp.linspace(0.5, 2, 4097).astype(jnp.bfloat16)
    master = jnp.linspace(1e-9, 3e-6, 4097)
    update, rest = jax.jit(words.move)(p, master)
    after = apply(p, update)
    back = words.join(after, rest)
    lost = back != master
    assert 0 < int(jnp.sum(lost)) < 4097
    assert bool(jnp.all(jnp.where(lost, back == after, True)))
    assert float(jnp.max(jnp.abs(back - master) / jnp.spacing(p.astype(jnp.float32)))) <= 1


# Random bits.
N = 2**18


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """16 random bits of 2**18 elements in each of 64 steps."""
    draw = jax.jit(lambda step: noise(0, step, 0, (512, 512), 16))
    return np.stack([np.asarray(draw(step)).ravel() for step in range(64)])


def sigmas(x: Any, mean: float, variance: float) -> float:
    """How far the mean of independent numbers is from what it should be, in standard deviations of it."""
    return float((np.mean(x) - mean) / np.sqrt(variance / np.size(x)))


@pytest.mark.as_in_use
def test_random_bits_are_uniform(drawn: np.ndarray) -> None:
    assert drawn.min() >= 0 and drawn.max() < 2**16
    assert abs(sigmas(drawn.astype(float), (2**16 - 1) / 2, (2**32 - 1) / 12)) < 4
    for bit in range(16):
        assert abs(sigmas(drawn >> bit & 1, 0.5, 0.25)) < 4
    for part in (drawn >> 8, drawn & 0xFF):
        counts = np.bincount(part.ravel(), minlength=256)
        chi_squared = np.sum((counts - drawn.size / 256) ** 2) / (drawn.size / 256)
        assert abs(chi_squared - 255) < 5 * np.sqrt(2 * 255)


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 512, 513])
def test_neighbours_are_not_correlated(drawn: np.ndarray, lag: int) -> None:
    z = (drawn - (2**16 - 1) / 2) / np.sqrt((2**32 - 1) / 12)
    assert abs(sigmas(z[:, lag:] * z[:, :-lag], 0, 1)) < 4


@pytest.mark.parametrize("lag", [1, 2, 7])
def test_steps_are_not_correlated(drawn: np.ndarray, lag: int) -> None:
    z = (drawn - (2**16 - 1) / 2) / np.sqrt((2**32 - 1) / 12)
    assert abs(sigmas(z[lag:] * z[:-lag], 0, 1)) < 4


def test_the_times_an_element_rounds_up_are_binomial(drawn: np.ndarray) -> None:
    up = drawn < 6554
    p = 6554 / 2**16
    for axis, n in ((0, 64), (1, N)):  # over steps, and over elements
        ratio = np.var(np.sum(up, axis)) / (n * p * (1 - p))
        assert abs(ratio - 1) < 5 * np.sqrt(2 / up.shape[1 - axis])


@pytest.mark.as_in_use
def test_seed_step_and_leaf_each_give_other_bits() -> None:
    found = [
        np.asarray(noise(*where, (64, 64), 32)).tobytes()
        for where in ((0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1), (-1, 1, 2), (0, jnp.int32(3), 2))
    ]
    assert len({*found}) == len(found)
    assert noise(0, 0, 0, (), 8).shape == () and noise(0, 0, 0, (0, 3), 8).shape == (0, 3)
