"""master_weights inside and around everything else, and what it refuses."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from harness import same_bytes

import gradxform as gx

P = gx.precision
Tree = Any
WEIGHTS = {"kernel": jnp.sin(jnp.arange(1.0, 13.0)).reshape(3, 4) / 3, "bias": jnp.cos(jnp.arange(4.0)) / 7}
GRADS = jax.tree.map(lambda p: 0.3 * jnp.cos(9 * p), WEIGHTS)
ADAMW = gx.adamw(1e-2, weight_decay=0.1)


def dtypes(tree: Tree) -> list[str]:
    return [str(leaf.dtype) for leaf in jax.tree.leaves(tree)]


def free_run(tx: Any, params: Tree, state: Any, steps: int = 3) -> tuple[Tree, Any]:
    update = jax.jit(tx.update)
    for i in range(steps):
        updates, state = update(jax.tree.map(lambda g, i=i: g / (1 + i), GRADS), state, params)
        params = gx.apply_updates(params, updates)
    return params, state


LABELS, MASK = {"kernel": "a", "bias": "b"}, {"kernel": True, "bias": True}
COMPOSED: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "clip before": lambda m: gx.chain(gx.clip_by_global_norm(0.5), gx.record_norms(), m(ADAMW)),
    "optax inside": lambda m: m(optax.adamw(1e-2)),
    "around optax's chain": lambda m: optax.chain(optax.clip_by_global_norm(0.5), m(ADAMW)),
    "skip": lambda m: gx.skip_nonfinite(m(ADAMW), 3),
    "skip around accumulate": lambda m: gx.skip_nonfinite(gx.accumulate(gx.chain(gx.clip(0.2), m(ADAMW)), 2), 3),
    "partition": lambda m: gx.partition({"a": m(ADAMW), "b": m(gx.sgd(0.1))}, LABELS),
    "masks": lambda m: gx.masked(m(gx.selective_transform(ADAMW, freeze_mask="bias")), MASK),
    "unfreeze": lambda m: gx.transfer.gradual_unfreeze(m(ADAMW), (("bias", 0), ("", 2))),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_it_is_float32_training(name: str) -> None:
    """Inside and around what clips, skips, accumulates, divides: the masters are the weights that float32 has."""
    tx = COMPOSED[name](P.master_weights)
    wanted, _ = free_run(plain := COMPOSED[name](lambda inner: inner), WEIGHTS, plain.init(WEIGHTS))
    params, state = free_run(tx, *P.split(WEIGHTS, tx))
    assert {*dtypes(params)} == {"bfloat16"}
    found = P.masters(params, state)
    assert not same_bytes(wanted, WEIGHTS)
    assert same_bytes(found, wanted)


def test_a_part_of_the_tree_has_masters() -> None:
    tx = gx.partition({"a": P.master_weights(ADAMW), "b": gx.sgd(0.1)}, LABELS)
    with pytest.raises(ValueError, match="tx: expected a master for 'bias', got none; leave it float32"):
        P.split(WEIGHTS, tx)
    params, state = free_run(tx, *P.split(WEIGHTS, tx, keep="bias"))
    assert dtypes(params) == ["float32", "bfloat16"]
    assert same_bytes(P.masters(params, state)["bias"], params["bias"])


@pytest.mark.as_in_use
@pytest.mark.parametrize("bits", [24, 32])
def test_a_skipped_step_keeps_every_bit(bits: int) -> None:
    tx = gx.skip_nonfinite(P.master_weights(ADAMW, bits), 3)
    params, state = free_run(tx, *P.split(WEIGHTS, tx))
    broken = GRADS | {"bias": GRADS["bias"].at[1].set(jnp.nan)}
    updates, after = jax.jit(tx.update)(broken, state, params)
    assert same_bytes(gx.apply_updates(params, updates), params)
    assert same_bytes(after.inner_state, state.inner_state) and int(after.skipped_steps) == 1


def test_a_param_changed_outside_takes_no_nan_from_what_was_kept() -> None:
    tx = P.master_weights(gx.sgd(0.1))
    params, state = P.split(WEIGHTS, tx)
    pruned = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, GRADS), state, pruned)
    assert same_bytes(gx.apply_updates(pruned, updates), pruned)


def test_a_population_of_rates_and_a_resumed_run() -> None:
    step = jax.jit(lambda tx, params, state: tx.update(GRADS, state, params))
    tx = P.master_weights(gx.adam(0.1))
    params, state = P.split(WEIGHTS, tx)
    many = jax.tree.map(lambda *x: jnp.array(x), tx, P.master_weights(gx.adam(0.2)))
    updates, states = jax.vmap(lambda tx: step(tx, params, state))(many)
    one = step(tx, params, state)
    assert same_bytes(jax.tree.map(lambda x: x[0], (updates, states)), one)
    there = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, (params, state))))
    assert same_bytes(free_run(tx, *jax.tree.map(jnp.asarray, there)), free_run(tx, params, state))


def test_train_state_and_shapes() -> None:
    tx = P.master_weights(ADAMW)
    params, state = P.split(WEIGHTS, tx)
    train = TrainState.create(apply_fn=lambda: None, params=params, tx=tx).replace(opt_state=state)
    for i in range(3):
        train = train.apply_gradients(grads=jax.tree.map(lambda g, i=i: g / (1 + i), GRADS))
    wanted, _ = free_run(ADAMW, WEIGHTS, ADAMW.init(WEIGHTS))
    for master, weight in zip(*map(jax.tree.leaves, (P.masters(train.params, train.opt_state), wanted)), strict=True):
        assert jnp.allclose(master, weight, rtol=1e-6)
    shapes = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    assert [leaf.dtype for leaf in jax.tree.leaves(shapes)] == [leaf.dtype for leaf in jax.tree.leaves(state)]
    of_shapes = tx.init(jax.eval_shape(lambda: params))
    assert same_bytes(of_shapes.inner_state, tx.init(params).inner_state)
    tree = optax.tree_utils.tree_map_params(tx, lambda x: x * 0, state)
    assert jax.tree.structure(tree) == jax.tree.structure(state)


# What is refused.
MASTERS = P.master_weights(gx.sgd(0.1))


@pytest.mark.parametrize(
    "make",
    [
        lambda after: gx.chain(MASTERS, after),
        lambda after: gx.named_chain(("masters", MASTERS), ("scale", after)),
        lambda after: gx.chain(gx.masked(MASTERS, "kernel"), after),
        lambda after: gx.chain(gx.chain(gx.clip(1.0), MASTERS), after),
        lambda after: gx.chain(gx.skip_nonfinite(gx.accumulate(MASTERS, 2), 3), after),
        lambda after: gx.chain(gx.partition({"a": MASTERS, "b": gx.sgd(0.1)}, LABELS), after),
        lambda after: gx.chain(P.stochastic_rounding(gx.sgd(0.1)), after),
        lambda after: gx.transfer.gradual_unfreeze(after, (("", 0),), before=MASTERS),
    ],
    ids=["chain", "named", "masked", "nested", "guarded", "partition", "stochastic", "unfreeze"],
)
def test_nothing_comes_after_it(make: Any) -> None:
    with pytest.raises(ValueError, match=r"expected nothing after [a-z_.]+, whose updates .*, got scale;"):
        make(gx.scale(0.5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: P.master_weights(gx.sgd(0.1), bits=16), ValueError, "bits: expected 24 or 32, got 16"),
        (lambda: P.master_weights(gx.sgd(0.1), bits=32.0), TypeError, "bits: expected 24 or 32, got 32.0"),
        (lambda: P.master_weights("sgd"), TypeError, "tx: expected a transformation, got 'sgd'"),
        (
            lambda: P.master_weights(gx.sgd(0.1), 24).init({"w": jnp.ones(2, jnp.float16)}),
            TypeError,
            "expected params of bfloat16 or float32 with bits=24, got float16 at 'w'",
        ),
        (
            lambda: MASTERS.update(GRADS, MASTERS.init(WEIGHTS)),
            ValueError,
            "precision.master_weights: expected params, got None",
        ),
        (
            lambda: MASTERS.update(GRADS, P.split(WEIGHTS, MASTERS)[1], WEIGHTS),
            ValueError,
            r"params: expected bfloat16\[4\] at 'bias', as at the start of the state, got float32\[4\]",
        ),
        (lambda: P.masters(WEIGHTS, gx.sgd(0.1).init(WEIGHTS)), ValueError, "state: expected the state of a transform"),
        (
            lambda: P.masters({"kernel": WEIGHTS["kernel"]}, P.split(WEIGHTS, MASTERS)[1]),
            ValueError,
            "state and params do not fit at 'bias'",
        ),
        (lambda: P.split(WEIGHTS, gx.sgd(0.1)), ValueError, "state: expected the state of a transformation"),
        (
            lambda: P.split(WEIGHTS, MASTERS, dtype="float32"),
            TypeError,
            "dtype: expected bfloat16 or float16, got float32",
        ),
    ],
)
def test_bad_input_names_what_is_wrong(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_float64_is_its_own_master_and_refused_with_24_bits() -> None:
    with jax.enable_x64(True):
        params = {"w": jnp.ones(2, jnp.float64)}
        assert jax.tree.leaves(MASTERS.init(params).remainder) == []
        with pytest.raises(TypeError, match="got float64 at 'w'"):
            P.master_weights(gx.sgd(0.1), 24).init(params)
