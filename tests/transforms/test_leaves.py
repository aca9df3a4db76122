"""Which leaves are taken, what dtype an update has, and where counting ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import gradxform as gx

MAX = 2**31 - 1

# ---- integers ----

ALL: dict[str, Callable[[], gx.Transformation]] = {
    **{name: (lambda name=name: harness.recipe(name)) for name in harness.RECIPES},
    "plain sgd": lambda: gx.sgd(0.1),
    "sgd with decay": lambda: gx.sgd(0.1, weight_decay=0.1),
    "accumulate": lambda: gx.accumulate(gx.adam(0.1), 2),
    "skip_nonfinite": lambda: gx.skip_nonfinite(gx.adam(0.1), 3),
    "record_norms": lambda: gx.chain(gx.record_norms(), gx.sgd(0.1)),
    "clip and adam": lambda: gx.chain(gx.clip_by_global_norm(1.0), gx.adam(0.1)),
    "adaptive_grad_clip": lambda: gx.adaptive_grad_clip(0.1),
    "add_noise": lambda: gx.add_noise(0.1, 0.5, 0),
    "centralize": lambda: gx.centralize(),
    "masked": lambda: gx.masked(gx.adam(0.1), lambda p: jax.tree.map(lambda x: True, p)),
    "selective": lambda: gx.selective_transform(gx.adam(0.1), freeze_mask=lambda p: jax.tree.map(lambda x: False, p)),
    "partition": lambda: gx.partition({"a": gx.adam(0.1)}, lambda p: jax.tree.map(lambda x: "a", p)),
}

INTEGERS = {
    "int": jnp.array([1, 2]),
    "bool": jnp.array([True, False]),
    "uint8": jnp.ones(2, jnp.uint8),
    "numpy": np.array([1, 2]),
}


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", ALL)
def test_integer_params_are_refused_at_init_with_their_path(name: str, kind: str) -> None:
    params = {"layer": {"kernel": jnp.ones((2, 2)), "steps": INTEGERS[kind]}}
    with pytest.raises(TypeError, match="'layer/steps'"):
        ALL[name]().init(params)


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", ALL)
def test_integer_gradients_are_refused_with_their_path(name: str, kind: str) -> None:
    params = {"layer": {"kernel": jnp.ones((2, 2)), "steps": jnp.ones(2)}}
    tx = ALL[name]()
    gradients = {"layer": {"kernel": jnp.ones((2, 2)), "steps": INTEGERS[kind]}}
    with pytest.raises(TypeError, match="'layer/steps'"):
        tx.update(gradients, tx.init(params), params)


def test_integer_params_are_not_updated_by_floats() -> None:
    with pytest.raises(TypeError, match="'steps'"):
        gx.apply_updates({"steps": jnp.array([1, 2])}, {"steps": jnp.array([0.5, 0.5])})


# ---- None, no elements, complex ----


@pytest.mark.parametrize("name", ALL)
def test_none_and_empty_leaves_pass(name: str) -> None:
    full = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    odd = {
        "none": None,
        "empty": jnp.zeros(0),
        "rows": jnp.zeros((0, 3)),
        "columns": jnp.zeros((3, 0)),
        "inside": {"none": None},
    }
    tx = ALL[name]()
    params = full | odd
    gradients = jax.tree.map(lambda p: 0.3 * p, params)
    state, alone = tx.init(params), tx.init(full)
    for _ in range(2):
        updates, state = tx.update(gradients, state, params)
        wanted, alone = tx.update({key: gradients[key] for key in full}, alone, full)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert updates["none"] is None and updates["inside"]["none"] is None
        for key in ("empty", "rows", "columns"):
            assert updates[key].shape == odd[key].shape and updates[key].dtype == odd[key].dtype
        if name != "add_noise":  # whose keys are split between the leaves
            for key in full:
                np.testing.assert_allclose(updates[key], wanted[key], rtol=1e-6)
        params_after = gx.apply_updates(params, updates)
        assert jax.tree.structure(params_after) == jax.tree.structure(params)
    assert bool(
        gx.all_finite(jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.zeros([]), state))
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tree", [{}, {"a": None}, [], ()], ids=str)
def test_trees_without_leaves_pass(name: str, tree: Any) -> None:
    tx = ALL[name]()
    updates, _ = tx.update(tree, tx.init(tree), tree)
    assert jax.tree.structure(updates) == jax.tree.structure(tree)


@pytest.mark.parametrize("name", [name for name in ALL if name != "add_noise"])  # noise does not turn
def test_complex_leaves_pass_and_turn_with_their_gradient(name: str) -> None:
    # Every rule is a real factor on complex numbers: turning gradients and params turns the updates.
    turn = np.exp(0.7j)
    params = {"kernel": jnp.asarray(np.random.RandomState(0).standard_normal((2, 3)), jnp.complex64)}
    gradients = [jax.tree.map(lambda p: (0.5 + i) * p - 0.2j * p.conj(), params) for i in range(3)]
    tx = ALL[name]()
    runs = []
    for factor in (1, turn):
        state, seen = tx.init(params), []
        turned = lambda x: jax.tree.map(lambda leaf: (factor * leaf).astype(jnp.complex64), x)  # noqa: E731
        for g in gradients:
            updates, state = tx.update(turned(g), state, turned(params))
            assert updates["kernel"].dtype == jnp.complex64
            seen.append(np.asarray(updates["kernel"]))
        runs.append(np.stack(seen))
    if name == "yogi":  # optax's start of 1e-6 is real
        np.testing.assert_allclose(runs[1], turn * runs[0], rtol=1e-3, atol=1e-5)
    else:
        np.testing.assert_allclose(runs[1], turn * runs[0], rtol=1e-4, atol=1e-6)


# ---- dtypes ----

NUMBERS: dict[str, Callable[[float], Any]] = {
    "float": float,
    "np.float64": np.float64,
    "np.float32": np.float32,
    "np.float16": np.float16,
    "ml_dtypes.bfloat16": ml_dtypes.bfloat16,
    "np 0-d float64": lambda x: np.array(x),
    "np 0-d float32": lambda x: np.array(x, np.float32),
    "jnp": jnp.asarray,
    "jnp bfloat16": lambda x: jnp.asarray(x, jnp.bfloat16),
    "jnp float16": lambda x: jnp.asarray(x, jnp.float16),
    "jnp float32": lambda x: jnp.asarray(x, jnp.float32),
    "jnp float64": lambda x: jnp.asarray(x, jnp.float64),
    "schedule of np.float64": lambda x: lambda step: np.float64(x),
    "schedule of bfloat16": lambda x: lambda step: jnp.asarray(x, jnp.bfloat16),
    "schedule of the default float": lambda x: gx.schedules.constant(x),
}
DTYPES = ("float16", "bfloat16", "float32", "complex64")


def dtypes_of(tree: Any) -> list[str]:
    return [str(leaf.dtype) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    ("name", "kind", "x64"),
    [
        (name, kind, x64)
        for name in harness.RECIPES
        for kind in NUMBERS
        for x64 in (False, True)
        if (name in ("sgd", "adamw", "adafactor") or kind in ("np.float32", "jnp bfloat16", "schedule of np.float64"))
        and (x64 or kind != "jnp float64")
    ],
)  # there is no float64 without 64-bit types
def test_updates_have_the_dtype_of_the_param_whatever_else_is_given(name: str, kind: str, x64: bool) -> None:
    with jax.enable_x64(x64):
        tx = harness.recipe(name, NUMBERS[kind](0.0625), weight_decay=NUMBERS[kind](0.125))
        dtypes = DTYPES + (("float64", "complex128") if x64 else ())
        gradients = {f"{dtype}": jax.ShapeDtypeStruct((2, 3), dtype) for dtype in dtypes}
        stored = {
            f"{dtype}": "complex64" if "complex" in dtype else "bfloat16" if dtype == "float16" else "float32"
            for dtype in dtypes
        }
        params = {key: jax.ShapeDtypeStruct((2, 3), dtype) for key, dtype in stored.items()}
        state = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(tx.update, gradients, state, params)
        assert {key: str(leaf.dtype) for key, leaf in updates.items()} == stored
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert after == state  # shapes, dtypes and weak types: a second call does not compile again


@pytest.mark.parametrize("name", [name for name in ALL if name not in harness.RECIPES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_updates_have_the_dtype_of_the_param(name: str, dtype: str) -> None:
    tx = ALL[name]()
    gradients = {"a": jax.ShapeDtypeStruct((2, 3), dtype)}
    params = {"a": jax.ShapeDtypeStruct((2, 3), "complex64" if "complex" in dtype else "float32")}
    state = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(tx.update, gradients, state, params)
    assert dtypes_of(updates) == dtypes_of(params)
    assert dtypes_of(after) == dtypes_of(state)


@pytest.mark.parametrize("kind", [kind for kind in NUMBERS if "schedule" not in kind and kind != "jnp float64"])
def test_every_number_of_adamw_may_be_of_any_type(kind: str) -> None:
    make = NUMBERS[kind]
    tx = gx.chain(
        gx.clip_by_global_norm(make(0.5)),
        gx.adamw(make(0.125), make(0.875), make(0.96875), make(0.0078125), make(0.0), weight_decay=make(0.25)),
    )
    plain = gx.chain(gx.clip_by_global_norm(0.5), gx.adamw(0.125, 0.875, 0.96875, 0.0078125, 0.0, weight_decay=0.25))
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.full(2, 2.0)}
    got, state = tx.update(params, tx.init(params), params)
    wanted, _ = plain.update(params, plain.init(params), params)
    for key in params:
        assert got[key].dtype == params[key].dtype
        np.testing.assert_allclose(
            np.asarray(got[key], np.float64), np.asarray(wanted[key], np.float64), rtol=1e-6 if key == "b" else 2**-8
        )
    assert dtypes_of(state) == dtypes_of(plain.init(params))


# ---- counting ----

COUNTING: dict[str, Callable[[], gx.Transformation]] = {
    "scale_by_schedule": lambda: gx.scale_by_schedule(gx.schedules.cosine(1.0, 100, 0.1)),
    "scale_by_learning_rate": lambda: gx.scale_by_learning_rate(gx.schedules.exponential(1.0, 1e-12)),
    "add_decayed_weights": lambda: gx.add_decayed_weights(gx.schedules.constant(0.1)),
    "ema": lambda: gx.ema(0.9),
    "scale_by_adam": lambda: gx.scale_by_adam(),
    "scale_by_adam nesterov": lambda: gx.scale_by_adam(nesterov=True),
    "scale_by_amsgrad": lambda: gx.scale_by_amsgrad(),
    "scale_by_belief": lambda: gx.scale_by_belief(),
    "scale_by_yogi": lambda: gx.scale_by_yogi(),
    "scale_by_nadam": lambda: gx.scale_by_nadam(),
    "scale_by_radam": lambda: gx.scale_by_radam(),
    "scale_by_lion": lambda: gx.scale_by_lion(),
    "scale_by_muon": lambda: gx.scale_by_muon(),
    "scale_by_rms": lambda: gx.scale_by_rms(bias_correction=True),
    "scale_by_stddev": lambda: gx.scale_by_stddev(bias_correction=True),
    "scale_by_factored_rms": lambda: gx.scale_by_factored_rms(min_dim_size_to_factor=2),
    "add_noise": lambda: gx.add_noise(0.1, 0.5, 0),
    "skip_nonfinite": lambda: gx.skip_nonfinite(gx.sgd(0.1), 2**31 - 1),
    "adafactor relative": lambda: gx.adafactor(0.1, min_dim_size_to_factor=2, relative_step=True),
}


@pytest.mark.parametrize("name", COUNTING)
def test_counters_stay_at_their_limit(name: str) -> None:
    tx = COUNTING[name]()
    params = {"w": jnp.full((2, 3), 2.0)}
    gradients = {"w": jnp.full((2, 3), np.nan if name == "skip_nonfinite" else 0.5)}

    def at(count: int) -> Any:
        state = tx.init(params)
        return jax.tree.map(lambda x: jnp.full_like(x, count) if x.dtype == jnp.int32 and x.ndim == 0 else x, state)

    def counts(state: Any) -> list[int]:
        return [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32 and x.ndim == 0]

    before, state = tx.update(gradients, at(MAX - 1), params)
    assert counts(state) and set(counts(state)) == {MAX}
    updates, after = tx.update(gradients, at(MAX), params)
    assert set(counts(after)) == {MAX}
    assert bool(gx.all_finite(updates))
    # At the end of counting a step is like the one before it.
    np.testing.assert_allclose(updates["w"], before["w"], rtol=1e-5)
    again, after = tx.update(gradients, after, params)
    assert set(counts(after)) == {MAX} and bool(gx.all_finite(again))


def test_every_counting_brick_is_in_the_list() -> None:
    params = {"w": jnp.ones((2, 3))}
    for name in ("trace", "scale", "scale_by_rss", "scale_by_trust_ratio"):
        assert name not in COUNTING
    listed = {name.split(" ")[0] for name in COUNTING}
    for name in gx.__all__:
        if not name.startswith("scale_by_") or name in ("scale_by_schedule", "scale_by_learning_rate"):
            continue
        state = getattr(gx, name)().init(params)
        counting = any(x.dtype == jnp.int32 for x in jax.tree.leaves(state))
        assert not counting or name in listed, name


def test_optax_counters_inside_a_chain_are_left_alone() -> None:
    tx = gx.chain(optax.scale_by_adam(), gx.scale(-1.0))
    state = tx.init({"w": jnp.ones(2)})
    _, state = tx.update({"w": jnp.ones(2)}, state)
    assert int(state[0].count) == 1
