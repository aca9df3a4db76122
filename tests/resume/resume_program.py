"""A small training that ``test_resume_kills.py`` kills: ``python resume_program.py FOLDER STEPS EVERY PAUSE``."""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradxform as gx

SIZE, BATCH = 50, 8
DATA = np.random.default_rng(0).normal(size=(SIZE, 16)).astype(np.float32)
TX = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(gx.schedules.cosine(0.1, 100)))


def make() -> Any:
    params = {"w": jnp.sin(jnp.arange(64.0)).reshape(16, 4), "b": jnp.zeros(4, jnp.bfloat16)}
    return {"params": params, "optimizer": TX.init(params), "key": jax.random.key(0)}


@jax.jit
def grown(state: Any, x: jax.Array) -> Any:
    key, noise = jax.random.split(state["key"])

    def loss(params: Any) -> jax.Array:
        y = jnp.tanh(x @ params["w"] + params["b"])
        return jnp.mean(jnp.square(y - jax.random.uniform(noise, y.shape)))

    updates, optimizer = TX.update(jax.grad(loss)(state["params"]), state["optimizer"], state["params"])
    return {"params": gx.apply_updates(state["params"], updates), "optimizer": optimizer, "key": key}


step_of = jax.jit(grown, donate_argnums=0)


def main(folder: str, total: int, every: int, pause: float) -> None:
    with gx.resume.Run(folder, config={"tx": TX, "size": SIZE}, every=every) as run:
        state = run.restore(make)
        print("first", run.first, flush=True)
        for step in run.steps(total):
            state = step_of(state, DATA[gx.resume.order(0, step, SIZE, BATCH)])
            print("step", step, flush=True)
            run.save(step, state)
            time.sleep(pause)
    state["key"] = jax.random.key_data(state["key"])
    print("end", hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
