"""Training on several devices of a CPU beside training on one, run by ``test_sharded_training.py``.

``python training_program.py``: one layout each of some transformations, and what else there is in this folder.
``python training_program.py all PART`` is a part of the whole product: 1, 2, 4 or 8 for all transformations, layouts
and kinds of meshes of so many devices in float64, ``float32`` for those of 8 devices in float32, ``flax``.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from sharded_bytes import held, sent
from sharded_codes import coded
from sharded_export import exported
from sharded_flax import with_flax
from sharded_network import COMPILED, KINDS, TOKENS, loss, params, whole
from sharded_transformations import NARROW, RATE, transformations

import gradxform as gx

LAYOUTS = ("replicated", "fsdp", "tensor", "zero1", "zero1 over one of two", "zero1 over both", "zero1 with tensor")
GROUP = 64
"""Transformations whose steps are one program: the network and what a program costs by itself are compiled once."""
Case = tuple[str, str, int]


class Together(NamedTuple):
    """Transformations side by side, each of params of its own."""

    each: dict[str, Any]

    def init(self, p: Any) -> Any:
        """The state of each."""
        return {name: tx.init(p[name]) for name, tx in self.each.items()}


def mesh_for(layout: str, kind: str, devices: int) -> Mesh:
    names = {
        "tensor": ("data", "model"),
        "zero1 with tensor": ("data", "model"),
        "zero1 over one of two": ("replica", "data"),
        "zero1 over both": ("replica", "data"),
    }.get(layout, ("data",))
    shape = (devices,) if len(names) == 1 else (devices // 2, 2) if devices > 1 else (1, 1)
    return jax.make_mesh(shape, names, axis_types=(KINDS[kind],) * len(names), devices=jax.devices()[:devices])


def laid_out(layout: str, mesh: Mesh) -> Any:
    """Where each param is to lie."""
    rules = {
        "fsdp": [],
        "tensor": [("kernel", (None, "model")), ("bias", ("model",)), ("", None)],
        "zero1 with tensor": [("kernel", (None, "model")), ("bias", ("model",)), ("", None)],
    }.get(layout, [("", None)])
    return gx.sharding.fsdp(params(), mesh, rules=rules, min_size=0)


def wrapped(layout: str, tx: Any) -> Any:
    if not layout.startswith("zero1"):
        return tx
    axis = ("replica", "data") if layout == "zero1 over both" else "data"
    return gx.sharding.zero1(tx, axis, min_size=0, rules=[("kernel", 0), ("bias", None)] if "tensor" in layout else ())


def start(names: Any, lay: Any = None) -> Any:
    """Params of its own for each transformation, in arrays that are nobody else's; ``lay`` says where each lies."""
    once = jax.device_get(params())

    def own(name: str, x: np.ndarray) -> np.ndarray:
        return x.astype(jnp.bfloat16) if name in NARROW else x.copy()

    host = {name: {key: own(name, x) for key, x in once.items()} for name in names}
    return jax.device_put(host, None if lay is None else dict.fromkeys(names, lay))


def train(txs: Together, p: Any, state: Any, tokens: Any) -> Any:
    """Params and state after some steps, each of one program; the gradients of all networks are worked out at once."""

    def gradients(p: Any, tokens: Any) -> Any:
        stacked = jax.tree.map(lambda *x: jnp.stack([one.astype(float) for one in x]), *p.values())
        found = jax.vmap(jax.grad(lambda p: loss(whole(p), tokens)))(stacked)

        def own(i: int, x: jax.Array, like: jax.Array) -> jax.Array:
            return jax.lax.index_in_dim(x, i, keepdims=False).astype(jnp.promote_types(like.dtype, np.float32))

        return {name: jax.tree.map(functools.partial(own, i), found, p[name]) for i, name in enumerate(p)}

    def step(p: Any, state: Any, tokens: Any) -> Any:
        grads = gradients(p, tokens)
        made = {name: tx.update(grads[name], state[name], p[name]) for name, tx in txs.each.items()}
        return {name: gx.apply_updates(p[name], made[name][0]) for name in p}, {name: made[name][1] for name in p}

    compiled = jax.jit(step, donate_argnums=(0, 1))
    for i in range(4):
        before = len(COMPILED)
        p, state = compiled(p, state, tokens)
        if i and len(COMPILED) > before:
            raise RuntimeError(f"step {i + 1} compiled again")
    return p, state


def alone(txs: dict[str, Any]) -> Any:
    """The params of each after training on one device."""
    p = start(txs)
    return jax.device_get(train(Together(txs), p, jax.jit(Together(txs).init)(p), TOKENS)[0])


