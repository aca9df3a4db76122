"""Every name shared with optax: the same float32 trajectory to 1e-6 over 100 steps of a nested tree.

Where ours is a correction, ``CORRECTED`` says of what, and the float64 oracle shows that ours is the nearer one.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

import gradxform as gx

STEPS = 100
RATE = 1e-3
DECAYED = {"attention": True, "encoder": {"bias": False, "kernel": True}}


def falling(step: Any) -> Any:
    return RATE * (1.0 - 0.005 * step)


def as_matrices(params: Any) -> Any:
    return jax.tree.map(lambda x: optax.contrib.MuonDimensionNumbers(), params)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A call of ours and the call of optax's that it stands for; ``theirs`` is the same call where it is None."""

    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any] | None = None

    def make(self) -> tuple[Any, Any]:
        return self.ours(gx), (self.theirs or self.ours)(optax)


def then_step(brick: Callable[[Any], Any], theirs: Callable[[Any], Any] | None = None) -> Pair:
    """A brick between a little weight decay and a learning rate, so that it sees params and makes a trajectory."""

    def around(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda lib: lib.chain(lib.add_decayed_weights(0.01), make(lib), lib.scale(-RATE))

    return Pair(around(brick), around(theirs) if theirs else None)


RECIPES = {
    "sgd": Pair(lambda lib: lib.sgd(RATE)),
    "sgd-momentum": Pair(lambda lib: lib.sgd(falling, momentum=0.9)),
    "sgd-nesterov": Pair(lambda lib: lib.sgd(RATE, 0.9, True)),
    "rmsprop": Pair(lambda lib: lib.rmsprop(RATE)),
    "rmsprop-outside": Pair(lambda lib: lib.rmsprop(RATE, 0.99, 1e-4, 1.0, False)),
    "rmsprop-centered-momentum": Pair(lambda lib: lib.rmsprop(falling, 0.9, 1e-3, 0.0, True, True, 0.9, True)),
    "rmsprop-corrected": Pair(lambda lib: lib.rmsprop(RATE, bias_correction=True)),
    "adagrad": Pair(lambda lib: lib.adagrad(RATE)),
    "adagrad-decay": Pair(lambda lib: lib.adagrad(falling, 0.5, 1e-3)),
    "adam": Pair(lambda lib: lib.adam(RATE)),
    "adam-all": Pair(lambda lib: lib.adam(falling, 0.8, 0.95, 1e-4, 1e-3, "float32", nesterov=True)),
    "adamw": Pair(lambda lib: lib.adamw(RATE)),
    "adamw-mask": Pair(lambda lib: lib.adamw(falling, weight_decay=0.1, mask=DECAYED, nesterov=True)),
    "adabelief": Pair(lambda lib: lib.adabelief(RATE)),
    "adabelief-nesterov": Pair(lambda lib: lib.adabelief(falling, 0.8, 0.95, 1e-8, 1e-6, nesterov=True)),
    "adafactor": Pair(lambda lib: lib.adafactor(RATE)),
    "adafactor-factored": Pair(
        lambda lib: lib.adafactor(
            falling, 2, momentum=0.9, weight_decay=1e-4, eps=1e-4, clipping_threshold=0.5, mask=DECAYED
        ),
        lambda lib: lib.adafactor(
            falling,
            2,
            momentum=0.9,
            weight_decay_rate=1e-4,
            eps=1e-4,
            clipping_threshold=0.5,
            weight_decay_mask=DECAYED,
        ),
    ),
    "adafactor-bare": Pair(
        lambda lib: lib.adafactor(RATE, 2, 0.6, multiply_by_parameter_scale=False, clipping_threshold=None, eps=1e-6)
    ),
    "amsgrad": Pair(lambda lib: lib.amsgrad(RATE, b2=0.9)),
    "lamb": Pair(lambda lib: lib.lamb(RATE)),
    "lamb-mask": Pair(lambda lib: lib.lamb(falling, weight_decay=0.1, mask=DECAYED)),
    "lars": Pair(lambda lib: lib.lars(RATE)),
    "lars-masks": Pair(lambda lib: lib.lars(falling, 0.01, DECAYED, 0.1, 1e-3, DECAYED, 0.8, True)),
    "lion": Pair(lambda lib: lib.lion(RATE)),
    "lion-decay": Pair(lambda lib: lib.lion(falling, 0.8, 0.9, weight_decay=0.1, mask=DECAYED)),
    "muon": Pair(lambda lib: lib.muon(RATE), lambda lib: lib.contrib.muon(RATE)),
    # Not among the bricks below: optax keeps its coefficients in the state, and scales by the shape elsewhere.
    "scale_by_muon": then_step(
        lambda lib: lib.masked(lib.scale_by_muon(consistent_rms=0.5), gx.path_matches("kernel")),
        lambda lib: lib.masked(
            lib.chain(lib.contrib.scale_by_muon(weight_dimension_numbers=as_matrices), lib.scale(0.5 * 4**0.5)),
            gx.path_matches("kernel"),
        ),
    ),
    "muon-plain": Pair(
        lambda lib: lib.muon(
            falling,
            beta=0.8,
            nesterov=False,
            weight_decay=0.1,
            consistent_rms=0.2,
            matrices=[("attention", (0, (1, 2)))],
            adam_b2=0.9,
            adam_learning_rate=RATE,
        ),
        lambda lib: lib.contrib.muon(
            falling,
            beta=0.8,
            nesterov=False,
            weight_decay=0.1,
            adam_weight_decay=0.1,
            consistent_rms=0.2,
            muon_weight_dimension_numbers={
                "attention": optax.contrib.MuonDimensionNumbers(0, (1, 2)),
                "encoder": {"bias": None, "kernel": None},
            },
            adam_b2=0.9,
            adam_learning_rate=RATE,
        ),
    ),
    "nadam": Pair(lambda lib: lib.nadam(RATE)),
    "nadamw": Pair(lambda lib: lib.nadamw(falling, weight_decay=0.1, mask=DECAYED)),
    "radam": Pair(lambda lib: lib.radam(RATE, b2=0.9)),
    "radam-default": Pair(lambda lib: lib.radam(RATE)),
    "yogi": Pair(lambda lib: lib.yogi(RATE)),
}

BRICKS = {
    "identity": then_step(lambda lib: lib.identity()),
    "set_to_zero": then_step(lambda lib: lib.set_to_zero()),
    "scale": then_step(lambda lib: lib.scale(0.7)),
    "scale_by_learning_rate": then_step(lambda lib: lib.scale_by_learning_rate(0.7, flip_sign=False)),
    "scale_by_schedule": then_step(lambda lib: lib.scale_by_schedule(lambda step: 1.0 / (1.0 + step))),
    "add_decayed_weights": then_step(lambda lib: lib.add_decayed_weights(0.3, DECAYED)),
    "trace": then_step(lambda lib: lib.trace(0.9, True)),
    "ema": then_step(lambda lib: lib.ema(0.9)),
    "clip": then_step(lambda lib: lib.clip(0.5)),
    "clip_by_global_norm": then_step(lambda lib: lib.clip_by_global_norm(2.0)),
    "clip_by_block_rms": then_step(lambda lib: lib.clip_by_block_rms(0.5)),
    "adaptive_grad_clip": then_step(lambda lib: lib.adaptive_grad_clip(0.2)),
    "centralize": then_step(lambda lib: lib.centralize()),
    "scale_by_adam": then_step(lambda lib: lib.scale_by_adam(0.8, 0.9)),
    "scale_by_amsgrad": then_step(lambda lib: lib.scale_by_amsgrad(b2=0.8)),
    "scale_by_belief": then_step(lambda lib: lib.scale_by_belief()),
    "scale_by_yogi": then_step(lambda lib: lib.scale_by_yogi(initial_accumulator_value=0.1)),
    "scale_by_radam": then_step(lambda lib: lib.scale_by_radam(b2=0.9)),
    "scale_by_lion": then_step(lambda lib: lib.scale_by_lion()),
    "scale_by_rms": then_step(lambda lib: lib.scale_by_rms(eps_in_sqrt=False)),
    "scale_by_stddev": then_step(lambda lib: lib.scale_by_stddev(eps=1e-3)),
    "scale_by_rss": then_step(lambda lib: lib.scale_by_rss()),
    "scale_by_factored_rms": then_step(lambda lib: lib.scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=1e-3)),
    "scale_by_param_block_rms": then_step(lambda lib: lib.scale_by_param_block_rms()),
    "scale_by_trust_ratio": then_step(lambda lib: lib.scale_by_trust_ratio(0.1, 0.2, 1e-3)),
    "chain": then_step(lambda lib: lib.chain(lib.clip(0.5), lib.trace(0.5))),
    "named_chain": then_step(lambda lib: lib.named_chain(("clip", lib.clip(0.5)), ("trace", lib.trace(0.5)))),
    "stateless": then_step(lambda lib: lib.stateless(lambda u, p: jax.tree.map(lambda x, w: x + 0.1 * w, u, p))),
    "masked": then_step(lambda lib: lib.masked(lib.scale_by_adam(), DECAYED)),
    "partition": then_step(lambda lib: lib.partition({True: lib.scale_by_adam(), False: lib.trace(0.9)}, DECAYED)),
    "freeze": then_step(lambda lib: lib.freeze(DECAYED), lambda lib: lib.transforms.freeze(DECAYED)),
    "selective_transform": then_step(
        lambda lib: lib.selective_transform(lib.trace(0.9), freeze_mask=DECAYED),
        lambda lib: lib.transforms.selective_transform(lib.trace(0.9), freeze_mask=DECAYED),
    ),
}
PAIRS = RECIPES | BRICKS

