"""Run by ``test_precision_sharding.py`` in a process of its own with eight devices; prints what is wrong as JSON."""

from __future__ import annotations

import json
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx

SPECS = {"embed": P("data", None), "kernel": P(None, "model"), "bias": P("model"), "scale": P()}
SHAPES = {"embed": (8, 4), "kernel": (4, 16), "bias": (16,), "scale": ()}
WEIGHTS = {name: jnp.sin(jnp.arange(1.0, 1 + int(np.prod(shape)))).reshape(shape) for name, shape in SHAPES.items()}
GRADS = jax.tree.map(lambda p: jnp.sin(3 * p), WEIGHTS)
INNER = gx.chain(gx.clip(0.5), gx.adamw(0.01, weight_decay=0.1))
TXS = {
    "24 bits": gx.precision.master_weights(INNER, bits=24),
    "stochastic": gx.precision.stochastic_rounding(INNER, seed=3),
}


def two_steps(tx: Any, params: Any, state: Any, grads: Any) -> Any:
    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (gx.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), length=2)[0]


jitted = jax.jit(two_steps)


def differences(a: Any, b: Any) -> list[str]:
    """The paths at which two trees have other bits."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return [f"{jax.tree.structure(a)} is not {jax.tree.structure(b)}"]
    return [
        jax.tree_util.keystr(path)
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
        if np.asarray(x).tobytes() != np.asarray(y).tobytes()
    ]


def misplaced(tree: Any, shardings: Any) -> list[str]:
    return [
        f"{jax.tree_util.keystr(path)}: {leaf.sharding}"
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(shardings), strict=True
        )
        if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    ]


def on_mesh(kind: AxisType, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Params, remainders and moments lie as the weights do, and have the bits of one device."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS, is_leaf=lambda x: isinstance(x, P))
    weights, grads = jax.device_put((WEIGHTS, GRADS), (shardings, shardings))
    found: dict[str, list[str]] = {}
    for name in names:
        tx = TXS[name]

        def start(weights: Any, tx: Any = tx, name: str = name) -> Any:
            if name != "stochastic":
                return gx.precision.split(weights, tx)
            params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
            return params, tx.init(params)

        single = jitted(tx, *start(WEIGHTS), GRADS)
        with jax.set_mesh(mesh):
            params, state = start(weights)
            many = jitted(tx, params, state, grads)
            found[f"{name}: bits"] = differences(single, many)
            for when, (p, s) in {"eager": (params, state), "after": many}.items():
                found[f"{name}: params, {when}"] = misplaced(p, shardings)
                if name != "stochastic":
                    found[f"{name}: remainder, {when}"] = misplaced(s.remainder, shardings)
            if name != "stochastic":
                found[f"{name}: eager init"] = misplaced(tx.init(params).remainder, shardings)
                found[f"{name}: jitted init"] = misplaced(jax.jit(tx.init)(params).remainder, shardings)
    return {name: wrong for name, wrong in found.items() if wrong}


if __name__ == "__main__":
    warnings.simplefilter("error")
    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "auto": on_mesh(AxisType.Auto, ("24 bits",)),
                "explicit": on_mesh(AxisType.Explicit, ("stochastic",)),
            }
        )
    )
