"""What a GPU or a TPU makes of each room: values against the CPU's, then times beside peers and the device's ceilings.

    python -m benchmarks accelerator                     # in 8 minutes; benchmarks/results/accelerator-<device>.json
    python -m benchmarks accelerator                     # again: goes on with what is not in that file
    python -m benchmarks accelerator --rooms losses --minutes 2
    python -m benchmarks accelerator --table FILE        # the tables of a record, in Markdown
    python -m benchmarks accelerator --sizes tiny --output FILE    # tries the whole out on any machine

It needs jax, optax and flax; what else a case needs and is not installed, its row says. The cases come by importance.
Each has a share of the time, compiling included, and what it leaves is the others'; one that does not fit is recorded
as not run. The file is whole after every case. A run that finds it goes on: what failed is tried once more, and what
had no time, again.

A turn of a peer is several calls, so that the device is not kept waiting by the host; ``dispatch_s`` says how long that
was busy. Peers take turns in one process, steps donate what they replace, times are medians. Peers of a case are
compiled at once, as many as there are cores.
"""

from __future__ import annotations

import argparse
import atexit
import datetime
import json
import os
import pathlib
import re
import sys
import time
from typing import Any

import jax

from benchmarks import harness
from benchmarks.accelerator import build, checks, device, rows, table
from benchmarks.accelerator.budget import Budget, Lap
from benchmarks.accelerator.cases import Session
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.runner import Runner
from benchmarks.accelerator.sizes import SIZES

HELP = "values and times on a GPU or TPU, in a few minutes"
ROOMS = ("optimizers", "norm", "losses", "augment", "masking", "pretraining")
CEILINGS = "ceilings"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this suite."""
    parser.add_argument("--minutes", type=float, default=8.0, help="for all, compiling included (%(default)g)")
    parser.add_argument("--sizes", choices=list(SIZES), default="full", help="of the arrays (%(default)s)")
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS), help="what to run (all)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose name has one of these")
    parser.add_argument("--fresh", action="store_true", help="begin the file anew")
    parser.add_argument("--table", type=pathlib.Path, metavar="FILE", help="print the tables of a record, and end")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs what is due, prints the tables, and returns the record.

    Raises:
      SystemExit: after ``--table``; and on a CPU without ``--output``, which is no accelerator.
      ValueError: the file is of another device, other versions or other sizes.
    """
    if args.table is not None:
        print(table.markdown(json.loads(args.table.read_text())))
        raise SystemExit(0)
    start = time.monotonic()
    device.with_cpu()
    environment = device.environment()
    if environment["platform"] == "cpu" and args.output is None:
        raise SystemExit("accelerator: jax finds no GPU or TPU; to try it out, --sizes tiny --output FILE")
    record = Record(
        _path(args, environment["device"]),
        {"suite": "accelerator", "environment": environment, "settings": {"sizes": args.sizes}},
        fresh=args.fresh,
    )
    sizes, budget = SIZES[args.sizes], Budget(60 * args.minutes, start)
    cases = [case for case in (*checks.cases(), *rows.cases(sizes)) if case.room in (CEILINGS, *args.rooms)]
    if args.only:
        cases = [case for case in cases if any(part in case.name for part in args.only)]
    repeats = args.repeats or (3 if args.quick else None)
    this: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "minutes": args.minutes,
    }
    record.runs.append(this)
    try:
        Runner(record, budget, Session(sizes, record, Lap(0.0), jax.devices()[0], repeats)).run(cases)
    finally:
        this["seconds"] = round(budget.used, 1)
        record.write()
    content = record.content()
    print(f"\n{table.markdown(content)}")
    if build.unfinished():
        atexit.register(_leave)
    return content


def _path(args: argparse.Namespace, kind: str) -> pathlib.Path | None:
    """The file, by default that which every suite has; as there, none for a quick look."""
    if args.output is not None or args.quick:
        return args.output
    return harness.RESULTS / f"accelerator-{re.sub(r'[^a-z0-9]+', '-', kind.lower()).strip('-')}.json"


def _leave() -> None:
    """Ends at once where a compiler still works for nobody: it is not to be taken apart beneath its thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
