"""Programs for several devices: the number of devices is fixed before jax starts, so they run in processes."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest

import gradxform as gx

PATIENCE = 900
"""Seconds to wait for the other worker's run."""
QUICK = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
"""As in ``conftest.py``: the older way to compile a fusion, where it is there, takes half of the time."""


def environment(count: int = 1) -> dict[str, str]:
    """Of a process that sees so many devices of a CPU, and compiles as quickly as the tests do."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count} {QUICK}".strip()
    return os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(gx.__file__).parents[1]),
        # Sharding is decided before; what follows only takes time.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def asked(request: pytest.FixtureRequest) -> list[str]:
    """The values of ``check`` of the tests of a file that are to be run; a shorter round asks for few."""
    return [
        item.callspec.params["check"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path
        if hasattr(item, "callspec") and "check" in item.callspec.params
    ]


def eight_devices(factory: pytest.TempPathFactory, program: pathlib.Path, *arguments: str) -> str:
    """What a program printed that saw eight devices; run once, whichever of the workers asks first."""
    shared = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.mktemp("devices")
    output, claim = shared / f"{program.stem}.txt", shared / f"{program.stem}.claim"
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        deadline = time.monotonic() + PATIENCE
        while not output.exists():
            assert time.monotonic() < deadline, f"{program.name} has not ended in {PATIENCE} seconds"
            time.sleep(0.2)
        return _read(output, program)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment(8),
    )
    # Renamed into place, so that nobody reads half of it.
    written = output.with_suffix(".part")
    written.write_text(f"{done.returncode}\n{done.stdout if done.returncode == 0 else done.stderr[-4000:]}")
    written.rename(output)
    return _read(output, program)


def _read(output: pathlib.Path, program: pathlib.Path) -> str:
    code, _, text = output.read_text().partition("\n")
    assert code == "0", f"{program.name} failed:\n{text}"
    return text
