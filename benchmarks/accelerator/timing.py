"""Timing calls on a device, whose work goes on while the next call is prepared."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import harness
from benchmarks.accelerator.budget import Lap
from benchmarks.accelerator.build import Built, reason
from benchmarks.harness import Sample

Call = Callable[[], Any]
"""Starts the work once, and returns arrays that are there when it is done."""
MEASURING = 4.0
"""Seconds at most that a case is measured, once it is compiled."""
MOST_CALLS = 200
"""Calls in a turn, at most."""


class Timing(NamedTuple):
    """The time of a call.

    Attributes:
      sample: seconds a call, one of each turn.
      calls: how many calls a turn had.
      dispatch: the seconds a call in which the host was busy starting it: where they are all of the time, it is the
        host that is measured.
    """

    sample: Sample
    calls: int
    dispatch: float

    def record(self) -> dict[str, Any]:
        """This time as JSON."""
        return {**self.sample.record(), "calls_a_turn": self.calls, "dispatch_s": self.dispatch}


def repeated(built: Built, *args: Any) -> Call:
    """Calls of the same arguments."""
    return lambda: built.call(*args)


def keyed(built: Built, *args: Any) -> Call:
    """Calls of another key each, before the other arguments."""
    keys = itertools.cycle(list(jax.random.split(jax.random.key(0), 16)))
    return lambda: built.call(next(keys), *args)


def carried(built: Built, carry: Sequence[Any], *args: Any) -> Call:
    """Calls whose results are the first arguments of the next: their memory can be donated."""
    held = tuple(carry)

    def call() -> Any:
        nonlocal held
        held = built.call(*held, *args)
        return held

    return call


def in_turns(
    calls: Mapping[str, Call], lap: Lap, turn: float, repeats: int | None = None
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times calls in turns of several calls each, waiting once a turn.

    Args:
      calls: by name.
      lap: the time for all of them.
      turn: about how many seconds a turn takes; a call that takes longer is alone in its turn.
      repeats: turns of each, by default as many as fit into ``MEASURING`` seconds, 3 to 20.

    Returns:
      The times, and for the others why they have none. Where no time is left for a turn of each, the only one is that
      of the call that was to tell how long they take.
    """
    missing: dict[str, str] = {}
    first: dict[str, Timing] = {}
    for name, call in calls.items():
        try:
            _once(call)
            first[name] = _once(call)
        except jax.errors.JaxRuntimeError as error:
            missing[name] = reason(error)
    once = {name: timing.sample.median for name, timing in first.items()}
    counts = {name: int(np.clip(np.ceil(turn / seconds), 1, MOST_CALLS)) for name, seconds in once.items()}
    around = sum(counts[name] * once[name] for name in once)
    if around > lap.left or not once:
        return first, missing
    room = min(MEASURING, lap.left)
    rounds = repeats or int(np.clip(room / around - 1, 3, 20))
    rounds = max(1, min(rounds, int(lap.left / around)))
    dispatch: dict[str, list[float]] = {name: [] for name in once}

    def steps(name: str) -> Callable[[], None]:
        def step() -> None:
            start = time.perf_counter()
            for _ in range(counts[name]):
                out = calls[name]()
            dispatch[name].append(time.perf_counter() - start)
            jax.block_until_ready(out)

        return step

    warm = int(rounds > 2)
    samples = harness.in_turns({name: steps(name) for name in once}, rounds, warm)
    timings = {
        name: Timing(
            Sample(tuple(np.divide(sample.seconds, counts[name]).tolist())),
            counts[name],
            float(np.median(dispatch[name][warm:])) / counts[name],
        )
        for name, sample in samples.items()
    }
    return timings, missing


def _once(call: Call) -> Timing:
    start = time.perf_counter()
    out = call()
    started = time.perf_counter()
    jax.block_until_ready(out)
    return Timing(Sample((time.perf_counter() - start,)), 1, started - start)
