"""Norms and their gradients."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import norms
from benchmarks.accelerator.cases import Case, Session
from benchmarks.accelerator.compare import compared

TOLERANCE = {"float32": 1e-5, "bfloat16": 2.0**-7}
"""Of the largest number of an array: in bfloat16 its last place."""


def cases() -> list[Case]:
    """A check of each norm in each dtype."""
    return [
        Case(
            f"check: {name}, {dtype}, forward and backward",
            "norm",
            functools.partial(_check, name, dtype),
            weight=2.0,
            timed=False,
        )
        for dtype in TOLERANCE
        for name in norms.CASES
    ]


def _check(name: str, dtype: str, session: Session) -> dict[str, Any]:
    case, rng = norms.CASES[name], np.random.default_rng(0)
    rows, features = session.sizes.vectors[0], 64
    shape = (rows, features) if name in ("LayerNorm", "RMSNorm") else (rows // 16, 4, 4, features)
    x, gradient = (jnp.asarray(rng.standard_normal(shape) + shift, dtype) for shift in (3.0, 0.0))
    params = {key: jnp.asarray(rng.uniform(0.5, 1.5, features), jnp.float32) for key in case.params}
    stats = {"mean": jnp.zeros(features), "var": jnp.ones(features)} if case.running else {}

    def both(x: jax.Array, params: Any, stats: Any, gradient: jax.Array) -> Any:
        y, pull, new = jax.vjp(lambda x, params: case.ours(x, params, stats), x, params, has_aux=True)
        return {"y": y, "stats": new, "gradients": pull(gradient)}

    return compared(session, both, (x, params, stats, gradient), TOLERANCE[dtype])
