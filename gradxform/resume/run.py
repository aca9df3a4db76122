"""A run: its folder, its steps, what is saved and when."""

from __future__ import annotations

import math
import os
import pathlib
import signal
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, TypeVar

import jax
from jax.sharding import Sharding, SingleDeviceSharding

from gradxform.core import checks
from gradxform.core.trees import is_tracing
from gradxform.core.types import PyTree
from gradxform.resume import leaves, lock, manifest
from gradxform.resume.agree import Agreed, Talk, anywhere
from gradxform.resume.leaves import Stored
from gradxform.resume.manifest import Json, Manifest
from gradxform.resume.position import Position, tell, told
from gradxform.resume.store import Store
from gradxform.transforms.nonfinite import check_finite

T = TypeVar("T")
BEGINS = 0.75
"""After which part of what a kill may cost the next save begins: the rest is for writing it."""


class Run:
    """Saves a run and goes on from where it was: three lines in a training loop.

    A checkpoint holds the state (any tree of arrays, numbers and typed keys), the step, maybe the position of a reader
    of data, and a manifest: paths, shapes, dtypes and settings. ``restore`` compares these before it reads an array. A
    checkpoint counts once all of it is written; the last good one is never touched before; what a killed run left half
    written is removed when the next one begins. A SIGTERM is kept, also while a step is compiled: the next ``save``
    saves and ends the process with exit code 0 (several processes talk about it once a second); after the last step the
    end of the block does. A second SIGTERM ends the process at once.

    A save begins three quarters of ``every`` or of ``seconds`` after the one before, and is written while steps go on.
    Where ``save`` is called after each step, a SIGKILL costs at most ``every`` steps, no more: a step that would be
    one too many waits until the save is written. Nothing waits for ``seconds``: a SIGKILL costs at most so much work if
    a quarter of that time is enough to write, and what was made meanwhile if it is not.

    Args:
      directory: the folder of the run, on a file system; made where it is missing.
      config: what the run depends on, by name: values of this library, dataclasses, enums, numbers, texts, lists and
        dicts of them. Other settings than those that were saved are refused.
      every: the most steps that a SIGKILL may cost, >= 1; None for by time alone.
      seconds: the work that a SIGKILL may cost, in seconds, > 0; the first process decides for all. None for by steps
        alone.
      keep: how many checkpoints are kept, >= 1.
      on_change: ``"refuse"`` a checkpoint of other settings, ``"warn"``, or the settings that may differ by their
        paths, such as ``{"config/tx/1/learning_rate"}``.

    Raises:
      TypeError: an argument of another type, or a setting that is a function, with its name.
      ValueError: a number out of range, a path that is not of a setting, or a folder that is none of a file system.
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

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        config: Mapping[str, object] | None = None,
        every: int | None = None,
        seconds: float | None = 60,
        keep: int = 3,
        on_change: str | Iterable[str] = "refuse",
    ) -> None:
        if every is not None:
            checks.integer("every", every, at_least=1, known=True)
        if seconds is not None:
            checks.real("seconds", seconds, above=0)
        checks.integer("keep", keep, at_least=1, known=True)
        if isinstance(on_change, str):
            checks.choice("on_change", on_change, ("refuse", "warn"))
        else:
            on_change = tuple(on_change)
            for path in on_change:
                if not str(path).startswith("config/"):
                    raise ValueError(f"on_change: expected paths such as 'config/tx/learning_rate', got {path!r}")
        if "://" in os.fspath(directory):
            raise ValueError(
                f"directory: expected a folder of a file system, got {directory!r}; a bucket can be mounted"
            )
        self.directory = pathlib.Path(directory).expanduser().absolute()
        self.first = 0
        self._settings = manifest.settings({} if config is None else config)
        self._every, self._seconds, self._keep, self._on_change = every, seconds, keep, on_change
        self._period = math.ceil(BEGINS * (every or 1))
        self._open_store: Store | None = None
        self._lock: IO[bytes] | None = None
        self._listens = self._asked_to_stop = self._knows_what_is_there = self._stopping = False
        self._failed: Exception | None = None
        self._talk = Talk()
        self._saved_at = time.monotonic()
        self._total: int | None = None
        self._last = self._counts = -1  # the steps of the last save and of the one before, which is written

    def __enter__(self) -> Run:
        refused: OSError | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                self._lock = lock.taken(self.directory / ".lock")
        except OSError as error:
            refused = error
        if anywhere(refused is not None):
            self._unlock()
            if refused is not None and not isinstance(refused, BlockingIOError):
                raise refused
            found = "one in use" if refused is not None else "one that another process cannot have"
            raise RuntimeError(f"{self.directory}: expected a folder no other run has, got {found}")
        try:
            self._open_store = Store(self.directory, self._keep)
        except BaseException:
            self._unlock()
            raise
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._before, self._listens = signal.signal(signal.SIGTERM, self._told_to_stop), True
        self._saved_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        store = self._store("__exit__")
        try:
            self._attempt(store.wait)  # where the run has an error of its own that is the one to be seen
        finally:
            store.close()
            if self._listens:
                signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
            self._unlock()
            self._open_store = None
        together = kind is None or self._stopping  # all processes are here, and not one with an error of its own
        if anywhere(self._failed is not None) if together else kind is SystemExit and self._failed is not None:
            raise self._failure()
        if kind is None and anywhere(self._asked_to_stop):
            raise SystemExit(0)

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
        store = self._store("restore")
        self._attempt(store.wait)  # for what this run has saved
        if anywhere(self._failed is not None):
            raise self._failure()
        self._knows_what_is_there = True
        latest = store.latest()
        make = None
        if callable(state) and (jax.tree.leaves(state) or [state])[0] is state:  # some models can be called too
            make = jax.jit(state).lower().compile()
            like = jax.eval_shape(state)
            free = SingleDeviceSharding(jax.local_devices()[0])  # where jax puts what it may move
            made: list[Sharding] = jax.tree.leaves(make.output_shardings)
            shardings = [None if sharding == free else sharding for sharding in made]
        else:
            like = state
            shardings = [leaves.where_it_lies(leaf) for leaf in jax.tree.leaves(state)]
        now = manifest.make(leaves.entries(like), self._settings, position=position is not None)
        if latest is None:
            return make() if make is not None else state
        where = str(store.where(latest))
        if passed := manifest.compare(store.manifest(latest), now, where, self._on_change):
            warnings.warn(f"{where}: {'; '.join(passed)}", stacklevel=2)
        found = leaves.from_arrays(like, store.read(latest, leaves.targets(like, shardings)))
        if position is not None:
            tell(position, store.position(latest))
        self.first = latest + 1
        self._last = self._counts = latest
        return found

    def steps(self, total: int) -> Iterator[int]:
        """The numbers of the steps that are left, from ``first`` on.

        Args:
          total: how many steps the whole run has, >= 0, and not fewer than were made when the state was saved.

        Raises:
          TypeError: it is not an integer.
          ValueError: it is out of range.
        """
        self._store("steps")
        checks.integer("total", total, at_least=0, known=True)
        if total < self.first:
            raise ValueError(f"total: expected at least the {self.first} steps that {self.directory} has, got {total}")
        self._total = total
        return iter(range(self.first, total))

    def save(self, step: int, state: PyTree, position: Position | None = None) -> bool:
        """Saves the state after a step where that is due: in the background, at the last step, and after a SIGTERM.

        Args:
          step: the number of the step, from 0 on.
          state: any tree of arrays, numbers and typed keys. It may be donated to the next step.
          position: a reader of data that stands after this step.

        Returns:
          Whether it was saved.

        Raises:
          TypeError: a leaf that cannot be saved, with its path; or a position that JSON cannot hold.
          ValueError: a step before the last one that is saved.
          NonfiniteError: the state says that too many steps were not finite.
          SystemExit: with code 0, after a SIGTERM; the block ends once all is on disk.
          Exception: what Orbax has raised in the background since the last call, a full disk for instance. If one of
            several processes fails, all raise.
        """
        store = self._store("save")
        checks.integer("step", step, at_least=0, known=True)
        if step < self._last:
            raise ValueError(f"step: expected more than {self._last}, which is saved, got {step}; see run.steps")
        if is_tracing(jax.tree.leaves(state)):
            raise TypeError("state: expected arrays, got the values of a trace: call save outside of jit")
        self._attempt(store.check)
        self._asked_to_stop |= store.told_to_stop(step)
        late = self._seconds is not None and time.monotonic() - self._saved_at >= BEGINS * self._seconds
        agreed = self._talk(step, Agreed(self._asked_to_stop, late, self._failed is not None))
        if agreed.failed:
            raise self._failure()
        since = step - self._last
        due = agreed.late or step + 1 == self._total or (self._every is not None and since >= self._period)
        if saves := (agreed.stops or due) and since > 0:
            if not self._knows_what_is_there and (latest := store.latest()) is not None:
                raise RuntimeError(f"save: expected restore before, since {self.directory} has step {latest}")
            prepared = self._attempt(lambda: self._prepared(store, state, position))
            if anywhere(self._failed is not None) or prepared is None:
                raise self._failure()
            store.write(step, *prepared)
            self._saved_at, self._knows_what_is_there = time.monotonic(), True
            self._counts, self._last = self._last, step
        if self._every is not None and step - self._counts >= self._every:
            self._attempt(store.wait)
        if agreed.stops:
            self._stopping = True  # the end of the block waits for what is being written
            raise SystemExit(0)
        return saves

    def _prepared(
        self, store: Store, state: PyTree, position: Position | None
    ) -> tuple[dict[str, Stored], Manifest, dict[str, Json] | None]:
        """What is to be written, once what was written before counts."""
        check_finite(state)
        described = manifest.make(leaves.entries(state), self._settings, position=position is not None)
        where = None if position is None else told(position)
        store.wait()
        store.probe()
        return leaves.copied(leaves.to_arrays(state)), described, where

    def _attempt(self, do: Callable[[], T]) -> T | None:
        """Does what may fail in one process alone: what has gone wrong is raised where all of them do."""
        try:
            return do()
        except Exception as failed:
            self._failed = self._failed or failed
            return None

    def _failure(self) -> Exception:
        """What has gone wrong in a save, here or elsewhere. It is told once, and the next save is due."""
        failed, self._failed = self._failed, None
        self._last = self._counts
        return failed or RuntimeError(f"{self.directory}: expected a checkpoint to be written, another process failed")

    def _told_to_stop(self, number: int, frame: types.FrameType | None) -> None:
        if os.getpid() != self._process:  # a child that has inherited this, and is told to end
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._asked_to_stop = True
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process, whatever it does

    def _unlock(self) -> None:
        if self._lock is not None:
            lock.release(self._lock)

    def _store(self, method: str) -> Store:
        if self._open_store is None:
            raise RuntimeError(f"{method}: expected an open run: with gx.resume.Run(...) as run")
        return self._open_store
