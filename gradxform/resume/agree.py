"""What the processes of a run agree on: they have to save the same step, and to end at it."""

from __future__ import annotations

import time

import jax
import numpy as np
from jax.experimental import multihost_utils


def anywhere(flag: bool) -> bool:
    """Whether it is so in any process."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).any())


class Talk:
    """Whether any process was told to stop and whether the first one's time is up, as all have agreed at a step.

    Several talk once a second, and not at each step: talking waits for what the devices have to do before it.
    """

    def __init__(self) -> None:
        self._step, self._time, self._next = 0, time.monotonic(), 0

    def __call__(self, step: int, asked: bool, up: bool) -> tuple[bool, bool]:
        """At a step that all processes ask about: what was agreed, and no twice where they did not talk."""
        if jax.process_count() == 1:
            return asked, up
        if step < self._next:
            return False, False
        now = time.monotonic()
        pace = min(1e6, (step - self._step) / max(now - self._time, 1e-9))
        said = np.asarray(multihost_utils.process_allgather(np.array([asked, up, pace], np.int32)))
        self._step, self._time, self._next = step, now, step + max(1, int(said[0, 2]))
        return bool(said[:, 0].any()), bool(said[0, 1])
