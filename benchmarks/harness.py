"""Timing peers in turns, describing the machine, printing tables and writing records."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results"
Result = TypeVar("Result")
PACKAGES = ("gradxform", "jax", "jaxlib", "flax", "optax", "torch", "numpy")
VARIABLES = (
    "XLA_FLAGS",
    "JAX_PLATFORMS",
    "OMP_NUM_THREADS",
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_ARENA_MAX",
    "LD_PRELOAD",
)
QUIET = 0.15
"""The work of other processes, in cores, up to which the machine counts as quiet."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One figure measured several times, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def spread(self) -> float:
        """The distance between the quartiles over the median."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float((high - low) / self.median) if self.median else 0.0

    def ratio(self, peer: Sample) -> float:
        """The median of the ratios to a peer measured in the same rounds."""
        return float(np.median(np.divide(self.seconds, peer.seconds)))

    def record(self) -> dict[str, Any]:
        """This sample as JSON."""
        return {"median_s": self.median, "min_s": min(self.seconds), "spread": self.spread, "n": len(self.seconds)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every suite has."""
    parser.add_argument("--quick", action="store_true", help="few repeats; written only where --output says")
    parser.add_argument("--repeats", type=int, default=None, help="timed rounds a case (default 40; 10 with --quick)")
    parser.add_argument(
        "--patience",
        type=float,
        default=0,
        metavar="SECONDS",
        help="how long each measurement may wait, or be repeated, until no other process disturbs it",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=None,
        help="the JSON file (default benchmarks/results/<suite>-<device>.json)",
    )


def prepare() -> None:
    """Sets jax up for measuring: a compilation that a cache on disk answers is none."""
    jax.config.update("jax_enable_compilation_cache", False)


def start_with(variables: Mapping[str, str]) -> None:
    """Starts the command anew with the environment variables that it lacks: glibc reads its own only at the start."""
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def in_turns(
    steps: Mapping[str, Callable[[], None]], repeats: int, warmup: int = 3, turn: float = 0.0
) -> dict[str, Sample]:
    """Times steps in turns.

    Args:
      steps: by name, what to time; each returns when its work is done.
      repeats: timed rounds.
      warmup: rounds before them.
      turn: for how many seconds at least a step is called again and again in its turn, of which the mean is taken: the
        time of a single short call is that of waking the processor's other cores.

    Returns:
      The sample of each; position i of all of them is the same round.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    rng = np.random.default_rng(0)
    for i in range(warmup + repeats):
        # In a new order: nobody always runs on the caches, and beside the idling threads, that the same peer left.
        for name in rng.permutation(names).tolist():
            start, calls, passed = time.perf_counter(), 0, 0.0
            while not calls or passed < turn:
                steps[name]()
                calls, passed = calls + 1, time.perf_counter() - start
            if i >= warmup:
                seconds[name].append(passed / calls)
    return {name: Sample(tuple(values)) for name, values in seconds.items()}


@dataclasses.dataclass(frozen=True)
class Build:
    """What it took to build a jitted function, and what came out."""

    trace: Sample
    lower: Sample
    compile: Sample
    temp_bytes: int
    fusions: int

    @property
    def front(self) -> Sample:
        """Trace and lowering together."""
        return Sample(tuple(np.add(self.trace.seconds, self.lower.seconds).tolist()))

    def record(self) -> dict[str, Any]:
        """This build as JSON."""
        return {
            "trace": self.trace.record(),
            "lower": self.lower.record(),
            "compile": self.compile.record(),
            "trace_and_lower_s": self.front.median,
            "temp_bytes": self.temp_bytes,
            "fusions": self.fusions,
        }


def build_in_turns(
    functions: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], repeats: int, donate: tuple[int, ...] = (0, 1)
) -> dict[str, Build]:
    """Builds functions in turns, each time from nothing.

    Args:
      functions: by name, a function and arguments of the shapes to build it for.
      repeats: how often to build; one more build comes before, uncounted.
      donate: the arguments whose arrays it may overwrite.

    Returns:
      The build of each.
    """
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in functions}
    compiled: dict[str, Any] = {}
    for i in range(repeats + 1):
        for name, (function, args) in functions.items():
            jax.clear_caches()
            gc.collect()
            start = time.perf_counter()
            traced = jax.jit(function, donate_argnums=donate).trace(*args)
            traced_at = time.perf_counter()
            lowered = traced.lower()
            lowered_at = time.perf_counter()
            compiled[name] = lowered.compile()
            done = time.perf_counter()
            if i:
                seconds[name].append((traced_at - start, lowered_at - traced_at, done - lowered_at))
    builds = {}
    for name, program in compiled.items():
        trace, lower, compilation = (Sample(part) for part in zip(*seconds[name], strict=True))
        builds[name] = Build(
            trace,
            lower,
            compilation,
            int(program.memory_analysis().temp_size_in_bytes),
            program.as_text().count(" fusion("),
        )
    return builds


def streaming_bandwidth(elements: int = 1 << 25) -> float:
    """Bytes a second of the fastest of three streams over arrays in memory.

    The streams are a sum by rows (reads alone), ``x + a (y - x)`` in place (two reads a write) and ``a x`` in place
    (as many reads as writes): which of them a machine carries fastest depends on the machine.

    Args:
      elements: float32 numbers an array, more than a cache holds.
    """

    def stream(function: Callable[..., Any], reads: int, writes: int) -> float:
        call = jax.jit(function, donate_argnums=(0,) if writes else ())
        arrays = [jnp.full((elements,), 1.0 + i, jnp.float32) for i in range(reads)]

        def step() -> None:
            out = jax.block_until_ready(call(*arrays))
            if writes:
                arrays[0] = out

        return 4 * elements * (reads + writes) / in_turns({"stream": step}, 10)["stream"].median

    return max(
        stream(lambda x: jnp.sum(x.reshape(-1, 1024), axis=1), 1, 0),
        stream(lambda x, y: x + 0.25 * (y - x), 2, 1),
        stream(lambda x: x * 0.5, 1, 1),
    )


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """What the figures depend on: the device, the versions, the settings and what else was running."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": device.platform,
        "device": device.device_kind,
        "cpu": _cpu_model(),
        "cores": cores(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in PACKAGES},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "others_cores": round(others_now(), 2),
    }


