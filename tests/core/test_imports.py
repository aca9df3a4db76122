"""Imports go one way: no circle among modules, and no room imports one that stands on it."""

from __future__ import annotations

import ast
import graphlib
import pathlib
import subprocess
import sys

import gradxform

ROOT = pathlib.Path(gradxform.__file__).parent
BELOW: dict[str, set[str]] = {
    "core": set(),
    "schedules": {"core"},
    "transforms": {"core", "schedules"},
    "optimizers": {"core", "schedules", "transforms"},
    "transfer": {"core", "schedules", "transforms"},
    "precision": {"core", "schedules", "transforms"},
    "sharding": {"core"},
    "resume": {"core", "transforms", "schedules"},
    "norm": {"core"},
    "augment": {"core"},
    "losses": {"core"},
    "masking": {"core"},
    "plot": {"core", "schedules", "transforms", "optimizers"},
}
"""What each room may import beside itself."""
LATE = ["matplotlib", "safetensors", "orbax", "grain", "PIL", "sklearn", "tqdm", "torch", "jax.experimental.pallas"]
"""What is not imported with the library: what an extra brings, and what takes long."""


def imports() -> dict[str, set[str]]:
    """The modules of the library that each of them imports, at any place."""
    names = {
        ".".join(("gradxform", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gradxform"):
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= (inside & names.keys()) or {node.module}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & names.keys()
    return found


IMPORTS = imports()


def test_there_is_no_circle() -> None:
    # A package imports what it names, and what is in it may import the package's neighbours.
    graph = {name: {other for other in others if other != "gradxform"} for name, others in IMPORTS.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_what_is_optional_or_slow_is_imported_where_it_is_used() -> None:
    program = f"import sys, gradxform; print([name for name in {LATE} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], timeout=300, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_room_imports_one_that_stands_on_it() -> None:
    wrong = []
    for name, others in IMPORTS.items():
        room = name.split(".")[1] if "." in name else None
        for other in others:
            into = other.split(".")[1] if "." in other else None
            if room is not None and into not in (room, *BELOW[room]):
                wrong.append(f"{name} imports {other}")
    assert not wrong
