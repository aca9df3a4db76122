"""Unit steps at large counts, continuity and bounds, for counts and values that nobody chose by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import gradxform as gx

s = gx.schedules
LAST = 2**31 - 1
RTOL = 1e-12 if jax.config.jax_enable_x64 else 2e-6
counts = st.one_of(st.integers(1, 100), st.integers(2**24, LAST), st.integers(1, LAST))
steps = st.one_of(st.integers(0, 100), st.integers(2**24, LAST), st.integers(0, LAST))
numbers = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
few = settings(max_examples=60, deadline=None)


@jax.jit
def call(schedule, step):  # the counts are arrays here, so that one compilation serves every example
    return schedule(step)


def near(boundary):
    return np.clip(np.array([boundary - 1, boundary, boundary + 1]), 0, LAST).astype(np.int32)


@few
@given(counts, st.data())
def test_step_changes_at_the_multiples(every, data):
    multiple = every * data.draw(st.integers(1, min(60, LAST // every)))  # 2**-60 is a float32
    got = call(s.step(1.0, 0.5, jnp.int32(every)), near(multiple))
    assert got.tolist() == [0.5 ** (int(t) // every) for t in near(multiple)]


@few
@given(counts, st.data())
def test_triangular_turns_at_the_multiples(half, data):
    multiple = half * data.draw(st.integers(1, LAST // half))
    got = call(s.triangular(0.0, 1.0, jnp.int32(half)), near(multiple))
    want = [(int(t) % half if int(t) // half % 2 == 0 else half - int(t) % half) / half for t in near(multiple)]
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=0)


@few
@given(counts)
def test_ends_of_a_phase(length):
    t = near(length)
    left = np.array([max(length - int(x), 0) / length for x in t])
    n = jnp.int32(length)
    np.testing.assert_allclose(call(s.linear(1.0, 0.0, n), t), left, rtol=RTOL, atol=0)
    np.testing.assert_allclose(call(s.cosine(1.0, n), t), np.sin(np.pi / 2 * left) ** 2, rtol=RTOL, atol=1e-37)
    np.testing.assert_allclose(call(s.polynomial(1.0, 0.0, n, 2.0), t), left**2, rtol=RTOL, atol=1e-37)
    np.testing.assert_allclose(
        call(s.polynomial(0.0, 1.0, n, 2.0), np.array([0, 1])), [0, 2 / length - 1 / length**2], rtol=RTOL, atol=0
    )


@few
@given(counts, counts)
def test_join_switches_at_its_boundary(first, length):
    made = s.join([2.0, s.linear(1.0, 0.0, jnp.int32(length))], [jnp.int32(first)])
    want = [2.0 if t < first else max(length - (t - first), 0) / length for t in map(int, near(first))]
    np.testing.assert_allclose(call(made, near(first)), want, rtol=RTOL, atol=0)
    made = s.piecewise(2.0, {first: 0.5})
    assert made(near(first)).tolist() == [2.0 if t < first else 1.0 for t in map(int, near(first))]


@few
@given(counts, numbers, numbers)
def test_warmup_is_continuous_at_the_joint(length, low, high):
    made = s.warmup(jnp.int32(length), s.linear(high, low, jnp.int32(length)), low)
    before, at, after = np.asarray(call(made, near(length)), np.float64)
    unit = abs(high - low) / length + 4e-7 * (abs(high) + abs(low))
    assert at == np.asarray(high, made(0).dtype)
    assert abs(at - before) <= unit and (length == LAST or abs(after - at) <= unit)
    assert call(made, 0) == np.asarray(low, made(0).dtype)


@few
@given(
    numbers,
    numbers,
    counts,
    st.sampled_from(["triangular", "triangular2", "exp_range"]),
    st.floats(0.5, 1.0),
    st.lists(steps, min_size=20, max_size=20),
)
def test_triangular_stays_between_its_values(base, peak, half, mode, gamma, at):
    got = call(s.triangular(base, peak, jnp.int32(half), mode, gamma), np.array(at, np.int32))
    assert np.all(got >= min(base, peak)) and np.all(got <= max(base, peak))


@few
@given(st.integers(1, 50), st.integers(1, 5), st.data())
def test_restarts_begin_their_cycles(length, factor, data):
    start, cycle, size = 0, 0, length
    for _ in range(data.draw(st.integers(1, 12))):
        if start + size > LAST:
            break
        start, size, cycle = start + size, size * factor, cycle + 1
    made = s.cosine_restarts(1.0, jnp.int32(length), 0.0, factor=factor, decay=0.5)
    before, at, after = np.asarray(call(made, near(start)), np.float64)
    previous = (size // factor) if cycle else size
    assert at == 0.5**cycle
    np.testing.assert_allclose(before, 0.5 ** (cycle - 1) * np.sin(np.pi / 2 / previous) ** 2, rtol=RTOL)
    np.testing.assert_allclose(
        after, 0.5**cycle * np.cos(np.pi / 2 / size) ** 2 if size > 1 else 0.5 ** (cycle + 1), rtol=RTOL
    )


def test_step_counts_to_the_last_one():
    for every in (1, 2**24 + 1, 2**30, LAST):
        last = LAST // every * every
        made = s.step(1.0, 1 - 1e-9, every)
        want = [(1 - 1e-9) ** (t // every) for t in (last - 1, last, LAST)]
        np.testing.assert_allclose(made(np.array([last - 1, last, LAST], np.int32)), want, rtol=RTOL)


def test_no_steps_are_over_at_once():
    """A trial as short as its warm-up leaves none to what follows: that is at its end."""
    at = np.array([0, 1, 50, LAST], np.int32)
    for none in (0, jnp.int32(0)):
        for made in (
            s.linear(1.0, 0.25, none),
            s.cosine(1.0, none, 0.25),
            s.polynomial(1.0, 0.25, none, 0.5),
            s.one_cycle(0.5, none, div_factor=2.0, final_div_factor=1.0),
            s.warmup(none, 0.25),
            s.warmup_stable_decay(1.0, none, none, none, end_value=0.25),
        ):
            assert made(at).tolist() == [0.25] * 4
        for decay in ("linear", "cosine", "sqrt"):
            made = s.warmup_stable_decay(1.0, 4, 2, none, end_value=0.25, decay=decay)
            assert made(np.arange(8)).tolist() == [0, 0.25, 0.5, 0.75, 1, 1, 0.25, 0.25]
        for after in (s.cosine(1.0, none), s.linear(1.0, 0.0, none), s.polynomial(1.0, 0.0, none, 2.0)):
            assert s.warmup(4, after)(np.arange(6)).tolist() == [0, 0.25, 0.5, 0.75, 0, 0]
            assert s.join([2.0, after], [2])(np.arange(4)).tolist() == [2, 2, 0, 0]
    # No schedule of no steps, but one without a warm-up of its own.
    assert s.warmup(2, s.warmup(0, s.linear(1.0, 0.0, 2)))(np.arange(5)).tolist() == [0, 0.5, 1, 0.5, 0]
    slope = jax.grad(lambda peak: s.warmup(4, s.cosine(peak, 0))(1))(1.0)
    assert slope == 0.25
