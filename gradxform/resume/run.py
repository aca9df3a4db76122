"""A run: its folder, its steps, what is saved and when."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import pathlib
import signal
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from gradxform.core import checks
from gradxform.core.trees import is_tracing
from gradxform.core.types import PyTree
from gradxform.resume import leaves, manifest
from gradxform.resume.manifest import MismatchError
from gradxform.transforms.nonfinite import check_finite

STATE, MANIFEST, POSITION = "state", "manifest", "position"


class Position(Protocol):
    """Where a reader of data is: an iterator of Grain's, for instance."""

    def get_state(self) -> Any:
        """What JSON can hold, or bytes."""

    def set_state(self, state: Any) -> None:
        """Goes there."""


class Run:
    """Saves a run and goes on from where it was: three lines in a training loop.

    A checkpoint holds the state (any tree of arrays, numbers and typed keys), the step, maybe the position of a reader
    of data, and a manifest: paths, shapes, dtypes and settings. ``restore`` compares these before it reads an array. A
    checkpoint counts once all of it is written; the last good one is never touched before; what a killed run left half
    written is removed when the next one begins. After a SIGTERM the next ``save`` saves and ends the process with exit
    code 0; a second SIGTERM ends it at once.

    Args:
      directory: the folder of the run; made where it is missing.
      config: what the run depends on, by name: values of this library, numbers, texts, lists and dicts of them.
      every: steps after which a save is due, >= 1; None for by time alone.
      seconds: seconds after which a save is due, > 0; the first process decides for all. None for by steps alone.
      keep: how many checkpoints are kept, >= 1.
      on_change: ``"refuse"`` a checkpoint of other settings, ``"warn"``, or the paths that may differ, such as
        ``{"config/tx/1/learning_rate"}``.

    Raises:
      TypeError: an argument of another type, or a setting that is a function, with its name.
      ValueError: a number out of range.
      RuntimeError: another run has the folder.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp, tempfile
      >>> tx = gx.adam(0.1)
      >>> def train(folder, steps):
      ...   with gx.resume.Run(folder, config={"tx": tx}, every=2) as run:
      ...     params, state = run.restore(lambda: (jnp.ones(3), tx.init(jnp.ones(3))))
      ...     for step in run.steps(steps):
      ...       updates, state = tx.update(params, state, params)
      ...       params = gx.apply_updates(params, updates)
      ...       run.save(step, (params, state))
      ...     return run.first, params
      >>> folder = tempfile.mkdtemp()
      >>> train(folder, 3)[0], train(folder, 5)[0]
      (0, 3)
    """

    def __init__(self, directory: str | os.PathLike[str], *, config: Mapping[str, Any] | None = None,
                 every: int | None = None, seconds: float | None = 60, keep: int = 3,
                 on_change: str | Iterable[str] = "refuse") -> None:
        if every is not None:
            checks.integer("every", every, at_least=1, known=True)
        if seconds is not None:
            checks.real("seconds", seconds, above=0)
        checks.integer("keep", keep, at_least=1, known=True)
        if isinstance(on_change, str):
            checks.choice("on_change", on_change, ("refuse", "warn"))
        self.directory = pathlib.Path(directory).absolute()
        self._settings = manifest.settings(config or {})
        self._every, self._seconds, self._keep, self._on_change = every, seconds, keep, on_change
        self._manager: Any = None
        self._lock: Any = None
        self._handler: Any = None
        self._asked_to_stop = False
        self._saved_at = time.monotonic()
        self._total: int | None = None
        self._last: int | None = None
        self.first = 0

    def __enter__(self) -> Run:
        ocp = _orbax()
        self.directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            self._lock = (self.directory / ".lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise RuntimeError(f"{self.directory}: expected a folder no other run has, got one in use") from None
        self._manager = ocp.CheckpointManager(self.directory, options=ocp.CheckpointManagerOptions(
            max_to_keep=self._keep, cleanup_tmp_directories=True, enable_async_checkpointing=True))
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._told_to_stop)
        self._saved_at = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: types.TracebackType | None) -> None:
        try:
            if kind is None or kind is SystemExit:
                self._manager.wait_until_finished()
                self._manager.check_for_errors()
            else:  # what is under way may finish; the run's own error is the one to be seen
                with contextlib.suppress(Exception):
                    self._manager.wait_until_finished()
        finally:
            with contextlib.suppress(Exception):
                self._manager.close()
            if self._handler is not None:
                signal.signal(signal.SIGTERM, self._handler)
            if self._lock is not None:
                self._lock.close()

    def restore(self, state: PyTree | Callable[[], PyTree], position: Position | None = None) -> PyTree:
        """The state of the latest checkpoint, laid out as what is given; what is given, where there is none.

        Args:
          state: a tree like the one that is saved, on any number of devices; or a function without arguments that makes
            it, which is compiled, and run only where there is no checkpoint.
          position: a reader of data, which is told where to go on.

        Returns:
          The state.

        Raises:
          MismatchError: what was saved has other paths, shapes, dtypes or settings: all of them.
          TypeError: a leaf that cannot be saved, with its path.
          ValueError: a checkpoint that cannot be read, with its path.
        """
        self._opened("restore")
        latest = self._manager.latest_step()
        make = None
        if callable(state):
            make = jax.jit(state).lower().compile()
            like = jax.eval_shape(state)
            shardings = jax.tree.leaves(make.output_shardings)
        else:
            like = state
            shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(state)]
        now = manifest.make(leaves.entries(like), self._settings)
        if latest is None:
            return make() if make is not None else state
        ocp = _orbax()
        where = self.directory / str(latest)
        with _reading(where):
            saved = self._manager.restore(latest, args=ocp.args.Composite(
                **{MANIFEST: ocp.args.JsonRestore()}))[MANIFEST]
        if passed := manifest.compare(saved, now, str(where), self._on_change):
            warnings.warn(f"{where}: {'; '.join(passed)}", stacklevel=2)
        wanted = {STATE: ocp.args.StandardRestore(leaves.targets(like, shardings))}
        if position is not None:
            wanted[POSITION] = ocp.args.JsonRestore()
        with _reading(where):
            found = self._manager.restore(latest, args=ocp.args.Composite(**wanted))
        if position is not None:
            position.set_state(found[POSITION]["state"])
        self.first = latest + 1
        self._last = latest
        return leaves.from_arrays(like, found[STATE])

    def steps(self, total: int) -> Iterator[int]:
        """The numbers of the steps that are left, from ``first`` on.

        Args:
          total: how many steps the whole run has, >= 0.
        """
        self._opened("steps")
        checks.integer("total", total, at_least=0, known=True)
        self._total = total
        yield from range(self.first, total)

    def save(self, step: int, state: PyTree, position: Position | None = None) -> bool:
        """Saves the state after a step where that is due: in the background, at the last step, and after a SIGTERM.

        Args:
          step: the number of the step, from 0 on.
          state: any tree of arrays, numbers and typed keys. It may be donated to the next step.
          position: a reader of data that stands after this step.

        Returns:
          Whether it was saved.

        Raises:
          TypeError: a leaf that cannot be saved, with its path.
          NonfiniteError: the state says that too many steps were not finite.
          SystemExit: with code 0, after a SIGTERM, once all is on disk.
          Exception: what Orbax has raised in the background since the last call, a full disk for instance.
        """
        self._opened("save")
        checks.integer("step", step, at_least=0, known=True)
        if is_tracing(jax.tree.leaves(state)):
            raise TypeError("state: expected arrays, got the values of a trace: call save outside of jit")
        self._manager.check_for_errors()
        stops = self._stops()
        if not (stops or self._is_due(step)) or step == self._last:
            self._end(stops)
            return False
        ocp = _orbax()
        check_finite(state)
        entries = leaves.entries(state)
        arrays = leaves.copied(leaves.to_arrays(state))
        saved = {STATE: ocp.args.StandardSave(arrays),
                 MANIFEST: ocp.args.JsonSave(manifest.make(entries, self._settings))}
        if position is not None:
            saved[POSITION] = ocp.args.JsonSave({"state": position.get_state()})
        self._manager.save(step, args=ocp.args.Composite(**saved), force=True)
        self._saved_at, self._last = time.monotonic(), step
        self._end(stops)
        return True

    def _is_due(self, step: int) -> bool:
        if step + 1 == self._total or (self._every is not None and (step + 1) % self._every == 0):
            return True
        return self._seconds is not None and self._agreed(time.monotonic() - self._saved_at >= self._seconds)

    def _stops(self) -> bool:
        """Whether a process was told to stop; where there are several they agree on the step."""
        if jax.process_count() > 1:
            return bool(multihost_utils.process_allgather(np.asarray(self._asked_to_stop)).any())
        return self._asked_to_stop

    def _end(self, stops: bool) -> None:
        if stops:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            raise SystemExit(0)

    def _agreed(self, flag: bool) -> bool:
        """What the first process says: clocks differ."""
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag))) if jax.process_count() > 1 else flag

    def _told_to_stop(self, number: int, frame: types.FrameType | None) -> None:
        if self._asked_to_stop:
            raise SystemExit(128 + number)
        self._asked_to_stop = True

    def _opened(self, method: str) -> None:
        if self._manager is None:
            raise RuntimeError(f"{method}: expected an open run: with gx.resume.Run(...) as run")


def _orbax() -> types.ModuleType:
    """Orbax, which nothing else of the library imports.

    Raises:
      ImportError: naming the extra that brings it.
    """
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError("gx.resume saves with orbax-checkpoint, which is not installed: "
                          "pip install 'gradxform[resume]'") from error


@contextlib.contextmanager
def _reading(where: pathlib.Path) -> Iterator[None]:
    """Names the checkpoint in what goes wrong while it is read."""
    try:
        yield
    except MismatchError:
        raise
    except Exception as error:
        raise ValueError(f"{where}: expected a whole checkpoint, got one that cannot be read: {error}") from error
