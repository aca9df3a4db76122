"""What libtpu makes of the library: programs are compiled by ``compiled_program.py`` in processes of their own."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import gradxform as gx

ROOT = pathlib.Path(gx.__file__).parents[1]
PROGRAM = pathlib.Path(__file__).parent / "compiled_program.py"
PLACES = (ROOT, ROOT / "tests", ROOT / "tests" / "core", PROGRAM.parent)
"""Of ``benchmarks``, ``harness``, ``value_catalog`` and what is here."""
sys.path += [str(place) for place in PLACES if str(place) not in sys.path]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """What a part of a run found; each run is made once, by whichever worker asks for it first."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[tpu]'")
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared

    def part(run: str, name: str) -> Any:
        output = shared / f"compiled-{run}.json"
        with open(output.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not output.exists():
                output.write_text(_made(run))
        found = json.loads(output.read_text())
        found = found.get(name, found)
        assert "error" not in found, f"{run}, {name}:\n{found['error']}"
        return found["found"]

    return part


def _made(run: str) -> str:
    from benchmarks.compiled.target import VARIABLES

    done = subprocess.run(
        [sys.executable, str(PROGRAM), run],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | VARIABLES | {"PYTHONPATH": os.pathsep.join(map(str, PLACES))},
    )
    if done.returncode == 0:
        return done.stdout
    return json.dumps({"error": f"exit status {done.returncode}: {done.stderr[-4000:]}"})
