"""bfloat16 and float16 leaves: what today's libraries get wrong in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx

pytestmark = pytest.mark.long

# A unit in the last place of the narrow dtypes; of float32 the 1 - 0.999 that a traced b2 cannot do exactly.
ULP = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 1e-4}

MOMENTS: dict[str, Callable[[], gx.Transformation]] = {
    "adam": lambda: gx.scale_by_adam(b2=0.999),
    "adam-stored": lambda: gx.scale_by_adam(b2=0.999, mu_dtype="bfloat16"),
    "amsgrad": lambda: gx.scale_by_amsgrad(b2=0.999),
    "nadam": lambda: gx.scale_by_nadam(b2=0.999),
    "radam": lambda: gx.scale_by_radam(b2=0.999),
    "rms": lambda: gx.scale_by_rms(0.999),
    "stddev": lambda: gx.scale_by_stddev(0.999),
}


def moments_after(tx: gx.Transformation, gradient: Callable[[Any], Any], dtype: str, steps: int = 2000) -> np.ndarray:
    """The second moment of one weight after all steps."""
    params = {"w": jnp.ones(1, dtype)}

    def step(i: Any, state: Any) -> Any:
        return tx.update({"w": gradient(i).reshape(1).astype(dtype)}, state, params)[1]

    state = jax.jit(lambda: jax.lax.fori_loop(0, steps, step, tx.init(params)))()
    return np.asarray(state.nu["w"], np.float64)


@pytest.mark.parametrize("name", MOMENTS)
def test_bf16_second_moment_reaches_its_gradient(name: str) -> None:
    # In bfloat16 a b2 of 0.999 is 1, and 0.5 + 0.001 is 0.5: there the moment stops at 0.5.
    nu = moments_after(MOMENTS[name](), lambda i: jnp.ones([]), "bfloat16")
    np.testing.assert_allclose(nu, 1 - 0.999**2000, rtol=1e-5)  # 0.865


def test_bf16_second_moment_decays_without_gradients() -> None:
    nu = moments_after(gx.scale_by_adam(), lambda i: jnp.where(i == 0, 1.0, 0.0), "bfloat16")
    np.testing.assert_allclose(nu, 0.001 * 0.999**1999, rtol=1e-4)  # 1.35e-4, not 1e-3


def test_fp16_second_moment_of_a_small_gradient_is_kept() -> None:
    # The square of 1e-4 is 0 in float16.
    nu = moments_after(gx.scale_by_adam(), lambda i: jnp.full([], 1e-4), "float16")
    np.testing.assert_allclose(nu, float(np.float16(1e-4)) ** 2 * (1 - 0.999**2000), rtol=1e-5)


def test_first_moment_is_stored_as_told() -> None:
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    assert gx.scale_by_adam().init(params).mu["w"].dtype == jnp.float32
    for tx in (
        gx.adam(0.1, mu_dtype="bfloat16"),
        gx.amsgrad(0.1, mu_dtype=jnp.bfloat16),
        gx.lion(0.1, mu_dtype="bfloat16"),
    ):
        state = tx.init(params)
        assert state[0].mu["w"].dtype == jnp.bfloat16
        _, after = tx.update(params, state, params)
        assert after[0].mu["w"].dtype == jnp.bfloat16
        assert not hasattr(after[0], "nu") or after[0].nu["w"].dtype == jnp.float32
    assert gx.trace(0.9, accumulator_dtype="float16").init(params).trace["w"].dtype == jnp.float16
    assert gx.ema(0.9, accumulator_dtype="float16").init(params).ema["w"].dtype == jnp.float16


# ---- zero gradients ----


def zero_case(name: str) -> gx.Transformation:
    # A decay moves weights without a gradient, and so does the 1e-6 that optax's yogi starts its momentum from.
    changes: dict[str, Any] = {"weight_decay": 0.0}
    if name == "yogi":
        changes["initialize_mu"] = False
    return harness.recipe(name, 0.1, **changes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", harness.RECIPES)
def test_zero_gradients_give_zero_updates(name: str, dtype: str) -> None:
    tx = zero_case(name)
    params = {"matrix": jnp.ones((2, 3), dtype), "vector": jnp.ones(2, dtype), "zero": jnp.zeros(2, dtype)}
    zeros, state = harness.filled(params, 0.0), tx.init(params)
    for _ in range(3):
        updates, state = tx.update(zeros, state, params)
        for leaf in jax.tree.leaves(updates):
            assert leaf.dtype == dtype
            np.testing.assert_array_equal(np.asarray(leaf, np.float32), 0)


@pytest.mark.parametrize("name", harness.RECIPES)
def test_zero_gradients_after_others_give_finite_updates_in_fp16(name: str) -> None:
    tx, params = zero_case(name), {"matrix": jnp.ones((2, 3), jnp.float16), "vector": jnp.ones(2, jnp.float16)}
    state = tx.init(params)
    for size in (1e-3, 0.0, 0.0, 1e-7, 0.0, 100.0):
        updates, state = tx.update(harness.filled(params, size), state, params)
        assert bool(gx.all_finite(updates)) and bool(gx.all_finite(state))


def test_yogi_as_optax_starts_it_moves_a_weight_without_a_gradient() -> None:
    tx = gx.yogi(1.0)
    updates, _ = tx.update({"w": jnp.zeros(1)}, tx.init({"w": jnp.ones(1)}))
    moved = -(0.9 * 1e-6 / 0.1) / (math.sqrt(1e-6 / 0.001) + 1e-3)
    np.testing.assert_allclose(updates["w"], moved, rtol=1e-5)


# ---- hyperparameters that are traced, scheduled or arrays ----

# Numbers that bfloat16 holds without rounding: what differs then is how they are used.
EXACT = {
    "learning_rate": 2.0**-6,
    "b1": 0.875,
    "b2": 0.98828125,
    "decay": 0.75,
    "decay_rate": 0.75,
    "momentum": 0.875,
    "weight_decay": 0.125,
    "eps": 2.0**-10,
    "initial_accumulator_value": 0.125,
    "momentum_decay": 2.0**-8,
    "trust_coefficient": 2.0**-10,
    "beta": 0.875,
    "adam_b1": 0.875,
    "adam_b2": 0.98828125,
    "ns_coeffs": (2.0, -1.5, 0.5),
}


def mixed(shape: tuple[int, ...] = (2, 3)) -> tuple[harness.Tree, list[harness.Tree]]:
    """Params of three dtypes, and four gradients of the same dtypes."""
    random = np.random.RandomState(3)
    make = lambda: {d: jnp.asarray(random.standard_normal(shape), d) for d in ULP}  # noqa: E731
    return make(), [make() for _ in range(4)]


def exact(name: str) -> gx.Transformation:
    """The optimizer with decays and rates that even bfloat16 holds without rounding."""
    tx = harness.recipe(name)
    return tx.replace(
        **{
            key: value
            for key, value in EXACT.items()
            if key in tx.arguments and (tx.arguments[key] is not None or key == "weight_decay")
        }
    )


def run_eagerly(tx: gx.Transformation) -> list[harness.Tree]:
    params, gradients = mixed()
    state, seen = tx.init(params), []
    for g in gradients:
        updates, state = tx.update(g, state, params)
        seen.append(updates)
    return seen


@jax.jit
def run_traced(tx: gx.Transformation, params: harness.Tree, gradients: harness.Tree) -> harness.Tree:
    def step(state: harness.Tree, g: harness.Tree) -> tuple[harness.Tree, harness.Tree]:
        updates, state = tx.update(g, state, params)
        return state, updates

    return jax.lax.scan(step, tx.init(params), gradients)[1]


def assert_same_updates(got: harness.Tree, wanted: list[harness.Tree], f32: float = 2e-5) -> None:
    tolerance = ULP | {"float32": f32}
    for i, step in enumerate(wanted):
        for name, leaf in step.items():
            assert got[name].dtype == leaf.dtype == name
            here, there = np.asarray(got[name][i], np.float64), np.asarray(leaf, np.float64)
            assert np.isfinite(here).all() and np.any(there != 0)
            np.testing.assert_allclose(
                here, there, rtol=tolerance[name], atol=1e-3 * tolerance[name], err_msg=f"{name}, step {i}"
            )


def stacked(gradients: list[harness.Tree]) -> harness.Tree:
    return jax.tree.map(lambda *x: jnp.stack(x), *gradients)


@pytest.mark.parametrize("name", harness.RECIPES)
def test_traced_hyperparameters_match_constants(name: str) -> None:
    tx = harness.recipe(name, weight_decay=0.01)  # b2 = 0.999 and all other defaults
    params, gradients = mixed()
    assert_same_updates(run_traced(tx, params, stacked(gradients)), run_eagerly(tx), f32=1e-4)


@pytest.mark.parametrize("name", harness.RECIPES)
def test_bf16_hyperparameters_match_constants(name: str) -> None:
    # Eagerly, each operation rounds to its dtype; compiled, XLA may leave the rounding out and hide what is wrong.
    tx = exact(name)
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tx)
    assert_same_updates(stacked(run_eagerly(narrow)), run_eagerly(tx))


@pytest.mark.parametrize("name", harness.RECIPES)
def test_bf16_schedules_match_constants(name: str) -> None:
    tx = exact(name)
    rate, decay = tx.arguments["learning_rate"], tx.arguments["weight_decay"]
    scheduled = tx.replace(
        learning_rate=lambda step: jnp.asarray(rate, jnp.bfloat16),
        weight_decay=lambda step: jnp.asarray(decay, jnp.bfloat16),
    )
    assert_same_updates(stacked(run_eagerly(scheduled)), run_eagerly(tx))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "name",
    ["sgd", "adamw", "rmsprop", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("lamb", "adafactor"))],
)
def test_array_hyperparameters_of_any_width_match_constants(name: str, dtype: str) -> None:
    tx = exact(name)
    params, gradients = mixed()
    wanted = run_eagerly(tx)
    with jax.enable_x64(dtype == "float64"):
        array = {
            key: jnp.asarray(value, dtype) for key, value in tx.arguments.items() if key in EXACT and value is not None
        }
        state, got = tx.replace(**array).init(params), []
        for g in gradients:
            updates, state = tx.replace(**array).update(g, state, params)
            got.append(updates)
        assert_same_updates(jax.tree.map(lambda *x: np.stack(x), *got), wanted)


@pytest.mark.as_in_use
def test_b2_of_bf16_is_used_with_all_its_bits_in_f32() -> None:
    # bfloat16 holds 0.98828125; a product of it with another bfloat16 would be rounded.
    b2 = jnp.asarray(0.98828125, jnp.bfloat16)
    tx, g = gx.scale_by_adam(b2=b2), {"w": jnp.asarray([1.0, 0.3], jnp.bfloat16)}
    state = tx.init(g)
    for _ in range(50):
        _, state = tx.update(g, state)
    wanted = np.float64(np.asarray(g["w"], np.float64)) ** 2 * (1 - 0.98828125**50)
    np.testing.assert_allclose(state.nu["w"], wanted, rtol=1e-5)


def test_updates_are_rounded_once() -> None:
    # (g * 3) * (1/3) and its like: rounding each step to bfloat16 would show.
    g = {"w": jnp.linspace(0.1, 2.0, 64).astype(jnp.bfloat16)}
    tx = gx.chain(gx.scale(1 / 3), gx.chain(gx.scale(7.0), gx.identity()), gx.clip_by_global_norm(5.0), gx.scale(0.1))
    (updates, _), exact = harness.one_step(tx, g, g), np.asarray(g["w"], np.float64) / 3 * 7
    exact = exact * min(1.0, 5.0 / np.linalg.norm(exact)) * 0.1
    np.testing.assert_array_equal(updates["w"], jnp.asarray(np.float32(exact)).astype(jnp.bfloat16))


def test_apply_updates_rounds_once() -> None:
    # In bfloat16 there is nothing between 256 and 258. The sum 257.002 is above their middle; an update that is
    # rounded to bfloat16 first is 1, and the sum then falls on the middle and to 256.
    params, updates = {"w": jnp.asarray([256.0], jnp.bfloat16)}, {"w": jnp.asarray([1.0 + 2**-9])}
    after = gx.apply_updates(params, updates)["w"]
    assert after.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(after, np.float32), [258.0])
