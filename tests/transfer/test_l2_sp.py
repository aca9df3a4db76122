"""L2-SP as a penalty and as a transformation, against the formula in float64 NumPy."""

from __future__ import annotations

import functools
import json
import pickle
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradxform as gx
from gradxform.transfer import add_ewc, add_l2_sp, ewc_penalty, l2_sp_penalty

START = {
    "body": {"bias": np.float32([0.5, -0.25]), "kernel": np.float32([[1.0, -2.0], [3.0, 0.125]])},
    "head": np.float32([0.75, -1.5]),
}
PARAMS = jax.tree.map(lambda x: np.float32(1.25 * x + 0.3), START)
GRADS = jax.tree.map(lambda x: np.float32(0.2 * x - 0.7), START)
OLD = {"body": START["body"]}


def double(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def closed_form(params: Any, start: Any, strength: float, head_strength: float) -> float:
    """alpha / 2 ||w_S - w_S0||^2 + beta / 2 ||w_new||^2."""
    p, s = double(params), double(start)
    body = sum(((p["body"][k] - s["body"][k]) ** 2).sum() for k in ("bias", "kernel"))
    return strength / 2 * body + head_strength / 2 * (p["head"] ** 2).sum()


HEADS = [
    "^head",
    gx.path_matches("head"),
    {"body": False, "head": True},
    lambda params: {"body": {"bias": False, "kernel": False}, "head": True},
]


@pytest.mark.parametrize("head", HEADS)
def test_the_penalty_is_the_formula(head: Any) -> None:
    value = l2_sp_penalty(PARAMS, OLD, strength=0.3, head_strength=0.07, head=head)
    np.testing.assert_allclose(value, closed_form(PARAMS, START, 0.3, 0.07), rtol=1e-6)
    assert value.dtype == jnp.float32


def test_in_float64(bits: int) -> None:
    cast = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, f"float{bits}"))
    value = l2_sp_penalty(cast(PARAMS), cast(START), strength=0.3, head_strength=0.07, head="^head")
    assert value.dtype == f"float{bits}"
    np.testing.assert_allclose(value, closed_form(PARAMS, START, 0.3, 0.07), rtol=1e-6 if bits == 32 else 1e-14)


def test_the_gradient_at_the_start_is_zero_and_not_nan() -> None:
    grads = jax.grad(lambda p: l2_sp_penalty(p, START, strength=0.3))(START)
    for leaf in jax.tree.leaves(grads):
        np.testing.assert_array_equal(leaf, 0.0)


def test_the_penalty_of_bfloat16_is_added_up_in_float32() -> None:
    params = {"w": jnp.full(4096, 1.0078125, jnp.bfloat16)}
    value = l2_sp_penalty(params, {"w": jnp.ones(4096, jnp.bfloat16)}, strength=2.0)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 4096 * 2.0**-14, rtol=1e-6)  # in bfloat16 the sum would stop growing


def test_the_transformation_adds_the_gradient_of_the_penalty() -> None:
    tx = add_l2_sp(OLD, 0.3, head_strength=0.07, head="^head")
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    p, s, g = double(PARAMS), double(START), double(GRADS)
    wanted = {
        "body": jax.tree.map(lambda g, p, s: g + 0.3 * (p - s), g["body"], p["body"], s["body"]),
        "head": g["head"] + 0.07 * p["head"],
    }
    assert harness.distance(updates, wanted) < 1e-6
    slope = jax.grad(lambda p: l2_sp_penalty(p, OLD, strength=0.3, head_strength=0.07, head="^head"))(PARAMS)
    assert harness.distance(updates, jax.tree.map(lambda g, d: g + d, GRADS, slope)) < 1e-6


def run(tx: Any, steps: int = 12) -> Any:
    """The params after some steps on a loss that pulls every weight down: its gradient is 1."""

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return (gx.apply_updates(params, updates), state), None

    params = jax.tree.map(jnp.asarray, START)
    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[0])(params)[0]


