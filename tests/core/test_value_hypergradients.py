"""Gradients with respect to a transformation, against finite differences in float64."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx

pytestmark = pytest.mark.long

STEPS = 4
CURVATURE = {"w": np.array([[1.0, 0.3], [2.0, 0.7]]), "b": np.array([0.5, 0.0])}
START = {"w": np.array([[0.9, -0.4], [0.6, 1.2]]), "b": np.array([0.8, 0.3])}
ZERO = {name: np.zeros_like(value) for name, value in START.items()}

cosine = gx.schedules.cosine
RECIPES: dict[str, gx.Transformation] = {
    "sgd": gx.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": gx.adam(0.1, eps_root=1e-3),
    "adamw": gx.adamw(0.1, weight_decay=0.1, base_learning_rate=0.2),
    "nadamw": gx.nadamw(0.1, momentum_decay=0.004),
    "amsgrad": gx.amsgrad(0.1),
    "radam": gx.radam(0.1, b2=0.9),
    "adabelief": gx.adabelief(0.1, eps=1e-4, eps_root=1e-4),
    "yogi": gx.yogi(0.1),
    "rmsprop": gx.rmsprop(0.1, centered=True, momentum=0.5, initial_scale=0.1, eps=1e-4),
    "adagrad": gx.adagrad(0.1),
    "muon": gx.muon(0.1, weight_decay=0.1, adam_learning_rate=0.05),
    "lars": gx.lars(0.1, weight_decay=0.1, trust_coefficient=0.5),
    "lamb": gx.lamb(0.1, weight_decay=0.1),
    # A moment in float32 would round away what a difference has to see.
    "adafactor": gx.adafactor(
        0.1, min_dim_size_to_factor=2, weight_decay=0.1, momentum=0.5, eps=1e-3, dtype_momentum="float64"
    ),
    "smooth lion": gx.chain(gx.scale_by_lion(mode="smooth"), gx.scale(-0.1)),
    "schedule and clip": gx.chain(gx.clip_by_global_norm(0.5), gx.adamw(cosine(0.1, 10, 0.01), weight_decay=0.05)),
    "other clips": gx.chain(
        gx.clip_by_block_rms(0.2),
        gx.adaptive_grad_clip(0.05),
        gx.sgd(gx.schedules.warmup(2, gx.schedules.polynomial(0.1, 0.01, 10, 2.0))),
    ),
    "one cycle": gx.sgd(
        gx.schedules.one_cycle(0.1, 10, warmup_fraction=0.25), weight_decay=gx.schedules.linear(0.1, 0.0, 5)
    ),
    "combinators": gx.chain(
        gx.accumulate(gx.skip_nonfinite(gx.adam(0.1), 3, raise_in_jit=False), 2),
        gx.partition({"a": gx.ema(0.5), "b": gx.scale(0.5)}, {"w": "a", "b": "b"}),
    ),
}
# Each shares its structure with one of the above where it can, so that it shares the compiled function too.
ENDS: tuple[gx.Transformation, ...] = (
    RECIPES["adam"].replace(b1=0.0),
    RECIPES["adam"].replace(b2=0.0),
    RECIPES["adam"].replace(eps=0.0, eps_root=0.0),
    RECIPES["adam"].replace(learning_rate=0.0),
    RECIPES["sgd"].replace(momentum=0.0, weight_decay=0.0),
    RECIPES["adamw"].replace(weight_decay=0.0, b1=0.0),
    RECIPES["rmsprop"].replace(decay=0.0, initial_scale=0.0),
    RECIPES["lamb"].replace(weight_decay=0.0, eps=0.0),
    RECIPES["lars"].replace(weight_decay=0.0, eps=0.0),
    gx.chain(gx.clip_by_global_norm(0.0), gx.adamw(cosine(0.0, 10, 0.0), weight_decay=0.0)),
    gx.adagrad(0.1, initial_accumulator_value=0.0, eps=0.0),
    gx.chain(gx.add_noise(0.0, 0.55, 0), gx.sgd(0.1)),
)


def loss_after_training(tx: gx.Transformation, start: Any = START) -> jax.Array:
    """A few steps on a valley; one weight has a gradient of zero in every step."""
    dtype = jnp.result_type(float)
    curvature, params = jax.tree.map(lambda x: jnp.asarray(x, dtype), (CURVATURE, start))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        gradient = jax.tree.map(lambda c, p: 2 * c * p, curvature, params)
        updates, state = tx.update(gradient, state, params)
        return (gx.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, length=STEPS)
    losses = jax.tree.map(lambda c, p: jnp.sum(c * p**2), curvature, params)
    return sum(jax.tree.leaves(losses)) + 0.1 * jnp.sum(params["b"])


value_and_grad = jax.jit(jax.value_and_grad(loss_after_training))


def paths(tx: gx.Transformation) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tx)
    ]


def not_finite(gradient: gx.Transformation) -> list[str]:
    return [
        path for path, slope in zip(paths(gradient), jax.tree.leaves(gradient), strict=True) if not math.isfinite(slope)
    ]


def central_differences(tx: gx.Transformation) -> list[float]:
    """By Richardson's extrapolation of two central differences, for every number in ``tx``."""
    leaves, treedef = jax.tree.flatten(tx)

    def at(i: int, value: float) -> float:
        return float(value_and_grad(jax.tree.unflatten(treedef, [*leaves[:i], value, *leaves[i + 1 :]]), START)[0])

    slopes = []
    for i, x in enumerate(leaves):
        # A step must stay in the range in which the arithmetic has a meaning.
        h = 1e-4 * min(abs(x), 1 - x if x < 1 else x) if x else 1e-6
        wide, narrow = ((at(i, x + k * h) - at(i, x - k * h)) / (2 * k * h) for k in (2, 1))
        slopes.append((4 * narrow - wide) / 3)
    return slopes


