"""NT-Xent and its gradients, beside the dense form where that fits, and the limit of its products."""

from __future__ import annotations

import functools
from typing import Any

import jax

import gradxform as gx
from benchmarks import contrastive
from benchmarks.accelerator import device
from benchmarks.accelerator.budget import TimeUp
from benchmarks.accelerator.build import Built, Program
from benchmarks.accelerator.cases import Case, Session
from benchmarks.accelerator.measure import measured
from benchmarks.accelerator.rows.ceilings import matmul_name
from benchmarks.accelerator.sizes import Sizes
from benchmarks.accelerator.timing import repeated

RUNS = 3
"""How often at least a program is run: to warm up, to see how long it takes, and in a turn."""


def name_of(case: contrastive.Case) -> str:
    """The name of a case of the suite of contrastive losses."""
    return f"nt_xent, {case}"


def cases(sizes: Sizes) -> list[Case]:
    """A case for each number of pairs, features and dtype: the smaller ones say how long the larger take."""
    return [
        Case(name_of(case), "losses", functools.partial(_row, case), weight=2.0)
        for case in (
            contrastive.Case(pairs, dtype=dtype, features=features)
            for pairs in sizes.pairs
            for features in sizes.features
            for dtype in sizes.dtypes
        )
    ]


def _row(case: contrastive.Case, session: Session) -> dict[str, Any]:
    expected = _expected(case, session)
    if expected is not None and RUNS * expected > session.lap.left:
        raise TimeUp(
            f"{RUNS} runs take about {RUNS * expected:.0f} s by the last smaller case, "
            f"{session.lap.left:.0f} s were left"
        )
    views = tuple(
        jax.random.normal(key, (case.pairs, case.features), case.dtype) for key in jax.random.split(jax.random.key(0))
    )
    losses = {contrastive.OURS: lambda a, b: gx.losses.nt_xent(a, b, case.temperature)}
    # The matrix, its exponentials and their gradient; beyond the memory of all devices nobody need compile it.
    if 3 * 4 * (2 * case.pairs) ** 2 < 2 * (device.memory(session.device) or 2**34):
        losses[contrastive.DENSE] = lambda a, b: _dense(a, b, case.temperature)

    def too_large(name: str, built: Built) -> str | None:
        room = device.free(session.device)
        if (built.temp_bytes or 0) > room:
            return f"needs {(built.temp_bytes or 0) / 2**30:.1f} GiB, {room / 2**30:.1f} are free"
        return None

    entry = measured(
        session,
        {
            name: (Program(jax.value_and_grad(loss, (0, 1)), views), lambda built: repeated(built, *views))
            for name, loss in losses.items()
        },
        too_large,
    )
    if contrastive.DENSE not in losses:
        entry["missing"][contrastive.DENSE] = f"a matrix takes {4 * (2 * case.pairs) ** 2 / 2**30:,.0f} GiB"
    rate = session.record.value(matmul_name(case.dtype), "flops_per_s")
    floor = None if rate is None else case.flops / rate
    for figures in entry["peers"].values():
        figures["times_floor"] = None if floor is None else figures["median_s"] / floor
    return entry | {"floor_s": floor, "pairs": case.pairs, "features": case.features, "dtype": case.dtype}


def _dense(z1: jax.Array, z2: jax.Array, temperature: float) -> jax.Array:
    # As exact as ours: the default of some devices rounds the factors of a product to ten bits.
    with jax.default_matmul_precision("highest"):
        return contrastive.dense(z1, z2, temperature)


def _expected(case: contrastive.Case, session: Session) -> float | None:
    """The seconds of a run by the largest smaller case that was measured: they grow with the square of the pairs."""
    smaller = [pairs for pairs in session.sizes.pairs if pairs < case.pairs]
    for pairs in reversed(smaller):
        entry = session.record.cases.get(name_of(contrastive.Case(pairs, case.temperature, case.dtype, case.features)))
        if entry is not None and contrastive.OURS in entry.get("peers", {}):
            return entry["peers"][contrastive.OURS]["median_s"] * (case.pairs / pairs) ** 2
    return None