def test_under_gradient_descent_it_follows_its_closed_form() -> None:
    # d' = d - lr (1 + a d) from 0: d_t = ((1 - lr a)^t - 1) / a; the head has d = w, from w_0.
    params = run(gx.chain(add_l2_sp(None, 0.5, head_strength=0.25, head="^head"), gx.sgd(0.1)))
    body = ((1 - 0.1 * 0.5) ** 12 - 1) / 0.5
    s = double(START)
    fade = (1 - 0.1 * 0.25) ** 12
    wanted = {"body": jax.tree.map(lambda x: x + body, s["body"]), "head": s["head"] * fade + (fade - 1) / 0.25}
    assert harness.distance(params, wanted) < 2e-6


def test_before_adam_it_is_coupled_and_after_it_decoupled() -> None:
    # With a gradient of 1, Adam's direction is 1 whatever the pull is scaled to; the pull behind it is not rescaled.
    rate, strength = 0.1, 0.5
    adam, lr = gx.scale_by_adam(eps=0.0), gx.scale_by_learning_rate(rate)
    decoupled = run(gx.chain(adam, add_l2_sp(None, strength), lr))
    wanted = ((1 - rate * strength) ** 12 - 1) / strength
    assert harness.distance(decoupled, jax.tree.map(lambda x: x + wanted, double(START))) < 3e-6
    coupled = run(gx.chain(add_l2_sp(None, strength), adam, lr))
    # The same step in NumPy: Adam on g = 1 + a d.
    d, m, v = 0.0, 0.0, 0.0
    for t in range(1, 13):
        g = 1 + strength * d
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        d -= rate * (m / (1 - 0.9**t)) / np.sqrt(v / (1 - 0.999**t))
    assert abs(d - wanted) > 0.05
    assert harness.distance(coupled, jax.tree.map(lambda x: x + d, double(START))) < 1e-5


def test_the_strength_may_be_a_schedule() -> None:
    tx = add_l2_sp(None, gx.schedules.linear(1.0, 0.0, 4))
    state = tx.init(START)
    zero = harness.filled(START, 0.0)
    for factor in (1.0, 0.75, 0.5):
        updates, state = tx.update(zero, state, PARAMS)
        assert harness.distance(updates, jax.tree.map(lambda p, s: factor * (p - s), PARAMS, START)) < 1e-6
    assert gx.hyperparams(tx, state)["strength"] == 0.25


def test_the_state_has_its_own_copy_and_no_anchor_for_what_is_new() -> None:
    params = jax.tree.map(jnp.asarray, START)
    tx = add_l2_sp(None, 1.0, head="^head")
    state = tx.init(params)
    assert len(jax.tree.leaves(state.anchor)) == 2
    assert not any(a is b for a in jax.tree.leaves(state) for b in jax.tree.leaves(params))
    step = jax.jit(lambda p, s: tx.update(p, s, p), donate_argnums=(0, 1))
    updates, state = step(params, state)  # a buffer that is given twice would be refused
    np.testing.assert_array_equal(updates["head"], START["head"])
    narrow = tx.init(jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), START))
    assert narrow.anchor["body"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize("given", [True, False])
def test_a_step_holds_no_weights_as_constants_and_compiles_once(given: bool) -> None:
    tx = gx.chain(gx.clip_by_global_norm(1.0), add_l2_sp(START if given else None, 0.1), gx.adamw(0.1))
    step = jax.jit(tx.update)
    params, state = jax.tree.map(jnp.asarray, PARAMS), tx.init(PARAMS)
    assert all(np.size(c) <= 1 for c in jax.make_jaxpr(tx.update)(GRADS, state, params).consts)
    for _ in range(3):
        _, state = step(GRADS, state, params)
    assert step._cache_size() == 1


def test_inside_a_mask_and_in_an_nnx_optimizer() -> None:
    tx = gx.masked(add_l2_sp(None, 0.5), gx.path_matches("kernel"))
    updates, _ = tx.update(GRADS, tx.init(START), PARAMS)
    np.testing.assert_array_equal(updates["head"], GRADS["head"])
    np.testing.assert_allclose(
        updates["body"]["kernel"],
        GRADS["body"]["kernel"] + 0.5 * (PARAMS["body"]["kernel"] - START["body"]["kernel"]),
        rtol=1e-6,
    )

    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 1, rngs=nnx.Rngs(1)))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(
        model, gx.chain(add_l2_sp(None, 0.5, head_strength=0.25, head="layers/1/"), gx.sgd(1.0)), wrt=nnx.Param
    )

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))

    model.layers[0].kernel[...] += 1.0
    step(model, optimizer)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    np.testing.assert_allclose(after["layers"][0]["kernel"], before["layers"][0]["kernel"] + 0.5, rtol=1e-6)
    np.testing.assert_allclose(after["layers"][1]["kernel"], 0.75 * before["layers"][1]["kernel"], rtol=1e-6)


