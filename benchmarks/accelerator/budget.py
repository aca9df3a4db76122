"""The time of a run, and the share of it that each case has."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

GENEROSITY = 4.0
"""How many times its share a case may take: most take less than theirs, and what they leave is for the others."""
LEAST = 1.0
"""Seconds under which no case is begun."""


class TimeUp(Exception):
    """A case does not fit into its time."""


@dataclasses.dataclass(frozen=True)
class Lap:
    """The time of one case.

    Attributes:
      deadline: when it ends, on the clock.
      now: the clock, in seconds.
    """

    deadline: float
    now: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        """The seconds that are left, 0 at the end."""
        return max(0.0, self.deadline - self.now())

    def part(self, share: float) -> Lap:
        """The first part of what is left."""
        return dataclasses.replace(self, deadline=self.now() + share * self.left)


class Budget:
    """The time of a run.

    Args:
      seconds: how long it may take.
      since: when it began, on the clock; now by default.
      now: the clock, in seconds.
    """

    def __init__(self, seconds: float, since: float | None = None, now: Callable[[], float] = time.monotonic):
        self.seconds, self._now = seconds, now
        self._since = now() if since is None else since

    @property
    def used(self) -> float:
        """The seconds that have passed."""
        return self._now() - self._since

    def lap(self, weight: float, rest: float) -> Lap:
        """The time of the next case.

        Args:
          weight: how much it needs, beside the others.
          rest: the weights of all that are still to be run, this one included.

        Returns:
          ``GENEROSITY`` times its share of what is left, at most all of that.

        Raises:
          TimeUp: less than ``LEAST`` seconds are left.
        """
        left = self.seconds - self.used
        if left < LEAST:
            raise TimeUp(f"the {self.seconds / 60:g} minutes of the run were over")
        return Lap(self._now() + min(left, max(LEAST, GENEROSITY * left * weight / rest)), self._now)
