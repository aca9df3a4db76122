"""Every optimizer: its formula in float64, its weight decay and mask, its schedules, its dtypes, its export."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import gradxform as gx

RATE = 0.02
DECAY = 0.1
KERNELS = {"attention", "conv/0", "encoder/kernel"}
FACTORED = {"attention": (0, 2), "conv/0": (2, 3), "encoder/bias": None, "encoder/kernel": (0, 1), "temperature": None}
LAST = FACTORED | {"attention": (1, 2)}
REST = {*FACTORED}


def falling(step: Any) -> Any:
    return RATE * (1.0 - 0.02 * step)


decay = oracles.add_decayed_weights(DECAY)
down = oracles.scale(-RATE)


def then(*rules: oracles.Rule) -> oracles.Rule:
    return oracles.sequence(*rules)


Case = tuple[Callable[[], gx.Transformation], oracles.Rule]
CASES: dict[str, Case] = {
    "sgd": (lambda: gx.sgd(RATE, 0.9, weight_decay=DECAY), then(decay, oracles.trace(0.9), down)),
    "rmsprop": (
        lambda: gx.rmsprop(falling, centered=True, eps=1e-3, momentum=0.9, nesterov=True, weight_decay=DECAY),
        then(
            oracles.scale_by_rms(0.9, 1e-3, centered=True),
            decay,
            oracles.scale(lambda s: -falling(s)),
            oracles.trace(0.9, True),
        ),
    ),
    "rmsprop-rate-outside": (
        lambda: gx.rmsprop(falling, 0.99, eps=1e-3, eps_in_sqrt=False, momentum=0.9, rate_in_momentum=False),
        then(
            oracles.scale_by_rms(0.99, 1e-3, eps_in_sqrt=False),
            oracles.trace(0.9),
            oracles.scale(lambda s: -falling(s)),
        ),
    ),
    "adagrad": (lambda: gx.adagrad(RATE, weight_decay=DECAY), then(oracles.scale_by_rss(0.1, 1e-7), decay, down)),
    "adam": (lambda: gx.adam(RATE, weight_decay=DECAY), then(oracles.scale_by_adam(), decay, down)),
    "adamw": (
        lambda: gx.adamw(falling, weight_decay=DECAY),
        then(oracles.scale_by_adam(), decay, oracles.scale(lambda s: -falling(s))),
    ),
    "adamw-mask": (
        lambda: gx.adamw(RATE, weight_decay=DECAY, mask=gx.ndim_at_least(2)),
        then(oracles.scale_by_adam(), oracles.add_decayed_weights(DECAY, KERNELS), down),
    ),
    "adamw-decay-schedule": (
        lambda: gx.adamw(RATE, weight_decay=lambda step: 0.01 * step),
        then(oracles.scale_by_adam(), oracles.add_decayed_weights(lambda s: 0.01 * s), down),
    ),
    # Loshchilov and Hutter's own: w -= eta_t (alpha u + lambda w), with alpha = RATE and eta_t = falling / RATE.
    "adamw-paper": (
        lambda: gx.adamw(falling, weight_decay=0.005, base_learning_rate=RATE),
        then(
            oracles.scale_by_adam(),
            oracles.scale(RATE),
            oracles.add_decayed_weights(0.005),
            oracles.scale(lambda s: -falling(s) / RATE),
        ),
    ),
    "adamw-paper-schedules": (
        lambda: gx.adamw(falling, weight_decay=lambda step: 0.001 * step, base_learning_rate=RATE, nesterov=True),
        then(
            oracles.scale_by_adam(nesterov=True),
            oracles.scale(RATE),
            oracles.add_decayed_weights(lambda s: 0.001 * s),
            oracles.scale(lambda s: -falling(s) / RATE),
        ),
    ),
    "adabelief": (lambda: gx.adabelief(RATE, weight_decay=DECAY), then(oracles.scale_by_belief(), decay, down)),
    "adafactor": (
        lambda: gx.adafactor(
            RATE, min_dim_size_to_factor=2, weight_decay=0.01, momentum=0.9, dtype_momentum=jnp.result_type(float)
        ),
        then(
            oracles.scale_by_factored_rms(FACTORED),
            oracles.clip_by_block_rms(1.0),
            oracles.scale(RATE),
            oracles.scale_by_param_block_rms(1e-3),
            oracles.ema(0.9, debias=False),
            oracles.add_decayed_weights(0.01),
            oracles.scale(-1.0),
        ),
    ),
    "adafactor-paper": (
        lambda: gx.adafactor(0.4, min_dim_size_to_factor=2, relative_step=True, factored_axes="last", decay_offset=3),
        then(
            oracles.scale_by_factored_rms(LAST, offset=3),
            oracles.clip_by_block_rms(1.0),
            oracles.scale(lambda s: min(0.4, (s + 1) ** -0.5)),
            oracles.scale_by_param_block_rms(1e-3),
            oracles.scale(-1.0),
        ),
    ),
    "amsgrad": (
        lambda: gx.amsgrad(RATE, b2=0.9, weight_decay=DECAY),
        then(oracles.scale_by_amsgrad(b2=0.9), decay, down),
    ),
    "lamb": (
        lambda: gx.lamb(RATE, weight_decay=DECAY),
        then(oracles.scale_by_adam(eps=1e-6), decay, oracles.scale_by_trust_ratio(), down),
    ),
    "lamb-limit": (
        lambda: gx.lamb(RATE, weight_decay=DECAY, max_trust_ratio=0.8),
        then(oracles.scale_by_adam(eps=1e-6), decay, oracles.scale_by_trust_ratio(largest=0.8), down),
    ),
    "lars": (
        lambda: gx.lars(falling, DECAY, trust_coefficient=0.1),
        then(decay, oracles.scale_by_trust_ratio(0.1), oracles.scale(lambda s: -falling(s)), oracles.trace(0.9)),
    ),
    # You, Gitman and Ginsburg, algorithm 1: the divisor is ||g|| + beta ||w||.
    "lars-paper": (
        lambda: gx.lars(falling, DECAY, trust_coefficient=0.1, eps=1e-3, norm_of_sum=False),
        then(
            oracles.scale_by_trust_ratio(0.1, 1e-3, decay=DECAY),
            oracles.scale(lambda s: -falling(s)),
            oracles.trace(0.9),
        ),
    ),
    "lars-timm": (
        lambda: gx.lars(
            falling, DECAY, trust_coefficient=0.1, norm_of_sum=False, rate_in_momentum=False, nesterov=True
        ),
        then(
            oracles.scale_by_trust_ratio(0.1, decay=DECAY),
            oracles.trace(0.9, True),
            oracles.scale(lambda s: -falling(s)),
        ),
    ),
    "lion": (lambda: gx.lion(RATE, weight_decay=DECAY), then(oracles.scale_by_lion(0.9, 0.99), decay, down)),
    "muon": (
        lambda: gx.muon(falling, weight_decay=DECAY),
        then(
            oracles.on({"encoder/kernel"}, oracles.scale_by_muon({"encoder/kernel": ((0,), (1,))})),
            oracles.on(REST - {"encoder/kernel"}, oracles.scale_by_adam(nesterov=True)),
            decay,
            oracles.scale(lambda s: -falling(s)),
        ),
    ),
    "muon-matrices": (
        lambda: gx.muon(
            RATE,
            bias_correction=False,
            matrices=[("conv", ((0, 1, 2), 3)), ("attention", (0, (1, 2))), (gx.ndim_at_least(2), (-2, -1))],
            adam_learning_rate=0.1,
            consistent_rms=0.2,
            weight_decay=DECAY,
            mask=gx.ndim_at_least(2),
        ),
        then(
            oracles.scale_by_muon(
                {"conv/0": ((0, 1, 2), (3,)), "attention": ((0,), (1, 2)), "encoder/kernel": ((0,), (1,))},
                corrected=False,
                rms_of=0.2,
            ),
            oracles.on(REST - KERNELS, oracles.scale_by_adam(nesterov=True)),
            oracles.add_decayed_weights(DECAY, KERNELS),
            oracles.on(KERNELS, down),
            oracles.on(REST - KERNELS, oracles.scale(-0.1)),
        ),
    ),
    "nadam": (lambda: gx.nadam(RATE, weight_decay=DECAY), then(oracles.scale_by_adam(nesterov=True), decay, down)),
    "nadam-torch": (lambda: gx.nadam(RATE, momentum_decay=4e-3), then(oracles.scale_by_nadam(), down)),
    "nadamw": (
        lambda: gx.nadamw(RATE, weight_decay=DECAY, momentum_decay=0.1),
        then(oracles.scale_by_nadam(momentum_decay=0.1), decay, down),
    ),
    "radam": (lambda: gx.radam(RATE, weight_decay=DECAY), then(oracles.scale_by_radam(), decay, down)),
    "yogi": (lambda: gx.yogi(RATE, weight_decay=DECAY), then(oracles.scale_by_yogi(), decay, down)),
    "yogi-paper": (
        lambda: gx.yogi(RATE, bias_correction=False, initialize_mu=False),
        then(oracles.scale_by_yogi(bias_correction=False, initial_m=0.0), down),
    ),
}


def test_every_recipe_has_a_formula() -> None:
    tested = {name.split("-")[0] for name in CASES}
    assert tested == set(harness.RECIPES), "a case in CASES above, and in RECIPES of tests/harness.py"
    optimizers = {
        name
        for name in gx.__all__
        if "learning_rate" in getattr(getattr(gx, name), "__wrapped__", lambda: 0).__annotations__
        and not name.startswith("scale_by")
    }
    assert optimizers == set(harness.RECIPES), "RECIPES of tests/harness.py has every optimizer"


@pytest.mark.parametrize("name", CASES)
def test_recipe_follows_its_formula(name: str) -> None:
    """In float64, where a wrong term shows; the float32 of bricks and chains has tests of its own."""
    make, rule = CASES[name]
    params, noise = harness.problem()
    noise = harness.first(noise)
    wanted = harness.oracle_trajectory(rule, noise, params)
    with harness.precision(64) as dtype:
        cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)  # noqa: E731
        end, _ = harness.trajectory_of(make(), cast(noise), cast(params), eager=True)
    for path, leaf in harness.flat(end).items():
        assert np.abs(wanted[path] - harness.flat(params)[path]).max() > 1e-3
        np.testing.assert_allclose(leaf, wanted[path], rtol=0, atol=1e-12, err_msg=path)


# ---- weight decay, masks and schedules by one name in all ----


@pytest.mark.parametrize("name", harness.RECIPES)
def test_signature(name: str) -> None:
    parameters = list(inspect.signature(getattr(gx, name)).parameters)
    assert parameters[0] == "learning_rate"
    assert "weight_decay" in parameters and "mask" in parameters


@pytest.mark.parametrize("name", harness.RECIPES)
def test_decay_and_its_mask(name: str) -> None:
    params, gradients = harness.problem()
    g = harness.at_step(gradients, 0)
    first = lambda **k: harness.flat(harness.one_step(harness.recipe(name, RATE, **k), g, params)[0])  # noqa: E731
    plain, everywhere = first(weight_decay=0.0), first(weight_decay=0.5)
    kernels = first(weight_decay=0.5, mask=gx.ndim_at_least(2))
    for path in harness.PATHS:
        wanted = everywhere if path in KERNELS else plain
        np.testing.assert_allclose(kernels[path], wanted[path], rtol=1e-6, atol=1e-9)
        changed = np.abs(everywhere[path] - plain[path]).max() > 1e-2 * np.abs(plain[path]).max()
        # The ratio of a scalar: lars and lamb scale any update of it to one size.
        assert changed or (path == "temperature" and name in ("lars", "lamb"))


@pytest.mark.parametrize("name", harness.RECIPES)
def test_schedules_are_evaluated_at_the_steps_made(name: str) -> None:
    """A schedule that is constant is that constant, and a rate of zero moves nothing."""
    params, gradients = (tree["encoder"] for tree in harness.problem())
    noise = harness.first(gradients, 4)
    run = lambda **k: harness.trajectory_of(harness.recipe(name, **k), noise, params, eager=True)  # noqa: E731
    constant, _ = run(learning_rate=RATE, weight_decay=0.25)
    scheduled, state = run(learning_rate=gx.schedules.constant(RATE), weight_decay=gx.schedules.constant(0.25))
    assert harness.distance(constant, scheduled) < 1e-6
    counts = [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
    assert counts and set(counts) == {4}
    # The rate is not zero at step 2 alone.
    rate = lambda step: jnp.where(step == 2, RATE, 0.0)  # noqa: E731
    tx = harness.recipe(name, rate, weight_decay=0.0)
    updates, _ = harness.eager_updates_of(tx, noise, params)
    moved = [bool(np.any(updates["kernel"][t])) for t in range(4)]
    outlasts = name in ("rmsprop", "lars", "adafactor")  # the rate is inside a momentum
    assert moved == [False, False, True, outlasts]


# ---- the training step ----


def training_step(tx: gx.Transformation) -> Callable[..., Any]:
    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"])
            return jnp.mean((hidden @ params["out"] - y) ** 2)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return gx.apply_updates(params, updates), state, value

    return step


def model() -> tuple[Any, jax.Array, jax.Array]:
    random = np.random.RandomState(0)
    params = {
        "in": {"bias": jnp.zeros(8), "kernel": jnp.asarray(random.standard_normal((4, 8)), jnp.float32)},
        "out": jnp.asarray(random.standard_normal((8, 1)), jnp.float32),
    }
    x = jnp.asarray(random.standard_normal((16, 4)), jnp.float32)
    return params, x, jnp.sum(x, axis=1, keepdims=True)


@pytest.mark.parametrize("name", harness.RECIPES)
def test_the_training_step_exports_for_every_platform(name: str) -> None:
    params, x, y = model()
    rate = gx.schedules.warmup(2, gx.schedules.cosine(1e-2, 10, 1e-4))
    tx = gx.chain(
        gx.record_norms(),
        gx.clip_by_global_norm(1.0),
        harness.recipe(name, rate, weight_decay=1e-3, mask=gx.ndim_at_least(2)),
    )
    state = tx.init(params)
    step = training_step(tx)
    flatten = lambda *a: jax.tree.leaves(step(*jax.tree.unflatten(structure, a)))  # noqa: E731
    leaves, structure = jax.tree.flatten((params, state, x, y))
    exported = jax.export.export(jax.jit(flatten), platforms=("cpu", "cuda", "tpu"))(*leaves)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    if name == "adamw":
        for a, b in zip(exported.call(*leaves), jax.tree.leaves(step(params, state, x, y)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", harness.RECIPES)
def test_the_second_step_does_not_compile_again(name: str) -> None:
    params, x, y = model()
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    tx = harness.recipe(name, gx.schedules.constant(0.01), weight_decay=np.float64(0.01))
    step, state = training_step(tx), tx.init(params)
    for _ in range(3):
        params, state, _ = step(params, state, x, y)
    assert step._cache_size() == 1
    assert {str(p.dtype) for p in jax.tree.leaves(params)} == {"bfloat16"}


def test_a_new_learning_rate_does_not_compile_again() -> None:
    params, _, _ = model()
    compiled = jax.jit(lambda tx, params, state: tx.update(params, state, params)[0])
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1))
    state = tx.init(params)
    one = compiled(tx, params, state)
    two = compiled(gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.2, weight_decay=2e-4)), params, state)
    assert compiled._cache_size() == 1
    np.testing.assert_allclose(two["out"], 2 * one["out"], rtol=1e-3)


STACKED = {
    "lamb": lambda **more: gx.lamb(0.1, weight_decay=0.01, **more),
    "lars": lambda **more: gx.lars(0.1, weight_decay=0.01, trust_coefficient=0.5, **more),
    "lars-norms": lambda **more: gx.lars(0.1, weight_decay=0.01, trust_coefficient=0.5, norm_of_sum=False, **more),
    "lamb-kernels": lambda **more: gx.lamb(
        0.1, trust_ratio_mask=gx.path_matches("kernel"), max_trust_ratio=2.0, **more
    ),
}


@pytest.mark.parametrize("name", STACKED)
def test_stacked_layers_move_as_they_do_apart(name: str) -> None:
    params, gradients = (
        {
            "blocks": {
                "kernel": x[:, :6].reshape(3, 2, 3) * jnp.array([1.0, 30.0, 0.0])[:, None, None],
                "scale": x[:, 6:],
            },
            "head": {"kernel": x},
        }
        for x in np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    )

    def apart(tree: Any) -> Any:
        return {"head": tree["head"]} | {str(i): jax.tree.map(lambda x, i=i: x[i], tree["blocks"]) for i in range(3)}

    own, other = STACKED[name](stacked=gx.path_matches("^blocks/")), STACKED[name]()
    state, other_state = own.init(params), other.init(apart(params))
    for _ in range(2):
        updates, state = own.update(gradients, state, params)
        wanted, other_state = other.update(apart(gradients), other_state, apart(params))
        for a, b in zip(jax.tree.leaves(apart(updates)), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_ratio_for_each_layer_along_an_axis() -> None:
    params = {"k": jnp.stack([jnp.ones((2, 2)), 100 * jnp.ones((2, 2))])}
    gradients = {"k": jnp.ones((2, 2, 2))}
    tx = gx.lamb(1.0, stacked=True)
    np.testing.assert_allclose(tx.update(gradients, tx.init(params), params)[0]["k"][:, 0, 0], [-1, -100], rtol=1e-5)
    last = gx.scale_by_trust_ratio(layer_axis=-1)
    moved = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), params)
    np.testing.assert_allclose(last.update(gradients, last.init(moved), moved)[0]["k"][0, 0], [1, 100], rtol=1e-6)
    with pytest.raises(ValueError, match=r"layer_axis: expected leaves with an axis 3, got shape \(2, 2, 2\)"):
        gx.scale_by_trust_ratio(layer_axis=3).update(gradients, last.init(params), params)
