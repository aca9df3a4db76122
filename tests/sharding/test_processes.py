"""Two processes of two devices each train as one process does, and a process that does not come is named."""

from __future__ import annotations

import json
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from devices import environment

pytestmark = pytest.mark.long

HEARTBEAT = 10
PROGRAM = pathlib.Path(__file__).with_name("process_program.py")


def start(
    processes: int, present: tuple[int, ...], timeout: float, devices: int, *arguments: str
) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), address, str(processes), str(i), str(timeout), *arguments],
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in present
    ]


def run(processes: int, present: tuple[int, ...], *arguments: Any) -> list[dict[str, Any]]:
    found = []
    for process in start(processes, present, *arguments):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-4000:]
        found.append(json.loads(out.splitlines()[-1]))
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, float, list[subprocess.Popen[str]]]:
    """A run whose second process was killed: its folder, the seconds that the first went on, and both."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    started = start(2, (0, 1), 120, 2, str(folder))
    with started[0], started[1]:
        started[1].wait(300)
        at = time.monotonic()
        started[0].wait(300)
        return folder, time.monotonic() - at, started


@pytest.fixture(scope="module")
def two(killed: tuple[pathlib.Path, float, list[subprocess.Popen[str]]]) -> list[dict[str, Any]]:
    return run(2, (0, 1), 120, 2, str(killed[0]))


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return run(1, (0,), 120, 4)[0]


def test_losses_are_those_of_one_process(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    ways = [way for way in one if "," in way]
    assert len(ways) == 7
    for way in ways:
        np.testing.assert_allclose(two[0][way][0], one[way][0], rtol=1e-5)
        assert two[0][way] == two[1][way]  # the losses and the bits of the params
    assert one["zero1, a shard without examples"][0] != one["zero1, Auto"][0]


def test_a_shard_that_is_not_finite_moves_nothing_anywhere(two: list[dict[str, Any]]) -> None:
    """Past the limit every process raises, and the params can be read after it."""
    for told in two:
        assert told["stays"] and told["seconds"] < 5
        assert told["check_finite"] == told["metrics"]
        assert told["check_finite"].startswith("skip_nonfinite: 3 steps in a row") and "(3 in all)" in told["metrics"]


def test_one_that_is_killed_ends_the_other_and_both_go_on(
    killed: tuple[pathlib.Path, float, list[subprocess.Popen[str]]], two: list[dict[str, Any]]
) -> None:
    _, seconds, (first, second) = killed
    assert second.returncode == -signal.SIGKILL
    assert first.returncode != 0 and seconds < HEARTBEAT + 10
    for told in two:
        assert told["again"]["bits"] == told["zero1, Auto"][1]
        assert told["again"]["first"] in (1, 2)  # the first step is on disk before the second is saved


def test_unequal_rows_are_counted(two: list[dict[str, Any]]) -> None:
    assert {told["unequal"] for told in two} == {
        "global_batch: expected as many rows in each process, got 2 in process 0, 4 in process 1"
    }


def test_who_does_not_come_is_named() -> None:
    start = time.monotonic()
    first, second = run(3, (0, 2), 2.0, 1)
    assert time.monotonic() - start < 60  # most of it imports; the wait itself is in the message
    for told in (first, second):
        assert told["late"].startswith("waited 2 s for 3 processes at localhost:")
        assert told["late"].endswith(": 0, 2 came, 1 did not")
