"""The arithmetic of kernels against NumPy's, and that it compiles to what it is written for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradxform.augment.pixels.arithmetic import exact, quotient, whole, within

pytestmark = pytest.mark.long

# Compiled as in use, XLA takes subnormal numbers for 0.
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=False)
SPECIAL = np.float32([np.nan, np.inf, -np.inf, 0, -1, 1, 0.5, 255, 256, 2**24, -(2**24)])


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(np.float32, 8, elements=FLOATS))
def test_within_is_numpys_clip(x: np.ndarray) -> None:
    """NaN stays NaN, which a choice the other way round would lose."""
    np.testing.assert_array_equal(WITHIN(x), np.clip(x, np.float32(-1.5), np.float32(7)))


WITHIN = jax.jit(lambda x: within(x, -1.5, 7.0))


def test_within_of_integers_and_of_numbers_that_are_none() -> None:
    np.testing.assert_array_equal(within(jnp.arange(-3, 9), 0, 5), np.clip(np.arange(-3, 9), 0, 5))
    np.testing.assert_array_equal(within(jnp.asarray(SPECIAL), 0.0, 255.0), np.clip(SPECIAL, 0, 255))


def test_the_slope_of_within_is_1_on_a_bound_and_0_beyond() -> None:
    slopes = jax.vmap(jax.grad(lambda x: within(x, 0.0, 1.0)))(jnp.float32([-0.1, 0, 0.5, 1, 1.1]))
    np.testing.assert_array_equal(slopes, [0, 1, 1, 1, 0])


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(np.float32, 8, elements=st.floats(0, 2**22 - 1, width=32)))
def test_whole_rounds_down(x: np.ndarray) -> None:
    got = WHOLE(x)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, np.floor(x))


WHOLE = jax.jit(whole)


def test_whole_at_its_ends() -> None:
    x = np.float32([0, np.nextafter(np.float32(1), 0), 1, 254.99998, 255, 2**22 - 1.5, 2**22 - 1])
    np.testing.assert_array_equal(whole(jnp.asarray(x)), np.floor(x))
    np.testing.assert_array_equal(whole(jnp.asarray([2.75], jnp.bfloat16)), [2])
    # Not bits that would reach the channels beside it.
    np.testing.assert_array_equal(whole(within(jnp.float32([np.nan, -np.inf, np.inf]), 0, 255)), [0, 0, 255])


def test_quotients_are_those_of_integers() -> None:
    """For each divisor that levels and spreads can be: multiples, their neighbours, and the greatest number."""
    b = np.arange(1, 1024, dtype=np.int32)
    multiples = b[:, None] * np.arange(0, 2**18 // 1023, dtype=np.int32)
    a = np.concatenate(
        [
            multiples,
            np.maximum(multiples - 1, 0),
            multiples + b[:, None] // 2,
            np.full((len(b), 1), 2**18 - 1, np.int32),
        ],
        1,
    )
    a = np.minimum(a, 2**18 - 1)
    np.testing.assert_array_equal(jax.jit(quotient)(a, b[:, None]), a // b[:, None])


@pytest.mark.as_in_use
def test_an_exact_product_is_rounded_before_it_is_added() -> None:
    """(1 + 2^-12)^2 - 1 is 2^-11 with its product rounded, and 2^-11 + 2^-24 with one rounding in the end."""
    x, one = jnp.full(64, 1 + 2.0**-12, jnp.float32), jnp.full(64, -1.0, jnp.float32)
    np.testing.assert_array_equal(jax.jit(lambda x, one: exact(x * x) + one)(x, one), np.full(64, 2.0**-11, np.float32))


@pytest.mark.parametrize("value", [3, 2.5, np.float64(1) / 3])
def test_what_is_known_beforehand_stays_as_exact_as_it_is(value: float) -> None:
    assert exact(value) == value and not isinstance(exact(value), jax.Array)


@pytest.mark.as_in_use
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="asks how XLA's CPU backend has it")
def test_the_program_has_exact_arithmetic_without_minima() -> None:
    """A choice between two numbers is one instruction; XLA's minimum, clamp and rounding to integers are several."""
    program = jax.jit(lambda x: whole(within(exact(x * x) + 1, 0.0, 255.0))).lower(jnp.ones(8)).compile().as_text()
    assert not any(word in program for word in (" minimum(", " maximum(", " clamp(", " convert("))