# Shared names that make no trajectory: a function of trees, or random numbers, which test_noise.py looks at.
NOT_A_TRAJECTORY = {"apply_updates", "global_norm", "add_noise", "incremental_update"}

# The corrections, with the largest difference from optax's float32 that they make here.
CORRECTED = {
    # optax computes rho as a difference of numbers near 2000 in float32.
    "radam-default": 2e-5,
    # 1 - b2 and 1 - b2**t lose up to four digits in float32. All of the Adam family has it; where the first steps
    # are longest it shows beyond 1e-6.
    "adabelief": 4e-6,
    "scale_by_belief": 4e-6,
}


def optax_has(name: str) -> bool:
    return any(hasattr(module, name) for module in (optax, optax.transforms, optax.contrib))


def test_every_shared_name_is_compared() -> None:
    shared = {name for name in gx.__all__ if optax_has(name) and inspect.isfunction(getattr(gx, name))}
    assert shared - NOT_A_TRAJECTORY == {name.split("-")[0] for name in PAIRS}


@pytest.fixture(scope="module")
def long_problem() -> tuple[Any, Any]:
    return jax.tree.map(jnp.asarray, harness.small(harness.problem(STEPS)))


@pytest.mark.parametrize("name", PAIRS)
def test_same_trajectory_as_optax(name: str, long_problem: tuple[Any, Any]) -> None:
    params, noise = long_problem
    ours, theirs = PAIRS[name].make()
    end, _ = harness.trajectory_of(ours, noise, params)
    optax_end, _ = harness.trajectory_of(theirs, noise, params)
    assert jax.tree.structure(end) == jax.tree.structure(optax_end)
    if name != "set_to_zero":
        assert harness.distance(end, params) > 1e-4  # it went somewhere
    assert harness.distance(end, optax_end) < CORRECTED.get(name, 1e-6)


