"""Where the processes of a save wait for each other in the background: one that cannot write comes too, and says so.

Orbax's own barriers leave the others waiting for twenty minutes, since the one that has failed goes past them.
"""

from __future__ import annotations

from typing import Protocol

import jax

WRITTEN, COMMITTED, PROGRESS = "async_write_complete", "async_commit_complete", "set_value_start"
"""Orbax's names: all have written, the first has committed; and where all meet before a save and after it."""


class Barrier(Protocol):
    """Waits until all processes have come to the place of that name."""

    def __call__(self, *, key: str, timeout_ms: int) -> None: ...  # noqa: D102


class Known(Protocol):
    """What all processes of a program can look up."""

    def key_value_set(self, key: str, value: str) -> None: ...  # noqa: D102
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...  # noqa: D102


class Meeting:
    """Orbax's barrier, at which a process that has failed in a save arrives late, and in those where it did not.

    Args:
      name: what the names of Orbax's barriers begin with.
      barrier: Orbax's.
    """

    def __init__(self, name: str, barrier: Barrier) -> None:
        self._name, self._barrier = name, barrier
        self._saves = 0
        self._ahead: list[str] = []
        self._under_way = False

    def expect(self, step: int) -> None:
        """A save is about to begin, in all processes."""
        self._saves += 1
        self._ahead = [f"{self._name}_{part}.{step}" for part in (WRITTEN, COMMITTED)]
        self._under_way = False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits for the others.

        Raises:
          RuntimeError: one of them has failed before it came here.
        """
        if key.endswith(PROGRESS):
            if self._under_way and self._ahead:
                self._client.key_value_set(f"{self._mark}/{jax.process_index()}", "failed")
                while self._ahead:
                    self._barrier(key=self._ahead.pop(0), timeout_ms=timeout_ms)
            self._under_way = True
        self._barrier(key=key, timeout_ms=timeout_ms)
        if key in self._ahead:
            self._ahead.remove(key)
            if failed := self._client.key_value_dir_get(self._mark):
                where = sorted(int(path.rpartition("/")[2]) for path, _ in failed)
                raise RuntimeError(f"expected all processes to write, failed in process {', '.join(map(str, where))}")

    @property
    def _mark(self) -> str:
        return f"{self._name}/{self._saves}"

    @property
    def _client(self) -> Known:
        # What the processes of a program can look up has no public name; a single process imports nothing.
        from jax._src import distributed

        client: Known | None = distributed.global_state.client
        assert client is not None  # as there are several processes
        return client
