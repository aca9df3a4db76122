"""Optimizer steps: gradients to new params and state, which are donated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradxform as gx
from benchmarks import optimizers, peers, trees
from benchmarks.compiled.program import OURS, Call, Program, shaped

OPTAX = optimizers.OPTAX
PEERS = {OURS: gx.apply_updates, OPTAX: optax.apply_updates}
NAMES = {"adamw": "AdamW + cosine", "clip_adamw": "clip + AdamW + cosine", "adafactor": "Adafactor"}
TREES = {"transformer": "46.0M params in 145 leaves", "thousand": "1.3M params in 1,000 small leaves"}


def step_of(case: str, peer: str, params: Any) -> Call:
    """The step of a case of ``benchmarks.optimizers`` on params of these shapes."""
    how = optimizers.CASES[case]
    tx = how.ours() if peer == OURS else how.optax()
    return Call(
        peers.jax_update(tx, PEERS[peer]),
        (params, jax.eval_shape(tx.init, params), params),
        (0, 1),
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
    )


def _program(case: str, tree: str, dtype: Any, peer: str) -> Program:
    def call(_: Any) -> Call:
        return step_of(
            case,
            peer,
            jax.tree.map(
                lambda shape: shaped(shape, dtype), trees.TREES[tree](), is_leaf=lambda x: isinstance(x, tuple)
            ),
        )

    return Program(
        "optimizers",
        f"{NAMES[case]}, {TREES[tree]}, {jnp.dtype(dtype).name}",
        peer,
        call,
        unit="B/param",
        slow=tree == "thousand",
    )


def programs() -> Iterator[Program]:
    """The room's programs."""
    for case, tree, dtype in (
        ("adamw", "transformer", jnp.float32),
        ("clip_adamw", "transformer", jnp.float32),
        ("clip_adamw", "transformer", jnp.bfloat16),
        ("adafactor", "transformer", jnp.float32),
        ("clip_adamw", "thousand", jnp.float32),
    ):
        for peer in PEERS:
            yield _program(case, tree, dtype, peer)
