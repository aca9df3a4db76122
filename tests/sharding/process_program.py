"""One process of several: ``python process_program.py ADDRESS PROCESSES INDEX TIMEOUT``; see ``test_processes.py``."""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx

STEPS = 3
IMAGES = np.random.default_rng(0).normal(size=(STEPS, 8, 16)).astype(np.float32)


def losses(way: str, kind: AxisType, *, bad: bool = False) -> tuple[list[float], Any, Any]:
    """The losses of some steps, the params after them and the state, on all devices of all processes."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(kind,))
    tx: Any = gx.skip_nonfinite(gx.chain(gx.clip_by_global_norm(0.5), gx.adamw(0.1)), 1)
    tx = gx.sharding.zero1(tx, min_size=0) if way == "zero1" else tx
    with jax.set_mesh(mesh):
        params = {"w": jnp.sin(jnp.arange(128.0)).reshape(16, 8), "b": jnp.zeros(8)}
        lies = gx.sharding.fsdp(params, mesh, min_size=0, rules=[] if way == "fsdp" else [("", None)])
        params = jax.jit(lambda: params, out_shardings=lies)()

        def whole(p: Any) -> Any:
            return jax.sharding.reshard(p, NamedSharding(mesh, P())) if kind == AxisType.Explicit else p

        @jax.jit
        def step(p: Any, state: Any, x: jax.Array) -> Any:
            def loss(p: Any) -> jax.Array:
                p = whole(p)
                return jnp.mean(jnp.square(jnp.tanh(x @ p["w"] + p["b"]) - 0.5))

            value, grads = jax.value_and_grad(loss)(p)
            updates, state = tx.update(grads, state, p)
            return gx.apply_updates(p, updates), state, value

        state, seen = gx.sharding.init(tx, params), []
        rows = IMAGES.shape[1] // jax.process_count()
        mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
        for images in IMAGES:
            local = images[mine].copy()
            if bad and jax.process_index() == jax.process_count() - 1:
                local[-1, 0] = np.nan
            params, state, value = step(params, state, gx.sharding.global_batch(local))
            seen.append(float(value))
        return seen, multihost_utils.process_allgather(params, tiled=True), state


def main(address: str, processes: int, index: int, timeout: float) -> dict[str, Any]:
    try:
        gx.sharding.join(address, processes, index, timeout=timeout)
    except TimeoutError as error:
        return {"late": str(error)}
    told: dict[str, Any] = {}
    for way in ("data parallel", "zero1", "fsdp"):
        for kind in (AxisType.Auto, AxisType.Explicit):
            seen, params, _ = losses(way, kind)
            told[f"{way}, {kind.name}"] = seen, {key: np.asarray(x).tobytes().hex()[:64] for key, x in params.items()}
    before = {"w": jnp.sin(jnp.arange(128.0)).reshape(16, 8), "b": jnp.zeros(8)}
    _, params, state = losses("zero1", AxisType.Auto, bad=True)
    told["stays"] = bool(all((np.asarray(params[key]) == before[key]).all() for key in before))
    try:
        gx.check_finite(state)
    except gx.NonfiniteError as error:
        told["refused"] = str(error)
    try:
        gx.sharding.global_batch(np.zeros((2 + 2 * index, 3)), NamedSharding(jax.make_mesh(
            (jax.device_count(),), ("data",)), P("data")))
    except gx.ShardingError as error:
        told["unequal"] = str(error)
    return told


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
