"""Norms beside Flax, on arrays that no cache holds."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import norms
from benchmarks.accelerator.build import Program
from benchmarks.accelerator.cases import Case, Session
from benchmarks.accelerator.measure import measured
from benchmarks.accelerator.timing import repeated


def cases() -> list[Case]:
    """A case for each norm and dtype."""
    return [
        Case(f"{name}, {dtype}", "norm", functools.partial(_row, name, dtype), weight=2.0)
        for name in norms.CASES
        for dtype in norms.DTYPES
    ]


def _row(name: str, dtype: str, session: Session) -> dict[str, Any]:
    case, shape = norms.CASES[name], session.sizes.norms[name]
    keys = jax.random.split(jax.random.key(0))
    x, gradient = (
        jax.random.normal(key, shape, dtype) + jnp.asarray(shift, dtype)
        for key, shift in zip(keys, (0.5, 0.0), strict=True)
    )
    features = shape[-1]
    params = {key: jnp.linspace(0.5, 1.5, features) for key in case.params}
    stats = {"mean": jnp.zeros(features), "var": jnp.ones(features)} if case.running else {}
    programs = {}
    for peer, call in ((norms.OURS, case.ours), (norms.LINEN, _linen(case.linen(x.dtype)))):
        for figure, (function, args) in {
            norms.FORWARD: (call, (x, params, stats)),
            norms.BOTH: (_both(call), (x, params, stats, gradient)),
        }.items():
            programs[f"{peer}, {figure}"] = (Program(function, args), lambda built, args=args: repeated(built, *args))
    entry = measured(session, programs)
    for key, figures in entry["peers"].items():
        figures["bytes_per_s"] = norms.ARRAYS[key.split(", ")[1]] * x.nbytes / figures["median_s"]
        figures["share_of_copy"] = session.share(figures["bytes_per_s"])
    return entry | {"shape": shape}


def _linen(module: Any) -> norms.Call:
    def call(x: jax.Array, params: Any, stats: Any) -> tuple[jax.Array, Any]:
        y, new = module.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
        return y, new.get("batch_stats", {})

    return call


def _both(call: norms.Call) -> Any:
    def both(x: jax.Array, params: Any, stats: Any, gradient: jax.Array) -> tuple[Any, ...]:
        y, pull, new = jax.vjp(lambda x, params: call(x, params, stats), x, params, has_aux=True)
        return y, new, *pull(gradient)

    return both
