"""Every brick against its formula on a nested tree: compiled in float32, and step by step in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import gradxform as gx
from gradxform.core.definition import DEFINITIONS

UNITS = {"attention": (0,), "conv/0": (0, 1, 2), "encoder/bias": None, "encoder/kernel": (0,), "temperature": None}
LARGEST = {"attention": (0, 2), "conv/0": (2, 3), "encoder/bias": None, "encoder/kernel": (0, 1), "temperature": None}
LAST = LARGEST | {"attention": (1, 2)}
ONLY_CONV = {name: (2, 3) if name == "conv/0" else None for name in LARGEST}
MATRICES = {"attention": ((1,), (2,)), "conv/0": ((2,), (3,)), "encoder/kernel": ((0,), (1,))}
WHOLE = dict.fromkeys(LARGEST)


def line(step):
    """A schedule as a user writes it: any function of the step."""
    return 0.5 - 0.01 * step


Case = tuple[Callable[[], gx.Transformation], oracles.Rule]

CASES: dict[str, Case] = {
    "identity": (lambda: gx.identity(), oracles.scale(1.0)),
    "set_to_zero": (lambda: gx.set_to_zero(), oracles.scale(0.0)),
    "stateless": (
        lambda: gx.stateless(lambda u, p: jax.tree.map(lambda x, w: 3 * x - w, u, p)),
        oracles.sequence(oracles.scale(-3.0), oracles.add_decayed_weights(1.0), oracles.scale(-1.0)),
    ),
    "scale": (lambda: gx.scale(-0.3), oracles.scale(-0.3)),
    "scale_by_schedule": (lambda: gx.scale_by_schedule(line), oracles.scale(line)),
    "scale_by_learning_rate": (lambda: gx.scale_by_learning_rate(0.3), oracles.scale(-0.3)),
    "scale_by_learning_rate-none": (lambda: gx.scale_by_learning_rate(None), oracles.scale(1.0)),
    "scale_by_learning_rate-schedule-flip": (
        lambda: gx.scale_by_learning_rate(gx.schedules.linear(1.0, 0.0, 60), flip_sign=False),
        oracles.scale(lambda step: 1 - step / 60),
    ),
    "scale_by_param_block_rms": (lambda: gx.scale_by_param_block_rms(0.5), oracles.scale_by_param_block_rms(0.5)),
    "add_decayed_weights": (lambda: gx.add_decayed_weights(0.2), oracles.add_decayed_weights(0.2)),
    "add_decayed_weights-schedule-mask": (
        lambda: gx.add_decayed_weights(line, mask=lambda params: jax.tree.map(lambda p: p.ndim in (2, 4), params)),
        oracles.add_decayed_weights(line, {"conv/0", "encoder/kernel"}),
    ),
    "clip": (lambda: gx.clip(0.4), oracles.clip(0.4)),
    "clip_by_global_norm": (lambda: gx.clip_by_global_norm(3.0), oracles.clip_by_global_norm(3.0)),
    "clip_by_global_norm-torch": (lambda: gx.clip_by_global_norm(3.0, eps=0.5), oracles.clip_by_global_norm(3.0, 0.5)),
    "clip_by_block_rms": (lambda: gx.clip_by_block_rms(0.6), oracles.clip_by_block_rms(0.6)),
    "adaptive_grad_clip": (lambda: gx.adaptive_grad_clip(0.3, eps=0.9), oracles.adaptive_grad_clip(0.3, 0.9, UNITS)),
    "centralize": (lambda: gx.centralize(), oracles.centralize(0)),
    "centralize-flax": (lambda: gx.centralize(output_axis=-1), oracles.centralize(-1)),
    "centralize-middle": (lambda: gx.masked(gx.centralize(output_axis=1), gx.ndim_at_least(2)), oracles.centralize(1)),
    "scale_by_trust_ratio": (lambda: gx.scale_by_trust_ratio(), oracles.scale_by_trust_ratio()),
    "scale_by_trust_ratio-least-norm": (
        lambda: gx.scale_by_trust_ratio(min_norm=1.5, trust_coefficient=0.02, eps=0.1),
        oracles.scale_by_trust_ratio(0.02, 0.1, 1.5),
    ),
    "scale_by_trust_ratio-decay-limit": (
        lambda: gx.scale_by_trust_ratio(trust_coefficient=0.5, weight_decay=0.3, max_ratio=0.7),
        oracles.scale_by_trust_ratio(0.5, decay=0.3, largest=0.7),
    ),
    "trace": (lambda: gx.trace(0.9), oracles.trace(0.9)),
    "trace-nesterov": (lambda: gx.trace(0.8, nesterov=True), oracles.trace(0.8, nesterov=True)),
    "ema": (lambda: gx.ema(0.95), oracles.ema(0.95, debias=True)),
    "ema-raw": (lambda: gx.ema(0.95, debias=False), oracles.ema(0.95, debias=False)),
    "scale_by_lion": (lambda: gx.scale_by_lion(), oracles.scale_by_lion(0.9, 0.99)),
    "scale_by_lion-smooth": (
        lambda: gx.scale_by_lion(0.8, 0.9, mode="smooth", smooth_beta=3.0),
        oracles.scale_by_lion(0.8, 0.9, lambda c: np.tanh(3.0 * c)),
    ),
    "scale_by_lion-refined": (
        lambda: gx.scale_by_lion(0.5, 0.9, mode="refined"),
        oracles.scale_by_lion(0.5, 0.9, lambda c: np.minimum(np.maximum(c, -1), 1)),
    ),
    "scale_by_muon": (lambda: gx.masked(gx.scale_by_muon(), gx.ndim_at_least(2)), oracles.scale_by_muon(MATRICES)),
    "scale_by_muon-torch": (
        lambda: gx.masked(gx.scale_by_muon(bias_correction=False, eps=1e-7), gx.ndim_at_least(2)),
        oracles.scale_by_muon(MATRICES, corrected=False, eps=1e-7),
    ),
    "scale_by_muon-heads": (
        lambda: gx.masked(
            gx.scale_by_muon(
                ns_steps=3, beta=0.8, nesterov=False, consistent_rms=0.2, reduction_axis=0, output_axis=(1, 2)
            ),
            "attention",
        ),
        oracles.scale_by_muon({"attention": ((0,), (1, 2))}, 0.8, 3, nesterov=False, rms_of=0.2),
    ),
    "scale_by_rms": (lambda: gx.scale_by_rms(eps=1e-3), oracles.scale_by_rms(0.9, 1e-3)),
    "scale_by_rms-torch": (
        lambda: gx.scale_by_rms(0.99, eps=1e-3, eps_in_sqrt=False),
        oracles.scale_by_rms(0.99, 1e-3, eps_in_sqrt=False),
    ),
    "scale_by_rms-from-1-corrected": (
        lambda: gx.scale_by_rms(0.8, initial_scale=1.0, bias_correction=True),
        oracles.scale_by_rms(0.8, 1e-8, initial=1.0, bias_correction=True),
    ),
    "scale_by_stddev": (lambda: gx.scale_by_stddev(eps=1e-3), oracles.scale_by_rms(0.9, 1e-3, centered=True)),
    "scale_by_stddev-torch-corrected": (
        lambda: gx.scale_by_stddev(0.95, eps=1e-2, initial_scale=0.1, eps_in_sqrt=False, bias_correction=True),
        oracles.scale_by_rms(0.95, 1e-2, initial=0.1, eps_in_sqrt=False, bias_correction=True, centered=True),
    ),
    "scale_by_rss": (lambda: gx.scale_by_rss(), oracles.scale_by_rss(0.1, 1e-7)),
    "scale_by_rss-torch": (
        lambda: gx.scale_by_rss(0.0, 1e-10, eps_in_sqrt=False),
        oracles.scale_by_rss(0.0, 1e-10, eps_in_sqrt=False),
    ),
    "scale_by_factored_rms": (
        lambda: gx.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=1e-3),
        oracles.scale_by_factored_rms(LARGEST, eps=1e-3),
    ),
    "scale_by_factored_rms-last-clamped": (
        lambda: gx.scale_by_factored_rms(
            decay_rate=0.6, min_dim_size_to_factor=2, epsilon=1e-2, factored_axes="last", clamp_epsilon=True
        ),
        oracles.scale_by_factored_rms(LAST, 0.6, eps=1e-2, clamp=True),
    ),
    "scale_by_factored_rms-least-size": (
        lambda: gx.scale_by_factored_rms(min_dim_size_to_factor=3, epsilon=1e-3, factored_axes="last", step_offset=4),
        oracles.scale_by_factored_rms(LARGEST | {"attention": None}, eps=1e-3, offset=4),
    ),
    "scale_by_factored_rms-whole": (
        lambda: gx.scale_by_factored_rms(factored=False, epsilon=1e-3),
        oracles.scale_by_factored_rms(WHOLE, eps=1e-3),
    ),
    "scale_by_factored_rms-decay-fn": (
        lambda: gx.scale_by_factored_rms(
            min_dim_size_to_factor=2, decay_rate=0.7, decay_rate_fn=lambda i, rate: 1 - (i + 1.0) ** -rate
        ),
        oracles.scale_by_factored_rms(LARGEST, 0.7),
    ),
    "scale_by_adam": (lambda: gx.scale_by_adam(), oracles.scale_by_adam()),
    "scale_by_adam-roots": (
        lambda: gx.scale_by_adam(0.8, 0.95, eps=1e-3, eps_root=1e-2),
        oracles.scale_by_adam(0.8, 0.95, 1e-3, 1e-2),
    ),
    "scale_by_adam-no-eps": (
        lambda: gx.chain(gx.add_decayed_weights(0.1), gx.scale_by_adam(eps=0.0)),
        oracles.sequence(oracles.add_decayed_weights(0.1), oracles.scale_by_adam(eps=0.0)),
    ),
    "scale_by_adam-nesterov": (
        lambda: gx.scale_by_adam(0.85, nesterov=True),
        oracles.scale_by_adam(0.85, nesterov=True),
    ),
    "scale_by_amsgrad": (lambda: gx.scale_by_amsgrad(b2=0.8), oracles.scale_by_amsgrad(b2=0.8)),
    "scale_by_amsgrad-torch": (
        lambda: gx.scale_by_amsgrad(b2=0.8, max_of_corrected=False),
        oracles.scale_by_amsgrad(b2=0.8, max_of_corrected=False),
    ),
    "scale_by_amsgrad-paper": (
        lambda: gx.scale_by_amsgrad(b2=0.8, bias_correction_mu=False, bias_correction_nu=False),
        oracles.scale_by_amsgrad(b2=0.8, correct_m=False, correct_v=False),
    ),
    "scale_by_belief": (lambda: gx.scale_by_belief(), oracles.scale_by_belief()),
    "scale_by_belief-nesterov": (
        lambda: gx.scale_by_belief(0.8, 0.95, 1e-3, 1e-2, nesterov=True),
        oracles.scale_by_belief(0.8, 0.95, 1e-3, 1e-2, nesterov=True),
    ),
    "scale_by_yogi": (lambda: gx.scale_by_yogi(), oracles.scale_by_yogi()),
    "scale_by_yogi-paper": (
        lambda: gx.scale_by_yogi(b2=0.9, initial_accumulator_value=0.5, bias_correction=False, initialize_mu=False),
        oracles.scale_by_yogi(b2=0.9, initial=0.5, bias_correction=False, initial_m=0.0),
    ),
    "scale_by_yogi-roots": (
        lambda: gx.scale_by_yogi(0.8, 0.9, 1e-2, 1e-3, 0.3),
        oracles.scale_by_yogi(0.8, 0.9, 1e-2, 1e-3, 0.3, initial_m=0.3),
    ),
    "scale_by_nadam": (lambda: gx.scale_by_nadam(), oracles.scale_by_nadam()),
    "scale_by_nadam-fast": (
        lambda: gx.scale_by_nadam(0.8, 0.95, momentum_decay=0.5),
        oracles.scale_by_nadam(0.8, 0.95, momentum_decay=0.5),
    ),
    "scale_by_radam": (lambda: gx.scale_by_radam(), oracles.scale_by_radam()),
    "scale_by_radam-98": (lambda: gx.scale_by_radam(b2=0.98), oracles.scale_by_radam(b2=0.98)),
    "scale_by_radam-short": (
        lambda: gx.scale_by_radam(0.8, 0.9, eps=1e-3, threshold=4.5, nesterov=True),
        oracles.scale_by_radam(0.8, 0.9, 1e-3, 4.5, nesterov=True),
    ),
    "chain": (
        lambda: gx.chain(
            gx.clip_by_global_norm(2.0),
            gx.chain(gx.scale_by_adam(), gx.add_decayed_weights(0.1)),
            gx.clip_by_global_norm(4.0),
            gx.scale(-0.1),
        ),
        oracles.sequence(
            oracles.clip_by_global_norm(2.0),
            oracles.scale_by_adam(),
            oracles.add_decayed_weights(0.1),
            oracles.clip_by_global_norm(4.0),
            oracles.scale(-0.1),
        ),
    ),
    "named_chain": (
        lambda: gx.named_chain(
            ("momentum", gx.trace(0.9)), ("ratio", gx.scale_by_trust_ratio()), ("rate", gx.scale(-0.1))
        ),
        oracles.sequence(oracles.trace(0.9), oracles.scale_by_trust_ratio(), oracles.scale(-0.1)),
    ),
}

# What cancels in float32 by its nature: a variance as a difference of averages.
# Newton-Schulz's steps enlarge what was rounded in a small singular value by up to 3.4445 each: five of them 485 times.
ROUGH = {
    "scale_by_stddev": 1e-4,
    "scale_by_stddev-torch-corrected": 1e-4,
    "scale_by_muon": 1e-4,
    "scale_by_muon-torch": 1e-4,
}


@pytest.mark.parametrize("name", CASES)
def test_brick_follows_its_formula(name: str, bits: int) -> None:
    make, rule = CASES[name]
    if bits == 64:
        harness.assert_updates(make(), rule, 64, eager=True)
        return
    params, gradients = harness.small(harness.problem())
    harness.assert_updates(make(), rule, 32, rtol=ROUGH.get(name), params=params, gradients=gradients)


def test_every_brick_has_a_formula() -> None:
    tested = {name.split("-")[0] for name in CASES}
    elsewhere = {
        "add_noise",
        "accumulate",
        "skip_nonfinite",
        "record_norms",
        "masked",
        "partition",
        "freeze",
        "selective_transform",
    }
    bricks = {
        name
        for name in gx.__all__
        if name in DEFINITIONS and DEFINITIONS[name].function.__module__.startswith("gradxform.transforms.")
    }
    assert bricks - tested == elsewhere, "a case in CASES above for each brick, its formula in tests/oracles.py"


# Complex leaves: |g|**2 in every second moment.

COMPLEX = [
    "scale_by_muon",
    "scale_by_adam",
    "scale_by_amsgrad-torch",
    "scale_by_belief",
    "scale_by_yogi",
    "scale_by_nadam",
    "scale_by_radam",
    "scale_by_rms-torch",
    "scale_by_stddev",
    "scale_by_rss",
    "scale_by_factored_rms",
    "scale_by_trust_ratio-decay-limit",
    "clip",
    "clip_by_global_norm",
    "clip_by_block_rms",
    "adaptive_grad_clip",
    "centralize",
    "trace-nesterov",
    "ema",
    "add_decayed_weights",
    "chain",
    "scale_by_param_block_rms",
]


def complex_problem() -> tuple[harness.Tree, harness.Tree]:
    params, gradients = ({key: tree[key] for key in ("encoder", "temperature")} for tree in harness.problem())
    turn = lambda x: np.complex64(x * np.exp(1j * np.linspace(0, 3, x.size).reshape(x.shape)))  # noqa: E731
    return jax.tree.map(turn, params), jax.tree.map(turn, gradients)


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_leaves_follow_the_formula(name: str) -> None:
    make, rule = CASES[name]
    params, gradients = complex_problem()
    harness.assert_updates(make(), rule, 32, rtol=ROUGH.get(name, 2e-5), params=params, gradients=gradients, eager=True)


def test_lion_takes_the_sign_of_a_complex_number_as_its_direction() -> None:
    params, gradients = complex_problem()
    with np.errstate(invalid="ignore"):
        direction = lambda c: np.where(c == 0, 0, c / np.where(c == 0, 1, np.abs(c)))  # noqa: E731
    harness.assert_updates(
        gx.scale_by_lion(),
        oracles.scale_by_lion(0.9, 0.99, direction),
        32,
        params=params,
        gradients=gradients,
        eager=True,
    )


def test_complex_second_moments_are_real() -> None:
    params = {"w": jnp.ones((4, 4), jnp.complex64)}
    assert gx.scale_by_adam().init(params).nu["w"].dtype == jnp.float32
    assert gx.scale_by_adam().init(params).mu["w"].dtype == jnp.complex64
    assert gx.scale_by_factored_rms(min_dim_size_to_factor=2).init(params).v_row["w"].dtype == jnp.float32


@pytest.mark.parametrize("norm", ["params", "updates"])
def test_trust_ratio_is_one_where_a_norm_is_zero(norm: str) -> None:
    params, updates = {"w": jnp.ones(3)}, {"w": jnp.full(3, 2.0)}
    if norm == "params":
        params = {"w": jnp.zeros(3)}
    else:
        updates = {"w": jnp.zeros(3)}
    got, _ = gx.scale_by_trust_ratio(weight_decay=0.5).update(updates, gx.scale_by_trust_ratio().init(params), params)
    np.testing.assert_array_equal(got["w"], updates["w"] + 0.5 * params["w"])


def test_centered_variance_is_never_negative() -> None:
    # The variance is 1e-8 of the square: in float32 the difference of the averages comes out on either side of 0.
    noise = np.random.RandomState(0).standard_normal((200, 50))
    gradients = {"w": jnp.asarray(np.linspace(0.1, 3.0, 50) * (1 + 1e-4 * noise), jnp.float32)}
    updates, _ = harness.updates_of(gx.scale_by_stddev(0.9, eps=1e-12), gradients, {"w": jnp.zeros(50)})
    assert np.isfinite(updates["w"]).all()


def test_adam_without_eps_does_not_move_what_never_had_a_gradient() -> None:
    updates, _ = harness.updates_of(gx.scale_by_adam(eps=0.0), {"w": jnp.zeros((3, 2))}, {"w": jnp.ones(2)})
    np.testing.assert_array_equal(updates["w"], 0)


def test_bias_correction_keeps_its_digits_on_the_first_step() -> None:
    # 1 - 0.999**1 in float32 is 1.0000467e-3: an error of 4.7e-5 that the first update would show.
    updates, _ = harness.one_step(
        gx.scale_by_rms(0.999, bias_correction=True, eps=0.0), {"w": jnp.ones(1)}, {"w": jnp.ones(1)}
    )
    assert abs(float(updates["w"][0]) - 1) < 2e-7


def test_radam_is_rectified_from_the_first_step_above_the_threshold() -> None:
    # rho_t passes 5 at t = 6 for b2 = 0.999: the ratio of the sixth update to the mean shows the rectifier.
    g = {"w": jnp.full((8, 1), 2.0)}
    updates, _ = harness.updates_of(gx.scale_by_radam(), g, {"w": jnp.zeros(1)})
    rho_inf, b2 = 1999, 0.999
    rho = [rho_inf - 2 * t * b2**t / (1 - b2**t) for t in range(1, 9)]
    wanted = [
        2.0 if r < 5 else math.sqrt((r - 4) * (r - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * r)) for r in rho
    ]
    assert 4 < rho[4] < 5 < rho[5]
    np.testing.assert_allclose(updates["w"][:, 0], wanted, rtol=2e-6)


@pytest.mark.as_in_use
@pytest.mark.parametrize("count", [10, 10**4, 10**6, 10**8])
def test_adafactor_weighs_late_gradients_exactly(count: int) -> None:
    # The weight of a square in step t is t**-0.8: as a float32 difference from 1 it is 15 percent off at 10**8.
    tx = gx.scale_by_factored_rms(min_dim_size_to_factor=2)
    params = {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))}
    state = tx.init(params)._replace(count=jnp.asarray(count, jnp.int32))
    _, state = tx.update(params, state)
    weight = (count + 1.0) ** -0.8
    np.testing.assert_allclose(state.v["bias"], weight, rtol=1e-5)
    np.testing.assert_allclose(state.v_row["kernel"], weight, rtol=1e-5)
    np.testing.assert_allclose(state.v_col["kernel"], weight, rtol=1e-5)


@pytest.mark.parametrize("make", [gx.add_decayed_weights, lambda decay: gx.chain(gx.sgd(-1.0, weight_decay=decay))])
def test_a_decay_below_zero_is_taken_as_a_number_and_as_a_schedule(make: Any) -> None:
    params = {"w": jnp.full(1, 2.0)}
    for decay in (-0.5, lambda step: -0.5, jnp.float32(-0.5)):
        tx = make(decay)
        np.testing.assert_array_equal(tx.update(params, tx.init(params), params)[0]["w"], 1.0)
