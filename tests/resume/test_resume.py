"""What a run saves and restores, and what it refuses."""

from __future__ import annotations

import dataclasses
import enum
import errno
import json
import math
import os
import pathlib
import shutil
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx
from gradxform.resume import agree, checksums, lock, manifest, position, store

Run, MismatchError = gx.resume.Run, gx.resume.MismatchError
TX = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(gx.schedules.cosine(0.1, 10), weight_decay=0.01))


def params() -> Any:
    return {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}


def make(tx: Any = TX) -> Any:
    return {"params": params(), "optimizer": tx.init(params()), "key": jax.random.key(1), "mean": np.ones(2), "n": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("saved")
    with Run(folder, config={"tx": TX, "size": 50}, every=1) as run:
        state = run.restore(make())
        state["params"]["a"] = state["params"]["a"] + 0.1
        for step in run.steps(2):
            assert run.save(step, state)
    return folder


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y) and getattr(x, "dtype", None) == getattr(y, "dtype", None)
        if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_all_kinds_of_leaves_come_back(saved: pathlib.Path) -> None:
    want = make()
    want["params"]["a"] = want["params"]["a"] + 0.1
    with Run(saved, config={"tx": TX, "size": 50}) as run:
        got = run.restore(make())
        assert run.first == 2 and list(run.steps(4)) == [2, 3]
    same(got, want)
    # As what was given they go along with what lies on other devices.
    assert not any(x.committed for x in jax.tree.leaves(got) if isinstance(x, jax.Array))
    # Rules and schedules go on.
    updates, _ = TX.update(params(), got["optimizer"], got["params"])
    assert updates["b"].dtype == jnp.bfloat16


def test_a_factory_is_run_only_where_there_is_nothing(tmp_path: pathlib.Path) -> None:
    for first in (0, 1):
        with Run(tmp_path, every=1) as run:
            state = run.restore(lambda: {"w": jnp.arange(4.0), "key": jax.random.key(3)})
            assert run.first == first
            run.save(0, {**state, "w": state["w"] + 1})
    np.testing.assert_array_equal(state["w"], np.arange(4.0) + 1)
    assert not state["w"].committed
    assert state["key"] == jax.random.key(3)