def print_environment(record: Mapping[str, Any]) -> None:
    """Prints the machine and the versions, and warns where the machine is not quiet."""
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in record["versions"].items())
    print(f"{record['date']}  {record['device']} ({record['cpu']}, {record['cores']} cores)")
    print(f"python {record['python']}, {versions}")
    for name, value in record["variables"].items():
        print(f"{name}={value}")
    if record["others_cores"] > QUIET:
        print(f"WARNING: other processes keep {record['others_cores']:.1f} cores busy; expect noise")


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    print(f"\n{title}")
    for row in (header, ["-" * width for width in widths], *rows):
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )


def write(args: argparse.Namespace, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON where ``--output`` says, by default under the name of the suite and the device."""
    path = args.output
    if path is None:
        if args.quick:
            print("\nnot written: --quick without --output")
            return
        kind = record["environment"]["device"]
        path = RESULTS / f"{record['suite']}-{re.sub(r'[^a-z0-9]+', '-', kind.lower()).strip('-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten: {path}")


def _cpu_model() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    return platform.processor() or "unknown"


def version(name: str) -> str | None:
    """Of a package; None where it is not installed."""
    if name == "gradxform":
        import gradxform

        return getattr(gradxform, "__version__", "unreleased")
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class Others:
    """How many cores other processes keep busy from here on; 0 where the system does not tell."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), self._busy()

    def cores(self) -> float:
        """The cores since this was made."""
        seconds, busy = time.perf_counter() - self._start[0], self._busy() - self._start[1]
        return max(0.0, busy / seconds) if seconds else 0.0

    @staticmethod
    def _busy() -> float:
        stat = pathlib.Path("/proc/stat")
        if not stat.exists():
            return 0.0
        user, nice, system, _, _, *rest = (int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:])
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def others_now(seconds: float = 1.0) -> float:
    """How many cores other processes keep busy during the next second."""
    others = Others()
    time.sleep(seconds)
    return others.cores()


def undisturbed(measure: Callable[[], Result], patience: float) -> tuple[Result, float]:
    """Measures while other processes leave the machine alone.

    Args:
      measure: what to do; done again as long as others were busy meanwhile and patience lasts.
      patience: seconds for waiting and repeating; 0 measures once, whatever else is running.

    Returns:
      What ``measure`` returned, and the cores that others kept busy meanwhile, in its quietest run.
    """
    end, best = time.monotonic() + patience, None
    while True:
        while time.monotonic() < end and others_now() > QUIET:
            time.sleep(2.0)
        others = Others()
        result = measure()
        cores = others.cores()
        if best is None or cores < best[1]:
            best = result, cores
        if cores <= QUIET or time.monotonic() >= end:
            return best


def verdict(ratio: float | None, limit: float, others: float) -> str:
    """What to say of a target: a ratio of at most ``limit``, measured while others kept so many cores busy."""
    if ratio is None:
        return "not measured"
    if others > QUIET:
        return "no verdict, other processes were busy"
    return "met" if ratio <= limit else "NOT MET"