@pytest.mark.parametrize("name", [*BRICKS, "scale_by_rms-corrected", "scale_by_stddev-corrected", "add_noise"])
def test_same_state_as_optax(name: str) -> None:
    params, _ = harness.small(harness.problem())
    makers: dict[str, Callable[[Any], Any]] = {
        "scale_by_rms-corrected": lambda lib: lib.scale_by_rms(bias_correction=True),
        "scale_by_stddev-corrected": lambda lib: lib.scale_by_stddev(bias_correction=True),
        "add_noise": lambda lib: lib.add_noise(0.1, 0.5, 0 if lib is gx else jax.random.key(0)),
    }
    ours, theirs = (makers[name](gx), makers[name](optax)) if name in makers else PAIRS[name].make()
    state, their_state = ours.init(params), theirs.init(params)
    if name.endswith("-corrected"):
        # optax keeps these states in a class of its own module; the fields are what is shared.
        assert type(state)._fields == type(their_state)._fields
        state, their_state = tuple(state), tuple(their_state)
    assert jax.tree.structure(state) == jax.tree.structure(their_state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        other = dict(jax.tree_util.tree_leaves_with_path(their_state))[path]
        assert leaf.shape == other.shape and leaf.dtype == other.dtype, path


@pytest.mark.parametrize(
    "name",
    [
        "adam",
        "adamw",
        "amsgrad",
        "nadam",
        "adabelief",
        "yogi",
        "radam",
        "lamb",
        "lion",
        "rmsprop",
        "adagrad",
        "sgd",
        "adafactor",
        "lars",
        "nadamw",
    ],
)
def test_a_run_of_optax_goes_on_here(name: str, long_problem: tuple[Any, Any]) -> None:
    """Arrays of an optax state, put in ours: the recipes have the same arrays in the same order."""
    params, _ = long_problem
    ours, theirs = RECIPES[name].make()
    state, their_state = ours.init(params), theirs.init(params)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(state)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(their_state)
    ]


