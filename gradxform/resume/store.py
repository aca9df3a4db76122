"""A run's checkpoints in its folder, in Orbax's format: written in the background, read as they were written."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import pathlib
import types
from collections.abc import Iterator
from typing import Any, Protocol

import jax

from gradxform.resume import checksums
from gradxform.resume.agree import anywhere
from gradxform.resume.leaves import Stored, Target
from gradxform.resume.manifest import Json, Manifest
from gradxform.resume.meeting import Meeting

STATE, MANIFEST, POSITION = ITEMS = "state", "manifest", "position"
_opened = itertools.count()
"""How many there were in this process, and so in each: their names keep the barriers of two of them apart."""


class Manager(Protocol):
    """What is used of Orbax's ``CheckpointManager``, which has no types of its own."""

    def latest_step(self) -> int | None: ...  # noqa: D102
    def save(self, step: int, *, args: object, force: bool) -> bool: ...  # noqa: D102
    def restore(self, step: int, *, args: object) -> Any: ...  # noqa: D102
    def is_saving_in_progress(self) -> bool: ...  # noqa: D102
    def wait_until_finished(self) -> None: ...  # noqa: D102
    def check_for_errors(self) -> None: ...  # noqa: D102
    def reload(self) -> None: ...  # noqa: D102
    def reached_preemption(self, step: int) -> bool: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Store:
    """Checkpoints by step. The last good one is not touched before the next counts, and that is when all is written.

    Args:
      folder: where they are; what an interrupted run has left half written is removed.
      keep: how many are kept.
    """

    def __init__(self, folder: pathlib.Path, keep: int) -> None:
        ocp = self._ocp = _orbax()
        self._folder = folder
        self._writing: int | None = None
        name, several = f"gradxform{next(_opened)}", jax.process_count() > 1
        self._meeting = Meeting(name, ocp.multihost.get_barrier_sync_fn()) if several else None
        self.manager: Manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._add_checksums, barrier_sync_fn=self._meeting
                ),
                multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name),
            ),
        )

    def latest(self) -> int | None:
        """The step of the latest checkpoint that was there in the beginning or was written since."""
        return self.manager.latest_step()

    def where(self, step: int) -> pathlib.Path:
        """The folder of a checkpoint."""
        return self._folder / str(step)

    def manifest(self, step: int) -> Manifest:
        """The manifest of a checkpoint; no array is read.

        Raises:
          ValueError: it is not as it was written, with the path.
        """
        with self._reading(step, MANIFEST):
            return self.manager.restore(
                step, args=self._ocp.args.Composite(**{MANIFEST: self._ocp.args.JsonRestore()})
            )[MANIFEST]

    def read(self, step: int, targets: dict[str, Target]) -> dict[str, Stored]:
        """The arrays of a checkpoint, where they are to lie.

        Raises:
          ValueError: a file is not as it was written, with its path.
        """
        if not targets:  # Orbax writes none where there are none
            return {}
        with self._reading(step, STATE):
            return self.manager.restore(
                step, args=self._ocp.args.Composite(**{STATE: self._ocp.args.StandardRestore(targets)})
            )[STATE]

    def position(self, step: int) -> dict[str, Json]:
        """The position that was saved with a checkpoint.

        Raises:
          ValueError: it is not as it was written, with the path.
        """
        with self._reading(step, POSITION):
            return self.manager.restore(
                step, args=self._ocp.args.Composite(**{POSITION: self._ocp.args.JsonRestore()})
            )[POSITION]

    def write(self, step: int, arrays: dict[str, Stored], manifest: Manifest, position: dict[str, Json] | None) -> None:
        """Writes a checkpoint, in the background once the arrays are on the host; the one before has been written."""
        items = {MANIFEST: self._ocp.args.JsonSave(manifest)}
        if arrays:
            items[STATE] = self._ocp.args.StandardSave(arrays)
        if position is not None:
            items[POSITION] = self._ocp.args.JsonSave(position)
        self._writing = step
        if self._meeting is not None:
            self._meeting.expect(step)
        self.manager.save(step, args=self._ocp.args.Composite(**items), force=True)

    def check(self) -> None:
        """Raises what has gone wrong in the background, if that is known."""
        if not self.manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until all is written, and raises what has gone wrong. It is told once."""
        if self._writing is None:
            return
        try:
            self.manager.wait_until_finished()
            self.manager.check_for_errors()
        except Exception:
            self._writing = None
            self.manager.reload()  # it lists a checkpoint before there is one
            raise
        self._writing = None

    def told_to_stop(self, step: int) -> bool:
        """Whether JAX's service was told to, before the run was there to listen; in all processes at the same step."""
        return self.manager.reached_preemption(step)

    def probe(self) -> None:
        """Raises what a folder raises that cannot be written to, while no other process waits for what is in it."""
        probe = self._folder / f".writable-{jax.process_index()}"
        probe.mkdir(exist_ok=True)
        probe.rmdir()

    def close(self) -> None:
        """Ends the threads of the store; the run's own error, if there is one, is the one to be seen."""
        with contextlib.suppress(Exception):
            self.manager.close()

    def _add_checksums(self) -> None:
        """What the first process does when all is written, before the checkpoint counts."""
        assert self._writing is not None
        final = self.where(self._writing)
        unfinished = list(self._folder.glob(f"{final.name}.orbax-checkpoint-tmp*"))
        checksums.write(unfinished[0] if unfinished else final, ITEMS)

    @contextlib.contextmanager
    def _reading(self, step: int, item: str) -> Iterator[None]:
        """Looks at the files that are about to be read, and names the checkpoint in what goes wrong."""
        where = self.where(step)
        wrong = checksums.wrong(where, item, jax.process_index(), jax.process_count())
        if anywhere(wrong is not None):
            found = wrong or f"{where}: expected files as they were written, another process has found one that is not"
            raise ValueError(f"{found}; without {where} the run goes on from the one before, if there is one")
        try:
            yield
        except Exception as error:
            raise ValueError(f"{where}: expected a whole checkpoint, got one that cannot be read: {error}") from error


def _orbax() -> types.ModuleType:
    """Orbax, which nothing else of this room imports.

    Raises:
      ImportError: naming the extra that brings it.
    """
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            "gx.resume saves with orbax-checkpoint, which is not installed: pip install 'gradxform[resume]'"
        ) from error
