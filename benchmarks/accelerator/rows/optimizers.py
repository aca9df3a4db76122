"""AdamW, and AdamW after a clip, beside optax, over trees of many sizes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import optax

import gradxform as gx
from benchmarks import optimizers, peers, trees
from benchmarks.accelerator import inputs
from benchmarks.accelerator.build import Built, Program
from benchmarks.accelerator.cases import Case, Session
from benchmarks.accelerator.measure import measured
from benchmarks.accelerator.sizes import Sizes
from benchmarks.accelerator.timing import Call, carried

RULES = {"adamw": "AdamW", "clip_adamw": "clip + AdamW"}
"""The cases of the suite of optimizers; how many bytes a parameter they move, it says as well: 28 and 32."""


def cases(sizes: Sizes) -> list[Case]:
    """A case for each tree and rule."""
    return [
        Case(f"{title}, {tree}", "optimizers", functools.partial(_row, tree, rule), weight=4.0)
        for tree in sizes.trees
        for rule, title in RULES.items()
    ]


def _row(tree: str, rule: str, session: Session) -> dict[str, Any]:
    case, shapes = optimizers.CASES[rule], session.sizes.trees[tree]()
    grads = inputs.tree(shapes, 0.01, seed=1)
    programs = {}
    for name, tx, add in (
        (optimizers.OURS, case.ours(), gx.apply_updates),
        (optimizers.OPTAX, case.optax(), optax.apply_updates),
    ):
        params = inputs.tree(shapes, 0.02, seed=0)
        state = jax.jit(tx.init)(params)

        def call(built: Built, params: Any = params, state: Any = state) -> Call:
            return carried(built, (params, state), grads)

        programs[name] = Program(peers.jax_update(tx, add), (params, state, grads), donate=(0, 1)), call
    entry = measured(session, programs)
    nbytes = 4 * case.arrays * trees.parameter_count(shapes)
    for figures in entry["peers"].values():
        figures["bytes_per_s"] = nbytes / figures["median_s"]
        figures["share_of_copy"] = session.share(figures["bytes_per_s"])
    return entry | {
        "leaves": trees.leaf_count(shapes),
        "parameters": trees.parameter_count(shapes),
        "bytes_a_parameter": 4 * case.arrays,
    }