# ---- nearer to the truth than optax ----

NEARER = {
    "adam": (lambda lib: lib.adam(RATE), [oracles.scale_by_adam(), oracles.scale(-RATE)]),
    "adamw": (
        lambda lib: lib.adamw(RATE, weight_decay=0.1),
        [oracles.scale_by_adam(), oracles.add_decayed_weights(0.1), oracles.scale(-RATE)],
    ),
    "nadam": (lambda lib: lib.nadam(RATE), [oracles.scale_by_adam(nesterov=True), oracles.scale(-RATE)]),
    "nadamw": (
        lambda lib: lib.nadamw(RATE, weight_decay=0.1),
        [oracles.scale_by_adam(nesterov=True), oracles.add_decayed_weights(0.1), oracles.scale(-RATE)],
    ),
    "amsgrad": (lambda lib: lib.amsgrad(RATE), [oracles.scale_by_amsgrad(), oracles.scale(-RATE)]),
    "adabelief": (lambda lib: lib.adabelief(RATE), [oracles.scale_by_belief(), oracles.scale(-RATE)]),
    "yogi": (lambda lib: lib.yogi(RATE), [oracles.scale_by_yogi(), oracles.scale(-RATE)]),
    "radam": (lambda lib: lib.radam(RATE), [oracles.scale_by_radam(), oracles.scale(-RATE)]),
    "lamb": (
        lambda lib: lib.lamb(RATE, weight_decay=0.1),
        [
            oracles.scale_by_adam(eps=1e-6),
            oracles.add_decayed_weights(0.1),
            oracles.scale_by_trust_ratio(),
            oracles.scale(-RATE),
        ],
    ),
}


def mean_distance(end: harness.Tree, truth: oracles.Arrays) -> float:
    """The mean over all elements: the largest is one rounding's luck."""
    ends = harness.flat(end)
    return float(np.mean(np.concatenate([np.abs(ends[name] - truth[name]).ravel() for name in truth])))


@pytest.mark.parametrize("name", NEARER)
def test_the_adam_family_is_as_near_the_float64_trajectory_as_optax(name: str, long_problem: tuple[Any, Any]) -> None:
    make, rules = NEARER[name]
    params, noise = long_problem
    truth = harness.oracle_trajectory(oracles.sequence(*rules), noise, params)
    ours = mean_distance(harness.trajectory_of(make(gx), noise, params)[0], truth)
    theirs = mean_distance(harness.trajectory_of(make(optax), noise, params)[0], truth)
    assert ours < 4e-7  # two roundings of a param
    assert ours <= 1.05 * theirs  # within the luck of single roundings


def test_the_first_update_of_adam_keeps_its_digits() -> None:
    """``1 - b2`` and ``1 - b2**t`` in float32 lose up to four digits: the first step shows the loss alone."""
    g = {"w": jnp.linspace(0.1, 3.0, 50)}
    error = {}
    for lib in (gx, optax):
        tx = lib.scale_by_adam(eps=0.0)
        updates, _ = tx.update(g, tx.init(g))
        error[lib] = float(np.abs(np.asarray(updates["w"], np.float64) - 1).max())
    assert error[gx] < 3e-7
    assert error[gx] <= error[optax]


def test_an_average_of_the_weights_has_the_arguments_of_optax(long_problem: tuple[Any, Any]) -> None:
    params, noise = long_problem
    average = jax.tree.map(jnp.zeros_like, params)
    for t in range(3):
        new = harness.at_step(noise, t)
        wanted = optax.incremental_update(new, average, 0.3)
        average = gx.incremental_update(new, average, 0.3)
        assert harness.distance(average, wanted) < 1e-6
    assert gx.incremental_update({"n": jnp.int32(4)}, {"n": jnp.int32(2)}, 0.5) == {"n": 4}
    with pytest.raises(ValueError, match=r"^new_tensors and old_tensors do not fit at 'v': old_tensors: float32\[1\]"):
        gx.incremental_update({"w": jnp.ones(1)}, {"v": jnp.ones(1)}, 0.5)
    with pytest.raises(ValueError, match=r"^step_size: expected a real number >= 0 and <= 1, got 2"):
        gx.incremental_update(params, params, 2.0)
