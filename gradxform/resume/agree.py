"""What the processes of a run agree on: they have to save the same step, and to end at it."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils


def anywhere(flag: bool) -> bool:
    """Whether it is so in any process."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).any())


class Agreed(NamedTuple):
    """What all processes know alike: whether one was told to stop, the first one's time is up, or a save has failed."""

    stops: bool
    late: bool
    failed: bool


class Talk:
    """What was agreed at a step.

    Several processes talk once a second, and not at each step: talking waits for what the devices have to do before it.
    """

    def __init__(self) -> None:
        self._step: int | None = None  # the first step may be any: a run goes on
        self._time, self._next = 0.0, 0

    def __call__(self, step: int, mine: Agreed) -> Agreed:
        """At a step that all processes ask about: what was agreed, and nothing where they did not talk."""
        if jax.process_count() == 1:
            return mine
        if self._step is not None and step < self._next:
            return Agreed(False, False, False)
        now = time.monotonic()
        pace = 0.0 if self._step is None else min(1e6, (step - self._step) / max(now - self._time, 1e-9))
        said = np.asarray(multihost_utils.process_allgather(np.array([*mine, pace], np.int32)))
        self._step, self._time, self._next = step, now, step + max(1, int(said[0, 3]))
        return Agreed(bool(said[:, 0].any()), bool(said[0, 1]), bool(said[:, 2].any()))
