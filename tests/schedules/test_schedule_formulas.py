"""Every schedule against its formula in float64, at the steps where an error of one would show."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradxform as gx

LAST = 2**31 - 1
RTOL = 1e-12 if jax.config.jax_enable_x64 else 2e-6
TINY = 1e-37  # float32 flushes what is smaller to 0


def between(start, end, share):
    return float(start) + (float(end) - float(start)) * float(share)


def half_cosine(left: Fraction) -> float:
    # (1 + cos(pi (1 - left))) / 2 by the half-angle formula: near the end the cosine itself cancels in float64 too.
    return math.sin(math.pi * float(left) / 2) ** 2


class Formula:
    """The formulas, of an exact integer step; the names and arguments are the schedules'."""

    @staticmethod
    def constant(t, value):
        return value

    @staticmethod
    def step(t, init_value, gamma, every):
        return init_value * gamma ** (t // every)

    @staticmethod
    def exponential(t, init_value, rate):
        return init_value * math.exp(-rate * t)

    @staticmethod
    def polynomial(t, init_value, end_value, steps, power):
        x = Fraction(min(t, steps), steps)
        if x < Fraction(1, 2):
            return between(init_value, end_value, -math.expm1(power * math.log1p(-float(x))))
        return between(end_value, init_value, float(1 - x) ** power)

    @staticmethod
    def linear(t, init_value, end_value, steps):
        x = Fraction(min(t, steps), steps)
        return float(Fraction(init_value) + (Fraction(end_value) - Fraction(init_value)) * x)

    @staticmethod
    def cosine(t, init_value, steps, end_value, exponent=1.0):
        x = Fraction(min(t, steps), steps)
        if x < Fraction(1, 2):
            return between(init_value, end_value, -math.expm1(exponent * math.log1p(-half_cosine(x))))
        return between(end_value, init_value, half_cosine(1 - x) ** exponent)

    @staticmethod
    def cosine_restarts(t, init_value, steps, end_value, factor, decay):
        cycle = 0
        if factor == 1:
            cycle, t = divmod(t, steps)
        while factor > 1 and t >= steps:
            t, steps, cycle = t - steps, steps * factor, cycle + 1
        return between(end_value, init_value * decay**cycle, half_cosine(1 - Fraction(t, steps)))

    @staticmethod
    def triangular(t, base_value, max_value, half_cycle, mode, gamma):
        cycle = math.floor(1 + Fraction(t, 2 * half_cycle))
        x = abs(Fraction(t, half_cycle) - 2 * cycle + 1)
        scale = {
            "triangular": lambda: 1.0,
            "triangular2": lambda: math.ldexp(1.0, 1 - cycle),
            "exp_range": lambda: gamma**t,
        }[mode]()
        return base_value + (max_value - base_value) * float(max(0, 1 - x)) * scale

    @staticmethod
    def one_cycle(t, max_value, steps, warmup_fraction, div_factor, final_div_factor, anneal):
        t, peak = min(t, steps), warmup_fraction * steps
        curve = half_cosine if anneal == "cosine" else float
        start = max_value / div_factor
        if t < peak:
            return between(max_value, start, curve(1 - Fraction(t) / Fraction(peak)))
        if t == steps:
            return start / final_div_factor
        return between(start / final_div_factor, max_value, curve(Fraction(steps - t) / Fraction(steps - peak)))

    @staticmethod
    def inverse_sqrt(t, peak_value, warmup_steps):
        return peak_value * (t / warmup_steps if t < warmup_steps else math.sqrt(warmup_steps / t))

    @staticmethod
    def warmup_stable_decay(t, peak_value, warmup_steps, stable_steps, decay_steps, init_value, end_value, decay):
        if t < warmup_steps:
            return between(init_value, peak_value, Fraction(t, warmup_steps))
        x = Fraction(min(max(t - warmup_steps - stable_steps, 0), decay_steps), decay_steps)
        left = {
            "linear": lambda: float(1 - x),
            "cosine": lambda: half_cosine(1 - x),
            "sqrt": lambda: float(1 - x) / (1 + math.sqrt(x)),
        }[decay]()
        return between(end_value, peak_value, left)

    @staticmethod
    def piecewise(t, init_value, boundaries_and_scales):
        return init_value * math.prod(scale for b, scale in boundaries_and_scales.items() if t >= b)


WSD = dict(peak_value=0.1, warmup_steps=4, stable_steps=5, decay_steps=6, init_value=0.01, end_value=0.002)
CASES = [
    ("constant", dict(value=0.3), [7]),
    ("step", dict(init_value=0.1, gamma=0.3, every=5), [5, 10]),
    ("step", dict(init_value=0.1, gamma=0.999, every=1), [5000]),
    ("step", dict(init_value=0.1, gamma=0.5, every=2**30), [2**30]),
    ("step", dict(init_value=0.1, gamma=1 - 1e-8, every=1), [10**8, 2**24]),
    ("step", dict(init_value=0.1, gamma=0.5 + 2.9e-8, every=1), [100]),
    ("exponential", dict(init_value=0.1, rate=0.02), [100]),
    ("exponential", dict(init_value=0.1, rate=1e-9), [2**30]),
    ("polynomial", dict(init_value=0.1, end_value=0.01, steps=10, power=2.0), [5, 10]),
    ("polynomial", dict(init_value=0.1, end_value=0.01, steps=10, power=0.3), [5, 10]),
    ("polynomial", dict(init_value=0.0, end_value=1.0, steps=LAST, power=2.0), [2**30, LAST]),
    ("polynomial", dict(init_value=1.0, end_value=0.0, steps=LAST, power=0.5), [2**30, LAST]),
    ("linear", dict(init_value=0.1, end_value=0.02, steps=10), [5, 10]),
    ("linear", dict(init_value=0.0, end_value=1.0, steps=LAST), [2**30, LAST]),
    ("linear", dict(init_value=1.0, end_value=0.0, steps=LAST), [2**30, LAST]),
    ("cosine", dict(init_value=3e-4, steps=1000, end_value=1e-5), [500, 1000]),
    ("cosine", dict(init_value=1.0, steps=LAST, end_value=0.0), [2**30, LAST]),
    ("cosine", dict(init_value=0.0, steps=2**25, end_value=1.0), [2**25]),
    ("cosine", dict(init_value=1.0, steps=1, end_value=0.1), [1]),
    ("cosine", dict(init_value=0.1, steps=10, end_value=0.01, exponent=2.5), [5, 10]),
    ("cosine_restarts", dict(init_value=0.1, steps=5, end_value=0.01, factor=1, decay=0.5), [5, 10, 15]),
    ("cosine_restarts", dict(init_value=0.1, steps=5, end_value=0.01, factor=2, decay=0.7), [5, 15, 35, 75]),
    ("cosine_restarts", dict(init_value=1.0, steps=1, end_value=0.0, factor=2, decay=1.0), [3, 7, 2**30 - 1, LAST]),
    ("cosine_restarts", dict(init_value=1.0, steps=1, end_value=0.0, factor=3, decay=1.0), [(3**19 - 1) // 2, 2**30]),
    ("cosine_restarts", dict(init_value=1.0, steps=2**30, end_value=0.0, factor=4, decay=0.5), [2**30]),
    ("cosine_restarts", dict(init_value=1.0, steps=1, end_value=0.0, factor=46341, decay=0.5), [46342, 2**30, LAST]),
    ("cosine_restarts", dict(init_value=1.0, steps=2**24 + 1, end_value=0.0, factor=1, decay=1.0), [2**25 + 2]),
    ("triangular", dict(base_value=0.01, max_value=0.1, half_cycle=4, mode="triangular", gamma=1.0), [4, 8, 12, 16]),
    ("triangular", dict(base_value=0.01, max_value=0.1, half_cycle=4, mode="triangular2", gamma=1.0), [4, 8, 12, 16]),
    ("triangular", dict(base_value=0.01, max_value=0.1, half_cycle=4, mode="exp_range", gamma=0.9), [4, 8, 12, 16]),
    ("triangular", dict(base_value=0.0, max_value=0.1, half_cycle=1000, mode="exp_range", gamma=0.99994), [99_000]),
    ("triangular", dict(base_value=0.0, max_value=1.0, half_cycle=LAST, mode="triangular", gamma=1.0), [2**30, LAST]),
    (
        "triangular",
        dict(base_value=0.0, max_value=1.0, half_cycle=2**30 + 1, mode="triangular", gamma=1.0),
        [2**30 + 1],
    ),
    (
        "one_cycle",
        dict(max_value=0.1, steps=10, warmup_fraction=0.3, div_factor=25.0, final_div_factor=1e4, anneal="cosine"),
        [3, 10],
    ),
    (
        "one_cycle",
        dict(max_value=0.1, steps=7, warmup_fraction=0.5, div_factor=10.0, final_div_factor=100.0, anneal="linear"),
        [3, 7],
    ),
    (
        "one_cycle",
        dict(max_value=1.0, steps=LAST, warmup_fraction=0.25, div_factor=25.0, final_div_factor=1e4, anneal="cosine"),
        [2**29, LAST],
    ),
    (
        "one_cycle",
        dict(max_value=1.0, steps=LAST, warmup_fraction=0.25, div_factor=25.0, final_div_factor=1e30, anneal="linear"),
        [LAST],
    ),
    (
        "one_cycle",
        dict(max_value=1.0, steps=8, warmup_fraction=0.0, div_factor=25.0, final_div_factor=1e4, anneal="linear"),
        [8],
    ),
    (
        "one_cycle",
        dict(max_value=1.0, steps=8, warmup_fraction=1.0, div_factor=25.0, final_div_factor=1e4, anneal="linear"),
        [8],
    ),
    ("inverse_sqrt", dict(peak_value=0.1, warmup_steps=5), [5, 20]),
    ("inverse_sqrt", dict(peak_value=1.0, warmup_steps=LAST), [2**30, LAST]),
    ("warmup_stable_decay", dict(WSD, decay="linear"), [4, 9, 15]),
    ("warmup_stable_decay", dict(WSD, decay="cosine"), [4, 9, 15]),
    ("warmup_stable_decay", dict(WSD, decay="sqrt"), [4, 9, 15]),
    ("warmup_stable_decay", dict(WSD, warmup_steps=0, stable_steps=0, decay="linear"), [6]),
    (
        "warmup_stable_decay",
        dict(WSD, warmup_steps=2**30, stable_steps=2**30 - 9, decay_steps=9, end_value=0.0, decay="linear"),
        [2**30, LAST - 9],
    ),
    ("warmup_stable_decay", dict(WSD, warmup_steps=LAST, stable_steps=LAST, decay_steps=LAST, decay="sqrt"), [LAST]),
    (
        "warmup_stable_decay",
        dict(WSD, warmup_steps=0, stable_steps=0, decay_steps=LAST, end_value=0.0, decay="sqrt"),
        [2**30],
    ),
    ("piecewise", dict(init_value=0.1, boundaries_and_scales={10: 0.5, 5: 0.3, LAST: 2.0}), [5, 10]),
    ("piecewise", dict(init_value=0.1, boundaries_and_scales={}), [5]),
]
IDS = [f"{name}-{i}" for i, (name, _, _) in enumerate(CASES)]


def edges(boundaries):
    steps = {0, 1, 2**24 + 1, LAST - 1, LAST} | {b + d for b in boundaries for d in (-1, 0, 1)}
    return sorted(s for s in steps if 0 <= s <= LAST)


@pytest.mark.parametrize("name, arguments, boundaries", CASES, ids=IDS)
def test_formula(name, arguments, boundaries):
    steps = edges(boundaries)
    got = getattr(gx.schedules, name)(**arguments)(np.array(steps, np.int32))
    want = [getattr(Formula, name)(s, **arguments) for s in steps]
    assert got.dtype == jnp.result_type(float)
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=TINY)


@pytest.mark.parametrize("name, arguments, boundaries", CASES, ids=IDS)
def test_gradients_are_those_of_the_formula(name, arguments, boundaries):
    steps = edges(boundaries)
    if name == "one_cycle":  # the peak is a corner in the fraction
        steps = [s for s in steps if s != arguments["warmup_fraction"] * arguments["steps"]]
    # As an argument of jit, a gamma of 0.99994 is a float32, and 100,000 factors of that differ by 4e-3.
    comparable = not 0 < 1 - arguments.get("gamma", 0) < (1e-5 if jax.config.jax_enable_x64 else 1e-2)
    made = getattr(gx.schedules, name)(**arguments)
    got = jax.jit(jax.vmap(jax.grad(lambda s, t: s(t)), (None, 0)))(made, np.array(steps, np.int32)).arguments
    for key, value in arguments.items():
        if not isinstance(value, float):
            continue
        assert np.all(np.isfinite(got[key])), key
        if not comparable:
            continue
        if key == "warmup_fraction" and value in (0.0, 1.0):
            continue  # a difference would leave the range
        h = 1e-6 * (value or 1)
        slope = [
            (
                getattr(Formula, name)(s, **(arguments | {key: value + h}))
                - getattr(Formula, name)(s, **(arguments | {key: value - h}))
            )
            / (2 * h)
            for s in steps
        ]
        np.testing.assert_allclose(got[key], slope, rtol=2e-3, atol=1e-5 * max(1, max(map(abs, slope))), err_msg=key)


@pytest.mark.as_in_use
def test_ends_are_exact():
    for made in (
        gx.schedules.linear(0.3, 0.1, 7),
        gx.schedules.cosine(0.3, 7, 0.1),
        gx.schedules.polynomial(0.3, 0.1, 7, 2.5),
        gx.schedules.warmup_stable_decay(0.9, 3, 1, 3, init_value=0.3, end_value=0.1),
    ):
        assert made(0) == jnp.asarray(0.3) and made(7) == made(LAST) == jnp.asarray(0.1), made
    assert gx.schedules.one_cycle(0.7, 10)(3) == jnp.asarray(0.7)
    assert gx.schedules.inverse_sqrt(0.7, 10)(10) == jnp.asarray(0.7)


TORCH = [  # torch 2.13 on the CPU: the rate before each step, from step 0
    (gx.schedules.step(0.1, 0.1, 3), [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001]),  # StepLR
    (gx.schedules.exponential(0.1, -math.log(0.9)), [0.1, 0.09, 0.081, 0.0729, 0.06561, 0.059049]),  # ExponentialLR
    (gx.schedules.polynomial(0.1, 0.0, 5, 2.0), [0.1, 0.064, 0.036, 0.016, 0.004, 0.0, 0.0]),  # PolynomialLR
    (gx.schedules.linear(0.1, 0.01, 5), [0.1, 0.082, 0.064, 0.046, 0.028, 0.01, 0.01]),  # LinearLR
    (
        gx.schedules.cosine_restarts(0.1, 3, 0.01, factor=2),  # CosineAnnealingWarmRestarts(T_0=3, T_mult=2)
        [
            0.1,
            0.0775,
            0.0325,
            0.1,
            0.0939711431702998,
            0.0775,
            0.055,
            0.0325,
            0.0160288568297003,
            0.1,
            0.0984666621830081,
        ],
    ),
    (
        gx.schedules.triangular(0.01, 0.1, 4),  # CyclicLR(step_size_up=4)
        [0.01, 0.0325, 0.055, 0.0775, 0.1, 0.0775, 0.055, 0.0325, 0.01, 0.0325],
    ),
    (
        gx.schedules.triangular(0.01, 0.1, 4, "triangular2"),
        [
            0.01,
            0.0325,
            0.055,
            0.0775,
            0.1,
            0.0775,
            0.055,
            0.0325,
            0.01,
            0.02125,
            0.0325,
            0.04375,
            0.055,
            0.04375,
            0.0325,
            0.02125,
            0.01,
            0.015625,
        ],
    ),
    (
        gx.schedules.triangular(0.01, 0.1, 4, "exp_range", 0.9),
        [0.01, 0.03025, 0.04645, 0.0592075, 0.069049, 0.049858075, 0.033914845, 0.02076168025, 0.01, 0.0187169610025],
    ),
    (
        gx.schedules.one_cycle(0.1, 10),  # OneCycleLR(total_steps=11, pct_start=4 / 11)
        [
            0.004,
            0.028,
            0.076,
            0.1,
            0.0950484632013474,
            0.0811745653949763,
            0.0611262021936289,
            0.0388741978063711,
            0.0188258346050237,
            0.00495193679865263,
            4e-07,
        ],
    ),
    (
        gx.schedules.one_cycle(0.1, 10, anneal="linear"),
        [
            0.004,
            0.036,
            0.068,
            0.1,
            0.0857143428571429,
            0.0714286857142857,
            0.0571430285714286,
            0.0428573714285714,
            0.0285717142857143,
            0.0142860571428571,
            4e-07,
        ],
    ),
]


@pytest.mark.parametrize("made, want", TORCH, ids=[f"{made.name}-{i}" for i, (made, _) in enumerate(TORCH)])
def test_torch(made, want):
    np.testing.assert_allclose(made(np.arange(len(want))), want, rtol=max(RTOL, 2e-6))


def test_torch_cosine():  # CosineAnnealingLR(T_max=1000, eta_min=1e-5) from 3e-4, the first listing of the field
    want = [0.0003, 0.000299999284454269, 0.00025753048327205, 0.000155, 1.00007155457306e-05, 1e-05]
    got = gx.schedules.cosine(3e-4, 1000, 1e-5)(np.array([0, 1, 250, 500, 999, 1000]))
    np.testing.assert_allclose(got, want, rtol=max(RTOL, 1e-11))


OPTAX = [
    (gx.schedules.constant(0.3), optax.constant_schedule(0.3)),
    (gx.schedules.step(0.1, 0.5, 4), optax.exponential_decay(0.1, 4, 0.5, staircase=True)),
    (gx.schedules.exponential(0.1, 0.05), optax.exponential_decay(0.1, 1, math.exp(-0.05))),
    (gx.schedules.polynomial(0.1, 0.01, 12, 2.0), optax.polynomial_schedule(0.1, 0.01, 2.0, 12)),
    (gx.schedules.linear(0.1, 0.01, 12), optax.linear_schedule(0.1, 0.01, 12)),
    (gx.schedules.cosine(0.1, 12, 0.01), optax.cosine_decay_schedule(0.1, 12, 0.1)),
    (gx.schedules.cosine(0.1, 12, 0.01, 2.5), optax.cosine_decay_schedule(0.1, 12, 0.1, 2.5)),
    (gx.schedules.one_cycle(0.1, 20), optax.cosine_onecycle_schedule(20, 0.1)),
    (
        gx.schedules.cosine_restarts(0.1, 5, 0.01, factor=2, decay=0.5),
        optax.sgdr_schedule(
            [
                dict(init_value=0.0, peak_value=0.1 * 0.5**i, decay_steps=5 * 2**i, warmup_steps=0, end_value=0.01)
                for i in range(4)
            ]
        ),
    ),
    (
        gx.schedules.warmup(4, gx.schedules.cosine(0.1, 8, 0.01), 0.001),
        optax.warmup_cosine_decay_schedule(0.001, 0.1, 4, 12, 0.01),
    ),
    (gx.schedules.warmup(4, 0.1), optax.warmup_constant_schedule(0.0, 0.1, 4)),
    (
        gx.schedules.piecewise(0.1, {8: 0.5, 4: 0.2, 0: 3.0}),
        optax.piecewise_constant_schedule(0.1, {8: 0.5, 4: 0.2, 0: 3.0}),
    ),
    (
        gx.schedules.join([gx.schedules.linear(0.1, 1.0, 4), 0.3, gx.schedules.exponential(0.5, 0.1)], [5, 11]),
        optax.join_schedules(
            [
                optax.linear_schedule(0.1, 1.0, 4),
                optax.constant_schedule(0.3),
                optax.exponential_decay(0.5, 1, math.exp(-0.1)),
            ],
            [5, 11],
        ),
    ),
]


@pytest.mark.parametrize("ours, theirs", OPTAX, ids=[f"{made.name}-{i}" for i, (made, _) in enumerate(OPTAX)])
def test_optax(ours, theirs):
    # optax forms 1 - (1 - alpha) ... in float32, which costs it a digit near the end.
    want = [theirs(step) for step in range(30)]
    np.testing.assert_allclose(ours(np.arange(30)), want, rtol=2e-5, atol=1e-7)