def test_it_is_a_value() -> None:
    tx = add_l2_sp(None, 0.5, head_strength=0.1, head="^head")
    assert repr(tx) == "transfer.add_l2_sp(pretrained=None, strength=0.5, head_strength=0.1, head='^head')"
    assert pickle.loads(pickle.dumps(tx)) == tx == gx.from_config(json.loads(json.dumps(gx.to_config(tx))))
    with_tree = add_l2_sp(START, 0.5)
    assert pickle.loads(pickle.dumps(with_tree)) == with_tree != add_l2_sp(PARAMS, 0.5)
    assert len(jax.tree.leaves(with_tree)) == 5  # the strengths and three arrays


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: add_l2_sp(None, -1.0), ValueError, "strength: expected a real number >= 0, got -1.0"),
        (lambda: add_l2_sp(None, "much"), TypeError, "strength: expected a real number or a schedule, got 'much'"),
        (
            lambda: add_l2_sp(None, 1.0, head_strength=-1.0, head="h"),
            ValueError,
            "head_strength: expected a real number",
        ),
        (lambda: add_l2_sp(None, 1.0, head_strength=0.1), ValueError, "head: expected which leaves head_strength=0.1"),
        (lambda: add_l2_sp(None, 1.0, head="("), ValueError, "head: expected a regular expression, got '\\('"),
        (lambda: add_l2_sp(None, 1.0, head={"body": 1}), TypeError, "head: expected a bool at 'body', got 1"),
        (
            lambda: add_l2_sp(None, 1.0).init(jax.eval_shape(lambda: START)),
            TypeError,
            r"pretrained: expected a value to start from at 'body.*', got a ShapeDtypeStruct; jax.eval_shape\(tx.init",
        ),
        (
            lambda: add_l2_sp(OLD, 1.0).init(START),
            ValueError,
            r"pretrained: expected an array of shape \(2,\) at 'head'",
        ),
        (
            lambda: add_l2_sp({"body": OLD["body"], "head": np.zeros(3)}, 1.0).init(START),
            ValueError,
            r"pretrained: expected shape \(2,\) at 'head', got \(3,\)",
        ),
        (lambda: add_l2_sp(None, 1.0).update(GRADS, add_l2_sp(None, 1.0).init(START)), ValueError, "expected params"),
        (lambda: add_l2_sp(None, 1.0).init({"n": jnp.arange(3)}), TypeError, "at 'n', got int32"),
        (lambda: add_l2_sp(None, 1.0, head={"tail": True}).init(START), ValueError, "params and head do not fit at"),
        (lambda: l2_sp_penalty(START, START, strength=-1.0), ValueError, "strength: expected"),
        (lambda: l2_sp_penalty(START, START, strength=lambda t: t), TypeError, "strength: expected a real number"),
        (lambda: l2_sp_penalty({"n": jnp.arange(3)}, {"n": jnp.arange(3)}, strength=1.0), TypeError, "at 'n'"),
        (lambda: l2_sp_penalty(START, OLD, strength=1.0), ValueError, "name the leaves that are new with head"),
        (lambda: ewc_penalty(START, START, OLD, strength=1.0), ValueError, "fisher: expected an array"),
        (lambda: add_ewc(None, OLD, 1.0).init(START), ValueError, "fisher: expected an array"),
    ],
)
def test_errors_name_what_is_wrong(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
