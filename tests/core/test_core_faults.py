"""Inputs that once came out wrong, each with its right value; what needs eight devices is in ``test_ecosystem.py``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradxform as gx

VECTOR = {"w": jnp.ones(2)}
LAYERS = {"encoder": {"w": jnp.ones(1)}, "head": {"w": jnp.ones(1)}}


def equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize(
    "tx",
    [
        gx.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), gx.sgd(0.1)),
        gx.chain(optax.noisy_sgd(0.1, key=jax.random.key(0)), gx.scale(1.0)),
        gx.masked(optax.add_noise(0.1, 0.5, jax.random.key(0)), "w"),
        gx.accumulate(optax.noisy_sgd(0.1, key=jax.random.key(0)), 1),
    ],
    ids=["add_noise", "noisy_sgd", "masked", "accumulate"],
)
def test_a_typed_key_in_another_librarys_state_steps_eagerly_as_under_jit(tx: Any) -> None:
    eager, jitted = tx.init(VECTOR), tx.init(VECTOR)
    for _ in range(2):
        here, eager = tx.update(VECTOR, eager, VECTOR)
        there, jitted = jax.jit(tx.update)(VECTOR, jitted, VECTOR)
        equal((here, eager), (there, jitted))
    assert any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(eager))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A pytree that is callable, as every module of equinox with a ``__call__`` is."""

    kernel: Any
    bias: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel + self.bias


@pytest.mark.parametrize(
    ("tx", "bias"),
    [
        (gx.partition({"a": gx.sgd(1.0), "b": gx.set_to_zero()}, lambda params: Module("a", "b")), 0),
        (gx.selective_transform(gx.sgd(1.0), freeze_mask=lambda params: Module(False, True)), 0),
        (gx.masked(gx.sgd(1.0), lambda params: Module(True, False)), 1),
        (gx.chain(gx.sgd(1.0), gx.freeze(lambda params: Module(False, True))), 0),
    ],
    ids=["partition", "selective_transform", "masked", "freeze"],
)
def test_a_tree_that_a_function_returns_is_not_called(tx: Any, bias: float) -> None:
    params = Module(jnp.ones((2, 2)), jnp.ones(2))
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates.kernel, -np.ones((2, 2)))
    np.testing.assert_array_equal(updates.bias, [bias, bias])


TYPO = gx.path_matches("^encodr/")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("mask", lambda which: gx.masked(gx.sgd(1.0), which)),
        ("mask", lambda which: gx.freeze(which)),
        ("freeze_mask", lambda which: gx.selective_transform(gx.sgd(1.0), freeze_mask=which)),
        ("mask", lambda which: gx.add_decayed_weights(0.1, mask=which)),
        ("mask", lambda which: gx.adamw(0.1, mask=which)),
    ],
    ids=["masked", "freeze", "selective_transform", "add_decayed_weights", "adamw"],
)
@pytest.mark.parametrize(
    "which",
    [TYPO, ~TYPO, TYPO | gx.path_matches("^head/"), gx.ndim_at_least(1) & ~TYPO],
    ids=["it", "not it", "or it", "and not it"],
)
def test_a_pattern_that_matches_nothing_is_refused(name: str, make: Callable[[Any], Any], which: Any) -> None:
    tx, message = make(which), f"{name}: expected '^encodr/' to match some path, got the paths encoder/w, head/w"
    for init in (tx.init, jax.jit(tx.init), lambda p: jax.eval_shape(tx.init, p)):
        with pytest.raises(ValueError, match=rf"^{re.escape(message)}; a part that may be missing goes into one"):
            init(LAYERS)


def test_a_head_that_matches_nothing_is_refused() -> None:
    tx = gx.transfer.add_l2_sp(None, 0.1, head_strength=0.2, head="^haed")
    for call in (
        lambda: tx.init(LAYERS),
        lambda: gx.transfer.l2_sp_penalty(LAYERS, LAYERS, strength=0.1, head_strength=0.2, head="^haed"),
    ):
        with pytest.raises(ValueError, match=r"^head: expected '\^haed' to match some path, got the paths encoder/w"):
            call()


def test_a_pattern_given_as_text_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="to match some path, got the paths encoder/w, head/w"):
        gx.masked(gx.sgd(1.0), "^encodr/").init(LAYERS)


def test_a_shape_that_no_leaf_has_may_select_nothing() -> None:
    tx = gx.masked(gx.sgd(1.0), gx.ndim_at_least(2))
    equal(tx.update(LAYERS, tx.init(LAYERS), LAYERS)[0], LAYERS)


def test_a_pattern_may_be_for_what_an_outer_mask_hides() -> None:
    tx = gx.masked(gx.masked(gx.sgd(1.0), gx.path_matches("^head/")), gx.path_matches("^encoder/"))
    equal(tx.update(LAYERS, tx.init(LAYERS), LAYERS)[0], LAYERS)


def test_a_tree_without_leaves_has_nothing_to_match() -> None:
    tx = gx.masked(gx.sgd(1.0), TYPO)
    assert tx.update({}, tx.init({}), {})[0] == {}


def refused(tx: Any, state: Any, message: str, updates: Any = VECTOR) -> None:
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(ValueError, match="^" + re.escape(message) + r"(\n|$)"):
            update(updates, state, updates)


def test_a_state_saved_without_a_schedule_is_refused_by_the_recipe_with_one() -> None:
    state = gx.adamw(1e-3).init(VECTOR)
    refused(
        gx.adamw(gx.schedules.cosine(1e-3, 100)),
        state,
        "adamw: expected the state of scale_by_learning_rate, ScaleByScheduleState, got EmptyState; "
        "make it with init(params)",
    )


