"""Imports go one way: no circle among modules, and no room imports one that stands on it."""

from __future__ import annotations

import ast
import graphlib
import pathlib

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


def imports() -> dict[str, set[str]]:
    """The modules of the library that each of them imports, at any place."""
    names = {".".join(("gradxform", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
             for path in ROOT.rglob("*.py")}
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


def test_no_room_imports_one_that_stands_on_it() -> None:
    wrong = []
    for name, others in IMPORTS.items():
        room = name.split(".")[1] if "." in name else None
        for other in others:
            into = other.split(".")[1] if "." in other else None
            if room is not None and into not in (room, *BELOW[room]):
                wrong.append(f"{name} imports {other}")
    assert not wrong
