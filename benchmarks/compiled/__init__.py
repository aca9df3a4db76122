"""What the compilers for TPU and GPU make of gradxform and its peers; none of their devices is needed.

    python -m benchmarks compiled                                  # every program for one chip, v5e:1x1
    python -m benchmarks compiled --topology v5e:2x2               # those that are spread over chips
    python -m benchmarks compiled --topology h100 --room losses --only nt_xent
    python -m benchmarks compiled --only small                     # those that take minutes have to be named
    python -m benchmarks compiled --output new.json --against benchmarks/results/compiled-v5e-1x1-losses.json

It needs the ``tpu`` extra, or for h100 ``cuda-compiler``, and for the pipeline ``examples``. After each program the
record of its room is written, ``benchmarks/results/compiled-<topology>-<room>.json``, and what is there is not compiled
again but with ``--again``. Another process compiles, which is ended, and begun anew, where a program takes too long.
How the numbers are to be read is printed first, and stands at the head of each record.

To add a program, yield it from ``programs()`` of its room's ``programs_<room>.py``.
"""

from __future__ import annotations

import argparse
import pathlib

from benchmarks.compiled.target import TOPOLOGIES, VARIABLES

__all__ = ["HELP", "VARIABLES", "add_arguments", "run"]
HELP = "programs for TPU and GPU as their compilers make them, against optax, flax.linen and dense forms"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this suite, which has none of the others': nothing is timed."""
    parser.add_argument("--topology", choices=TOPOLOGIES, default="v5e:1x1", help="chips (default %(default)s)")
    parser.add_argument(
        "--room",
        choices=("optimizers", "norms", "losses", "augment", "pipeline"),
        default=None,
        help="compile its programs alone",
    )
    parser.add_argument(
        "--only", metavar="PATTERN", default=None, help="a regex that 'room | name | peer' has to match"
    )
    parser.add_argument("--again", action="store_true", help="compile what the record has, too")
    parser.add_argument(
        "--limit",
        type=float,
        default=240.0,
        metavar="SECONDS",
        help="what a program may take of all cores together (default %(default)s)",
    )
    parser.add_argument("--output", type=pathlib.Path, default=None, help="one JSON file for all rooms")
    parser.add_argument("--against", type=pathlib.Path, default=None, help="a record to print the ratios to")


def run(args: argparse.Namespace) -> None:
    """Compiles, prints and writes."""
    from benchmarks.compiled import runner

    runner.run(args)