def test_a_state_read_without_its_classes_is_refused() -> None:
    tx = gx.adamw(1e-3)
    raw = [part._asdict() for part in tx.init(VECTOR)]
    refused(
        tx, raw, "adamw: expected the state of 3 transformations in a tuple, got a list of 3; make it with init(params)"
    )
    refused(
        tx,
        tuple(raw),
        "adamw: expected the state of scale_by_adam, ScaleByAdamState, got a dict of 3; make it with init(params)",
    )


def test_a_state_whose_tuple_became_a_list_is_refused() -> None:
    tx = gx.accumulate(gx.chain(gx.clip(1.0), gx.adam(0.1)), 1)
    state = tx.init(VECTOR)
    state = state._replace(inner_state=list(state.inner_state))
    with pytest.raises(
        ValueError,
        match=r"^accumulate: expected the state of 2 transformations in a tuple, got a list "
        r"of 2; make it with init\(params\)",
    ):
        jax.jit(tx.update)(VECTOR, state, VECTOR)


def of_two_layers() -> nnx.Module:
    return nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Linear(2, 1, rngs=nnx.Rngs(1)))


@pytest.mark.parametrize(
    ("tx", "first", "second"),
    [
        (gx.partition({"slow": gx.sgd(0.1), "fast": gx.sgd(1.0)}, {"layers": {0: "slow", 1: "fast"}}), -0.1, -1),
        (
            gx.partition({"slow": gx.sgd(0.1), "fast": gx.sgd(1.0)}, lambda params: {"layers": {0: "slow", 1: "fast"}}),
            -0.1,
            -1,
        ),
        (gx.chain(gx.sgd(1.0), gx.masked(gx.scale(0.5), {"layers": {0: True, 1: False}})), -0.5, -1),
        (gx.selective_transform(gx.sgd(1.0), freeze_mask={"layers": {0: True, 1: False}}), 0, -1),
        (gx.chain(gx.sgd(1.0), gx.freeze({"layers": {0: False, 1: {"kernel": True, "bias": True}}})), -1, 0),
    ],
    ids=["labels", "a function of labels", "masked", "selective_transform", "freeze"],
)
def test_dicts_of_labels_and_masks_fit_a_module_by_path(tx: Any, first: float, second: float) -> None:
    model = of_two_layers()
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, before))
    moved = jax.tree.map(lambda old, new: new - old, before, nnx.state(model, nnx.Param))
    for layer, step in ((0, first), (1, second)):
        for leaf in jax.tree.leaves(moved["layers"][layer]):
            np.testing.assert_allclose(leaf, np.full(leaf.shape, step), rtol=1e-6, atol=1e-7)


def test_a_dict_of_labels_that_does_not_fit_a_module_is_refused_by_path() -> None:
    tx = gx.partition({"slow": gx.sgd(0.1)}, {"layers": {0: "slow"}})
    with pytest.raises(ValueError, match="layers/1"):
        nnx.Optimizer(of_two_layers(), tx, wrt=nnx.Param)


def test_small_updates_of_float16_gradients_do_not_underflow() -> None:
    params, grads = {"w": jnp.zeros(1)}, {"w": jnp.ones(1, jnp.float16)}
    tx = gx.adam(2e-8)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["w"].dtype == jnp.float32
    np.testing.assert_allclose(updates["w"], [-2e-8], rtol=1e-6)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_bfloat16_gradients_move_float32_params_as_float32_does(momentum: float | None) -> None:
    """optax rounds the updates of plain SGD to bfloat16; it is given the same gradients in float32."""
    start = jnp.linspace(-1.0, 1.0, 7)
    noise = jnp.asarray(np.random.RandomState(0).standard_normal((200, 7)), jnp.float32)

    def train(tx: Any, widened: bool) -> jax.Array:
        def step(carry: Any, noise: jax.Array) -> Any:
            params, state = carry
            grads = (params + noise).astype(jnp.bfloat16)
            updates, state = tx.update(grads.astype(jnp.float32) if widened else grads, state, params)
            assert updates.dtype == jnp.float32
            return (optax.apply_updates(params, updates), state), None

        return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), noise)[0][0])(start)

    ours, theirs = train(gx.sgd(0.01, momentum), False), train(optax.sgd(0.01, momentum), True)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7)
    assert float(jnp.max(jnp.abs(ours - start))) > 0.1


@pytest.mark.parametrize(
    ("tx", "recipe", "brick"),
    [
        (gx.adamw(0.1), "adamw", "add_decayed_weights"),
        (gx.chain(gx.clip(1.0), gx.adaptive_grad_clip(0.1)), "chain", "adaptive_grad_clip"),
        (gx.lamb(0.1, weight_decay=0.0), "lamb", "scale_by_trust_ratio"),
        (gx.masked(gx.adamw(0.1), "w"), "masked", "add_decayed_weights"),
    ],
    ids=["adamw", "chain", "lamb", "masked"],
)
def test_update_without_params_names_the_brick_that_needs_them(tx: Any, recipe: str, brick: str) -> None:
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(
            ValueError,
            match=re.escape(
                f"{recipe}: expected params, got None; {brick} needs them: call update(updates, state, params)"
            ),
        ):
            update(VECTOR, tx.init(VECTOR))


def test_a_function_among_the_params_names_the_filter_of_equinox() -> None:
    message = r"^params: expected a leaf of .* at 'activation', got .*; leave it out with eqx.filter\(model, eqx.is_in"
    with pytest.raises(TypeError, match=message):
        gx.adam(0.1).init({"activation": jax.nn.relu, "w": jnp.ones(2)})
