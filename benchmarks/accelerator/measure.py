"""The figures of a case's peers: compiled together, then timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.accelerator.budget import TimeUp
from benchmarks.accelerator.build import Built, Program, build, unfinished
from benchmarks.accelerator.cases import Session
from benchmarks.accelerator.record import MEASURED
from benchmarks.accelerator.timing import Call, in_turns

COMPILING = 0.8
"""The share of a case's time that compiling may take."""

Prepare = Callable[[Built], Call]
"""From a compiled program to what is called."""


def measured(
    session: Session,
    programs: Mapping[str, tuple[Program, Prepare]],
    check: Callable[[str, Built], str | None] = lambda name, built: None,
) -> dict[str, Any]:
    """Compiles and times peers.

    Args:
      session: of the case.
      programs: by peer, what to compile and how to call it.
      check: of a peer that is compiled, why not to run it; None to do so.

    Returns:
      The entry of the record, with ``peers``, and ``missing`` for those without figures.

    Raises:
      TimeUp: there was no time to compile or to run any.
      RuntimeError: none could be compiled or run.
    """
    built, missing = build({name: program for name, (program, _) in programs.items()}, session.lap.part(COMPILING))
    calls: dict[str, Call] = {}
    for name, (_, prepare) in programs.items():
        if name in built:
            why = check(name, built[name])
            if why is None:
                calls[name] = prepare(built[name])
            else:
                missing[name] = why
    beside = unfinished()
    timings, failed = in_turns(calls, session.lap, session.sizes.turn, session.repeats)
    missing |= failed
    if not timings:
        reasons = set(missing.values())
        why = reasons.pop() if len(reasons) == 1 else "; ".join(f"{name}: {why}" for name, why in missing.items())
        if all(reason.startswith("time") for reason in missing.values()):
            raise TimeUp(why.removeprefix("time: "))
        raise RuntimeError(why)
    figures = {
        name: {**timing.record(), "build_s": built[name].seconds, "temp_bytes": built[name].temp_bytes}
        for name, timing in timings.items()
    }
    entry: dict[str, Any] = {"status": MEASURED, "peers": figures, "missing": missing}
    return entry | ({"compiling_beside": beside} if beside else {})
