"""The suite for accelerators: the whole on a CPU in tiny shapes, and what becomes of a run that is cut short."""

from __future__ import annotations

import importlib
import json
import pathlib
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

pytestmark = [pytest.mark.as_in_use, pytest.mark.long]

ROOT = pathlib.Path(__file__).parents[2]
ONE_OF_EACH = (
    "check: adamw",
    "check: siglip",
    "check: flip",
    "check: patchify",
    "copy",
    "matmul, float32",
    "clip + AdamW, 8 leaves",
    "RMSNorm, float32",
    "nt_xent, 16 x 8, t=0.5, float32",
    "flip up and down",
)
Load = Callable[[str], types.ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Imports a module of the benchmarks, as from the root of the project."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def quick() -> Iterator[None]:
    """Compiles without costly optimizations: the times do not matter."""
    jax.config.update("jax_disable_most_optimizations", True)
    cached = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_enable_compilation_cache", cached)


@pytest.fixture
def runs(load: Load) -> Callable[..., Any]:
    """Runs cases against a file in a number of seconds, and gives the record."""

    def run(path: pathlib.Path | None, cases: list[Any], seconds: float = 60.0, now: Any = time.monotonic) -> Any:
        record = load("accelerator.record").Record(path, head())
        budget = load("accelerator.budget").Budget(seconds, now=now)
        session = load("accelerator.cases").Session(load("accelerator.sizes").TINY, record, None, jax.devices()[0])
        load("accelerator.runner").Runner(record, budget, session).run(cases)
        return record

    return run


def head(sizes: str = "tiny") -> dict[str, Any]:
    environment = {
        "platform": "gpu",
        "device": "Some GPU",
        "versions": {"jax": "0.10.2"},
        "source": "abc",
        "driver": "Some GPU, 580.1",
        "date": "2026-11-27T10:00:00+00:00",
    }
    return {"suite": "accelerator", "environment": environment, "settings": {"sizes": sizes}}


def case(load: Load, name: str, run: Callable[[], Any] = lambda: None, **options: Any) -> Any:
    def called(session: Any) -> dict[str, Any]:
        run()
        return {"status": "measured"}

    return load("accelerator.cases").Case(name, "norm", called, **options)


def run_suite(load: Load, path: pathlib.Path, *arguments: str) -> dict[str, Any]:
    load("__main__").main(["accelerator", "--sizes", "tiny", "--repeats", "1", "--output", str(path), *arguments])
    return json.loads(path.read_text())


def test_one_case_of_each_kind_runs_on_a_cpu(load: Load, quick: None, tmp_path: pathlib.Path, capsys: Any) -> None:
    path = tmp_path / "record.json"
    content = run_suite(load, path, "--only", *ONE_OF_EACH)
    cases = content["cases"]
    assert {name: entry["status"] for name, entry in cases.items() if name.startswith("check")} == dict.fromkeys(
        [
            "check: adamw, 20 steps",
            "check: RMSNorm, float32, forward and backward",
            "check: siglip, value and gradients",
            "check: flip, 8 bits",
            "check: patchify",
        ],
        "passed",
    )
    step = cases["clip + AdamW, 8 leaves"]
    assert step["bytes_a_parameter"] == 32 and step["parameters"] == 2 * (64 * 64 + 64 + 128 + 32 * 32)
    ours = step["peers"]["gradxform"]
    np.testing.assert_allclose(ours["bytes_per_s"], 32 * step["parameters"] / ours["median_s"])
    np.testing.assert_allclose(ours["share_of_copy"], ours["bytes_per_s"] / cases["copy"]["bytes_per_s"])
    loss = cases["nt_xent, 16 x 8, t=0.5, float32"]
    np.testing.assert_allclose(loss["floor_s"], 16 * 16**2 * 8 / cases["matmul, float32"]["flops_per_s"])
    assert {"gradxform", "dense jax"} <= loss["peers"].keys()
    flip = cases["flip up and down"]
    np.testing.assert_allclose(
        flip["peers"]["gradxform"]["images_per_s"], flip["images"] / flip["peers"]["gradxform"]["median_s"]
    )
    printed = capsys.readouterr().out
    assert "| clip + AdamW, 8 leaves (0.0M in 8 leaves) |" in printed and "These times say nothing" in printed

    # Again: all of it is there, and the tables come from the file alone.
    assert run_suite(load, path, "--only", *ONE_OF_EACH)["cases"] == cases
    assert f"{len(cases)} of {len(cases)} cases are in the record already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        load("__main__").main(["accelerator", "--table", str(path)])
    assert "| clip + AdamW, 8 leaves (0.0M in 8 leaves) |" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_every_case_runs_on_a_cpu(load: Load, quick: None, tmp_path: pathlib.Path) -> None:
    cases = run_suite(load, tmp_path / "record.json", "--minutes", "60")["cases"]
    assert {name: entry for name, entry in cases.items() if entry["status"] not in ("passed", "measured")} == {}
    assert {"gradxform", "gradxform, sorted", "vmap(switch)"} <= cases["RandAugment(2)"]["peers"].keys()
    assert cases["pretraining step, digits"]["peers"].keys() == {"augment", "model", "loss", "update", "whole step"}


def test_a_cpu_is_no_accelerator(load: Load) -> None:
    with pytest.raises(SystemExit, match="no GPU or TPU"):
        load("__main__").main(["accelerator"])


def test_a_run_goes_on_where_the_last_one_ended(load: Load, runs: Any, tmp_path: pathlib.Path) -> None:
    path, made = tmp_path / "record.json", []

    def stops() -> None:
        made.append("second")
        if len(made) == 2:
            raise KeyboardInterrupt

    cases = [
        case(load, "first", lambda: made.append("first")),
        case(load, "second", stops),
        case(load, "third", lambda: made.append("third")),
    ]
    with pytest.raises(KeyboardInterrupt):
        runs(path, cases)
    # What was done before the interrupt is in the file, which is whole.
    assert list(json.loads(path.read_text())["cases"]) == ["first"]
    record = runs(path, cases)
    assert made == ["first", "second", "second", "third"]
    assert [record.cases[name]["attempts"] for name in ("first", "second", "third")] == [1, 1, 1]
    assert not list(tmp_path.glob("*.part"))


def test_a_file_that_is_no_record_is_kept_aside(load: Load, runs: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "record.json"
    runs(path, [case(load, "first")])
    half = path.read_text()[:100]
    path.write_text(half)
    assert list(runs(path, [case(load, "second")]).cases) == ["second"]
    assert (tmp_path / "record.json.unreadable").read_text() == half


def test_figures_of_two_settings_do_not_mix(load: Load, runs: Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "record.json"
    runs(path, [case(load, "first")])
    record = load("accelerator.record").Record
    with pytest.raises(ValueError, match=r"record.json: expected a .*'full'.* found one of .*'tiny'.*--fresh"):
        record(path, head("full"))
    assert record(path, head("full"), fresh=True).cases == {}


def test_a_case_that_fails_is_recorded_and_tried_once_more(load: Load, runs: Any, tmp_path: pathlib.Path) -> None:
    path, made = tmp_path / "record.json", []

    def fails() -> None:
        made.append("failing")
        raise ArithmeticError("no such number")

    cases = [case(load, "failing", fails), case(load, "next", lambda: made.append("next"))]
    record = runs(path, cases)
    assert record.cases["failing"]["status"] == "error" and record.cases["next"]["status"] == "measured"
    assert record.cases["failing"]["error"] == "ArithmeticError: no such number"
    assert record.cases["failing"]["where"].startswith("fails, line ")
    for _ in range(2):
        record = runs(path, cases)
    assert made == ["failing", "next", "failing"] and record.cases["failing"]["attempts"] == 2


def test_what_has_no_time_is_not_run(load: Load, runs: Any, tmp_path: pathlib.Path) -> None:
    clock, path = [0.0], tmp_path / "record.json"

    def takes(seconds: float) -> Callable[[], None]:
        def run() -> None:
            clock[0] += seconds

        return run

    cases = [case(load, name, takes(50.0)) for name in ("first", "second", "third")]
    record = runs(path, cases, seconds=90.0, now=lambda: clock[0])
    assert [entry["status"] for entry in record.cases.values()] == ["measured", "measured", "not run"]
    assert record.cases["third"]["reason"] == "time: the 1.5 minutes of the run were over"
    # For want of time is no failure: the next run has time.
    assert runs(path, cases, seconds=90.0, now=lambda: clock[0]).cases["third"] == {
        "room": "norm",
        "status": "measured",
        "seconds": 0.0,
        "attempts": 1,
    }


def test_a_share_of_the_time(load: Load) -> None:
    budget = load("accelerator.budget").Budget(120.0, now=lambda: 0.0)
    assert budget.lap(weight=1.0, rest=10.0).left == 48.0  # four times a tenth
    assert budget.lap(weight=4.0, rest=10.0).left == 120.0  # no more than there is


def test_what_a_case_leaves_is_for_the_others(load: Load, runs: Any) -> None:
    cases, laps = load("accelerator.cases"), []

    def run(session: Any) -> dict[str, Any]:
        laps.append(session.lap.left)
        return {"status": "measured"}

    runs(None, [cases.Case(str(i), "norm", run) for i in range(6)], seconds=60.0, now=lambda: 0.0)
    assert laps == [40.0, 48.0, 60.0, 60.0, 60.0, 60.0]


def test_a_compiler_that_takes_too_long_is_not_waited_for(load: Load) -> None:
    build, lap = load("accelerator.build"), load("accelerator.budget").Lap
    go_on = threading.Event()

    def slow(x: jax.Array) -> jax.Array:
        go_on.wait(60.0)
        return x

    def wrong(x: jax.Array) -> jax.Array:
        raise ValueError("x: expected another")

    x, cores = np.ones(3, np.float32), load("harness").cores()
    slow_ones = {f"slow {i}": build.Program(slow, (x,)) for i in range(cores)}
    built, missing = build.build(slow_ones, lap(time.monotonic() + 0.3))
    assert built == {} and set(missing.values()) == {"time: not compiled within the case's share"}
    assert build.unfinished() == cores
    # Its cores are free for others.
    built, missing = build.build(
        {"fast": build.Program(lambda x: x + 1, (x,)), "wrong": build.Program(wrong, (x,))},
        lap(time.monotonic() + 60.0),
    )
    assert missing == {"wrong": "ValueError: x: expected another"}
    np.testing.assert_array_equal(built["fast"].call(x), [2.0, 2.0, 2.0])
    go_on.set()
    deadline = time.monotonic() + 60.0
    while build.unfinished():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_time_of_a_call_is_that_of_a_turn_over_its_calls(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    timing, lap = load("accelerator.timing"), load("accelerator.budget").Lap
    clock, made = [0.0], []

    def call() -> np.ndarray:
        made.append(None)
        clock[0] += 0.25
        return np.zeros(1)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    timings, missing = timing.in_turns({"call": call}, lap(60.0, lambda: 0.0), turn=1.0, repeats=3)
    assert missing == {} and timings["call"].sample.seconds == (0.25, 0.25, 0.25)
    assert timings["call"].calls == 4 and timings["call"].dispatch == 0.25
    assert len(made) == 2 + 4 * 4  # two to begin with, a turn to warm up, and three
    # No time for a turn: the second call is all there is.
    timings, missing = timing.in_turns({"call": call}, lap(0.5, lambda: 0.0), turn=1.0)
    assert timings["call"].sample.seconds == (0.25,) and timings["call"].calls == 1


def test_the_largest_difference(load: Load) -> None:
    difference = load("accelerator.compare").difference
    ours = {"a": np.array([1.0, 2.0, 4.0]), "b": np.array([3, 250], np.uint8)}
    assert difference(ours, ours) == (0.0, 0.0, "")
    assert difference(ours | {"a": np.array([1.0, 2.5, 4.0])}, ours) == (0.125, 0.2, "a")
    assert difference(ours | {"b": np.array([5, 250], np.uint8)}, ours) == (2.0, 0.2, "b")
    assert difference(ours | {"a": np.array([1.0, np.nan, 4.0])}, ours) == (np.inf, 0.2, "a")
    missing = {"a": np.array([np.nan, np.inf])}
    assert difference(missing, missing) == (0.0, 0.0, "")
    with pytest.raises(ValueError, match=r"b: expected \(2,\) uint8, got \(2,\) int32"):
        difference(ours | {"b": np.int32(ours["b"])}, ours)


@pytest.mark.parametrize(("largest", "status"), [(0.25, "passed"), (0.26, "failed")])
def test_a_check_fails_beyond_its_tolerance(
    load: Load, monkeypatch: pytest.MonkeyPatch, largest: float, status: str
) -> None:
    compare, cases, sizes = load("accelerator.compare"), load("accelerator.cases"), load("accelerator.sizes")
    monkeypatch.setattr(compare, "difference", lambda ours, theirs: compare.Difference(largest, 0.5, "a"))
    lap = load("accelerator.budget").Lap(time.monotonic() + 60.0)
    session = cases.Session(sizes.TINY, load("accelerator.record").Record(None, head()), lap, jax.devices()[0])
    entry = compare.compared(session, lambda x: x, (np.ones(2, np.float32),), 0.25)
    assert (entry["status"], entry["largest"], entry["share_unlike"], entry["leaf"]) == (status, largest, 0.5, "a")


def test_the_table_of_a_record(load: Load) -> None:
    figures = {"median_s": 0.0005, "dispatch_s": 0.0001, "bytes_per_s": 2.5e12, "share_of_copy": 0.875}
    cases = {
        "check: a": {"room": "norm", "status": "passed", "largest": 1e-7, "against": "CPU"},
        "check: b": {"room": "norm", "status": "failed", "largest": 0.5, "against": "CPU"},
        "AdamW, 46M": {
            "room": "optimizers",
            "status": "measured",
            "leaves": 145,
            "parameters": 45_996_032,
            "peers": {"gradxform": figures, "optax": figures | {"median_s": 0.25, "dispatch_s": 0.24}},
            "missing": {},
        },
        "rotation": {"room": "augment", "status": "not run", "reason": "time: over"},
        "blur": {"room": "augment", "status": "not run", "reason": "time: over"},
    }
    lines = load("accelerator.table").markdown({**head("full"), "cases": cases}).splitlines()
    assert lines[0] == "Some GPU, driver Some GPU, 580.1; jax 0.10.2; 2026-11-27."
    assert "| norm | 1 of 2 | 5.0e-01 | b (5.0e-01) |" in lines
    assert "| AdamW, 46M (46.0M in 145 leaves) | 0.5 ms | 250 ms* | 2,500 | 2,500 | 88% | 88% |" in lines
    assert lines[-1] == "- not run: time: over: rotation; blur"
