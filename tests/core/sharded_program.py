"""Run by ``test_ecosystem.py`` in a process of its own with eight CPU devices; prints what is wrong as JSON."""

from __future__ import annotations

import functools
import itertools
import json
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from pieces import all_pieces

import gradxform as gx

TX = gx.chain(
    gx.clip_by_global_norm(0.5),
    gx.record_norms(),
    gx.adamw(gx.schedules.cosine(0.1, 10), weight_decay=0.1, mask=gx.ndim_at_least(2)),
)
# A hidden width that only the second and third axis of a transformer tree would share.
SPECS = {"embed": P("data", None), "dense": {"kernel": P(None, "model"), "bias": P("model")}, "scale": P()}
SHAPES = {"embed": (8, 4), "dense": {"kernel": (4, 16), "bias": (16,)}, "scale": ()}
is_spec = lambda x: isinstance(x, (P, tuple))  # noqa: E731


def make_params() -> Any:
    leaves, treedef = jax.tree.flatten(SHAPES, is_leaf=is_spec)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(treedef, [jax.random.normal(key, shape) for key, shape in zip(keys, leaves, strict=True)])


PARAMS = make_params()
GRADS = jax.tree.map(lambda p: jnp.sin(3 * p), PARAMS)


def step(tx: Any, params: Any, state: Any, grads: Any) -> Any:
    updates, state = tx.update(grads, state, params)
    return gx.apply_updates(params, updates), state


# The transformation is an argument: its numbers do not make another program.
jitted = jax.jit(step)


def differences(a: Any, b: Any) -> list[str]:
    """The paths at which two trees differ by more than rounding."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return [f"{jax.tree.structure(a)} is not {jax.tree.structure(b)}"]
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    return [
        jax.tree_util.keystr(path)
        for (path, x), y in pairs
        if not np.allclose(np.asarray(x), np.asarray(y), rtol=1e-5, atol=1e-6)
    ]


def misplaced(state: Any, shardings: Any) -> list[str]:
    """The moments that do not lie where their params lie."""
    wrong = []
    for name in ("mu", "nu"):
        moments = state[2][0]._asdict()[name]
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(moments), jax.tree.leaves(shardings), strict=True
        ):
            if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
                wrong.append(f"{name}{jax.tree_util.keystr(path)}: {leaf.sharding.spec}, expected {sharding.spec}")
    return wrong


def on_mesh(kind: AxisType) -> dict[str, list[str]]:
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS, is_leaf=is_spec)
    params, grads = jax.device_put((PARAMS, GRADS), (shardings, shardings))
    single = jitted(TX, *jitted(TX, PARAMS, TX.init(PARAMS), GRADS), GRADS)
    found = {"adafactor's state": adafactor_on_mesh(kind)}
    with jax.set_mesh(mesh):
        found["eager init"] = misplaced(TX.init(params), shardings)
        found["jitted init"] = misplaced(jax.jit(TX.init)(params), shardings)
        state = TX.init(params)
        many = jitted(TX, *jitted(TX, params, state, grads), grads)
        found["values"] = differences(single, many)
        found["shardings after a step"] = misplaced(many[1], shardings)
        # Rows and columns lose the axis that was averaged away, and keep the placement of the other.
        factored = gx.adafactor(0.1, min_dim_size_to_factor=4)
        found["factored"] = differences(
            jitted(factored, PARAMS, factored.init(PARAMS), GRADS),
            jitted(factored, params, factored.init(params), grads),
        )
    return found


def adafactor_on_mesh(kind: AxisType) -> list[str]:
    """What Adafactor keeps lies as its param does along the axes that are left, from ``init`` on; so a scan runs."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    params, grads = {"w": jnp.ones((16, 8))}, {"w": jnp.sin(jnp.arange(128.0)).reshape(16, 8)}
    on_devices = functools.partial(jax.device_put, device=NamedSharding(mesh, P("data", "model")))
    wrong = []
    for least, specs in ((4, {"v_row": P("model"), "v_col": P("data")}), (128, {"v": P("data", "model")})):
        tx = gx.adafactor(0.1, min_dim_size_to_factor=least)

        def two_steps(params: Any, state: Any, grads: Any, tx: Any = tx) -> Any:
            return jax.lax.scan(lambda carry, _: (step(tx, *carry, grads), None), (params, state), length=2)[0]

        single = two_steps(params, tx.init(params), grads)
        with jax.set_mesh(mesh):
            many = on_devices(params)
            states = {"eager init": tx.init(many), "jitted init": jax.jit(tx.init)(many)}
            after = two_steps(many, states["eager init"], on_devices(grads))
            states["scan"] = after[1]
            wrong += [f"scan: {path}" for path in differences(single, after)]
        for (when, state), (name, spec) in itertools.product(states.items(), specs.items()):
            kept = getattr(state[0], name)["w"]
            if not kept.sharding.is_equivalent_to(NamedSharding(mesh, spec), kept.ndim):
                wrong.append(f"{when}: {name} of shape {kept.shape}: {kept.sharding}, expected {spec}")
    return wrong


def in_shard_map() -> list[str]:
    """Every device updates its own rows; nothing in an elementwise rule talks to another device."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    tx = gx.chain(gx.clip(0.5), gx.adamw(0.1))
    params, grads = {"w": PARAMS["embed"]}, {"w": GRADS["embed"]}
    state = tx.init(params)
    specs = jax.tree.map(lambda x: P("data") if x.ndim else P(), (params, state, grads))
    mapped = jax.jit(jax.shard_map(functools.partial(step, tx), mesh=mesh, in_specs=specs, out_specs=specs[:2]))
    return differences(jitted(tx, params, state, grads), mapped(params, state, grads))


def in_shard_map_with_a_mean() -> list[str]:
    """Data parallel: replicated params, a gradient for each device, their mean before the update."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    scales = jnp.arange(8.0)
    state = TX.init(PARAMS)

    def body(params: Any, state: Any, scale: jax.Array) -> Any:
        grads = jax.lax.pmean(jax.tree.map(lambda g: scale[0] * g, GRADS), "data")
        return step(TX, params, state, grads)

    mapped = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P()))
    mean = jax.tree.map(lambda g: scales.mean() * g, GRADS)
    return differences(jitted(TX, PARAMS, state, mean), mapped(PARAMS, state, scales))


def sharded_population() -> list[str]:
    """A learning rate for every device, in one call."""
    mesh = jax.make_mesh((8,), ("member",), axis_types=(AxisType.Auto,))
    rates = jnp.linspace(0.01, 0.1, 8)
    members = [gx.adam(rate) for rate in rates.tolist()]
    population = jax.device_put(jax.tree.map(lambda *x: jnp.array(x), *members), NamedSharding(mesh, P("member")))
    one = jax.jit(lambda tx: step(tx, PARAMS, tx.init(PARAMS), GRADS)[0])
    new = jax.jit(jax.vmap(one))(population)
    wrong = [str(i) for i, tx in enumerate(members) if differences(jax.tree.map(lambda x, i=i: x[i], new), one(tx))]
    return wrong + ([] if new["embed"].sharding.spec[0] == "member" else [str(new["embed"].sharding)])


if __name__ == "__main__":
    warnings.simplefilter("error")
    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "auto": on_mesh(AxisType.Auto),
                "explicit": on_mesh(AxisType.Explicit),
                "shard_map": in_shard_map(),
                "shard_map with a mean": in_shard_map_with_a_mean(),
                "a sharded population": sharded_population(),
                **all_pieces(),
            }
        )
    )
