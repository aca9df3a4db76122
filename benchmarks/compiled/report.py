"""What is said of a compiled program: a record for the file, a row for the table."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import harness
from benchmarks.compiled import cost
from benchmarks.compiled.target import Chip, Compiled
from gradxform.sharding import hlo

READING = (
    "A compiler's numbers, not a clock's: nothing was run. All are of one chip.",
    "Exact: temporaries, arguments, kinds of operations, collectives and their bytes, single-element look-ups.",
    "Counted in the program, loops times their trips: bytes of HBM (what stays in VMEM is free).",
    "The compiler's guess: cycles. Of products good, of element-wise work and reductions pessimistic (x + 1 at 80% of "
    "the bandwidth), at least 1.2 us an operation on a v5e; none of gathers, scatters, sorts, kernels; none on a GPU.",
    "A model that nobody has measured: seconds of look-ups (6.4 ns a slice on a v5e, scatters as much).",
    "A loop whose trips the program does not say counts once; of a conditional the dearest branch counts, but in "
    "cycles_alike_us each branch as often as the others.",
    "FLOP as cost_analysis has them: the body of a loop once, a float32 product at HIGHEST as one pass. Compile "
    "seconds: of all cores together, so that they are the same on a busy machine.",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """A compiled program and the work in it."""

    compiled: Compiled
    work: cost.Work
    chip: Chip

    @property
    def hbm_bytes(self) -> float:
        return sum(one.hbm_bytes for one in self.work.costs)

    @property
    def lookups(self) -> float:
        return sum(one.lookups for one in self.work.costs)

    @property
    def cycles_seconds(self) -> float:
        return sum(one.cycles for one in self.work.costs) / self.chip.clock

    @property
    def hbm_seconds(self) -> float:
        """HBM at its bandwidth, or, for a product, its cycles if they are more."""
        return sum(one.seconds for one in self.work.costs)

    @property
    def collectives(self) -> dict[str, dict[str, float]]:
        """How many of each kind are run, and the bytes of their results together."""
        found: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
        for kind, trips, size in self.work.collectives:
            found[kind]["count"] += trips
            found[kind]["bytes"] += trips * size
        return dict(found)

    @property
    def fits(self) -> bool:
        return self.compiled.bytes < self.chip.memory

    def hottest(self, count: int = 8) -> list[cost.Cost]:
        """The operations that take longest."""

        def seconds(one: cost.Cost) -> float:
            return max(one.seconds, one.cycles / self.chip.clock) + one.lookups * self.chip.lookup

        return sorted(self.work.costs, key=seconds, reverse=True)[:count]

    def record(self) -> dict[str, Any]:
        """This report as JSON."""
        kinds = self.work.kinds
        return {
            "temp_bytes": self.compiled.temp,
            "argument_bytes": self.compiled.arguments,
            "output_bytes": self.compiled.outputs,
            "aliased_bytes": self.compiled.aliased,
            "fits": self.fits,
            "hbm_bytes": round(self.hbm_bytes),
            "hbm_us": _us(self.hbm_seconds),
            "flop": self.compiled.flops,
            "cycles_us": _us(self.cycles_seconds),
            "cycles_alike_us": _us(self.work.alike / self.chip.clock),
            "lookups": round(self.lookups),
            "lookups_us": _us(self.lookups * self.chip.lookup),
            "collectives": self.collectives,
            "fusions": kinds["fusion"],
            "loops": kinds["while"],
            "unknown_loops": len(self.work.unknown_loops),
            "copies": kinds["copy"] + kinds["transpose"],
            "kinds": {kind: kinds[kind] for kind in sorted(kinds) if kind not in cost.FREE},
            "compile_cpu_s": round(self.compiled.seconds, 1),
        }


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 2)


def report_of(compiled: Compiled, chip: Chip, rounds: float = 1.0) -> Report:
    """Reads a compiled program; see ``cost.work_of``."""
    return Report(compiled, cost.work_of(hlo.parse(compiled.text), chip, rounds), chip)


HEADER = (
    "program",
    "of",
    "HBM MB",
    "a unit",
    "temp MiB",
    "GFLOP",
    "HBM us",
    "cycles us",
    "look-ups",
    "fusions",
    "loops",
    "collectives",
    "compile CPU s",
)


def row(record: Mapping[str, Any]) -> list[str]:
    """A program's cells under ``HEADER``."""
    name = [record["program"], record["peer"]]
    if "not_compiled" in record:
        return [*name, f"not compiled: {record['not_compiled']}", *[""] * (len(HEADER) - 3)]
    per = record["unit_value"]
    sent = ", ".join(
        f"{value['count']:g} {kind} {value['bytes'] / 1e6:.3g} MB" for kind, value in record["collectives"].items()
    )
    return [
        *name,
        f"{record['hbm_bytes'] / 1e6:,.1f}",
        "" if per is None else f"{per:.2f} {record['unit']}",
        f"{record['temp_bytes'] / 2**20:.1f}{'' if record['fits'] else ' DOES NOT FIT'}",
        f"{record['flop'] / 1e9:,.1f}",
        f"{record['hbm_us']:,.1f}",
        f"{record['cycles_us']:,.1f}",
        f"{record['lookups']:,}",
        str(record["fusions"]),
        f"{record['loops']}{' unknown ' + str(record['unknown_loops']) if record['unknown_loops'] else ''}",
        sent,
        "" if record["compile_cpu_s"] is None else f"{record['compile_cpu_s']:.1f}",
    ]


def table(title: str, records: Iterable[Mapping[str, Any]]) -> None:
    """Prints the programs of a room."""
    rows = [row(record) for record in records]
    if rows:
        harness.table(title, HEADER, rows)


def compare(new: Mapping[str, Any], old: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Prints what programs have become of those of an older record."""
    figures = ("hbm_bytes", "temp_bytes", "cycles_us", "lookups", "fusions", "compile_cpu_s")
    rows = []
    for key in keys:
        if key in new and key in old and "not_compiled" not in new[key] and "not_compiled" not in old[key]:
            rows.append([key, *(f"{old[key][name] or 0:,.0f} -> {new[key][name] or 0:,.0f}" for name in figures)])
    harness.table("before and now", ("program", *figures), rows)
