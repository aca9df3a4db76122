"""What a schedule refuses, and that the message names the argument."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx

s = gx.schedules
BAD = [
    (lambda: s.constant("fast"), TypeError, "value: expected a real number, got 'fast'"),
    (lambda: s.constant(float("nan")), ValueError, "value: expected a real number, got nan"),
    (lambda: s.step(0.1, 0.0, 3), ValueError, "gamma: expected a real number > 0, got 0.0"),
    (lambda: s.step(0.1, 0.5, 0), ValueError, "every: expected an integer >= 1 and <= 2147483647, got 0"),
    (lambda: s.step(0.1, 0.5, 2.0), TypeError, "every: expected an integer, got 2.0"),
    (lambda: s.step(0.1, 0.5, True), TypeError, "every: expected an integer, got True"),
    (lambda: s.step(None, 0.5, 3), TypeError, "init_value: expected a real number, got None"),
    (lambda: s.exponential(0.1, "slow"), TypeError, "rate: expected a real number"),
    (lambda: s.polynomial(0.1, 0.0, 5, 0), ValueError, "power: expected a real number > 0, got 0.0"),
    (lambda: s.polynomial(0.1, 0.0, -1, 1), ValueError, "steps: expected an integer >= 0"),
    (lambda: s.polynomial(0.1, None, 5, 1), TypeError, "end_value: expected a real number"),
    (
        lambda: s.linear(0.1, 0.0, 2**31),
        ValueError,
        "steps: expected an integer >= 0 and <= 2147483647, got 2147483648",
    ),
    (
        lambda: s.linear(0.1, 0.0, jnp.float32(2.0)),
        TypeError,
        "steps: expected an integer, got an array of dtype float32",
    ),
    (lambda: s.cosine(0.1, -3), ValueError, "steps: expected an integer >= 0"),
    (lambda: s.cosine_restarts(0.1, 0), ValueError, "steps: expected an integer >= 1"),
    (lambda: s.cosine(jnp.array(True) & True, 3), TypeError, "init_value: expected a real number"),
    (lambda: s.cosine_restarts(0.1, 5, factor=0), ValueError, "factor: expected an integer >= 1"),
    (
        lambda: s.cosine_restarts(0.1, 5, factor=jnp.array(2)),
        TypeError,
        "factor: expected an int, which fixes the cycles",
    ),
    (lambda: s.cosine_restarts(0.1, 5, decay=0), ValueError, "decay: expected a real number > 0"),
    (lambda: s.triangular(0.1, 0.2, 0), ValueError, "half_cycle: expected an integer >= 1"),
    (
        lambda: s.triangular(0.1, 0.2, 5, "square"),
        ValueError,
        "mode: expected one of 'triangular', 'triangular2', 'exp_range', got 'square'",
    ),
    (lambda: s.triangular(0.1, 0.2, 5, gamma=-1), ValueError, "gamma: expected a real number > 0"),
    (lambda: s.one_cycle(0.1, -1), ValueError, "steps: expected an integer >= 0"),
    (
        lambda: s.one_cycle(0.1, 5, warmup_fraction=1.5),
        ValueError,
        "warmup_fraction: expected a real number >= 0 and <= 1",
    ),
    (lambda: s.one_cycle(0.1, 5, div_factor=0), ValueError, "div_factor: expected a real number > 0"),
    (lambda: s.one_cycle(0.1, 5, final_div_factor=-1), ValueError, "final_div_factor: expected a real number > 0"),
    (lambda: s.one_cycle(0.1, 5, anneal="step"), ValueError, "anneal: expected one of 'cosine', 'linear', got 'step'"),
    (lambda: s.inverse_sqrt(0.1, 0), ValueError, "warmup_steps: expected an integer >= 1"),
    (lambda: s.warmup(-1, 0.1), ValueError, "steps: expected an integer >= 0"),
    (lambda: s.warmup(5, "cosine"), TypeError, "schedule: expected a real number or a schedule, got 'cosine'"),
    (lambda: s.warmup(s.constant(0.1), 5), TypeError, "steps: expected an integer"),
    (lambda: s.warmup_stable_decay(0.1, -1, 0, 5), ValueError, "warmup_steps: expected an integer >= 0"),
    (lambda: s.warmup_stable_decay(0.1, 0, -1, 5), ValueError, "stable_steps: expected an integer >= 0"),
    (lambda: s.warmup_stable_decay(0.1, 0, 0, -1), ValueError, "decay_steps: expected an integer >= 0"),
    (
        lambda: s.warmup_stable_decay(0.1, 0, 0, 5, decay="log"),
        ValueError,
        "decay: expected one of 'linear', 'cosine', 'sqrt'",
    ),
    (lambda: s.piecewise(0.1, [(5, 0.1)]), TypeError, "boundaries_and_scales: expected a dict"),
    (
        lambda: s.piecewise(0.1, {0.5: 0.1}),
        TypeError,
        "boundaries_and_scales: a boundary: expected an integer, got 0.5",
    ),
    (lambda: s.piecewise(0.1, {-5: 0.1}), ValueError, "boundaries_and_scales: a boundary: expected an integer >= 0"),
    (
        lambda: s.piecewise(0.1, {5: -0.1}),
        ValueError,
        "boundaries_and_scales[5]: expected a real number >= 0, got -0.1",
    ),
    (lambda: s.join(0.1, []), TypeError, "schedules: expected a list, got 0.1"),
    (lambda: s.join([0.1, 0.2], 5), TypeError, "boundaries: expected a list, got 5"),
    (lambda: s.join([], []), ValueError, "schedules: expected at least one schedule, got none"),
    (lambda: s.join([0.1, "x"], [5]), TypeError, "schedules[1]: expected a real number or a schedule, got 'x'"),
    (lambda: s.join([0.1, 0.2], [5, 6]), ValueError, "boundaries: expected 1 for 2 schedules, got 2"),
    (lambda: s.join([0.1, 0.2, 0.3], [6, 6]), ValueError, "boundaries: expected increasing steps, got 6 before 6"),
    (lambda: s.join([0.1, 0.2], [-1]), ValueError, "boundaries[0]: expected an integer >= 0"),
    (lambda: s.join([0.1, 0.2], [1.5]), TypeError, "boundaries[0]: expected an integer, got 1.5"),
    (lambda: s.cosine(0.1, 5)(2**31), ValueError, "step: expected at most 2**31 - 1, got 2147483648"),
    (
        lambda: s.cosine(0.1, 5)(np.array([True])),
        TypeError,
        "step: expected an integer or an array of integers, got bool",
    ),
]


@pytest.mark.parametrize("make, error, message", BAD, ids=range(len(BAD)))
def test_refused(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("rate", [s.cosine(1e-2, 100, 0.1), s.warmup(5, s.cosine(1e-2, 100, 0.1))])
def test_a_learning_rate_that_rises_along_a_cosine_is_warned_of(rate):
    with pytest.warns(UserWarning, match=r"got one from 0.01 to 0.1; .* alpha=0.1 is end_value=0.001$"):
        gx.adamw(rate)
    gx.adamw(s.cosine(0.0, 100, 0.1), weight_decay=s.cosine(0.04, 100, 0.4))  # a rise that is meant
    gx.adamw(s.warmup(5, s.cosine(1e-2, 100, 1e-3)))
