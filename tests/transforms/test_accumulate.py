"""accumulate: one step on the mean of several micro-batches, and nothing on the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from harness import same_bytes

import gradxform as gx

INNER: dict[str, Callable[[], gx.Transformation]] = {
    "adamw": lambda: gx.adamw(0.1, weight_decay=0.1),
    "clipped": lambda: gx.chain(gx.clip_by_global_norm(0.7), gx.lamb(0.1)),
    "scheduled": lambda: gx.sgd(gx.schedules.linear(0.5, 0.0, 4), momentum=0.9),
    "factored": lambda: gx.adafactor(0.1, min_dim_size_to_factor=2),
    "noisy": lambda: gx.chain(gx.add_noise(0.1, 0.5, 3), gx.sgd(0.1)),
}


@pytest.mark.parametrize(("name", "jit"), [*((name, True) for name in INNER), ("scheduled", False)])
def test_equals_the_step_on_the_big_batch(name: str, jit: bool) -> None:
    inner, every = INNER[name](), 3
    tx = gx.accumulate(inner, every)
    update, big_update = (jax.jit(tx.update), jax.jit(inner.update)) if jit else (tx.update, inner.update)
    params, gradients = (tree["encoder"] for tree in harness.problem())
    state, big_state = tx.init(params), inner.init(params)
    big_params = params = jax.tree.map(jnp.asarray, params)
    for step in range(3):
        batch = [harness.at_step(gradients, every * step + i) for i in range(every)]
        for i, g in enumerate(batch):
            before = state
            updates, state = update(jax.tree.map(jnp.asarray, g), state, params)
            if i < every - 1:
                assert all(not np.any(u) for u in jax.tree.leaves(updates))
                assert same_bytes(state.inner_state, before.inner_state)  # the inner update has not run
                assert int(state.micro_step) == i + 1
            params = gx.apply_updates(params, updates)
        assert int(state.micro_step) == 0
        assert all(not np.any(total) for total in jax.tree.leaves(state.total))
        mean = jax.tree.map(
            lambda *g: jnp.asarray(np.mean(np.stack(g).astype(np.float64), axis=0), jnp.float32), *batch
        )
        updates, big_state = big_update(mean, big_state, big_params)
        big_params = gx.apply_updates(big_params, updates)
        assert harness.distance(params, big_params) < 2e-6
    for a, b in zip(jax.tree.leaves(state.inner_state), jax.tree.leaves(big_state), strict=True):
        if a.dtype == jnp.int32:
            assert int(a) == int(b) == 3  # schedules count steps, not micro-batches
    assert jax.tree.structure(state.inner_state) == jax.tree.structure(big_state)


def test_the_inner_update_runs_once_a_step() -> None:
    calls = []

    @gx.transformation
    def counting() -> Any:
        def update(updates: Any, state: Any, params: Any = None) -> Any:
            jax.debug.callback(lambda: calls.append(1), ordered=True)
            return updates, state

        return lambda params: (), update

    tx = gx.accumulate(counting(), 4)
    update = jax.jit(tx.update)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    for _ in range(8):
        _, state = update(params, state)
    jax.effects_barrier()
    assert len(calls) == 2


def test_mean_of_bf16_gradients_is_taken_in_f32() -> None:
    # In bfloat16 256 + 1 is 256: a sum kept in it would lose every small gradient after the first.
    values = [256.0] + [1.0] * 63
    tx = gx.accumulate(gx.scale(1.0), len(values))
    params = {"w": jnp.ones(1, jnp.bfloat16)}
    state = tx.init(params)
    assert state.total["w"].dtype == jnp.float32
    update = jax.jit(tx.update)
    for value in values:
        updates, state = update({"w": jnp.full(1, value, jnp.bfloat16)}, state)
    assert updates["w"].dtype == jnp.bfloat16
    assert float(updates["w"][0]) == float(jnp.asarray(319 / 64, jnp.bfloat16))  # 4.98, not 4


def test_sum_of_fp16_gradients_does_not_overflow() -> None:
    tx, params = gx.accumulate(gx.scale(1.0), 4), {"w": jnp.ones(1, jnp.float16)}
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update({"w": jnp.full(1, 6e4, jnp.float16)}, state)
    np.testing.assert_allclose(np.asarray(updates["w"], np.float64), 6e4, rtol=1e-3)


def test_every_one_is_the_transformation_itself() -> None:
    tx, inner = gx.accumulate(gx.adam(0.1), 1), gx.adam(0.1)
    params = {"w": jnp.array([1.0, -2.0])}
    updates, _ = tx.update(params, tx.init(params), params)
    wanted, _ = inner.update(params, inner.init(params), params)
    np.testing.assert_allclose(updates["w"], wanted["w"], rtol=1e-6)


def test_float64_gradients_are_summed_in_float64() -> None:
    with jax.enable_x64(True):
        tx = gx.accumulate(gx.scale(1.0), 3)
        state = tx.init({"w": jnp.zeros(1, jnp.float64)})
        for value in (1.0, 1e-12, 1e-12):
            updates, state = tx.update({"w": jnp.full(1, value, jnp.float64)}, state)
        assert float(updates["w"][0]) == pytest.approx((1 + 2e-12) / 3, rel=1e-15)


def test_accumulates_only_what_trains() -> None:
    params = {"w": jnp.ones(2), "frozen": jnp.ones((50, 50)), "steps": jnp.array(3)}
    tx = gx.selective_transform(gx.accumulate(gx.sgd(1.0), 2), freeze_mask=~gx.path_matches("^w$"))
    state = tx.init(params)
    assert sum(x.size for x in jax.tree.leaves(state.inner_states["train"].inner_state.total)) == 2
    assert sum(x.size for x in jax.tree.leaves(state)) == 2 + 3  # micro_step, weight, count
    for value in (1.0, 3.0):
        updates, state = tx.update({"w": jnp.full(2, value), "frozen": params["frozen"], "steps": jnp.array(0)}, state)
    np.testing.assert_array_equal(updates["w"], -2.0)


def test_accumulates_around_frozen_integers() -> None:
    params = {"w": jnp.ones(2), "steps": jnp.array([3, 4])}
    tx = gx.accumulate(gx.selective_transform(gx.sgd(1.0), freeze_mask=gx.path_matches("steps")), 2)
    with pytest.raises(TypeError, match="'steps'"):
        tx.init(params)


def test_extra_arguments_and_params_reach_the_inner_transformation() -> None:
    @gx.transformation
    def by_value() -> Any:
        def update(updates: Any, state: Any, params: Any = None, *, value: Any, **extra: Any) -> Any:
            return jax.tree.map(lambda u, p: u * value + p, updates, params), state

        return lambda params: (), update

    tx, params = gx.accumulate(by_value(), 2), {"w": jnp.full(1, 10.0)}
    state = tx.init(params)
    for g in (1.0, 3.0):
        updates, state = tx.update({"w": jnp.full(1, g)}, state, params, value=2.0)
    np.testing.assert_array_equal(updates["w"], 14.0)


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_arguments_out_of_range(every: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="every"):
        gx.accumulate(gx.sgd(0.1), every)


def run(tx: Any, steps: Any, state: Any = None, jit: bool = False) -> tuple[list[float], Any]:
    """The updates of a scalar and the last state; a step is a gradient, or one with extra arguments."""
    update = jax.jit(tx.update) if jit else tx.update
    state, seen = tx.init({"w": jnp.zeros(())}) if state is None else state, []
    for gradient, extra in (step if isinstance(step, tuple) else (step, {}) for step in steps):
        updates, state = update({"w": jnp.float32(gradient)}, state, {"w": jnp.zeros(())}, **extra)
        seen.append(float(updates["w"]))
    return seen, state


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_goes_on_with_another_window(jit: bool) -> None:
    _, state = run(gx.accumulate(gx.sgd(1.0), 4), [1.0, 2.0, 6.0])
    shorter, _ = run(gx.accumulate(gx.sgd(1.0), 2), [7.0, 1.0, 3.0], state, jit)
    assert shorter == [-4.0, 0.0, -2.0]  # first the mean of the four that are there
    longer, _ = run(gx.accumulate(gx.sgd(1.0), 5), [7.0, 9.0], state, jit)
    assert longer == [0.0, -5.0]


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_state_without_a_weight_goes_on(jit: bool) -> None:
    """As it was saved before weights and steps were counted."""
    tx = gx.accumulate(gx.sgd(1.0), 3)
    _, state = run(tx, [1.0, 2.0])
    seen, state = run(tx, [6.0, 1.0], type(state)(*state[:3]), jit)
    assert seen == [-3.0, 0.0]
    assert (float(state.weight), int(state.count), int(state.micro_step)) == (1, 1, 1)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_micro_batches_of_different_weight(jit: bool) -> None:
    tx = gx.accumulate(gx.sgd(1.0), 2)
    seen, state = run(
        tx, [(1.0, {"weight": 1}), (0.0, {"weight": jnp.int32(9)}), (4.0, {}), (1.0, {"weight": 0.5})], jit=jit
    )
    np.testing.assert_allclose(seen, [0, -0.1, 0, -3], rtol=1e-6)
    assert (float(state.weight), int(state.count)) == (0, 2)
    # The mean over no tokens is NaN, and is no part of the mean over all.
    seen, _ = run(tx, [(float("nan"), {"weight": 0}), (2.0, {"weight": 3})], jit=jit)
    assert seen == [0.0, -2.0]


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_window_of_no_weight_makes_no_step(jit: bool) -> None:
    tx = gx.accumulate(gx.sgd(1.0, momentum=0.5), 2)
    empty = (float("nan"), {"weight": 0})
    seen, state = run(tx, [1.0, 1.0, empty, empty, 3.0, 1.0], jit=jit)
    assert seen == [0.0, -1.0, 0.0, 0.0, 0.0, -2.5]  # the momentum has not moved
    assert int(state.count) == 2


def test_weights_are_summed_beside_narrow_gradients() -> None:
    tx, params = gx.accumulate(gx.scale(1.0), 2), {"w": jnp.zeros(2, jnp.float16), "z": jnp.zeros(1, jnp.complex64)}
    state = tx.init(params)
    for value, weight in ((3e4, 60_000), (6e4, 20_000)):
        updates, state = tx.update(
            {"w": jnp.full(2, value, jnp.float16), "z": jnp.full(1, value * 1j, jnp.complex64)},
            state,
            params,
            weight=jnp.int32(weight),
        )
    assert updates["w"].dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(updates["w"], np.float64), 37_500, rtol=1e-3)
    np.testing.assert_allclose(updates["z"], 37_500j, rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("flag", [bool, jnp.asarray], ids=["static", "traced"])
def test_flush_steps_on_what_is_there(flag: Any, jit: bool) -> None:
    tx = gx.accumulate(gx.sgd(1.0), 4)
    seen, state = run(tx, [(g, {"flush": flag(g == 6.0)}) for g in (1.0, 1.0, 1.0, 1.0, 4.0, 6.0, 2.0)], jit=jit)
    assert seen == [0, 0, 0, -1, 0, -5, 0]
    assert (int(state.micro_step), float(state.total["w"]), int(state.count)) == (1, 2, 2)
    # With nothing to add, and then with nothing to step on.
    rest = {"flush": flag(True), "weight": 0.0}
    seen, after = run(tx, [(9.0, rest), (float("nan"), rest), 1.0, 1.0, 1.0, 5.0], state, jit=jit)
    assert seen == [-2, 0, 0, 0, 0, -2]
    assert int(after.count) == 4


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: gx.chain(gx.scale(1.0), tx),
        lambda tx: gx.partition({"a": tx, "b": gx.set_to_zero()}, {"w": "a"}),
        lambda tx: gx.masked(tx, {"w": True}),
        lambda tx: gx.skip_nonfinite(tx, 3),
        lambda tx: gx.selective_transform(tx, freeze_mask={"w": False}),
        lambda tx: gx.accumulate(tx, 1),
        lambda tx: optax.chain(tx, optax.identity()),
    ],
    ids=["chain", "partition", "masked", "skip_nonfinite", "selective", "accumulate", "optax"],
)
def test_weights_and_flush_reach_an_accumulate_inside(wrap: Any) -> None:
    seen, _ = run(wrap(gx.accumulate(gx.sgd(1.0), 4)), [(1.0, {"weight": 1}), (5.0, {"weight": 3, "flush": True})])
    assert seen == [0.0, -4.0]


def test_weights_and_flush_through_an_nnx_optimizer() -> None:
    model = nnx.Linear(1, 1, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gx.accumulate(gx.sgd(1.0), 4), wrt=nnx.Param)
    for value, extra in ((1.0, {"weight": 1}), (5.0, {"weight": 3, "flush": True})):
        optimizer.update(model, jax.tree.map(lambda x, v=value: x + v, nnx.state(model, nnx.Param)), **extra)
    assert float(model.kernel[0, 0]) == -4


def test_a_window_that_follows_a_schedule() -> None:
    seen = run(gx.accumulate(gx.sgd(1.0), lambda step: step + 1), [1.0, 2.0, 4.0, 3.0, 5.0, 7.0], jit=True)[0]
    assert seen == [-1, 0, -3, 0, 0, -5]
    tx = gx.accumulate(gx.sgd(1.0), gx.schedules.linear(1.0, 3.0, 3))  # 1, 1.67, 2.33, 3
    seen, state = run(tx, [1.0] * 8)
    assert seen == [-1, 0, -1, 0, -1, 0, 0, -1]
    assert float(gx.hyperparams(tx, state)["every"]) == 3
    assert run(gx.accumulate(gx.sgd(1.0), lambda step: 0), [1.0, 2.0])[0] == [-1, -2]
    # The mean is over what has been summed, and a flush is a step as any other.
    flushed = [(1.0, {"weight": 3}), 2.0, (6.0, {"weight": 3, "flush": True}), 5.0, 5.0, 5.0]
    assert run(gx.accumulate(gx.sgd(1.0), lambda step: step + 1), flushed)[0] == [-1, 0, -5, 0, 0, -5]


@pytest.mark.parametrize("window", [lambda step: 2 + step, gx.schedules.piecewise(2.0, {2: 2.0})], ids=["fn", "value"])
def test_the_windows_of_optax(window: Any) -> None:
    gradients = np.random.default_rng(0).normal(size=12).astype(np.float32)
    theirs = optax.MultiSteps(optax.sgd(0.1, 0.9), lambda step: jnp.asarray(window(step), jnp.int32))
    wanted, _ = run(theirs, gradients, jit=True)
    seen, _ = run(gx.accumulate(gx.sgd(0.1, 0.9), window), gradients, jit=True)
    np.testing.assert_allclose(seen, wanted, rtol=1e-5, atol=1e-7)
    assert sum(u != 0 for u in seen) >= 3


def test_a_population_with_weights_of_its_own() -> None:
    tx = gx.accumulate(gx.sgd(1.0), lambda step: 2)
    state = jax.vmap(tx.init)({"w": jnp.zeros(2)})

    @jax.jit
    @jax.vmap
    def update(g: Any, state: Any, weight: Any, flush: Any) -> Any:
        return tx.update(g, state, weight=weight, flush=flush)

    flush = jnp.array([False, True])
    _, state = update({"w": jnp.array([1.0, 4.0])}, state, jnp.array([1.0, 2.0]), flush)
    assert state.count.tolist() == [0, 1]
    updates, state = update({"w": jnp.array([0.0, 8.0])}, state, jnp.array([9.0, 5.0]), ~flush & False)
    np.testing.assert_allclose(updates["w"], [-0.1, 0.0], rtol=1e-6)
    assert (state.micro_step.tolist(), state.weight.tolist()) == ([0, 1], [0.0, 5.0])


def test_one_branch_a_step_whatever_is_asked() -> None:
    tx, w = gx.accumulate(gx.adam(0.1), lambda step: 3), {"w": jnp.ones(2)}
    jaxpr = jax.make_jaxpr(lambda *a: tx.update(a[0], a[1], a[0], weight=a[2], flush=a[3]))(w, tx.init(w), 1.0, True)
    assert sum(eqn.primitive.name == "cond" for eqn in jaxpr.eqns) == 1
    assert not any(eqn.primitive.name in ("sqrt", "rsqrt") for eqn in jaxpr.eqns)  # Adam is inside of it


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"weight": -1.0}, ValueError, "weight: expected a real number >= 0, got -1.0"),
        ({"weight": "many"}, TypeError, "weight: expected a real number"),
        ({"weight": jnp.ones(2)}, ValueError, r"weight: expected one number for the micro-batch, got shape \(2,\)"),
        ({"flush": 1}, TypeError, "flush: expected a bool, got 1"),
        ({"flush": jnp.ones(2, bool)}, TypeError, "flush: expected a bool"),
        ({"flush": None}, TypeError, "flush: expected a bool, got None"),
    ],
)
def test_extra_arguments_out_of_range(extra: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(gx.accumulate(gx.sgd(1.0), 2), [(1.0, extra)])
