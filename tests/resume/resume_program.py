"""A small training that ``test_resume_kills.py`` kills.

    python resume_program.py FOLDER STEPS EVERY PAUSE [ADDRESS PROCESSES INDEX]

A folder named ``full`` is on a disk that has no room for its third save. Several processes that find no folder first
try what may fail in one of them.
"""

from __future__ import annotations

import hashlib
import pathlib
import resource
import sys
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradxform as gx

SIZE, BATCH, EVALUATES = 50, 8, 9
DATA = np.random.default_rng(0).normal(size=(SIZE, 16)).astype(np.float32)
TX = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(gx.schedules.cosine(0.1, 100)))


def make() -> Any:
    params = {"w": jnp.sin(jnp.arange(64.0)).reshape(16, 4), "b": jnp.zeros(4, jnp.bfloat16)}
    ballast = jax.random.normal(jax.random.key(1), 16384)  # 64 KiB that do not compress
    return {"params": params, "optimizer": TX.init(params), "key": jax.random.key(0), "ballast": ballast}


@jax.jit
def grown(state: Any, x: jax.Array) -> Any:
    key, noise = jax.random.split(state["key"])

    def loss(params: Any) -> jax.Array:
        y = jnp.tanh(x @ params["w"] + params["b"])
        return jnp.mean(jnp.square(y - jax.random.uniform(noise, y.shape)))

    updates, optimizer = TX.update(jax.grad(loss)(state["params"]), state["optimizer"], state["params"])
    return {**state, "params": gx.apply_updates(state["params"], updates), "optimizer": optimizer, "key": key}


step_of = jax.jit(grown, donate_argnums=0)


def main(folder: str, total: int, every: int, pause: float) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    with gx.resume.Run(folder, config={"tx": TX, "size": SIZE}, every=every) as run:
        state = run.restore(jax.jit(make, out_shardings=whole))
        print("first", run.first, flush=True)
        for step in run.steps(total):
            state = step_of(state, DATA[gx.resume.order(0, step, SIZE, BATCH)])
            print("step", step, flush=True)
            if folder.endswith("full") and step == 2 * every:  # where the third save begins
                resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
            run.save(step, state)
            time.sleep(pause)
            if step == EVALUATES:
                print("evaluates", flush=True)
                time.sleep(0.5)
    state["key"] = jax.random.key_data(state["key"])
    print("end", hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))).hexdigest())
    print("done")


def refusals(folder: str) -> None:
    """What goes wrong in one process alone, and is told in all of them."""
    last = jax.process_index() == jax.process_count() - 1
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    guard, w = gx.skip_nonfinite(gx.sgd(0.1), 0), jnp.ones(4)
    x = gx.sharding.global_batch(np.full((1, 4), np.nan if last else 1.0, np.float32), rows)
    _, guarded = jax.jit(lambda x: guard.update(jax.grad(lambda w: jnp.mean(x @ w))(w), guard.init(w), w))(x)
    bits = np.random.default_rng(jax.process_index()).integers(2**32, size=(1, 32768), dtype=np.uint32)
    parts = {"w": gx.sharding.global_batch(bits, rows)}  # 128 KiB in each process
    room = resource.getrlimit(resource.RLIMIT_FSIZE)

    def trial(name: str, state: Any, total: int, full: int | None = None, reader: Any = None) -> None:
        has_no_room = jax.process_index() == (0 if name == "first" else jax.process_count() - 1)
        try:
            with gx.resume.Run(f"{folder}-{name}", every=1) as run:
                for step in run.steps(total):
                    if has_no_room and step == full:
                        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, room[1]))
                    run.save(step, state, reader)
            print("refused", name, "nothing", flush=True)
        except Exception as error:
            print("refused", name, step, repr(error), flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, room)

    trial("nonfinite", guarded, 1)
    trial("position", parts, 1, reader=types.SimpleNamespace(get_state=lambda: {0: 1} if last else {"0": 1}))
    trial("next", parts, 9, full=1)
    trial("first", parts, 9, full=1)
    trial("end", parts, 2, full=1)
    for name in ("next", "first", "end"):
        with gx.resume.Run(f"{folder}-{name}") as run:
            found = run.restore(jax.tree.map(jnp.zeros_like, parts))
            same = (np.asarray(found["w"].addressable_data(0)) == bits).all()
            print("whole", name, run.first, bool(same), flush=True)


if __name__ == "__main__":
    if sys.argv[5:]:
        gx.sharding.join(sys.argv[5], int(sys.argv[6]), int(sys.argv[7]))
        if not pathlib.Path(sys.argv[1]).exists():
            multihost_utils.sync_global_devices("looked")
            refusals(sys.argv[1])
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
