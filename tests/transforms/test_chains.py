"""chain, named_chain, stateless and optax's transformations among ours."""

from __future__ import annotations

from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradxform as gx
from gradxform.core.stages import Around


def test_a_chain_is_its_parts_one_after_another() -> None:
    parts = [gx.clip_by_global_norm(1.0), gx.scale_by_adam(), gx.add_decayed_weights(0.1), gx.scale(-0.1)]
    params, gradients = harness.problem()
    chained, states = gx.chain(*parts), [tx.init(params) for tx in parts]
    state = chained.init(params)
    assert isinstance(state, tuple) and jax.tree.structure(state) == jax.tree.structure(tuple(states))
    for t in range(3):
        whole, state = chained.update(harness.at_step(gradients, t), state, params)
        updates = harness.at_step(gradients, t)
        for i, tx in enumerate(parts):
            updates, states[i] = tx.update(updates, states[i], params)
        assert harness.distance(whole, updates) < 1e-7
    assert harness.distance(state[1].mu, states[1].mu) < 1e-7


def test_a_named_chain_has_its_state_by_name() -> None:
    tx = gx.named_chain(("adam", gx.scale_by_adam()), ("rate", gx.scale(-0.1)))
    plain = gx.chain(gx.scale_by_adam(), gx.scale(-0.1))
    params = {"w": jnp.array([1.0, 2.0])}
    state = tx.init(params)
    assert list(state) == ["adam", "rate"]
    updates, state = tx.update(params, state, params)
    assert list(state) == ["adam", "rate"] and int(state["adam"].count) == 1
    np.testing.assert_array_equal(updates["w"], plain.update(params, plain.init(params), params)[0]["w"])


def test_optax_inside_and_around() -> None:
    params, gradients = harness.problem()
    ours, theirs = gx.adam(0.01, 0.8), optax.adam(0.01, 0.8)
    inside = gx.chain(gx.clip_by_global_norm(1.0), theirs, gx.scale(0.5))
    around = optax.chain(optax.clip_by_global_norm(1.0), ours, optax.scale(0.5))
    wanted = gx.chain(gx.clip_by_global_norm(1.0), ours, gx.scale(0.5))
    end = harness.trajectory_of(wanted, gradients, params)[0]
    for tx in (inside, around):
        assert harness.distance(harness.trajectory_of(tx, gradients, params)[0], end) < 3e-6


def test_optax_wrappers_take_ours() -> None:
    params, gradients = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([0.5, -3.0])}
    masked = optax.masked(gx.adam(0.1), {"w": True})
    updates, _ = masked.update(gradients, masked.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.1, 0.1], rtol=1e-6)
    steps = optax.MultiSteps(gx.sgd(1.0), 2)
    state = steps.init(params)
    _, state = steps.update(gradients, state, params)
    updates, state = steps.update(gradients, state, params)
    np.testing.assert_allclose(updates["w"], [-0.5, 3.0], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64"])
def test_optax_inside_keeps_dtypes(dtype: str) -> None:
    tx = gx.chain(gx.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-3), optax.trace(0.9), gx.scale(0.5))
    params = {"w": jnp.asarray([1.0, 2.0], dtype), "v": jnp.ones(2), "n": None}
    state = tx.init(params)
    shapes = jax.eval_shape(lambda s: s, state)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        assert {key: str(leaf.dtype) for key, leaf in updates.items() if leaf is not None} == {
            "w": dtype,
            "v": "float32",
        }
        assert updates["n"] is None
        assert jax.eval_shape(lambda s: s, state) == shapes
        assert bool(gx.all_finite(updates))


def test_optax_wrappers_inside_ours() -> None:
    params, g = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([0.5, -3.0])}
    injected = gx.chain(optax.inject_hyperparams(optax.sgd)(learning_rate=0.5), gx.scale(2.0))
    state = injected.init(params)
    state[0].hyperparams["learning_rate"] = jnp.asarray(0.25)
    updates, _ = injected.update(g, state, params)
    np.testing.assert_allclose(updates["w"], -0.5 * g["w"], rtol=1e-6)
    for tx in (gx.accumulate(optax.sgd(1.0), 2), gx.chain(gx.masked(gx.accumulate(optax.sgd(1.0), 2), {"w": True}))):
        state = tx.init(params)
        _, state = tx.update(g, state, params)
        updates, _ = tx.update(params, state, params)
        np.testing.assert_allclose(updates["w"], [-0.75, 0.5], rtol=1e-6)


def test_extra_arguments_go_to_every_part() -> None:
    @gx.transformation
    def by_value() -> Any:
        def update(updates: Any, state: Any, params: Any = None, *, value: Any, **extra: Any) -> Any:
            return jax.tree.map(lambda u: u * value, updates), state

        return lambda params: (), update

    tx = gx.chain(gx.scale(2.0), by_value(), gx.named_chain(("again", by_value())))
    params = {"w": jnp.ones(1)}
    updates, _ = tx.update(params, tx.init(params), params, value=3.0)
    np.testing.assert_array_equal(updates["w"], 18.0)


