"""A case: one thing to check or to measure, which may fail alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.accelerator.budget import Lap
from benchmarks.accelerator.record import Record
from benchmarks.accelerator.sizes import Sizes

COPY = "copy"
"""The name of the case whose bandwidth others are a share of."""


class Missing(Exception):
    """A case cannot be run here; the message says what it lacks."""


@dataclasses.dataclass(frozen=True)
class Session:
    """What a case is given.

    Attributes:
      sizes: the shapes.
      record: what was found so far.
      lap: its time.
      device: where to run.
      repeats: turns of each peer; None for as many as fit.
    """

    sizes: Sizes
    record: Record
    lap: Lap
    device: jax.Device
    repeats: int | None = None

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second of a copy, None where that was not measured."""
        return self.record.value(COPY, "bytes_per_s")

    def share(self, bytes_per_s: float) -> float | None:
        """A bandwidth over that of a copy."""
        return None if self.bandwidth is None else bytes_per_s / self.bandwidth


Run = Callable[[Session], dict[str, Any]]
"""Runs a case: its entry of the record, with a status."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to check or to measure.

    Attributes:
      name: under which it stands in the record.
      room: what it is about.
      run: what to do.
      weight: about how much time it needs, beside others.
      timed: whether its times count, so that nothing else may run beside it.
    """

    name: str
    room: str
    run: Run
    weight: float = 1.0
    timed: bool = True
