"""Runs that are killed at any moment end as one that was not, to the last bit."""

from __future__ import annotations

import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
from devices import environment

pytestmark = pytest.mark.long

HERE = pathlib.Path(__file__).parent
STEPS, EVERY, PATIENCE = 40, 4, 300


class Job:
    """Processes of one run, and what each has printed so far."""

    def __init__(self, folder: pathlib.Path, program: str, *arguments: str, processes: int = 1) -> None:
        self.folder = folder
        self.logs = [folder.parent / f"{folder.name}-{time.monotonic_ns()}.{i}" for i in range(processes)]
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            several = [f"localhost:{probe.getsockname()[1]}", str(processes)]
        self.processes: list[subprocess.Popen[bytes]] = []
        for i, log in enumerate(self.logs):
            told = [*arguments, *several, str(i)] if processes > 1 else arguments
            with log.open("w") as out:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-u", str(HERE / program), *told], env=environment(), stdout=out, stderr=out
                    )
                )

    def lines(self, word: str | tuple[str, ...], process: int = 0) -> list[str]:
        """What was printed in lines that begin with a word."""
        return [line for line in self.logs[process].read_text().splitlines() if line.startswith(word)]

    def wait_for(self, seen: Callable[[], object]) -> bool:
        """Waits until something is seen, or until it has ended without."""
        deadline = time.monotonic() + PATIENCE
        while not (found := seen()) and self.processes[0].poll() is None:
            assert time.monotonic() < deadline, self.logs[0].read_text()[-2000:]
            time.sleep(0.002)
        return bool(found)

    def saving(self) -> list[pathlib.Path]:
        """What is half written."""
        return list(self.folder.rglob("*.orbax-checkpoint-tmp"))

    def kill(self, number: int, one: int = -1, pause: float = 0.0) -> None:
        """Sends a signal to one of them; where that ends it, the others are killed after a pause."""
        self.processes[one].send_signal(number)
        if self.processes[one].wait(PATIENCE) < 0:
            time.sleep(pause)
            for process in self.processes:
                process.kill()

    def ends(self) -> list[str]:
        """What all have told of their ends."""
        return [line for i in range(len(self.processes)) for line in self.lines("end", i)]

    def codes(self) -> set[int]:
        """The exit codes, once it has ended."""
        return {process.wait(PATIENCE) for process in self.processes}


class Killed(NamedTuple):
    """What came of a run that was killed again and again.

    Attributes:
      ends: what it told of its end, each time that it ended.
      inside: how many kills were within a save.
      kills: how many there were, of processes that had not ended.
      again: for each start how many steps were made that had been made before.
      made: which steps were made since it last began anew, in their order.
    """

    ends: list[list[str]]
    inside: int
    kills: int
    again: list[int]
    made: list[tuple[str, ...]]


def killed(
    start: Callable[[], Job],
    number: int,
    times: int,
    chance: random.Random,
    wait: float,
    fine: frozenset[int] = frozenset({0}),
) -> Killed:
    """Starts a run until it ends, and kills it at random moments, every third time within a save.

    One that has ended before it was killed often enough begins anew.
    """
    made: list[tuple[str, ...]] = []
    again: list[int] = []
    ends: list[list[str]] = []
    inside = kills = 0
    for n in range(50 * times):
        job = start()
        one = chance.randrange(len(job.processes))
        if kills < times:
            if n % 3 == 1:
                job.wait_for(job.saving)
            else:
                if n % 3:
                    job.wait_for(lambda: job.lines("step"))
                time.sleep(chance.uniform(0, wait))
            alive = job.processes[one].poll() is None
            job.kill(number, one, chance.uniform(0, 2) * (len(job.processes) > 1))
            kills += alive
        codes = job.codes()
        if (code := job.processes[one].returncode) < 0:  # the others end as they like, or are killed
            codes = {code}
        inside += number == signal.SIGKILL and bool(job.saving())
        steps = [tuple(line.split()[1:]) for line in job.lines("step")]
        again.append(len({*steps} & {*made}))
        made += steps
        # Before a run is open, and when it is closed, a SIGTERM ends the process as ever.
        closed = [line.startswith("end") for line in job.lines(("step", "end"), one)][-1:] != [False]
        expected = fine | {0} | ({-number} if number == signal.SIGKILL or closed else set())
        assert codes <= expected, job.logs[0].read_text()[-2000:]
        print(f"{job.folder.name}: {kills} kills, {inside} within a save, {again} steps made again", flush=True)
        if codes <= fine and job.lines("done"):
            ends.append(job.ends())
            if kills >= times:
                return Killed(ends, inside, kills, again, made)
            shutil.rmtree(job.folder)
            made.clear()
    raise AssertionError("it did not end")


