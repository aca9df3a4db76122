"""Compiling several programs at once, and no longer than there is time."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from benchmarks import harness
from benchmarks.accelerator.budget import Lap

LATE = "time: not compiled within the case's share"
_cores = threading.Semaphore(max(1, harness.cores()))
_abandoned: list[threading.Thread] = []


@dataclasses.dataclass(frozen=True)
class Program:
    """What to compile.

    Attributes:
      function: of arrays.
      args: arrays, or their shapes; on the device that it is compiled for.
      donate: the arguments whose memory it may use.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    donate: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Built:
    """A compiled program.

    Attributes:
      call: runs it.
      seconds: what tracing, lowering and compiling took, beside the other programs of the case.
      temp_bytes: the memory that it takes besides arguments and results; None where the platform does not tell.
    """

    call: Any
    seconds: float
    temp_bytes: int | None


def build(programs: Mapping[str, Program], lap: Lap) -> tuple[dict[str, Built], dict[str, str]]:
    """Compiles programs, as many at once as there are cores.

    Nothing stops a compiler at work: what is not done in time goes on in the background, and its result is dropped.

    Args:
      programs: by name.
      lap: the time for all of them.

    Returns:
      What was built, and for the others why not.
    """
    jobs = {name: _Job(program) for name, program in programs.items()}
    for job in jobs.values():
        job.start()
    for job in jobs.values():
        job.join(lap.left)
    built, missing = {}, {}
    for name, job in jobs.items():
        outcome = job.outcome()
        if isinstance(outcome, Built):
            built[name] = outcome
        else:
            missing[name] = outcome
    return built, missing


class _Job(threading.Thread):
    """Compiles one program on one of the cores."""

    def __init__(self, program: Program):
        super().__init__(daemon=True)
        self._program, self._lock = program, threading.Lock()
        self._has_core = self._late = False
        self._found: Built | str = LATE

    def run(self) -> None:
        _cores.acquire()
        with self._lock:
            self._has_core = True
        if not self._late:
            found = self._compiled()
            with self._lock:
                if not self._late:
                    self._found = found
        self._give_back()

    def outcome(self) -> Built | str:
        """What was built, or why not; what comes later is dropped, and the core is free for others."""
        with self._lock:
            self._late, found = True, self._found
        if found is LATE and self._has_core:
            _abandoned.append(self)
            self._give_back()
        return found

    def _give_back(self) -> None:
        with self._lock:
            had, self._has_core = self._has_core, False
        if had:
            _cores.release()

    def _compiled(self) -> Built | str:
        start, program = time.perf_counter(), self._program
        try:
            call = jax.jit(program.function, donate_argnums=program.donate).lower(*program.args).compile()
            return Built(call, time.perf_counter() - start, _temp_bytes(call))
        except Exception as error:
            return reason(error)


def unfinished() -> int:
    """How many programs are still being compiled in the background, for nobody."""
    _abandoned[:] = [thread for thread in _abandoned if thread.is_alive()]
    return len(_abandoned)


def reason(error: Exception) -> str:
    """An error in a line or a few."""
    return f"{type(error).__name__}: {error}"[:600]


def _temp_bytes(call: Any) -> int | None:
    try:
        return int(call.memory_analysis().temp_size_in_bytes)
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None