def test_when_it_is_due(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gradxform.resume.run.time.monotonic", lambda: now[0])
    done = []
    with Run(tmp_path, every=5, seconds=16, keep=2) as run:
        for step in run.steps(9):
            now[0] += 4 if step < 4 else 1
            done.append(run.save(step, {"w": jnp.ones(2)}))
    assert [step for step, was in enumerate(done) if was] == [2, 6, 8]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["6", "8"]
    with Run(tmp_path / "jumps", every=5, seconds=None) as run:
        assert [step for step in (10, 12, 17, 31, 34) if run.save(step, {"w": jnp.ones(2)})] == [10, 17, 31]


def test_no_more_steps_are_lost_than_it_says(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written slowly is waited for when one step more would be too many, and not before."""
    write = checksums.write
    monkeypatch.setattr(checksums, "write", lambda *some: (time.sleep(0.2), write(*some)))
    for every, lags in ((1, [0, 0, 0]), (2, [1, 0, 1, 0]), (4, [1, 2, 3, 1, 2, 3, 1]), (8, [1, 2, 3, 4, 5, 6, 7, 2])):
        folder, found = tmp_path / str(every), []
        with Run(folder, every=every, seconds=None) as run:
            for step in range(len(lags)):
                run.save(step, {"w": jnp.ones(2)})
                counts = max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=-1)
                found.append(step - counts)
        assert found == lags, every


class Reader:
    """Something with a position."""

    def __init__(self, at: int | bytes | None) -> None:
        self.at = at

    def get_state(self) -> Any:
        return self.at if isinstance(self.at, bytes) else {"at": self.at}

    def set_state(self, state: Any) -> None:
        self.at = state if isinstance(state, bytes) else state["at"]


def test_a_position_goes_with_the_state(tmp_path: pathlib.Path) -> None:
    for at in (7, b"seven"):
        folder, reader = tmp_path / str(type(at)), Reader(at)
        with Run(folder, every=1) as run:
            run.save(0, {"w": jnp.ones(2)}, reader)
        other = Reader(None)
        with Run(folder) as run:
            run.restore({"w": jnp.zeros(2)}, other)
        assert other.at == at
    with Run(tmp_path / "none", every=1) as run:
        run.save(0, {"w": jnp.ones(2)})
    with Run(tmp_path / "none") as run, pytest.raises(MismatchError, match="position: not saved"):
        run.restore({"w": jnp.ones(2)}, reader)
    told = position.told(Reader(math.nan))  # type: ignore[arg-type]
    assert math.isnan(told["state"]["at"])
    for wrong in ({1: 2}, (1, 2), np.int32(1)):
        with pytest.raises(TypeError, match=r"position: expected .* JSON"):
            position.told(Reader(wrong))  # type: ignore[arg-type]


def without(state: Any, name: str) -> Any:
    return {key: value for key, value in state.items() if key != name}


WRONG: dict[str, tuple[Callable[[], Any], dict[str, Any], list[str]]] = {
    "sgd": (lambda: make(gx.sgd(0.1)), {"tx": gx.sgd(0.1)}, ["optimizer/1/0/mu/a: saved, not", "config tx: saved"]),
    "lion": (lambda: make(gx.lion(0.1)), {"tx": gx.lion(0.1)}, ["optimizer/1/0/nu/a: saved, not"]),
    "yogi": (
        lambda: make(),
        {"tx": gx.chain(gx.clip_by_global_norm(1.0), gx.yogi(0.1))},
        ["config tx: 1: saved adamw(...), now yogi(...)"],
    ),
    "decay": (
        make,
        {"tx": gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(gx.schedules.cosine(0.1, 10), weight_decay=0.1))},
        ["config tx: 1/weight_decay: saved 0.01, now 0.1"],
    ),
    "schedule": (
        make,
        {"tx": gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(gx.schedules.cosine(0.1, 20), weight_decay=0.01))},
        ["config tx: 1/learning_rate/steps: saved 10, now 20"],
    ),
    "wider": (
        lambda: {**make(), "params": {**params(), "a": jnp.ones((2, 5))}},
        {},
        ["state params/a: saved shape [2, 3], now [2, 5]"],
    ),
    "deeper": (lambda: {**make(), "params": {**params(), "c": jnp.ones(2)}}, {}, ["state params/c: not saved"]),
    "renamed": (
        lambda: {**make(), "params": {"z": params()["a"], "b": params()["b"]}},
        {},
        ["state params/a: saved, not expected", "state params/z: not saved"],
    ),
    "narrower": (
        lambda: {**make(), "params": {**params(), "a": params()["a"].astype(jnp.bfloat16)}},
        {},
        ["state params/a: saved dtype float32, now bfloat16"],
    ),
    "missing": (lambda: without(make(), "n"), {}, ["state n: saved, not expected"]),
    "key": (
        lambda: {**make(), "key": jax.random.key(1, impl="rbg")},
        {},
        ["state key: saved dtype key<fry>, now key<rbg>"],
    ),
    "size": (make, {"size": 49}, ["config size: saved 50, now 49"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_restores_are_refused(name: str, saved: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, config, told = WRONG[name]
    with Run(saved, config={"tx": TX, "size": 50} | config) as run:
        manager = run._store("test").manager
        read = manager.restore
        asked: list[Any] = []
        monkeypatch.setattr(manager, "restore", lambda step, args: asked.append(set(args)) or read(step, args=args))
        with pytest.raises(MismatchError) as error:
            run.restore(state())
    for text in told:
        assert text in str(error.value)
    assert asked == [{"manifest"}]  # and no array


def test_what_may_differ(saved: pathlib.Path) -> None:
    changed = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(gx.schedules.cosine(0.2, 10), weight_decay=0.1))
    config = {"tx": changed, "size": 50}
    for on_change in ("warn", {"config/tx/1/learning_rate", "config/tx/1/weight_decay"}):
        with Run(saved, config=config, on_change=on_change) as run, pytest.warns(match="saved 0.01, now 0.1"):
            run.restore(make())
    with (
        Run(saved, config=config, on_change={"config/tx/1/learning_rate"}) as run,
        pytest.raises(MismatchError, match=r"in 1 places:\n  config tx: 1/weight_decay"),
    ):
        run.restore(make())


def test_half_written_and_damaged_checkpoints(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")
    with Run(folder, config={"tx": TX, "size": 50}) as run:
        run.restore(make())
        assert run.first == 2
    assert not (folder / "2.orbax-checkpoint-tmp").exists()

    def refused(error: type[Exception], match: str) -> None:
        with Run(folder, config={"tx": TX, "size": 50}) as run, pytest.raises(error, match=match):
            run.restore(make())

    within = [path for item in ("manifest", "state") for path in (folder / "1" / item).rglob("*")]
    files = [path for path in within if path.is_file()]
    assert len(files) >= 4 and any(path.parent.name == "d" for path in files)
    for path in files:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for damaged in (flipped, whole[:-1], whole + b"x"):
            path.write_bytes(damaged)
            refused(ValueError, f"{path}: expected {len(whole):,} bytes of checksum .* bytes of")
        path.unlink()
        refused(ValueError, f"{path}: .* got no file; without {folder / '1'} the run goes on from the one before")
        path.write_bytes(whole)
    listed = folder / "1" / "checksums.json"
    listed.write_text(listed.read_text()[:-5])
    refused(ValueError, f"{listed}: cannot be read")
    shutil.rmtree(folder / "1")
    with Run(folder, config={"tx": TX, "size": 50}) as run:
        run.restore(make())
        assert run.first == 1

    manifest = folder / "0" / "manifest" / "metadata"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))
    checksums.write(folder / "0", ["manifest", "state"])
    refused(MismatchError, "version: saved 99, this library reads 2")


def test_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TypeError, match=r"config tx: .*mask"):
        Run(tmp_path, config={"tx": gx.adamw(0.1, mask=lambda params: params)})
    with pytest.raises(TypeError, match="config f/0: expected a value of this library, a number"):
        Run(tmp_path, config={"f": [print]})
    for wrong in ({"every": 0}, {"seconds": 0.0}, {"keep": 0}, {"on_change": "maybe"}, {"on_change": {"state/w"}}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: "):
            Run(tmp_path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="restore: expected an open run"):
        Run(tmp_path).restore({})
    with Run(tmp_path) as run:
        with pytest.raises(RuntimeError, match="expected a folder no other run has"), Run(tmp_path):
            pass
        donated = jnp.ones(2)
        donated.delete()
        for leaf, told in (
            ("x", "expected arrays and numbers, got a str"),
            (2**64, "expected numbers of 64 bits"),
            (np.array(["x"]), "got a ndarray"),
            (np.array([None]), "got a ndarray"),
            (donated, "expected an array at 'a/b', got one whose memory was donated"),
        ):
            for write in (run.restore, lambda state: run.save(0, state)):
                run.steps(1).__next__()
                with pytest.raises((TypeError, ValueError), match=f"state: .*{told}.* at 'a/b'|state: {told}"):
                    write({"a": {"b": leaf}})
        with pytest.raises(ValueError, match="state: expected paths that differ, got 'a/b' twice"):
            run.restore({"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}})
        with pytest.raises(TypeError, match="got the values of a trace"):
            jax.jit(lambda w: run.save(0, {"w": w}))(jnp.ones(2))
        bad = gx.skip_nonfinite(gx.sgd(0.1), 0)
        told = bad.init({"w": jnp.ones(2)})._replace(too_many=jnp.array(True))
        run.steps(1).__next__()
        with pytest.raises(gx.NonfiniteError):
            run.save(0, told)


def test_names_with_dots_and_a_folder_that_was_not_looked_at(tmp_path: pathlib.Path) -> None:
    state = {
        "a": {"b": jnp.ones(2)},
        "a.b": jnp.zeros(2),
        "a%2Eb": jnp.full(2, 3.0),
        "none": jnp.zeros((0, 3)),
        "keys": jax.random.split(jax.random.key(0), 3)[:0],
    }
    with Run(tmp_path, every=1) as run:
        run.save(0, state)
    with Run(tmp_path, every=1) as run, pytest.raises(RuntimeError, match=r"restore before, since .* has step 0"):
        run.save(0, state)
    with Run(tmp_path) as run:
        same(run.restore({**state, "a": {"b": jnp.zeros(2)}, "a.b": jnp.ones(2)}), state)


def test_a_folder_has_one_run_on_windows_too(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def locking(descriptor: int, mode: int, count: int) -> None:
        assert count == 1
        if mode == 0:
            taken.remove(descriptor)
            return
        assert mode == 2
        if taken:
            raise PermissionError
        taken.append(descriptor)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)  # cannot be imported
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0))
    file = lock.taken(tmp_path / "lock")
    assert taken == [file.fileno()]
    with pytest.raises(BlockingIOError):
        lock.taken(tmp_path / "lock")
    lock.release(file)
    assert file.closed and not taken


def test_a_lock_ends_with_its_run_and_other_errors_are_told_as_they_are(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lock.taken(tmp_path / "lock") as file:
        child = os.dup(file.fileno())  # as a child of this process has it
        lock.release(file)
        lock.release(lock.taken(tmp_path / "lock"))
        os.close(child)

    def fails(path: pathlib.Path) -> Any:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "taken", fails)
    with pytest.raises(OSError, match="No locks available"), Run(tmp_path / "run"):
        pass


def test_numbers_of_numpy_and_other_byte_orders(tmp_path: pathlib.Path) -> None:
    state = {"rate": np.float32(0.1), "on": np.bool_(True), "w": np.array([1.0, 2.0], ">f4")}
    with Run(tmp_path / "a", every=1) as run:
        run.save(0, state)
    with Run(tmp_path / "a") as run:
        same(
            run.restore(jax.tree.map(np.zeros_like, state) | {"on": np.bool_(False), "rate": np.float32(0)}),
            {**state, "w": np.array([1.0, 2.0], np.float32)},
        )
    empty = {"a": np.zeros((0, 3)), "keys": jax.random.split(jax.random.key(0), 3)[:0]}
    with Run(tmp_path / "b", every=1) as run:
        run.save(0, empty)
    with Run(tmp_path / "b") as run:
        same(run.restore(empty), empty)


@pytest.mark.parametrize(
    ("saved", "now", "told"),
    [
        ({"gradxform": "0.1"}, {"gradxform": "0.2"}, r"c: gradxform: saved '0.1', now '0.2'"),
        ({"a": None}, {}, r"c: a: saved None, now nothing"),
        ({"arguments": 1}, {"arguments": 2}, r"c: arguments: saved 1, now 2"),
    ],
)
def test_settings_of_any_names_are_compared(saved: Any, now: Any, told: str) -> None:
    entry, (old, new) = {}, (manifest.settings({"c": one}) for one in (saved, now))
    made = [manifest.make(entry, one, position=False) for one in (old, new)]
    with pytest.raises(MismatchError, match=told):
        manifest.compare(made[0], made[1], "here", "refuse")
    with pytest.raises(TypeError, match="config c: expected names that are texts, got 1"):
        manifest.settings({"c": {1: 2}})


def test_several_processes_talk_from_the_first_step_on(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the step after a restore, whatever its number; and what failed in one is told in all."""
    others = np.zeros(4, np.int32)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(agree.multihost_utils, "process_allgather", lambda mine: np.stack([mine, others]))
    talk, nothing = agree.Talk(), agree.Agreed(False, False, False)
    assert talk(100_000, nothing) == nothing
    assert talk(100_001, agree.Agreed(True, True, False)) == agree.Agreed(True, True, False)
    others[2] = 1
    assert agree.Talk()(7, nothing).failed


def test_a_failed_save_is_told_at_the_next_or_at_the_end(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"), Run(tmp_path, every=1) as run:
        run.save(0, {"w": jnp.ones(2)})
        monkeypatch.setattr(store.Store, "wait", fails)
    monkeypatch.undo()
    with Run(tmp_path, every=3) as run:
        assert jnp.array_equal(run.restore({"w": jnp.zeros(2)})["w"], jnp.ones(2))
        in_the_way = tmp_path / ".writable-0"  # as if nothing could be made in the folder
        in_the_way.touch()
        with pytest.raises(OSError, match=str(in_the_way)):
            run.save(3, {"w": jnp.zeros(2)})
        in_the_way.unlink()
        assert run.save(4, {"w": jnp.full(2, 4.0)}) and not run.save(5, {"w": jnp.zeros(2)})  # due until it is saved
        assert run.restore({"w": jnp.zeros(2)})["w"][0] == 4.0


class Color(enum.Enum):
    RED = 1


class Size(enum.IntEnum):
    LARGE = 3


class Name(str):
    pass


@dataclasses.dataclass(frozen=True)
class Plan:
    width: int
    color: Color


def test_settings_come_back_as_they_are_compared() -> None:
    """A number or a text of another library's type is the same setting when JSON gives it back."""
    given = {
        "plan": Plan(8, Color.RED),
        "rate": np.float64(0.1),
        "half": jnp.bfloat16(0.5),
        "on": np.bool_(True),
        "size": Size.LARGE,
        "name": Name("a"),
        "shape": (np.int64(3), 4),
    }
    plain = manifest.settings(given)
    assert repr(plain["plan"]) == "{'width': 8, 'color': 'Color.RED'}" and plain["size"] == "Size.LARGE"
    made = manifest.make({}, plain, position=False)
    assert list(manifest.differences(json.loads(json.dumps(made)), made)) == []
    for wrong in (TX, {1: 2}, ["tx"]):
        with pytest.raises(TypeError, match="config: expected settings by their names, got"):
            manifest.settings(wrong)  # type: ignore[arg-type]


def test_unusual_uses(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"w": jnp.arange(3.0), "none": None, "nothing": {}}
    monkeypatch.chdir(tmp_path)
    run = Run("here/run", every=1, keep=1)
    monkeypatch.chdir("/")
    with run, Run(tmp_path / "beside", every=1) as beside:
        for step in range(2):
            run.save(step, {**state, "w": state["w"] + step})
            beside.save(step, {})
        for _ in range(2):  # also what it has saved itself
            same(run.restore(state), {**state, "w": state["w"] + 1})
            assert run.first == 2 and beside.restore({}) == {} and list(run.steps(3)) == [2]
        with pytest.raises(ValueError, match=r"total: expected at least the 2 steps that .*run has, got 1"):
            run.steps(1)
        with pytest.raises(ValueError, match="step: expected more than 1, which is saved, got 0"):
            run.save(0, state)
        assert not run.save(1, state)
    assert sorted(path.name for path in (tmp_path / "here/run").iterdir()) == [".lock", "1"]
    with Run(tmp_path / "here/run") as run, pytest.raises(MismatchError, match="state none: not saved"):
        run.restore({**state, "none": jnp.ones(2)})

    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=str(path)), Run(path):
            pass
    with pytest.raises(ValueError, match="directory: expected a folder of a file system, got 'gs://bucket/run'"):
        Run("gs://bucket/run")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run("~/run").directory == tmp_path / "run"


def test_a_model_that_can_be_called_is_a_state(tmp_path: pathlib.Path) -> None:
    model = jax.tree_util.Partial(jnp.add, jnp.ones(2))
    with Run(tmp_path) as run:
        assert run.restore(model) is model
        assert run.restore(jax.tree_util.Partial(lambda: {"a": 1}))["a"] == 1


def test_a_signal_before_the_run_is_kept_where_jax_listens(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its service tells all processes at one step."""
    with pytest.raises(SystemExit) as ended, Run(tmp_path) as run:
        monkeypatch.setattr(run._store("test").manager, "reached_preemption", lambda step: step == 2)
        for step in range(4):
            run.save(step, {"w": jnp.ones(2)})
    assert ended.value.code == 0 and (tmp_path / "2").is_dir()


def test_a_child_that_is_told_to_end_ends(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked one has the handler; the run is not its own."""
    sent: list[tuple[int, int]] = []
    with Run(tmp_path) as run:
        monkeypatch.setattr(os, "getpid", lambda: 7)
        monkeypatch.setattr(os, "kill", lambda *some: sent.append(some))
        run._told_to_stop(signal.SIGTERM, None)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and sent == [(7, signal.SIGTERM)]


def test_order_sees_all_examples_once_an_epoch() -> None:
    seen = np.concatenate([gx.resume.order(3, step, 10, 4) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    np.testing.assert_array_equal(gx.resume.order(3, 0, 10, 25)[:20], seen)
    for wrong in ({"size": 0}, {"batch": 0}, {"step": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: "):
            gx.resume.order(**({"seed": 0, "step": 0, "size": 4, "batch": 2} | wrong))
