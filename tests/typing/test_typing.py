"""Type checkers see the signatures of factories and what they return, in a user's file as in ours."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import typechecked
from jaxtyping import Float

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
USER, MISTAKES = HERE / "user.py", HERE / "mistakes.py"
WRONG = {i for i, line in enumerate(MISTAKES.read_text().splitlines(), 1) if "# wrong" in line}


def mypy_errors(tmp_path: pathlib.Path) -> dict[pathlib.Path, dict[int, str]]:
    """What mypy finds in a user's files, by line; of the libraries it reports nothing."""
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file=",
            "--strict",
            "--follow-imports=silent",
            "--ignore-missing-imports",
            "--disable-error-code=no-untyped-call",
            f"--cache-dir={tmp_path}",
            "--no-error-summary",
            "--no-color-output",
            USER.name,
            MISTAKES.name,
        ],
        cwd=HERE,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode in (0, 1), found.stdout + found.stderr
    errors: dict[pathlib.Path, dict[int, str]] = {USER: {}, MISTAKES: {}}
    for name, line, text in re.findall(r"^(\w+\.py):(\d+): error: (.*)$", found.stdout, re.MULTILINE):
        errors[HERE / name][int(line)] = text
    return errors


def pyright_errors(_: pathlib.Path) -> dict[pathlib.Path, dict[int, str]]:
    """What pyright finds in the same files, by line."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed: pip install 'pyright[nodejs]'")
    found = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(HERE)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        report = json.loads(found.stdout)
    except json.JSONDecodeError:
        pytest.skip(f"pyright does not run here: {(found.stderr or found.stdout)[-300:]}")
    errors: dict[pathlib.Path, dict[int, str]] = {USER: {}, MISTAKES: {}}
    for item in report["generalDiagnostics"]:
        if item["severity"] == "error":
            errors[pathlib.Path(item["file"])][item["range"]["start"]["line"] + 1] = item["message"]
    return errors


@pytest.mark.typing
@pytest.mark.parametrize("checker", [mypy_errors, pyright_errors])
def test_a_users_program_is_understood_and_every_mistake_found(checker, tmp_path: pathlib.Path) -> None:  # type: ignore
    errors = checker(tmp_path)
    assert errors[USER] == {}
    assert {line: errors[MISTAKES][line] for line in set(errors[MISTAKES]) - WRONG} == {}
    assert WRONG - set(errors[MISTAKES]) == set(), "not found"
    assert len(WRONG) >= 38


def test_the_program_runs_and_annotations_are_true() -> None:
    """What the checkers take is also right, and in every room what a function takes and gives is of its types."""
    code = f"import runpy, typechecked; typechecked.install(); runpy.run_path({str(USER)!r}); print(typechecked.seen())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE.parent}"},
    )
    assert found.returncode == 0, found.stderr
    rooms = {path.name for path in (ROOT / "gradxform").iterdir() if (path / "__init__.py").exists()}
    assert set(found.stdout.split()) >= rooms, found.stdout


def test_an_untrue_annotation_is_found() -> None:
    @typechecked.checked
    def half(x: Float[jax.Array, "n n"], names: dict[str, int]) -> int:
        return x.shape[0] / 2  # type: ignore[return-value]

    for args, name in (
        ((jnp.ones((4, 4)), {}), "return"),
        ((jnp.ones((4, 3)), {}), "x"),
        ((jnp.ones((4, 4)), {"a": "b"}), "names"),
    ):
        with pytest.raises(typechecked.Untrue, match=f"half: {name} is annotated"):
            half(*args)
    with pytest.raises(AttributeError):
        half(None, {})  # its own error comes first


@pytest.mark.parametrize("room", ["linen", "nnx"])
def test_lazy_rooms_are_listed(room: str) -> None:
    """In a fresh process, where nothing has asked for them yet."""
    code = f"import gradxform as gx; assert {room!r} in dir(gx.norm); assert {room!r} not in vars(gx.norm)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
