"""Twenty steps of optimizers, the gradients partly noise and partly the params themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import gradxform as gx
from benchmarks.accelerator.cases import Case, Session
from benchmarks.accelerator.compare import compared

STEPS = 20
TOLERANCE = 1e-5
"""Of the largest number of a leaf, params and state, as the tests against float64 have it."""
SHAPES = {"kernel": (64, 32), "conv": (3, 3, 4, 8), "bias": (32,), "temperature": ()}

OPTIMIZERS: dict[str, Callable[[], gx.Transformation]] = {
    "adamw": lambda: gx.adamw(1e-2, weight_decay=0.1),
    "clip + adamw": lambda: gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(1e-2, weight_decay=0.1)),
    "lamb": lambda: gx.lamb(1e-2),
    "lion": lambda: gx.lion(1e-2),
    "adafactor": lambda: gx.adafactor(1e-2, min_dim_size_to_factor=16),
    "adam, nesterov": lambda: gx.adam(1e-2, nesterov=True),
}


def cases() -> list[Case]:
    """A check of each optimizer."""
    return [
        Case(f"check: {name}, {STEPS} steps", "optimizers", functools.partial(_check, make), weight=2.0, timed=False)
        for name, make in OPTIMIZERS.items()
    ]


def _check(make: Callable[[], gx.Transformation], session: Session) -> dict[str, Any]:
    rng, tx = np.random.default_rng(0), make()
    params = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}
    noise = {name: np.asarray(rng.standard_normal((STEPS, *shape)), np.float32) for name, shape in SHAPES.items()}

    def steps(params: Any, noise: Any) -> Any:
        def step(carry: Any, noise: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.tree.map(lambda n, p: n + 0.3 * p, noise, params), state, params)
            return (gx.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), noise)[0]

    return compared(session, steps, (params, noise), TOLERANCE)