def failures(txs: dict[str, Any], expected: Any, case: Case) -> Iterator[str]:
    layout, kind, devices = case
    mesh = mesh_for(layout, kind, devices)
    bound = 1e-11 if jax.config.jax_enable_x64 else 1e-5
    with jax.set_mesh(mesh), warnings.catch_warnings():
        warnings.simplefilter("error")
        lay = laid_out(layout, mesh)
        p = start(txs, lay)
        together = Together({name: wrapped(layout, tx) for name, tx in txs.items()})
        state = gx.sharding.init(together, p)
        lies = jax.tree.map(lambda x: x.sharding, state)
        tokens = jax.device_put(TOKENS, NamedSharding(mesh, P(tuple(n for n in mesh.axis_names if n != "model"))))
        p, state = train(together, p, state, tokens)
    for name in txs:
        told = []
        for key, x in expected[name].items():
            if not p[name][key].sharding.is_equivalent_to(lay[key], x.ndim):
                told.append(f"{key} lies as {p[name][key].sharding.spec}, not {lay[key].spec}")
            error = np.abs(np.asarray(p[name][key], float) - np.asarray(x, float)).max()
            if not error < bound:
                told.append(f"{key} is {error:.1e} off")
        moved = [
            str(a.sharding.spec)
            for a, b in zip(jax.tree.leaves(state[name]), jax.tree.leaves(lies[name]), strict=True)
            if not a.sharding.is_equivalent_to(b, a.ndim)
        ]
        told += [f"state lies elsewhere: {moved}"] if moved else []
        yield from (f"{name}, {', '.join(map(str, case))}: {one}" for one in told)


def parted(txs: dict[str, Any], expected: Any, case: Case) -> Iterator[str]:
    """The failures of some transformations, of each half by itself where they do not end together."""
    try:
        yield from list(failures(txs, expected, case))
    except Exception as error:
        names = list(txs)
        if len(names) == 1:
            yield f"{names[0]}, {', '.join(map(str, case))}: {type(error).__name__}: {str(error)[:400]}"
        for half in (names[: len(names) // 2], names[len(names) // 2 :]) if len(names) > 1 else ():
            yield from parted({name: txs[name] for name in half}, expected, case)


def in_shard_map() -> Iterator[str]:
    """Gradients that differ from device to device are summed, pieces stepped and put together, with the clip's help."""
    axes = ("replica", "data")
    mesh = jax.make_mesh((4, 2), axes, axis_types=(AxisType.Auto,) * 2)
    for check_vma, clipped in itertools.product((True, False), (True, False)):
        inner = gx.chain(gx.clip_by_global_norm(0.1, axis_name=axes), gx.adamw(RATE)) if clipped else gx.sgd(RATE)
        some = {key: x for key, x in params().items() if check_vma or key != "odd"}  # untracked, all count as pieces

        def mean(p: Any, tokens: jax.Array) -> jax.Array:
            return loss({"odd": jnp.zeros((1, 1)), **p}, tokens)

        tx = gx.sharding.zero1(inner, axes, min_size=0)
        specs = jax.tree.map(
            lambda x: x.spec,
            gx.sharding.state_sharding(tx, some, jax.tree.map(lambda _: NamedSharding(mesh, P()), some)),
        )

        def step(p: Any, state: Any, tokens: Any, tx: Any = tx, check_vma: bool = check_vma, mean: Any = mean) -> Any:
            varying = jax.lax.pcast(p, axes, to="varying") if check_vma else p
            grads = jax.tree.map(lambda g: g / 8, jax.grad(mean)(varying, tokens))
            updates, state = tx.update(grads, state, p)
            return gx.apply_updates(p, updates), state

        mapped = jax.jit(
            jax.shard_map(step, mesh=mesh, in_specs=(P(), specs, P(axes)), out_specs=(P(), specs), check_vma=check_vma)
        )
        p, state = some, gx.sharding.init(tx, jax.device_put(some, NamedSharding(mesh, P())))
        whole_tx = gx.chain(gx.clip_by_global_norm(0.1), gx.adamw(RATE)) if clipped else gx.sgd(RATE)
        q, whole_state = some, whole_tx.init(some)
        for _ in range(3):
            p, state = mapped(p, state, TOKENS)
            updates, whole_state = whole_tx.update(jax.grad(mean)(q, TOKENS), whole_state, q)
            q = gx.apply_updates(q, updates)
        for key in some:
            if not (error := np.abs(np.asarray(p[key]) - np.asarray(q[key])).max()) < 1e-11:
                yield f"shard_map, check_vma={check_vma}: {key} is {error:.1e} off"


SOME = ("clip", "adafactor", "accumulate", "optax adafactor")


def product(devices: int) -> Iterator[str]:
    """Every transformation in every layout on both kinds of meshes of so many devices."""
    every = transformations(jax.tree.map(lambda x: x * 0.5, params()))
    for i in range(0, len(every), GROUP):
        txs = dict(list(every.items())[i : i + GROUP])
        expected = alone(txs)
        for case in itertools.product(LAYOUTS, KINDS, [devices]):
            began = time.process_time()
            found = list(parted(txs, expected, case))
            took = time.process_time() - began
            print(*case, f"{len(txs)} transformations, {found}, {took:.0f} s of CPU", file=sys.stderr, flush=True)
            jax.clear_caches()
            yield from found


def some() -> Iterator[str]:
    """One layout each of some transformations."""
    every = transformations(jax.tree.map(lambda x: x * 0.5, params()))
    for name, *layout in zip(SOME, LAYOUTS[3:], itertools.cycle(KINDS), strict=False):
        txs = {name: every[name]}
        yield from parted(txs, alone(txs), (*layout, 8))


def main(cases: str = "some", part: str = "") -> Iterator[str]:
    if cases == "some":
        for check in (in_shard_map, sent, held, coded, exported, with_flax, some):
            yield from check()
    elif part == "flax":
        yield from with_flax("all")
    elif part == "float32":
        with jax.enable_x64(False):
            yield from product(8)
    else:
        yield from product(int(part))


if __name__ == "__main__":
    print(json.dumps(list(main(*sys.argv[1:]))))
