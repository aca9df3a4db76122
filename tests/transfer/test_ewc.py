"""Elastic weight consolidation against exact values on a softmax model and on quadratic losses."""

from __future__ import annotations

import json
import pickle
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradxform as gx
from gradxform.transfer import add_ewc, add_l2_sp, ewc_penalty, fisher_diagonal, l2_sp_penalty

START = {"bias": np.float32([0.3, -0.2]), "kernel": np.float32([[1.0, -0.5], [0.25, 2.0], [0.0, 1.0]])}
FISHER = {"bias": np.float32([2.0, 0.0]), "kernel": np.float32([[1.0, 0.5], [3.0, 0.25], [0.0, 4.0]])}
PARAMS = jax.tree.map(lambda x: np.float32(1.5 * x - 0.4), START)
GRADS = jax.tree.map(lambda x: np.float32(0.2 * x + 0.1), START)


def test_the_penalty_and_the_transformation_are_the_formula() -> None:
    p, s, f, g = (harness.flat(tree) for tree in (PARAMS, START, FISHER, GRADS))
    wanted = sum(0.7 / 2 * (f[k] * (p[k] - s[k]) ** 2).sum() for k in p)
    np.testing.assert_allclose(ewc_penalty(PARAMS, START, FISHER, strength=0.7), wanted, rtol=1e-6)
    tx = add_ewc(START, FISHER, 0.7)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    for name, leaf in harness.flat(updates).items():
        np.testing.assert_allclose(leaf, g[name] + 0.7 * f[name] * (p[name] - s[name]), rtol=1e-5)
    slope = jax.grad(lambda p: ewc_penalty(p, START, FISHER, strength=0.7))(PARAMS)
    assert harness.distance(updates, jax.tree.map(lambda g, d: g + d, GRADS, slope)) < 1e-6


@pytest.mark.as_in_use
def test_on_a_softmax_model_it_has_its_exact_value() -> None:
    """The Fisher information of a softmax model in closed form, and the penalty with it, in float64."""
    apply = lambda p, x: x @ p["kernel"] + p["bias"]  # noqa: E731
    x = np.float32(np.random.RandomState(1).standard_normal((7, 3)))
    fisher = fisher_diagonal(apply, START, [x[:4], x[4:]])
    z = np.float64(x) @ np.float64(START["kernel"]) + np.float64(START["bias"])
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    slope = p * (1 - p)
    exact = {"bias": slope.mean(0), "kernel": np.float64(x**2).T @ slope / 7}
    assert harness.distance(fisher, exact) < 1e-6
    d = {k: np.float64(PARAMS[k]) - np.float64(START[k]) for k in START}
    wanted = 3.0 / 2 * sum((exact[k] * d[k] ** 2).sum() for k in START)
    np.testing.assert_allclose(ewc_penalty(PARAMS, START, fisher, strength=3.0), wanted, rtol=1e-5)


def test_training_on_a_second_task_ends_where_it_should() -> None:
    """The loss c/2 (w - t)^2 with the penalty has its minimum at (c t + l F w0) / (c + l F)."""
    target, rate, strength = 2.0, 0.2, 1.5
    tx = gx.chain(add_ewc(None, FISHER, strength), gx.sgd(rate))

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda p: 0.5 * (p - target), params), state, params)
        return (gx.apply_updates(params, updates), state), None

    params = jax.tree.map(jnp.asarray, START)
    (got, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=300))(params)
    wanted = jax.tree.map(
        lambda w0, f: (0.5 * target + strength * np.float64(f) * w0) / (0.5 + strength * f), START, FISHER
    )
    assert harness.distance(got, wanted) < 1e-4


def test_with_ones_it_is_l2_sp() -> None:
    ones = harness.filled(START, 1.0)
    head = "bias"
    np.testing.assert_allclose(
        ewc_penalty(PARAMS, START, ones, strength=0.7, head_strength=0.2, head=head),
        l2_sp_penalty(PARAMS, START, strength=0.7, head_strength=0.2, head=head),
        rtol=1e-7,
    )
    a, b = (add_ewc(None, ones, 0.7, head_strength=0.2, head=head), add_l2_sp(None, 0.7, head_strength=0.2, head=head))
    assert harness.distance(a.update(GRADS, a.init(START), PARAMS)[0], b.update(GRADS, b.init(START), PARAMS)[0]) == 0


def test_what_is_new_needs_no_fisher_and_decays_toward_zero() -> None:
    params = PARAMS | {"head": np.float32([2.0])}
    tx = add_ewc(START, FISHER, 1.0, head_strength=0.25, head="head")
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["head"], [0.5])
    assert len(jax.tree.leaves(state)) == 5  # two anchors, two weights, the count


def test_it_is_a_value_and_a_step_compiles_once() -> None:
    tx = add_ewc(None, FISHER, 0.5)
    assert pickle.loads(pickle.dumps(tx)) == tx == gx.from_config(json.loads(json.dumps(gx.to_config(tx))))
    step = jax.jit(lambda tx, g, s, p: tx.update(g, s, p))
    state = tx.init(START)
    for factor in (0.5, 0.25):
        updates, state = step(tx.replace(strength=factor), GRADS, state, PARAMS)
        assert (
            harness.distance(
                updates, jax.tree.map(lambda g, f, p, s: g + factor * f * (p - s), GRADS, FISHER, PARAMS, START)
            )
            < 1e-6
        )
    assert step._cache_size() == 1


def test_in_an_nnx_optimizer_as_a_plain_pair() -> None:
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    start = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    tx = optax.GradientTransformationExtraArgs(*gx.chain(add_ewc(None, FISHER, 0.5), gx.sgd(1.0)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    model.kernel[...] += 1.0
    nnx.jit(
        lambda model, optimizer: optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    )(model, optimizer)
    np.testing.assert_allclose(model.kernel[...], start["kernel"] + 1 - 0.5 * FISHER["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: add_ewc(None, FISHER, -1.0), ValueError, "strength: expected a real number >= 0, got -1.0"),
        (
            lambda: add_ewc(None, {"bias": FISHER["bias"]}, 1.0).init(START),
            ValueError,
            r"fisher: expected an array of shape \(3, 2\) at 'kernel', got no leaf",
        ),
        (
            lambda: ewc_penalty(START, START, FISHER | {"bias": np.ones(3)}, strength=1.0),
            ValueError,
            r"fisher: expected shape \(2,\) at 'bias', got \(3,\)",
        ),
    ],
)
def test_errors_name_what_is_wrong(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
