"""Flax on 8 devices: params in boxes with a ``TrainState``, and the variables of a module with ``nnx.Optimizer``."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded_network import COMPILED, KINDS, TOKENS, loss, params, whole
from sharded_transformations import RATE

import gradxform as gx

NAMES = {
    "embed": (None, None),
    "square": (None, None),
    "kernel": (None, "model"),
    "bias": ("model",),
    "block": (None, None),
    "odd": (None, None),
}
TRANSFORMATIONS = {
    "adafactor": gx.adafactor(RATE, min_dim_size_to_factor=4, factored_axes="last"),
    "clip": gx.chain(gx.clip_by_global_norm(0.1), gx.adamw(RATE)),
}
STEPS = 3


class Model(nnx.Module):
    """A variable for each param."""

    def __init__(self, of: dict[str, Any]):
        for name, x in of.items():
            setattr(self, name, nnx.Param(x, out_sharding=tuple(x.sharding.spec)))

    def loss(self, tokens: jax.Array) -> jax.Array:
        """Of the network."""
        return loss(whole({name: getattr(self, name)[...] for name in NAMES}), tokens)


def values(boxed: dict[str, Any]) -> dict[str, Any]:
    """What is in boxes; their own ``unbox`` lays it out anew."""
    return {name: box.value for name, box in boxed.items()}


def by_train_state(tx: Any, p: Any, tokens: jax.Array) -> Any:
    boxed = {name: nn.Partitioned(x, names=NAMES[name]) for name, x in p.items()}
    number = jax.device_put(np.int32(0), NamedSharding(p["odd"].sharding.mesh, P()))
    state: Any = TrainState(step=number, apply_fn=loss, params=boxed, tx=tx, opt_state=gx.sharding.init(tx, boxed))

    @jax.jit
    def step(state: Any, tokens: jax.Array) -> Any:
        return state.apply_gradients(grads=jax.grad(lambda p: loss(whole(values(p)), tokens))(state.params))

    for _ in range(STEPS):
        before = len(COMPILED)
        state = step(state, tokens)
    assert len(COMPILED) == before, "compiled again"
    return values(state.params)


def by_optimizer(tx: Any, p: Any, tokens: jax.Array) -> Any:
    model = Model(p)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: Any, tokens: jax.Array) -> None:
        optimizer.update(model, nnx.grad(lambda model: model.loss(tokens))(model))

    for _ in range(STEPS):
        step(model, optimizer, tokens)
    return {name: getattr(model, name)[...] for name in NAMES}


@functools.cache
def alone(name: str) -> Any:
    """The params after some steps on one device."""
    tx, p = TRANSFORMATIONS[name], params()
    state = tx.init(p)

    @jax.jit
    def step(p: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(p, TOKENS), state, p)
        return gx.apply_updates(p, updates), state

    for _ in range(STEPS):
        p, state = step(p, state)
    return p


def with_flax(cases: str = "some") -> Iterator[str]:
    """As without Flax and on one device, and laid out as before."""
    product = list(itertools.product(TRANSFORMATIONS, ("zero1", "fsdp"), (by_train_state, by_optimizer), KINDS))
    # Adafactor: ZeRO-1 by ``nnx.Optimizer`` on an Explicit mesh, and FSDP by ``TrainState`` on an Auto one.
    for name, way, train, kind in product[3:5] if cases == "some" else product:
        inner, told, q = TRANSFORMATIONS[name], [], alone(name)
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(KINDS[kind],) * 2)
        with jax.set_mesh(mesh):
            boxed = {key: nn.Partitioned(x, names=NAMES[key]) for key, x in params().items()}
            lies = values(gx.sharding.fsdp(boxed, mesh, min_size=0 if way == "fsdp" else 2**40))
            p = jax.device_put(params(), lies)
            divided = gx.sharding.zero1(inner, min_size=0, rules=[("kernel", 0), ("bias", None)])
            tokens = jax.device_put(TOKENS, NamedSharding(mesh, P("data")))
            try:
                p = train(divided if way == "zero1" else inner, p, tokens)
            except Exception as error:  # the next case is to be run too
                yield f"{name}, {way}, {train.__name__}, {kind}: {type(error).__name__}: {str(error)[:400]}"
                continue
        for key in q:
            if not (off := np.abs(np.asarray(p[key]) - np.asarray(q[key])).max()) < 1e-11:
                told.append(f"{key} is {off:.1e} off")
            if not p[key].sharding.is_equivalent_to(lies[key], p[key].ndim):
                told.append(f"{key} lies as {p[key].sharding.spec}, not {lies[key].spec}")
        yield from (f"{name}, {way}, {train.__name__}, {kind}: {one}" for one in told)
