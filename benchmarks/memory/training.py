"""The loss that training ends at, by what the optimizer keeps: the same batches and seeds for all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import gradxform as gx
from benchmarks.memory.tasks import TASKS, Task

RATES = {"language": (1e-3, 3e-3), "digits": (1e-3, 4e-3)}
FLOAT32 = "float32"
P = gx.precision


def adamw(rate: float, steps: int) -> gx.Transformation:
    """The optimizer of all runs: a clip, a warm-up, a cosine and a decay."""
    schedule = gx.schedules.warmup(steps // 10, gx.schedules.cosine(rate, steps - steps // 10, rate / 10))
    return gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(schedule, b2=0.99, weight_decay=0.1))


def _compressed(codec: Any) -> Callable[[gx.Transformation], gx.Transformation]:
    return lambda tx: P.compress_state(tx, codec, min_size=256)


STATES: dict[str, Callable[[gx.Transformation], gx.Transformation]] = {
    FLOAT32: lambda tx: tx,
    "bf16": _compressed(P.bf16()),
    "fp8": _compressed(P.fp8()),
    "8-bit row": _compressed(P.int8_blockwise()),
    "8-bit 128": _compressed(P.int8_blockwise(block=128)),
    "8-bit row, nearest": _compressed(P.int8_blockwise(rounding="nearest")),
    "4-bit": _compressed(P.int4_blockwise()),
    "4-bit, nearest": _compressed(P.int4_blockwise(rounding="nearest")),
}
"""Optimizers that differ in how they keep their averages; params in float32."""

PARAMS: dict[str, Callable[[gx.Transformation], gx.Transformation]] = {
    "bf16 params, masters": P.master_weights,
    "bf16 params, masters, 8-bit row": lambda tx: P.master_weights(_compressed(P.int8_blockwise())(tx)),
    "bf16 params, stochastic": P.stochastic_rounding,
    "bf16 params, plain": lambda tx: tx,
}
"""Optimizers of params in bfloat16."""


def final_loss(name: str, kind: str, rate: float, steps: int, seed: int) -> float:
    """The mean loss on what was held out after some steps, with what is kept as ``kind`` says."""
    return float(_trained(name, kind, rate, steps)(jax.random.key(seed), _task(name).batches(steps, seed)))


@functools.cache
def _task(name: str) -> Task:
    return TASKS[name]()


@functools.cache
def _trained(name: str, kind: str, rate: float, steps: int) -> Callable[..., jax.Array]:
    task, tx = _task(name), (STATES | PARAMS)[kind](adamw(rate, steps))

    @jax.jit
    def run(key: jax.Array, batches: Any) -> jax.Array:
        params = task.init(key)
        if "masters" in kind:
            params, state = P.split(params, tx)
        else:
            params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params) if kind in PARAMS else params
            state = tx.init(params)

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(task.loss)(params, batch), state, params)
            return (gx.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, state), batches)
        return jax.lax.map(lambda batch: task.loss(params, batch), task.held_out).mean()

    return run


def measure(names: Sequence[str], steps: int, seeds: int, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Trains each task at each rate with each optimizer and seed.

    Args:
      names: of the tasks.
      steps: of each run.
      seeds: how many runs of each kind.
      only: which kinds beside float32; all if empty.

    Returns:
      A row for each task, rate and optimizer: the mean loss, and the mean and spread of its difference to float32.
    """
    rows = []
    kinds = [kind for kind in (*STATES, *PARAMS) if not only or kind in (FLOAT32, *only)]
    for name, rate in ((task, rate) for task in names for rate in RATES[task]):
        reference = np.zeros(seeds)
        for kind in tqdm(kinds, desc=f"{name}, rate {rate:g}"):
            losses = np.array([final_loss(name, kind, rate, steps, seed) for seed in range(seeds)])
            reference = losses if kind == FLOAT32 else reference
            rows.append(
                {
                    "task": name,
                    "rate": rate,
                    "kept": kind,
                    "loss": float(losses.mean()),
                    "difference": float((losses - reference).mean()),
                    "spread": float((losses - reference).std()),
                }
            )
    return rows
