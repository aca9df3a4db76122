"""accumulate: one step on the mean of several micro-batches, and nothing on the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
            lambda *g: jnp.asarray(np.mean(np.stack(g).astype(np.float64), axis=0), jnp.float32), *batch)
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
    assert sum(x.size for x in jax.tree.leaves(state)) == 3
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
