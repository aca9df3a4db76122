"""Norms forward and backward: x and the gradient of y to y, the gradients of x and of the params, new statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import norms
from benchmarks.compiled.program import OURS, Call, Program, shaped

LARGE = {"LayerNorm": (131072, 1024), "RMSNorm": (131072, 1024), "BatchNorm": (512, 56, 56, 64)}
"""More than VMEM holds: there, passes over HBM are what it takes."""


def both_of(case: norms.Case, peer: str, shape: tuple[int, ...], dtype: Any) -> Call:
    """The passes of a case of ``benchmarks.norms`` on an input of this shape."""

    def norm(x: jax.Array, params: norms.Arrays, stats: norms.Arrays) -> tuple[jax.Array, norms.Arrays]:
        if peer == OURS:
            return case.ours(x, params, stats)
        y, new = case.linen(x.dtype).apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return y, new.get("batch_stats", {})

    def both(x: jax.Array, params: norms.Arrays, stats: norms.Arrays, gradient: jax.Array) -> tuple[Any, ...]:
        y, pull, new = jax.vjp(lambda x, params: norm(x, params, stats), x, params, has_aux=True)
        return y, new, *pull(gradient)

    features, x = shaped(shape[-1:]), shaped(shape, dtype)
    stats = {"mean": features, "var": features} if case.running else {}
    return Call(
        both, (x, dict.fromkeys(case.params, features), stats, x), (), math.prod(shape) * jnp.dtype(dtype).itemsize
    )


def _program(name: str, peer: str, shape: tuple[int, ...], dtype: Any) -> Program:
    return Program(
        "norms",
        f"{name} {shape} {jnp.dtype(dtype).name}, forward + backward",
        peer,
        lambda _: both_of(norms.CASES[name], peer, shape, dtype),
        unit="passes",
    )


def programs() -> Iterator[Program]:
    """The room's programs."""
    for name, case in norms.CASES.items():
        for shape in filter(None, (case.shape, LARGE.get(name))):
            for dtype in (jnp.float32, jnp.bfloat16):
                for peer in (OURS, norms.LINEN):
                    yield _program(name, peer, shape, dtype)
