"""The record of compiled programs: written after each, gone on with, and complete in its reasons."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks.compiled import report, runner, target

MADE = {
    "unit": "",
    "unit_value": None,
    "fits": True,
    "hbm_bytes": 8,
    "temp_bytes": 0,
    "flop": 0.0,
    "hbm_us": 0.0,
    "cycles_us": 0.0,
    "lookups": 0,
    "fusions": 1,
    "loops": 0,
    "unknown_loops": 0,
    "compile_cpu_s": 0.1,
    "collectives": {},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a worker without a compiler was asked for."""
    found: list[str] = []

    def compile_(self: runner.Worker, topology: str, key: str) -> dict[str, Any]:
        found.append(key)
        return {"not_compiled": "time"} if "hue" in key else MADE

    monkeypatch.setattr(target, "missing", lambda topology: None)
    monkeypatch.setattr(runner.Worker, "compile", compile_)
    return found


def run(output: pathlib.Path, *options: str) -> dict[str, Any]:
    command.main(["compiled", "--output", str(output), *options])
    return json.loads(output.read_text())


def test_what_the_record_has_is_not_compiled_again(
    tmp_path: pathlib.Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "record.json"
    first = run(output, "--only", "posterize")
    assert list(first["programs"]) == ["augment | posterize, uint8 | gradxform"] == asked
    assert first["reading"] == list(report.READING) and capsys.readouterr().out.startswith(report.READING[0])

    second = run(output, "--room", "augment", "--only", "posterize|hue")
    assert asked[1:] == ["augment | hue, uint8 | gradxform"]
    assert second["programs"]["augment | hue, uint8 | gradxform"]["not_compiled"] == "time"
    assert "not compiled: time" in capsys.readouterr().out
    run(output, "--only", "posterize", "--again", "--against", str(output))
    assert asked[2:] == ["augment | posterize, uint8 | gradxform"]
    assert "8 -> 8" in capsys.readouterr().out


def test_one_chip_and_several_have_programs_of_their_own(tmp_path: pathlib.Path, asked: list[str]) -> None:
    one, four = (
        run(tmp_path / f"{i}.json", "--topology", topology)["programs"]
        for i, topology in enumerate(("v5e:1x1", "v5e:2x2"))
    )
    assert {key.partition(" | ")[0] for key in one} == {"optimizers", "norms", "losses", "augment", "pipeline"}
    assert not set(one) & set(four)
    assert not any("small" in key for key in one)
    assert len(asked) == len(set(asked))
    programs = [program for module in runner.MODULES for program in module.programs()]
    assert len({program.key for program in programs}) == len(programs)


def test_without_a_compiler_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_found", lambda name: False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for topology, extra in (("v5e:1x1", "tpu"), ("h100", "cuda-compiler")):
        with pytest.raises(SystemExit, match=rf"{topology}: .* is not installed: pip install -e '.\[{extra}\]'"):
            command.main(["compiled", "--topology", topology])
    monkeypatch.setattr(target, "_found", lambda name: True)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    with pytest.raises(RuntimeError, match="expected JAX_PLATFORMS=cpu before jax is imported, got 'tpu'"):
        target.mesh_of("v5e:1x1")


def test_a_program_that_takes_too_long_ends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = runner.Worker(limit=0.2)
    monkeypatch.setattr(runner, "compile_one", _busy)
    try:
        assert worker.compile("v5e:1x1", "any") == {"not_compiled": "time: more than 0.2 s"}
        worker._limit = 60
        monkeypatch.setattr(runner, "compile_one", _quick)
        assert worker.compile("v5e:1x1", "any") == {"key": "any"}
        monkeypatch.setattr(runner, "compile_one", _fails)
        assert worker.compile("v5e:1x1", "any") == {"not_compiled": "ValueError: any: not today"}
        monkeypatch.setattr(runner, "compile_one", _ends)
        assert worker.compile("v5e:1x1", "any") == {"not_compiled": "the compiler ended"}
    finally:
        worker.close()


def _busy(topology: str, key: str) -> dict[str, Any]:
    while True:
        pass


def _quick(topology: str, key: str) -> dict[str, Any]:
    return {"key": key}


def _fails(topology: str, key: str) -> dict[str, Any]:
    raise ValueError(f"{key}: not today\nnor tomorrow")


def _ends(topology: str, key: str) -> dict[str, Any]:
    os._exit(1)