def small(folder: pathlib.Path, pause: str = "0.01", processes: int = 1) -> Job:
    return Job(folder, "resume_program.py", str(folder), str(STEPS), str(EVERY), pause, processes=processes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    job = small(tmp_path_factory.mktemp("whole") / "run")
    assert job.codes() == {0}, job.logs[0].read_text()[-2000:]
    (end,) = job.lines("end")
    return end


def test_a_killed_run_ends_as_another(undisturbed: str, tmp_path: pathlib.Path) -> None:
    found = killed(lambda: small(tmp_path / "run"), signal.SIGKILL, 2, random.Random(0), 0.3)
    assert all(end == [undisturbed] for end in found.ends) and {*found.made} == {(str(i),) for i in range(STEPS)}
    assert max(found.again) <= EVERY


def test_a_signal_is_kept(undisturbed: str, tmp_path: pathlib.Path) -> None:
    """While the first step compiles, and while the run does what has no steps; a second one ends it at once."""
    made: list[str] = []
    for when, steps in (("first", 1), ("evaluates", 11), ("step", 12)):
        job = small(tmp_path / "run")
        job.wait_for(lambda job=job, when=when: job.lines(when))
        job.processes[0].send_signal(signal.SIGTERM)
        if when == "step":  # and the next one is saved before the second signal comes, or is not
            job.processes[0].send_signal(signal.SIGTERM)
            assert job.codes() <= {0, -signal.SIGTERM} and not job.lines("end")
        else:
            assert job.codes() == {0}
            made += job.lines("step")
            assert made == [f"step {i}" for i in range(steps)]
    rest = small(tmp_path / "run")
    assert rest.codes() == {0} and rest.lines("end") == [undisturbed]


def test_a_full_disk_leaves_the_last_good_checkpoint(undisturbed: str, tmp_path: pathlib.Path) -> None:
    job = small(tmp_path / "full")
    assert job.codes() == {1}
    said = job.logs[0].read_text()
    assert "File too large" in said and len(job.lines("step")) <= 2 * EVERY + 3 and not job.lines("end")
    (tmp_path / "full").rename(tmp_path / "run")
    rest = small(tmp_path / "run")
    assert rest.codes() == {0} and rest.lines("end") == [undisturbed]
    assert rest.lines("first") == ["first 6"]


def test_two_processes_stop_and_go_on_together(undisturbed: str, tmp_path: pathlib.Path) -> None:
    """One of them is told to stop, both are killed, one ends the run; what fails in one is told in both."""
    folder, made = tmp_path / "run", list[str]()
    for number, after in ((signal.SIGTERM, 5), (signal.SIGKILL, 2)):
        job = small(folder, "0.05", processes=2)
        job.wait_for(lambda job=job, after=after: len(job.lines("step")) > after)
        job.kill(number)
        assert job.codes() == {0 if number == signal.SIGTERM else -number}, job.logs[1].read_text()[-2000:]
        if number == signal.SIGTERM:
            assert_refused(job)
            made = job.lines("step")
            assert made == job.lines("step", 1) and 5 < len(made) < STEPS
        else:
            assert job.lines("step")[0] == f"step {len(made)}"  # none is repeated
    rest = small(folder)
    assert rest.codes() == {0} and rest.lines("end") == [undisturbed]


def assert_refused(job: Job) -> None:
    """What went wrong in one process only; the checkpoint before is whole."""
    elsewhere, full = "RuntimeError('expected all processes to write, failed in process", "File too large"
    for name, step, first, second in (
        ("nonfinite", 0, "NonfiniteError", "NonfiniteError"),
        ("position", 0, "expected a checkpoint to be written, another process failed", "TypeError"),
        ("next", 2, f"{elsewhere} 1", full),
        ("first", 2, full, f"{elsewhere} 0"),
        ("end", 1, f"{elsewhere} 1", full),
    ):
        for i, told in enumerate((first, second)):
            (line,) = job.lines(f"refused {name} ", i)
            assert line.startswith(f"refused {name} {step} ") and told in line, line
    for i in range(2):
        assert job.lines("whole", i) == [f"whole {name} 1 True" for name in ("next", "first", "end")]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 20), (signal.SIGTERM, 10)])
@pytest.mark.parametrize(
    ("name", "every", "processes"), [("train_digits", 5, 1), ("pipeline", 2, 1), ("train_distributed", 5, 2)]
)
def test_a_killed_example_ends_as_another(
    name: str, every: int, processes: int, number: int, times: int, tmp_path: pathlib.Path
) -> None:
    """Of two processes one is killed, and the other at most two seconds later, if it has not ended by itself."""

    def start(folder: pathlib.Path) -> Job:
        return Job(folder, "examples_program.py", name, str(folder), str(every), processes=processes)

    begun = time.monotonic()
    whole = start(tmp_path / "whole")
    fine = frozenset({0, 1})  # so few steps may not reach a goal
    assert whole.codes() <= fine
    half = (time.monotonic() - begun) / 2
    found = killed(lambda: start(tmp_path / "run"), number, times, random.Random(times), half, fine)
    # A seed that had ended before an interrupt is told again.
    assert all(end == whole.ends() for end in found.ends)
    assert {*found.made} == {tuple(line.split()[1:]) for line in whole.lines("step")}
    assert number != signal.SIGKILL or found.inside >= 5
    assert max(found.again) <= (every if number == signal.SIGKILL else 0)
