"""The record of a run: a JSON file that is whole after every case, and from which the next run goes on."""

from __future__ import annotations

import json
import os
import pathlib
import threading
from typing import Any

PASSED, MEASURED, FAILED, ERROR, NOT_RUN = "passed", "measured", "failed", "error", "not run"
"""What became of a case; a check passed or failed, a row was measured."""
ATTEMPTS = 2
"""How often a case is tried that fails."""
IDENTITY = ("platform", "device", "versions", "source")
"""The part of the environment that the figures of one file have in common."""


class Record:
    """What is known of each case, kept in a file.

    Args:
      path: the file; None to keep nothing.
      head: the suite, the environment and the settings, as JSON.
      fresh: whether to begin anew where there is a file.

    Raises:
      ValueError: the file is of another device, other versions or other sizes.
    """

    def __init__(self, path: pathlib.Path | None, head: dict[str, Any], *, fresh: bool = False):
        self._path, self._head, self._lock = path, head, threading.Lock()
        self.cases: dict[str, dict[str, Any]] = {}
        self.runs: list[dict[str, Any]] = []
        found = None if path is None or fresh else _read(path)
        if found is not None:
            ours, theirs = _identity(head), _identity(found)
            if ours != theirs:
                raise ValueError(
                    f"{path}: expected a record of {ours}, found one of {theirs}; "
                    "--fresh begins it anew, --output names another file"
                )
            self.cases, self.runs = found["cases"], found["runs"]

    def due(self, name: str) -> bool:
        """Whether a case is still to be run: it never was, for want of time or packages, or it failed but once."""
        entry = self.cases.get(name)
        if entry is None or entry["status"] == NOT_RUN:
            return True
        return entry["status"] in (FAILED, ERROR) and entry["attempts"] < ATTEMPTS

    def put(self, name: str, entry: dict[str, Any]) -> None:
        """Keeps what became of a case, and writes the file."""
        with self._lock:
            before = self.cases.get(name, {}).get("attempts", 0)
            tried = entry["status"] != NOT_RUN
            self.cases[name] = {**entry, "attempts": before + tried}
            self.write()

    def value(self, name: str, key: str) -> float | None:
        """A figure of a case, None where it was not measured."""
        return self.cases.get(name, {}).get(key)

    def content(self) -> dict[str, Any]:
        """The record as JSON."""
        return {**self._head, "runs": self.runs, "cases": self.cases}

    def write(self) -> None:
        """Writes the file: whoever reads it sees the old one or the new one, whole."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(self._path.name + ".part")
        with part.open("w") as file:
            file.write(json.dumps(self.content(), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)


def _identity(content: dict[str, Any]) -> dict[str, Any]:
    return {**{key: content["environment"].get(key) for key in IDENTITY}, "sizes": content["settings"]["sizes"]}


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """A record, None where there is none; a file that is none is kept beside it."""
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        _ = _identity(content), content["cases"], content["runs"]
    except (ValueError, KeyError, TypeError, AttributeError):
        aside = path.with_name(path.name + ".unreadable")
        path.replace(aside)
        print(f"{path}: no record; kept as {aside.name}, and begun anew")
        return None
    return content
