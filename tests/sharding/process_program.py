"""One process of several: ``python process_program.py ADDRESS PROCESSES INDEX TIMEOUT [FOLDER]``.

See ``test_processes.py``. With a folder that is new a run is saved in it, and the last process dies in its middle; with
one that is there the run goes on, after all the checks.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradxform as gx

STEPS, DIES_AT, HEARTBEAT = 3, 2, 10
IMAGES = np.random.default_rng(0).normal(size=(STEPS, 8, 16)).astype(np.float32)
START = {"w": np.sin(np.arange(128.0)).reshape(16, 8).astype(np.float32), "b": np.zeros(8, np.float32)}
Step = Callable[..., tuple[Any, Any, jax.Array]]


class Course(NamedTuple):
    """What is trained: how a run begins, and its compiled step."""

    begin: Callable[[], tuple[Any, Any]]
    step: Step


def course(way: str, kind: AxisType, mesh: jax.sharding.Mesh) -> Course:
    tx: Any = gx.skip_nonfinite(gx.chain(gx.clip_by_global_norm(0.5), gx.adamw(0.1)), 1)
    tx = gx.sharding.zero1(tx, min_size=0) if way == "zero1" else tx
    rules = [] if way == "fsdp" else [("", None)]
    lies = gx.sharding.fsdp(jax.eval_shape(lambda: START), mesh, min_size=0, rules=rules)

    def begin() -> tuple[Any, Any]:
        params = jax.jit(lambda: jax.tree.map(jnp.asarray, START), out_shardings=lies)()
        return params, gx.sharding.init(tx, params)

    def whole(p: Any) -> Any:
        return jax.sharding.reshard(p, NamedSharding(mesh, P())) if kind == AxisType.Explicit else p

    @jax.jit
    def step(p: Any, state: Any, x: jax.Array, counted: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss(p: Any) -> jax.Array:
            p = whole(p)
            each = jnp.mean(jnp.square(jnp.tanh(x @ p["w"] + p["b"]) - 0.5), 1)
            return jnp.sum(counted * each) / jnp.sum(counted)

        value, grads = jax.value_and_grad(loss)(p)
        updates, state = tx.update(grads, state, p)
        return gx.apply_updates(p, updates), state, value

    return Course(begin, step)


def batch(images: np.ndarray, *, bad: bool = False, empty: bool = False) -> Any:
    """This process's rows; with NaN in the last row of all, or with the rows of the last device not counted."""
    rows = len(images) // jax.process_count()
    last, mine = jax.process_index() == jax.process_count() - 1, slice(jax.process_index() * rows, None)
    local, counted = images[mine][:rows].copy(), np.ones(rows, np.float32)
    local[-1, 0] = np.nan if bad and last else local[-1, 0]
    counted[rows - 2 :] = not (empty and last)
    return gx.sharding.global_batch((local, counted))


def bits(params: Any) -> dict[str, str]:
    whole = multihost_utils.process_allgather(params, tiled=True)
    return {key: np.asarray(x).tobytes().hex()[:64] for key, x in whole.items()}


def losses(way: str, kind: AxisType, **how: bool) -> tuple[list[float], Any, Any, float]:
    """The losses of some steps, the params after them, the state, and when the last began, on all devices of all."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        begin, step = course(way, kind, mesh)
        params, state = begin()
        seen = []
        for images in IMAGES:
            began = time.monotonic()
            params, state, value = step(params, state, *batch(images, **how))
            seen.append(float(value))
        return seen, params, state, began


def interrupted(folder: pathlib.Path) -> dict[str, Any]:
    """A run that is saved after each step, and goes on where one was saved."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    new = not folder.exists()
    multihost_utils.sync_global_devices("looked")
    with jax.set_mesh(mesh), gx.resume.Run(folder, every=1) as run:
        begin, step = course("zero1", AxisType.Auto, mesh)
        params, state = run.restore(begin())
        for i in run.steps(STEPS):
            if new and i == DIES_AT and jax.process_index() == jax.process_count() - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            params, state, _ = step(params, state, *batch(IMAGES[i]))
            run.save(i, (params, state))
        return {"first": run.first, "bits": bits(params)}


def checks(index: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for way in ("data parallel", "zero1", "fsdp"):
        for kind in (AxisType.Auto, AxisType.Explicit):
            seen, params, *_ = losses(way, kind)
            told[f"{way}, {kind.name}"] = seen, bits(params)
    seen, params, *_ = losses("zero1", AxisType.Auto, empty=True)
    told["zero1, a shard without examples"] = seen, bits(params)
    _, params, state, began = losses("zero1", AxisType.Auto, bad=True)
    for reads in (gx.check_finite, gx.metrics):
        try:
            reads(state)
        except gx.NonfiniteError as error:
            told[reads.__name__] = str(error)
    told["seconds"] = time.monotonic() - began
    after = multihost_utils.process_allgather(params, tiled=True)
    told["stays"] = bool(all((np.asarray(after[key]) == START[key]).all() for key in START))
    try:
        gx.sharding.global_batch(
            np.zeros((2 + 2 * index, 3)), NamedSharding(jax.make_mesh((jax.device_count(),), ("data",)), P("data"))
        )
    except gx.ShardingError as error:
        told["unequal"] = str(error)
    return told


def main(address: str, processes: int, index: int, timeout: float, folder: str | None = None) -> dict[str, Any]:
    dies = folder is not None and not pathlib.Path(folder).exists()
    if dies:
        jax.distributed.initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=HEARTBEAT)
    try:
        gx.sharding.join(address, processes, index, timeout=timeout)
    except TimeoutError as error:
        return {"late": str(error)}
    told = {} if dies else checks(index)
    return told if folder is None else told | {"again": interrupted(pathlib.Path(folder))}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), *sys.argv[5:])))
