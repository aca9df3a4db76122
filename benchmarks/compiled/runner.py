"""The runner: compiles programs one after another in a process of its own, and keeps the record."""

from __future__ import annotations

import argparse
import concurrent.futures
import concurrent.futures.process
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from benchmarks import harness
from benchmarks.compiled import (
    programs_augment,
    programs_losses,
    programs_norms,
    programs_optimizers,
    programs_pipeline,
    programs_sharded,
    report,
    target,
)
from benchmarks.compiled.program import Program

MODULES = (programs_optimizers, programs_norms, programs_losses, programs_augment, programs_pipeline, programs_sharded)
PACKAGES = ("jax", "jaxlib", "optax", "flax", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
ROOT = pathlib.Path(__file__).parents[2]


def catalog() -> dict[str, Program]:
    """Every program by its key."""
    return {program.key: program for module in MODULES for program in module.programs()}


def chosen(args: argparse.Namespace) -> Iterator[Program]:
    """The programs that the options ask for."""
    several = target.TOPOLOGIES[args.topology] > 1
    for key, program in catalog().items():
        if (
            program.sharded == several
            and args.room in (None, program.room)
            and (re.search(args.only, key) if args.only else not program.slow)
        ):
            yield program


def compile_one(topology: str, key: str) -> dict[str, Any]:
    """Compiles a program for chips: its record."""
    program = catalog()[key]
    mesh = target.mesh_of(topology, programs_sharded.AXIS, program.axes)
    call = program.call(mesh)
    told = not program.sharded or program.axes is not jax.sharding.AxisType.Auto
    compiled = target.compile_for(call.function, call.arguments, mesh, call.donate, told=told)
    jax.clear_caches()
    found = report.report_of(compiled, target.chip_of(topology)).record()
    return {
        "unit": program.unit,
        "unit_value": round(found["hbm_bytes"] / call.size, 3) if call.size else None,
        **found,
    }


class Worker:
    """A process that compiles; a new one after each that had to be ended."""

    def __init__(self, limit: float) -> None:
        self._limit, self._pool = limit, self._start()

    @staticmethod
    def _start() -> concurrent.futures.ProcessPoolExecutor:
        return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def compile(self, topology: str, key: str) -> dict[str, Any]:
        """The record of a program, or why there is none."""
        try:
            return self._result(self._pool.submit(compile_one, topology, key))
        except TimeoutError:
            self._renew()
            return {"not_compiled": f"time: more than {self._limit:g} s"}
        except concurrent.futures.process.BrokenProcessPool:
            self._renew()
            return {"not_compiled": "the compiler ended"}
        except Exception as error:
            return {
                "not_compiled": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
                if str(error)
                else type(error).__name__
            }

    def _result(self, future: concurrent.futures.Future[dict[str, Any]]) -> dict[str, Any]:
        """What the process gives, before it has used up the seconds."""
        (process,) = self._pool._processes.values()
        start = _cpu_seconds(process.pid)
        while _cpu_seconds(process.pid) - start < self._limit:
            if concurrent.futures.wait([future], 1).done:
                return future.result()
        raise TimeoutError

    def _renew(self) -> None:
        self.close()
        self._pool = self._start()

    def close(self) -> None:
        """Ends the process, whatever it does."""
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _cpu_seconds(process: int) -> float:
    """What a process has had of all cores; the time that has passed where the system does not tell."""
    stat = pathlib.Path(f"/proc/{process}/stat")
    if not pathlib.Path("/proc/self/stat").exists():
        return time.monotonic()
    try:
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    except FileNotFoundError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def run(args: argparse.Namespace) -> None:
    """Compiles what the options ask for; see the package."""
    if problem := target.missing(args.topology):
        raise SystemExit(problem)
    print("\n".join(report.READING))
    commit = _commit()
    worker = Worker(args.limit)
    records: dict[str, dict[str, Any]] = {}
    shown: dict[str, list[dict[str, Any]]] = {}
    try:
        for program in chosen(args):
            path = args.output or record_of(args.topology, program.room)
            if str(path) not in records:
                records[str(path)] = _begun(args.topology, path)
            record = records[str(path)]
            if args.again or program.key not in record["programs"]:
                made = worker.compile(args.topology, program.key)
                record["programs"][program.key] = {
                    "room": program.room,
                    "program": program.name,
                    "peer": program.peer,
                    "commit": commit,
                    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                    **made,
                }
                _write(path, record)
                print("  ".join(filter(None, report.row(record["programs"][program.key]))), flush=True)
            shown.setdefault(program.room, []).append(record["programs"][program.key])
    finally:
        worker.close()
    for room, found in shown.items():
        report.table(f"{room}, {args.topology}, a chip", found)
    if args.against:
        report.compare(
            {key: made for record in records.values() for key, made in record["programs"].items()},
            json.loads(args.against.read_text())["programs"],
            [program.key for program in chosen(args)],
        )
    print(f"\nwritten: {', '.join(records)}")


def record_of(topology: str, room: str) -> pathlib.Path:
    """The file of a room's programs for chips."""
    return harness.RESULTS / f"compiled-{re.sub('[^a-z0-9]+', '-', topology)}-{room}.json"


def _begun(topology: str, path: pathlib.Path) -> dict[str, Any]:
    """A record that goes on with what a file has."""
    return {
        "suite": "compiled",
        "topology": topology,
        "reading": report.READING,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "programs": json.loads(path.read_text())["programs"] if path.exists() else {},
    }


def _write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """The last commit that touched the code of the library, and whether it was changed since."""

    def git(*args: str) -> str:
        return subprocess.run(("git", *args), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    code = ":(glob)gradxform/**/*.py"
    try:
        return git("log", "-1", "--format=%h", "--", code) + (
            " and changes" if git("status", "--porcelain", "--", code) else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