def test_stateless_sees_f32_and_returns_the_dtype_of_the_gradient() -> None:
    seen = []

    def f(updates: Any, params: Any) -> Any:
        seen.append((updates["w"].dtype, params["w"].dtype))
        return jax.tree.map(lambda u: u / 3, updates)

    tx, g = gx.chain(gx.stateless(f), gx.scale(3.0)), {"w": jnp.asarray([1.1, 0.7], jnp.bfloat16)}
    updates, _ = tx.update(g, tx.init(g), g)
    assert seen == [(jnp.float32, jnp.bfloat16)]
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["w"], g["w"])


def test_the_empty_chain_is_the_identity() -> None:
    for tx in (gx.chain(), gx.identity(), gx.named_chain()):
        g = {"w": jnp.asarray([1.5], jnp.float16), "n": None}
        updates, _ = tx.update(g, tx.init(g))
        assert updates["n"] is None and updates["w"].dtype == jnp.float16
        np.testing.assert_array_equal(updates["w"], g["w"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: gx.chain(gx.scale(1.0), 3),
        lambda: gx.named_chain(("a", gx.scale(1.0)), ("b", None)),
        lambda: gx.masked(1.0, True),
        lambda: gx.accumulate(lambda x: x, 2),
        lambda: gx.skip_nonfinite("adam", 2),
        lambda: gx.selective_transform(None, freeze_mask=True),
        lambda: gx.partition({"a": 1}, "a"),
        lambda: gx.named_chain(gx.scale(1.0)),
        lambda: gx.stateless(3),
        lambda: gx.scale_by_schedule(0.1),
    ],
)
def test_what_is_not_a_transformation_is_refused(make: Any) -> None:
    with pytest.raises(TypeError):
        make()


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a'"):
        gx.named_chain(("a", gx.scale(1.0)), ("a", gx.scale(2.0)))


def test_apply_updates_keeps_the_dtype_of_the_params() -> None:
    params = {"h": jnp.ones(2, jnp.bfloat16), "w": jnp.ones(2), "c": jnp.ones(1, jnp.complex64), "n": None}
    updates = {"h": jnp.full(2, 0.5), "w": jnp.full(2, 0.5, jnp.bfloat16), "c": jnp.full(1, 0.5j), "n": None}
    after = gx.apply_updates(params, updates)
    assert {k: str(v.dtype) for k, v in after.items() if v is not None} == {
        "h": "bfloat16",
        "w": "float32",
        "c": "complex64",
    }
    np.testing.assert_array_equal(np.asarray(after["h"], np.float32), 1.5)
    np.testing.assert_array_equal(after["c"], 1 + 0.5j)
    assert after["n"] is None


@gx.transformation
def toward_one() -> Around:
    """Updates that take bfloat16 params to 1, which bfloat16 itself cannot say."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return jax.tree.map(lambda p: 1 - p.astype(jnp.float32), params), state

    return Around(lambda params: (), update, final=True)


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: tx,
        lambda tx: gx.chain(gx.clip(1.0), tx),
        lambda tx: gx.skip_nonfinite(tx, 3),
        lambda tx: gx.accumulate(tx, 1),
        lambda tx: gx.masked(tx, {"w": True, "b": True}),
        lambda tx: gx.partition({"a": tx, "b": gx.set_to_zero()}, {"w": "a", "b": "b"}),
        lambda tx: gx.transfer.gradual_unfreeze(tx, (("", 0),)),
    ],
    ids=["alone", "chain", "skip", "accumulate", "masked", "partition", "unfreeze"],
)
def test_final_updates_leave_as_they_are_and_nothing_follows(around: Any) -> None:
    tx = around(toward_one())
    params = {"w": jnp.full(2, 0.1001, jnp.bfloat16), "b": jnp.zeros(2, jnp.bfloat16)}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.float32
    assert (params["w"].astype(jnp.float32) + updates["w"]).tolist() == [1.0, 1.0]
    for after in (lambda: gx.chain(tx, gx.scale(0.5)), lambda: gx.named_chain(("final", tx), ("scale", gx.scale(0.5)))):
        with pytest.raises(ValueError, match=r"chain: expected nothing after .*, whose updates .*, got scale;"):
            after()
    assert gx.chain(gx.scale(0.5), tx)


def test_the_updates_beside_a_final_one_leave_in_the_dtype_of_their_params() -> None:
    tx = gx.partition({"a": toward_one(), "b": gx.sgd(0.1)}, {"w": "a", "b": "b"})
    params = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
    updates, _ = tx.update(params, tx.init(params), params)
    assert {name: str(u.dtype) for name, u in updates.items()} == {"w": "float32", "b": "bfloat16"}
