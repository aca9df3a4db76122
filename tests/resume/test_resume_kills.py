"""Runs that are killed at any moment end as one that was not, to the last bit."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

import gradxform as gx

pytestmark = pytest.mark.long

PROGRAM = pathlib.Path(__file__).with_name("resume_program.py")
STEPS, EVERY = 40, 4


def start(folder: pathlib.Path) -> subprocess.Popen[str]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path(gx.__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-u", str(PROGRAM), str(folder), str(STEPS), str(EVERY), "0.01"],
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_until(process: subprocess.Popen[str], word: str) -> list[str]:
    """What it prints up to a line that begins with a word; all of it where none does."""
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line.strip())
        if seen[-1].startswith(word):
            break
    return seen


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    out, err = start(tmp_path_factory.mktemp("whole")).communicate(timeout=120)
    assert "end " in out, err
    return out.splitlines()[-1]


def killed_until_it_ends(folder: pathlib.Path, number: int, times: int, chance: random.Random) -> tuple[str, list[int]]:
    """The last line, and the numbers of the steps in the order in which they were made."""
    made: list[int] = []
    for n in range(times + 1):
        process = start(folder)
        if n < times:
            seen = lines_until(process, "step")
            time.sleep(chance.uniform(0, 0.3))
            process.send_signal(number)
        out, err = process.communicate(timeout=120)
        seen = [*(seen if n < times else []), *out.splitlines()]
        made += [int(line.split()[1]) for line in seen if line.startswith("step")]
        expected = {0, -number} if number == signal.SIGKILL else {0}
        assert process.returncode in expected, err[-2000:]
        if any(line.startswith("end") for line in seen):
            return seen[-1], made
    raise AssertionError("the last run did not end")


@pytest.mark.parametrize(("number", "times"), [
    (signal.SIGKILL, 3), (signal.SIGTERM, 1), pytest.param(signal.SIGKILL, 20, marks=pytest.mark.exhaustive),
    pytest.param(signal.SIGTERM, 10, marks=pytest.mark.exhaustive)])
def test_a_killed_run_ends_as_another(number: int, times: int, undisturbed: str, tmp_path: pathlib.Path) -> None:
    last, made = killed_until_it_ends(tmp_path, number, times, random.Random(times))
    assert last == undisturbed
    again = len(made) - STEPS
    assert again == 0 if number == signal.SIGTERM else 0 <= again <= times * (2 * EVERY)
    assert sorted({*made}) == list(range(STEPS))


def test_a_signal_while_it_compiles_is_kept(undisturbed: str, tmp_path: pathlib.Path) -> None:
    process = start(tmp_path)
    lines_until(process, "first")  # the first step compiles now
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [line for line in out.splitlines() if line.startswith("step")] == ["step 0"]
    assert (tmp_path / "0").is_dir()