@pytest.mark.parametrize("name", RECIPES)
def test_hypergradients_match_finite_differences(name: str) -> None:
    tx = RECIPES[name]
    with jax.enable_x64(True):
        value, gradient = value_and_grad(tx, START)
        assert type(gradient) is gx.Transformation
        assert jax.tree.structure(gradient) == jax.tree.structure(tx)
        assert value.dtype == jnp.float64
        expected = central_differences(tx)
        # Without any gradient every second moment and every norm is 0.
        assert not_finite(value_and_grad(tx, ZERO)[1]) == []
    assert not_finite(gradient) == []
    for path, ours, theirs, number in zip(
        paths(tx), jax.tree.leaves(gradient), expected, jax.tree.leaves(tx), strict=True
    ):
        # Beside 0 and at 1e-8 a difference has no digits left.
        if number != 0 and not path.endswith(("eps", "eps_root")):
            assert float(ours) == pytest.approx(theirs, rel=2e-5, abs=1e-8), path
    assert any(abs(float(slope)) > 1e-3 for slope in jax.tree.leaves(gradient))


@pytest.mark.parametrize("i", range(len(ENDS)))
def test_hypergradients_at_the_ends_of_ranges_are_finite(i: int) -> None:
    with jax.enable_x64(True):
        for start in (START, ZERO):
            assert not_finite(value_and_grad(ENDS[i], start)[1]) == [], ENDS[i]


def test_hypergradients_in_float32() -> None:
    for name in ("schedule and clip", "lamb"):
        tx = RECIPES[name]
        _, narrow = value_and_grad(tx, START)
        with jax.enable_x64(True):
            _, wide = value_and_grad(tx, START)
        assert not_finite(narrow) == []
        for path, a, b in zip(paths(tx), jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
            assert float(a) == pytest.approx(float(b), rel=2e-2, abs=1e-4), path


def test_a_hypergradient_by_hand() -> None:
    """One step of gradient descent on w**2 / 2 from 1: (1 - rate)**2 / 2 has the slope -(1 - rate)."""

    def loss(tx: gx.Transformation) -> jax.Array:
        params = {"w": jnp.float32(1.0)}
        updates, _ = tx.update(params, tx.init(params), params)
        return gx.apply_updates(params, updates)["w"] ** 2 / 2

    slope = jax.grad(loss)(gx.sgd(0.25)).arguments["learning_rate"]
    assert float(slope) == pytest.approx(-0.75, rel=1e-6)
    # The clip holds the gradient of 1 at 0.5: (1 - rate * clip)**2 / 2.
    tx = gx.chain(gx.clip_by_global_norm(0.5), gx.sgd(0.25))
    clip, rate = (part.arguments for part in jax.grad(loss)(tx).arguments["transformations"])
    clip, rate = clip["max_norm"], rate["learning_rate"]
    assert float(clip) == pytest.approx(-0.25 * 0.875, rel=1e-6)
    assert float(rate) == pytest.approx(-0.5 * 0.875, rel=1e-6)


def test_a_value_can_be_optimized_like_params() -> None:
    """Tuning the learning rate and the momentum by Adam on the loss after training."""
    meta = gx.adam(0.02)
    tx = jax.tree.map(jnp.float32, gx.sgd(0.05, momentum=0.5))
    state = meta.init(tx)
    losses = []
    for _ in range(5):
        value, gradient = value_and_grad(tx, START)
        losses.append(float(value))
        updates, state = meta.update(gradient, state, tx)
        tx = gx.apply_updates(tx, updates)
        assert type(tx) is gx.Transformation
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_second_derivatives_are_finite() -> None:
    assert math.isfinite(jax.jit(jax.hessian(lambda rate: loss_after_training(gx.adam(rate))))(0.1))


def test_forward_mode_agrees_with_reverse_mode() -> None:
    tx = RECIPES["schedule and clip"]
    leaves, treedef = jax.tree.flatten(tx)
    with jax.enable_x64(True):
        forward = jax.jit(jax.jacfwd(lambda numbers: loss_after_training(jax.tree.unflatten(treedef, numbers))))(leaves)
        backward = jax.tree.leaves(value_and_grad(tx, START)[1])
    np.testing.assert_allclose(forward, backward, rtol=1e-9, atol=1e-12)
