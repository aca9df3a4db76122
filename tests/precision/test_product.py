"""Every wrapper around every optimizer: it is a value, a population trains at once, and what was saved goes on."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from harness import at_step, same_bytes

import gradxform as gx

pytestmark = pytest.mark.long

P = gx.precision
STEPS, KEPT = 5, 3
"""Steps of a run, and those after which it is saved."""
PARAMS = {"kernel": jnp.sin(jnp.arange(1.0, 49.0)).reshape(6, 8), "bias": jnp.cos(jnp.arange(4.0))}
GRADS = jax.tree.map(lambda p: np.cos(9 * p + np.arange(STEPS).reshape(-1, *[1] * p.ndim)), PARAMS)
RATES = (0.01, 0.02, 0.05)
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adamw": gx.adamw,
    "lamb": gx.lamb,
    "lion": gx.lion,
    "adafactor": lambda rate: gx.adafactor(rate, min_dim_size_to_factor=2),
    "chain": lambda rate: gx.chain(
        gx.clip_by_global_norm(0.5), gx.masked(gx.scale_by_adam(), gx.ndim_at_least(2)), gx.scale_by_learning_rate(rate)
    ),
    "optax": optax.adamw,
}
coded = functools.partial(P.compress_state, codec="fp8", min_size=6)
"""Codes for kernels, and the rows and columns of factored ones; a bias stays float32."""
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "compress": coded,
    "masters": lambda tx: P.master_weights(coded(tx)),
    "loss scale": lambda tx: P.dynamic_loss_scale(coded(tx), 8.0),
    "accumulate": lambda tx: gx.accumulate(coded(tx), 2),
    "skip": lambda tx: gx.skip_nonfinite(coded(tx), 3),
    "partition": lambda tx: gx.partition({"a": coded(tx), "b": gx.trace(0.9)}, {"kernel": "a", "bias": "b"}),
}


def numbers(run: Any) -> Any:
    """Params and state as what they stand for, the weights behind params of 16 bits among it."""
    params, state = P.decompress(run)
    return (P.masters(params, state), state.inner_state) if hasattr(state, "remainder") else (params, state)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_value_a_population_and_a_run_that_goes_on(optimizer: str, wrapper: str) -> None:
    def make(rate: Any) -> Any:
        return WRAPPERS[wrapper](OPTIMIZERS[optimizer](rate))

    tx = again = make(RATES[-1])
    assert "precision.compress_state(" in repr(tx) and ("optax" if optimizer == "optax" else "0.05") in repr(tx)
    if optimizer != "optax":  # whose pairs hold functions without a name
        again = gx.from_config(json.loads(json.dumps(gx.to_config(tx))))
        assert again == tx == pickle.loads(pickle.dumps(tx)) and hash(again) == hash(tx)

    def step(rate: Any, run: Any, grads: Any) -> Any:
        params, state = run
        updates, state = make(rate).update(grads, state, params)
        return gx.apply_updates(params, updates), state

    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS) if wrapper == "masters" else PARAMS
    start, ends, saved = (params, tx.init(params)), [], []
    assert jax.tree.structure(start) != jax.tree.structure(P.decompress(start))
    for rate in RATES:
        run = start
        for t in range(STEPS):
            run = step(rate, run, at_step(GRADS, t))
        ends.append(numbers(run))

    at_once = jax.jit(jax.vmap(step, in_axes=(0, 0, None)))
    runs = jax.tree.map(lambda x: np.stack([x] * len(RATES)), start)
    for t in range(STEPS):
        if t == KEPT:
            saved = [np.asarray(x) for x in jax.tree.leaves(runs)]
        runs = at_once(np.float32(RATES), runs, at_step(GRADS, t))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        numbers(runs),
        jax.tree.map(lambda *x: np.stack(x), *ends),
    )
    moved = np.abs(np.float32(runs[0]["kernel"]) - np.float32(params["kernel"])).max((1, 2))
    assert 0 < moved[0] < moved[1] < moved[2]

    restored = jax.tree.structure((params, jax.eval_shape(again.init, params))).unflatten(saved)
    for t in range(KEPT, STEPS):
        restored = at_once(np.float32(RATES), restored, at_step(GRADS, t))
    assert same_bytes(restored, runs)


def test_in_a_train_state_and_an_nnx_optimizer() -> None:
    tx = gx.chain(gx.clip_by_global_norm(0.5), coded(gx.adamw(0.05)))
    model = nnx.Linear(6, 8, rngs=nnx.Rngs(0))
    params, graph = nnx.to_pure_dict(nnx.state(model, nnx.Param)), nnx.state(model, nnx.Param)
    grads = jax.tree.map(jnp.cos, params)
    updates, state = tx.update(grads, tx.init(params), params)
    wanted = gx.apply_updates(params, updates)

    train = TrainState.create(apply_fn=model, params=params, tx=tx).apply_gradients(grads=grads)
    assert same_bytes((train.params, train.opt_state), (wanted, state))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.cos, graph))
    assert same_bytes(nnx.to_pure_dict(nnx.state(model, nnx.Param)), wanted)
    kept = jax.tree.leaves(nnx.as_pure(optimizer.opt_state))
    assert same_bytes(kept, jax.tree.leaves(state))
