"""A checkpoint of 8 devices read by other numbers of them and in other layouts: run by ``test_resume_moves.py``."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx

warnings.filterwarnings("ignore", category=DeprecationWarning, module="orbax.*")
INNER = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1))
X = np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32)


def mesh_of(count: int) -> Any:
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


def begun(way: str, mesh: Any) -> Any:
    """The transformation, and a state of step 0 as it lies."""
    tx = gx.sharding.zero1(INNER, min_size=0) if way == "zero1" else INNER
    params = {"w": jnp.sin(jnp.arange(256.0)).reshape(16, 16), "b": jnp.zeros(16)}
    lies = gx.sharding.fsdp(params, mesh, min_size=0, rules=[] if way == "fsdp" else [("", None)])
    params = jax.device_put(params, lies)
    whole = NamedSharding(mesh, P())
    optimizer = gx.sharding.init(tx, params)
    return tx, {"params": params, "optimizer": optimizer, "key": jax.device_put(jax.random.key(0), whole)}


def steps(tx: Any, state: Any, mesh: Any, first: int, total: int) -> Iterator[tuple[Any, float]]:
    @jax.jit
    def step(state: Any, x: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.mean(jnp.square(jnp.tanh(x @ params["w"] + params["b"]) - 0.5))

        value, grads = jax.value_and_grad(loss)(state["params"])
        updates, optimizer = tx.update(grads, state["optimizer"], state["params"])
        return {**state, "params": gx.apply_updates(state["params"], updates), "optimizer": optimizer}, value

    for i in range(first, total):
        state, value = step(state, jax.device_put(X[i], NamedSharding(mesh, P("data"))))
        yield state, float(value)


def numbers(state: Any) -> list[bytes]:
    keys = {**state, "key": jax.random.key_data(state["key"])}
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(keys)]


def main() -> Iterator[str]:
    for way, others in (("replicated", ("fsdp", "zero1")), ("zero1", ("zero1", "replicated"))):
        folder = tempfile.mkdtemp()
        mesh = mesh_of(8)
        with jax.set_mesh(mesh), gx.resume.Run(folder) as run:
            tx, state = begun(way, mesh)
            made = list(steps(tx, state, mesh, 0, 4))
            run.save(1, made[1][0])
            next(run.steps(2))  # makes step 1 the last one, which is due
            run.save(1, made[1][0])
        for other in others:
            for count in (1, 2, 4, 8):
                mesh = mesh_of(count)
                with jax.set_mesh(mesh), gx.resume.Run(folder) as run:
                    tx, like = begun(other, mesh)
                    state = run.restore(like)
                    told = f"{way} on 8 to {other} on {count}"
                    if run.first != 2:
                        yield f"{told}: goes on at {run.first}"
                    if numbers(state) != numbers(made[1][0]):
                        yield f"{told}: other numbers"
                    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
                        if not a.sharding.is_equivalent_to(b.sharding, a.ndim):
                            yield f"{told}: lies as {a.sharding}, not {b.sharding}"
                    losses = [value for _, value in steps(tx, state, mesh, 2, 4)]
                    if not np.allclose(losses, [made[2][1], made[3][1]], rtol=1e-5):
                        yield f"{told}: losses {losses}"


if __name__ == "__main__":
    print(json.dumps(list(main())))
