"""master_weights: float32 training behind bfloat16 params, bit for bit, whoever adds the updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from harness import same_bytes

import gradxform as gx
from gradxform.precision import words

P = gx.precision
Tree = Any
STEPS = 1000
X = jax.random.normal(jax.random.key(1), (32, 48))
Y = jnp.sin(3 * X[:, :10])
TX: dict[str, Callable[[], gx.Transformation]] = {
    "adamw": lambda: gx.adamw(gx.schedules.cosine(3e-3, STEPS), weight_decay=0.1, mask=gx.ndim_at_least(2)),
    "lion": lambda: gx.lion(3e-4, weight_decay=0.1),
    "sgd": lambda: gx.sgd(0.05, momentum=0.9),
    "lamb": lambda: gx.lamb(3e-3, weight_decay=0.1),
}


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(48, 80, use_bias=False, rngs=rngs)
        self.last = nnx.Linear(80, 10, rngs=rngs)
        # So small that a step may make them much smaller still.
        self.first.kernel[...] = self.first.kernel[...].at[:4].multiply(1e-4)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(jnp.tanh(self.first(x)))


def started(tx: gx.Transformation) -> tuple[nnx.Module, nnx.Optimizer]:
    """A net with bfloat16 params and an optimizer that has the rest of its float32 weights."""
    model = Net(nnx.Rngs(0))
    params, state = P.split(nnx.state(model, nnx.Param), tx)
    nnx.update(model, params)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    nnx.update(optimizer.opt_state, nnx.state(nnx.as_pure(state)))
    return model, optimizer


def gradient(model: nnx.Module, step: Any, rough: Any) -> Tree:
    """Of a batch that changes with the step, in float32; rounded to bfloat16 where it is ``rough``."""
    x, y = jnp.roll(X, step, 1), jnp.roll(Y, step, 1)
    graph, params = nnx.split(model)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    grads = jax.grad(lambda params: jnp.mean((nnx.merge(graph, params)(x) - y) ** 2))(wide)
    return jax.tree.map(lambda g: jnp.where(rough, jax.lax.reduce_precision(g, 8, 7), g), grads)


def missed(masters: Tree, old: Tree, wanted: Tree) -> tuple[jax.Array, jax.Array]:
    """How many masters are not where float32 training takes them from the old ones, and by how many ulps of those."""
    triples = [*zip(*map(jax.tree.leaves, (masters, old, wanted)), strict=True)]
    wrong = sum(jnp.sum(words.pattern(m) != words.pattern(w), dtype=jnp.int32) for m, _, w in triples)
    ulp = lambda x: jnp.maximum(jnp.spacing(jnp.abs(x)), jnp.finfo(jnp.float32).tiny)  # noqa: E731
    return wrong, jnp.max(jnp.stack([jnp.max(jnp.abs(m - w) / ulp(o)) for m, o, w in triples]))


def differing(a: Tree, b: Tree) -> jax.Array:
    return sum(
        jnp.sum(~words.same(x, y), dtype=jnp.int32) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.as_in_use
@pytest.mark.parametrize("name", TX)
def test_a_thousand_steps_are_exactly_those_of_float32(name: str) -> None:
    """Each step beside one of float32 training from the same masters, moments and gradients, of float32 and bfloat16.

    The step is ``nnx.Optimizer``'s; ``optax.apply_updates`` and ``gx.apply_updates`` give the same bits.
    """
    inner = TX[name]()
    tx = P.master_weights(inner)
    graph, start = nnx.split(started(tx))

    def one(carry: Tree, step: Any, rough: Any) -> tuple[Tree, Any]:
        model, optimizer = nnx.merge(graph, carry)
        grads = gradient(model, step, rough)
        g, p, state = map(nnx.as_pure, (grads, nnx.state(model, nnx.Param), optimizer.opt_state))
        old = P.masters(p, state)
        updates, _ = inner.update(g, state.inner_state, old)
        wanted = gx.apply_updates(old, updates)
        updates, _ = tx.update(g, state, p)
        optimizer.update(model, grads)
        now = nnx.as_pure(nnx.state(model, nnx.Param))
        found = missed(P.masters(now, nnx.as_pure(optimizer.opt_state)), old, wanted)
        others = differing(now, gx.apply_updates(p, updates)) + differing(now, optax.apply_updates(p, updates))
        return nnx.state((model, optimizer)), (*found, others)

    @jax.jit
    def run(rough: Any) -> Any:
        return jax.lax.scan(lambda carry, step: one(carry, step, rough), start, jnp.arange(STEPS))[1]

    n = STEPS * sum(leaf.size for leaf in jax.tree.leaves(nnx.state(Net(nnx.Rngs(0)), nnx.Param)))
    for rough in (False, True):
        wrong, ulps, others = run(rough)
        assert int(wrong.sum()) <= 1e-5 * n
        assert float(ulps.max()) <= 1
        assert int(others.sum()) == 0


# What it is made of.
WEIGHTS = {
    "kernel": jnp.sin(jnp.arange(1.0, 13.0)).reshape(3, 4) / 3,
    "bias": jnp.cos(jnp.arange(4.0)) / 7,
    "scale": jnp.float32(1.1),
}
GRADS = jax.tree.map(lambda p: 0.3 * jnp.cos(9 * p), WEIGHTS)
ADAMW = gx.adamw(1e-2, weight_decay=0.1)


def dtypes(tree: Tree) -> list[str]:
    return [str(leaf.dtype) for leaf in jax.tree.leaves(tree)]


def test_split_loses_nothing() -> None:
    tx = P.master_weights(ADAMW)
    params, state = P.split(WEIGHTS, tx, keep="scale")
    assert same_bytes(jax.jit(lambda weights: P.split(weights, tx, keep="scale"))(WEIGHTS), (params, state))
    assert dtypes(params) == ["bfloat16", "bfloat16", "float32"]
    assert dtypes(state.remainder) == ["uint16", "uint16"]
    assert same_bytes(P.masters(params, state), WEIGHTS)
    nearest = jax.tree.map(lambda p, w: jnp.max(jnp.abs(p - w) / jnp.abs(w)), params, WEIGHTS)
    assert max(jax.tree.leaves(nearest)) <= 2**-8
    assert sum(leaf.nbytes for leaf in jax.tree.leaves((params, state.remainder))) == 4 * 17


@pytest.mark.as_in_use
def test_24_bits_start_with_16_significant_ones() -> None:
    tx = P.master_weights(ADAMW, bits=24)
    params, state = P.split(WEIGHTS, tx)
    assert {*dtypes(state.remainder)} == {"uint8"} and int(state.step) == 0
    for master, weight in zip(*map(jax.tree.leaves, (P.masters(params, state), WEIGHTS)), strict=True):
        assert float(jnp.max(jnp.abs(master - weight) / jnp.abs(weight))) <= 2**-16
    assert same_bytes(P.masters(*P.split(P.masters(params, state), tx)), P.masters(params, state))


def test_float16_has_a_whole_master_and_float32_is_its_own() -> None:
    tx = P.master_weights(gx.sgd(1.0))
    params, state = P.split(WEIGHTS, tx, dtype="float16")
    assert {*dtypes(params)} == {"float16"} and {*dtypes(state.remainder)} == {"float32"}
    update = jax.jit(tx.update)
    small = jax.tree.map(lambda p: jnp.full(p.shape, 1e-5, jnp.float16), params)
    for _ in range(20):
        updates, state = update(small, state, params)
        params = gx.apply_updates(params, updates)
    moved = P.masters(params, state)
    assert all(
        jnp.allclose(m, w - 2e-4, atol=2e-6)
        for m, w in zip(jax.tree.leaves(moved), jax.tree.leaves(WEIGHTS), strict=True)
    )
    assert same_bytes(params, jax.tree.map(lambda m: m.astype(jnp.float16), moved))
    state = tx.init(WEIGHTS)
    assert jax.tree.leaves(state.remainder) == []
    assert same_bytes(tx.update(GRADS, state, WEIGHTS)[0], gx.sgd(1.0).update(GRADS, gx.sgd(1.0).init(WEIGHTS))[0])
    assert same_bytes(P.masters(WEIGHTS, state), WEIGHTS)


def test_the_updates_are_float32_and_gradients_of_bfloat16_are_float32_ones() -> None:
    tx = P.master_weights(ADAMW)
    params, state = P.split(WEIGHTS, tx)
    rough = jax.tree.map(lambda g: g.astype(jnp.bfloat16), GRADS)
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), rough)
    found, wanted = tx.update(rough, state, params), tx.update(wide, state, params)
    assert {*dtypes(found[0])} == {"float32"}
    assert same_bytes(found, wanted)


def test_what_starts_from_the_weights_starts_from_the_masters() -> None:
    tx = P.master_weights(gx.chain(gx.transfer.add_l2_sp(None, 0.1), gx.sgd(0.1)))
    _, state = P.split(WEIGHTS, tx)
    assert same_bytes(state.inner_state[0], gx.transfer.add_l2_sp(None, 0.1).init(WEIGHTS))
