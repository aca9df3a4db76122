"""hyperparams, metrics and record_norms: what is shown, under which path, at which step."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradxform as gx

pytestmark = pytest.mark.long

PARAMS = {"body": {"bias": jnp.ones(2), "kernel": jnp.full((2, 2), 2.0)}, "head": jnp.full(3, -1.0)}
GRADIENTS = jax.tree.map(lambda p: 3.0 * p, PARAMS)

rate = gx.schedules.linear(1.0, 0.0, 10)
decay = gx.schedules.linear(0.5, 0.1, 4)


def after(tx: Any, steps: int) -> Any:
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    for _ in range(steps):
        _, state = update(GRADIENTS, state, PARAMS)
    return state


def shown(tx: Any, steps: int) -> dict[str, float]:
    return {name: float(value) for name, value in gx.hyperparams(tx, after(tx, steps)).items()}


BODY = {"body": True, "head": False}
CASES: dict[str, tuple[Callable[[], gx.Transformation], dict[str, float]]] = {
    # after three steps
    "recipe": (lambda: gx.sgd(rate, momentum=0.9), {"learning_rate": 0.7, "momentum": 0.9}),
    "two schedules": (
        lambda: gx.adamw(rate, weight_decay=decay),
        {"learning_rate": 0.7, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0, "weight_decay": 0.2},
    ),
    "optax schedule": (lambda: gx.sgd(optax.linear_schedule(1.0, 0.0, 10)), {"learning_rate": 0.7}),
    "function": (lambda: gx.scale_by_schedule(lambda step: 2.0 * step), {"step_size_fn": 6.0}),
    "chain": (
        lambda: gx.chain(gx.clip_by_global_norm(1.0), gx.trace(0.8), gx.scale_by_learning_rate(rate)),
        {"0/max_norm": 1.0, "0/eps": 0.0, "1/decay": 0.8, "2/learning_rate": 0.7},
    ),
    "nested chains": (
        lambda: gx.chain(gx.clip(2.0), gx.chain(gx.ema(0.5), gx.sgd(rate))),
        {"0/max_delta": 2.0, "1/0/decay": 0.5, "1/1/learning_rate": 0.7},
    ),
    "named_chain": (
        lambda: gx.named_chain(("clip", gx.clip(2.0)), ("rate", gx.scale_by_schedule(rate))),
        {"clip/max_delta": 2.0, "rate/step_size_fn": 0.7},
    ),
    "masked": (lambda: gx.masked(gx.sgd(rate), BODY), {"inner/learning_rate": 0.7}),
    "partition": (
        lambda: gx.partition(
            {"fast": gx.sgd(rate), "slow": gx.chain(gx.sgd(0.1), gx.scale_by_schedule(decay))},
            {"body": "fast", "head": "slow"},
        ),
        {
            "transforms/fast/learning_rate": 0.7,
            "transforms/slow/0/learning_rate": 0.1,
            "transforms/slow/1/step_size_fn": 0.2,
        },
    ),
    "partition of another mapping": (
        lambda: gx.partition(
            collections.OrderedDict(a=gx.sgd(rate), b=gx.chain(optax.MultiSteps(gx.sgd(decay), 1))),
            {"body": "a", "head": "b"},
        ),
        {"transforms/a/learning_rate": 0.7, "transforms/b/0/inner_opt_state/learning_rate": 0.2},
    ),
    "selective": (lambda: gx.selective_transform(gx.sgd(rate), freeze_mask=BODY), {"optimizer/learning_rate": 0.7}),
    # Three micro-batches, one step of two: the schedule counts steps.
    "accumulate": (lambda: gx.accumulate(gx.sgd(rate), 2), {"every": 2, "tx/learning_rate": 0.9}),
    "skip_nonfinite": (
        lambda: gx.skip_nonfinite(gx.chain(gx.clip(1.0), gx.sgd(rate)), 5),
        {"max_consecutive": 5, "tx/0/max_delta": 1.0, "tx/1/learning_rate": 0.7},
    ),
    "masked decay": (lambda: gx.add_decayed_weights(decay, BODY), {"weight_decay": 0.2}),
    "deep": (
        lambda: gx.chain(
            gx.record_norms(),
            gx.accumulate(
                gx.skip_nonfinite(gx.named_chain(("a", gx.masked(gx.sgd(rate), BODY)), ("b", gx.freeze(BODY))), 3), 1
            ),
        ),
        {"1/every": 1, "1/tx/max_consecutive": 3, "1/tx/tx/a/inner/learning_rate": 0.7},
    ),
    "beside optax": (
        lambda: gx.chain(optax.scale_by_adam(), gx.scale_by_learning_rate(rate)),
        {"1/learning_rate": 0.7},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_hyperparams_by_path_at_the_state_of_the_step(name: str) -> None:
    make, wanted = CASES[name]
    got = shown(make(), 3)
    numbers = {key: value for key, value in got.items() if key in wanted}
    assert numbers == pytest.approx(wanted, rel=1e-5)
    assert set(got) == set(wanted)


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_is_shown_is_what_replace_takes(name: str) -> None:
    tx = CASES[name][0]()
    state = tx.init(PARAMS)
    for path, value in gx.hyperparams(tx, state).items():
        if isinstance(value, float):
            assert gx.hyperparams(tx.replace({path: 0.5 * value}), state)[path] == 0.5 * value


@pytest.mark.parametrize("name", harness.RECIPES)
def test_a_recipe_shows_its_schedule_and_its_numbers(name: str) -> None:
    tx = harness.recipe(name, rate, weight_decay=0.25)
    got = shown(tx, 4)
    assert got["learning_rate"] == pytest.approx(0.6, rel=1e-5)
    assert got["weight_decay"] == 0.25
    for key, value in tx.arguments.items():
        if isinstance(value, float):
            assert got[key] == value
    assert all("/" not in key for key in got)


def test_hyperparams_before_the_first_step_and_inside_jit() -> None:
    tx = gx.adam(rate)
    assert float(gx.hyperparams(tx, tx.init(PARAMS))["learning_rate"]) == 1.0

    @jax.jit
    def step(state: Any) -> Any:
        _, state = tx.update(GRADIENTS, state, PARAMS)
        return state, gx.hyperparams(tx, state)["learning_rate"]

    state, first = step(tx.init(PARAMS))
    _, second = step(state)
    np.testing.assert_allclose([first, second], [0.9, 0.8], rtol=1e-6)


def test_hyperparams_of_a_traced_transformation() -> None:
    tx = gx.adam(0.25)
    state = tx.init(PARAMS)
    seen = jax.jit(lambda tx: gx.hyperparams(tx, state)["learning_rate"])(tx)
    assert float(seen) == 0.25


def test_hyperparams_refuses_a_state_of_another_kind() -> None:
    with pytest.raises(ValueError, match="state"):
        gx.hyperparams(gx.scale_by_schedule(rate), gx.scale(1.0).init(PARAMS))
    with pytest.raises(ValueError, match="state"):
        gx.hyperparams(gx.chain(gx.scale(1.0), gx.sgd(rate)), gx.chain(gx.scale(1.0)).init(PARAMS))


# ---- ours inside another library's ----


inject = optax.inject_hyperparams
THEIRS: dict[str, tuple[Callable[[], Any], list[dict[str, float]]]] = {
    # before the first step, after one, after three
    "chain": (
        lambda: optax.chain(optax.scale_by_adam(), gx.sgd(rate), optax.clip(1.0), gx.chain(gx.clip(2.0), gx.sgd(rate))),
        [{"1/learning_rate": x, "3/0/max_delta": 2.0, "3/1/learning_rate": x} for x in (1.0, 0.9, 0.7)],
    ),
    "twins": (  # one state for two of ours and one of theirs
        lambda: optax.chain(optax.sgd(0.3), gx.sgd(0.2), gx.sgd(0.1)),
        [{"1/learning_rate": 0.2, "2/learning_rate": 0.1}] * 3,
    ),
    "named_chain": (
        lambda: optax.named_chain(("a", optax.sgd(rate)), ("b", gx.sgd(rate))),
        [{"b/learning_rate": x} for x in (1.0, 0.9, 0.7)],
    ),
    # Three micro-batches, one step of two.
    "MultiSteps": (
        lambda: optax.MultiSteps(gx.sgd(rate), 2),
        [{"inner_opt_state/learning_rate": x} for x in (1.0, 1.0, 0.9)],
    ),
    "MultiSteps as a pair": (
        lambda: optax.MultiSteps(gx.chain(gx.clip(2.0), gx.sgd(rate)), 2).gradient_transformation(),
        [{"inner_opt_state/0/max_delta": 2.0, "inner_opt_state/1/learning_rate": x} for x in (1.0, 1.0, 0.9)],
    ),
    "inject_hyperparams": (
        lambda: inject(gx.sgd)(0.25, momentum=0.5),
        [{"inner_state/learning_rate": 0.25, "inner_state/momentum": 0.5}] * 3,
    ),
    # What optax keeps is the rate of the last update; a schedule that it leaves alone is ours.
    "inject_hyperparams of a schedule": (
        lambda: inject(gx.sgd)(rate),
        [{"inner_state/learning_rate": x} for x in (1.0, 1.0, 0.8)],
    ),
    "inject_hyperparams beside a schedule": (
        lambda: inject(gx.sgd, static_args="learning_rate")(rate, momentum=0.5),
        [{"inner_state/learning_rate": x, "inner_state/momentum": 0.5} for x in (1.0, 0.9, 0.7)],
    ),
    "inject_hyperparams in MultiSteps in a chain": (
        lambda: optax.chain(optax.clip(1.0), optax.MultiSteps(inject(gx.sgd)(rate), 2).gradient_transformation()),
        [{"1/inner_opt_state/inner_state/learning_rate": 1.0}] * 3,
    ),
    "masked": (
        lambda: optax.masked(gx.sgd(rate), gx.path_matches("body")),
        [{"inner_state/learning_rate": x} for x in (1.0, 0.9, 0.7)],
    ),
    "partition": (
        lambda: optax.partition(
            {"a": gx.sgd(rate), "b": optax.sgd(rate), "c": gx.sgd(decay)}, {"body": "a", "head": "b"}
        ),
        [
            {"inner_states/a/inner_state/learning_rate": a, "inner_states/c/inner_state/learning_rate": c}
            for a, c in ((1.0, 0.5), (0.9, 0.4), (0.7, 0.2))
        ],
    ),
    "apply_if_finite": (
        lambda: optax.apply_if_finite(gx.adam(rate, eps=0.5), 3),
        [
            {
                "inner_state/learning_rate": x,
                "inner_state/b1": 0.9,
                "inner_state/b2": 0.999,
                "inner_state/eps": 0.5,
                "inner_state/eps_root": 0.0,
            }
            for x in (1.0, 0.9, 0.7)
        ],
    ),
    "in ours": (
        lambda: gx.chain(gx.clip(2.0), optax.chain(optax.clip(1.0), gx.sgd(rate))),
        [{"0/max_delta": 2.0, "1/1/learning_rate": x} for x in (1.0, 0.9, 0.7)],
    ),
    "a pair of ours": (
        lambda: optax.GradientTransformation(*gx.sgd(rate)),
        [{"learning_rate": x} for x in (1.0, 0.9, 0.7)],
    ),
    # Shown nowhere: what is only made when its init is called may be another in the next update.
    "a factory between": (lambda: inject(lambda learning_rate: gx.sgd(2 * learning_rate))(0.25), [{}] * 3),
    "made anew by a wrapper": (
        lambda: optax.GradientTransformation(
            lambda params: gx.sgd(0.25).init(params), lambda u, s, p=None: gx.sgd(0.125).update(u, s, p)
        ),
        [{}] * 3,
    ),
    "a chain made anew": (lambda: inject(lambda rate: optax.chain(gx.sgd(rate)))(0.25), [{}] * 3),
    "no placeholder taken": (lambda: optax.flatten(gx.sgd(rate)), [{}] * 3),
    "none of ours": (lambda: optax.adamw(rate), [{}] * 3),
}


@pytest.mark.parametrize("name", THEIRS)
def test_hyperparams_of_ours_inside_theirs(name: str) -> None:
    make, wanted = THEIRS[name]
    tx = make()
    for steps, numbers in zip((0, 1, 3), wanted, strict=True):
        assert shown(tx, steps) == pytest.approx(numbers, rel=1e-5)


def test_a_number_set_in_the_state_of_inject_hyperparams_is_shown() -> None:
    tx = inject(gx.sgd)(0.25)
    state = tx.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.float32(0.125)
    assert float(gx.hyperparams(tx, state)["inner_state/learning_rate"]) == 0.125
    updates, _ = tx.update(GRADIENTS, state, PARAMS)
    assert float(updates["head"][0]) == 0.375  # the rate of the next update, as shown


def test_hyperparams_inside_theirs_inside_jit() -> None:
    tx = optax.chain(optax.clip(1.0), inject(gx.sgd)(0.25), gx.sgd(rate))

    @jax.jit
    def step(state: Any) -> Any:
        return gx.hyperparams(tx, tx.update(GRADIENTS, state, PARAMS)[1])

    got = {key: float(value) for key, value in step(tx.init(PARAMS)).items()}
    assert got == pytest.approx({"1/inner_state/learning_rate": 0.25, "2/learning_rate": 0.9})


def test_hyperparams_refuses_a_state_that_is_not_that_of_theirs() -> None:
    tx = optax.chain(optax.clip(1.0), gx.sgd(rate))
    with pytest.raises(ValueError, match="state: expected the state of tx, got a tuple"):
        gx.hyperparams(tx, tx.init(PARAMS)[:1])
    with pytest.raises(ValueError, match="sgd: expected the state"):
        gx.hyperparams(tx, optax.chain(optax.clip(1.0), optax.clip(1.0)).init(PARAMS))


def test_hyperparams_refuses_what_is_no_transformation_and_a_missing_state() -> None:
    with pytest.raises(TypeError, match=r"tx: expected a transformation.* got int"):
        gx.hyperparams(3, ())
    with pytest.raises(TypeError, match="state: expected the state of tx"):
        gx.hyperparams(gx.sgd(rate))


# ---- record_norms ----


def norm(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(x) ** 2) for x in harness.flat(tree).values())))


def metrics_of(tx: gx.Transformation, gradients: Any = GRADIENTS, params: Any = PARAMS) -> dict[str, float]:
    state = tx.init(params)
    _, state = tx.update(gradients, state, params)
    return {name: float(value) for name, value in gx.metrics(state).items()}


def test_norms_recorded_before_the_clip() -> None:
    got = metrics_of(gx.chain(gx.record_norms(), gx.clip_by_global_norm(2.0), gx.sgd(0.5)))
    wanted = {"gradient_norm": norm(GRADIENTS), "update_norm": 1.0, "param_norm": norm(PARAMS)}
    assert got == pytest.approx(wanted, rel=1e-6)


def test_norms_recorded_after_the_clip() -> None:
    got = metrics_of(gx.chain(gx.clip_by_global_norm(2.0), gx.record_norms(), gx.sgd(0.5)))
    wanted = {"gradient_norm": 2.0, "update_norm": 1.0, "param_norm": norm(PARAMS)}
    assert got == pytest.approx(wanted, rel=1e-6)


def test_the_update_norm_is_that_of_the_outermost_chain() -> None:
    inner = gx.chain(gx.chain(gx.record_norms(), gx.clip_by_global_norm(2.0)), gx.sgd(0.5))
    assert metrics_of(gx.chain(inner, gx.scale(3.0)))["update_norm"] == pytest.approx(3.0, rel=1e-6)


def test_norms_change_no_update() -> None:
    tx = gx.chain(gx.clip_by_global_norm(2.0), gx.adam(0.1))
    recorded = gx.chain(gx.record_norms(), gx.clip_by_global_norm(2.0), gx.record_norms(), gx.adam(0.1))
    plain, _ = harness.one_step(tx, GRADIENTS, PARAMS)
    got, _ = harness.one_step(recorded, GRADIENTS, PARAMS)
    assert harness.distance(plain, got) < 1e-7


def test_norms_without_params_and_before_the_first_step() -> None:
    tx = gx.record_norms()
    state = tx.init(PARAMS)
    assert {float(x) for x in gx.metrics(state).values()} == {0.0}
    _, state = tx.update(GRADIENTS, state)
    assert np.isnan(gx.metrics(state)["param_norm"])
    np.testing.assert_allclose(gx.metrics(state)["gradient_norm"], norm(GRADIENTS), rtol=1e-6)


@pytest.mark.as_in_use
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_norms_of_narrow_leaves_are_exact(dtype: str) -> None:
    params = {f"leaf{i}": jnp.full(300, 1.7, dtype) for i in range(10)}
    gradients = {name: leaf * 100 for name, leaf in params.items()}
    got = metrics_of(gx.chain(gx.record_norms(), gx.scale(1.0)), gradients, params)
    wanted = {"gradient_norm": norm(gradients), "update_norm": norm(gradients), "param_norm": norm(params)}
    assert got == pytest.approx(wanted, rel=1e-6)


def test_the_update_norm_is_that_of_the_rounded_update() -> None:
    gradients = {"w": jnp.full(3, 1.0, jnp.bfloat16)}
    state = gx.chain(gx.record_norms(), gx.scale(1.001)).init(gradients)
    updates, state = gx.chain(gx.record_norms(), gx.scale(1.001)).update(gradients, state, gradients)
    np.testing.assert_allclose(gx.metrics(state)["update_norm"], norm(updates), rtol=1e-6)
    assert norm(updates) == pytest.approx(3**0.5, rel=1e-6)


def test_names_that_come_twice_are_told_apart() -> None:
    tx = gx.chain(gx.record_norms(), gx.clip_by_global_norm(2.0), gx.record_norms())
    got = metrics_of(tx)
    assert got["gradient_norm"] == pytest.approx(norm(GRADIENTS), rel=1e-6)
    assert got["2/gradient_norm"] == pytest.approx(2.0, rel=1e-6)
    assert len(got) == 6


def test_metrics_inside_other_states() -> None:
    tx = gx.selective_transform(
        gx.accumulate(gx.skip_nonfinite(gx.chain(gx.record_norms(), gx.sgd(0.5)), 3), 1), freeze_mask=BODY
    )
    got = metrics_of(tx)
    wanted = {
        "gradient_norm": norm(GRADIENTS["head"]),
        "update_norm": 0.5 * norm(GRADIENTS["head"]),
        "param_norm": norm(PARAMS["head"]),
        "skipped_steps": 0,
        "consecutive_skips": 0,
    }
    assert got == pytest.approx(wanted, rel=1e-6)
    bad = jax.tree.map(lambda g: g * jnp.nan, GRADIENTS)
    assert metrics_of(tx, bad)["skipped_steps"] == 1


def test_metrics_of_an_optax_chain_and_of_nothing() -> None:
    tx = optax.chain(gx.record_norms(), optax.sgd(0.1))
    _, state = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)
    assert float(gx.metrics(state)["gradient_norm"]) == pytest.approx(norm(GRADIENTS), rel=1e-6)
    assert gx.metrics(gx.adam(0.1).init(PARAMS)) == {}
