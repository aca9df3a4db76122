"""Checkpoints: names, shapes and dtypes first, and the arrays behind them when they are asked for.

A checkpoint may come from anywhere, so it is read as data that may lie: nothing in it is executed, what it claims is
compared with the bytes that are there before memory is taken for it, and nothing outside of its directory is opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn, TypeAlias, TypeGuard

import numpy as np

from gradxform.core.types import Json

FORMATS = "a .safetensors or .npz file, a .safetensors.index.json file or a directory with one, or an Orbax checkpoint"


class Refused(ValueError):
    """A checkpoint that is not read, with its path and why."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a checkpoint, before it is read.

    Attributes:
      shape: its shape.
      dtype: its dtype, or None where NumPy has none for it.
      stored: what the file calls the dtype.
      hint: where there is no dtype, what can be done.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | None
    stored: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.shape} {self.stored if self.dtype is None else self.dtype}"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says it holds, and how to get at it.

    Attributes:
      path: the file or directory.
      entries: its arrays by their names in the file.
      read: gives the arrays of the names that it is called with, one after the other.
    """

    path: pathlib.Path
    entries: Mapping[str, Entry]
    read: Callable[[Sequence[str]], Iterator[tuple[str, np.ndarray]]]


def refuse(path: pathlib.Path, why: str) -> NoReturn:
    """Raises the error that a checkpoint is not read."""
    raise Refused(f"'{path}': {why}")


@contextlib.contextmanager
def refusing(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever goes wrong while a library reads ``path`` into the one error that it is malformed."""
    try:
        yield
    except (Refused, MemoryError, ImportError):
        raise
    except Exception as error:  # what a library raises for bytes that are not what it expects is not documented
        raise Refused(f"'{path}': malformed or damaged ({type(error).__name__}: {error})") from error


Roots: TypeAlias = Sequence[pathlib.Path]


def roots_of(folder: pathlib.Path) -> Roots:
    """Where links in a directory may lead: into itself.

    A snapshot in a cache of the Hugging Face hub holds nothing but links to ``blobs``, which is beside ``snapshots``.
    """
    place = folder.resolve()
    for snapshot in (place, *place.parents):
        blobs = snapshot.parent.parent / "blobs"
        if snapshot.parent.name == "snapshots" and blobs.is_dir() and not blobs.is_symlink():
            return place, blobs
    return (place,)


def inside(path: pathlib.Path, roots: Roots) -> pathlib.Path:
    """``path``, which has to be in one of ``roots`` when all links are followed."""
    if not any(path.resolve().is_relative_to(root.resolve()) for root in roots):
        refuse(
            path,
            f"lies outside of '{roots[0]}' when links are followed; where that is meant, give a directory "
            "that holds both as root",
        )
    return path


def require(library: str, path: pathlib.Path) -> ModuleType:
    """A library that only this format needs.

    Raises:
      ImportError: naming the extra that brings it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        package = library.split(".")[0].replace("orbax", "orbax-checkpoint")
        raise ImportError(
            f"'{path}' is read by {package}, which is not installed: pip install 'gradxform[transfer]'"
        ) from error


def parse_json(path: pathlib.Path, data: bytes) -> Any:
    """The value of a JSON text, in which every key occurs once and every number is finite."""

    def once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            refuse(path, f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
        return made

    def no_number(text: str) -> NoReturn:
        refuse(path, f"{text} is no number of JSON")

    with refusing(path):
        return json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=no_number)


def is_shape(value: object) -> TypeGuard[Sequence[int]]:
    """Whether ``value`` is a list of integers >= 0, as many as an array can have axes."""
    return (
        isinstance(value, (list, tuple))
        and len(value) <= 32
        and all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value)
    )


def check_ratio(path: pathlib.Path, name: str, entry: Entry, stored: int, ratio: int) -> None:
    """Refuses an array that claims more bytes than ``stored`` bytes can hold when they are compressed."""
    if entry.dtype is not None and math.prod(entry.shape) * entry.dtype.itemsize > ratio * (stored + 64):
        refuse(path, f"'{name}' claims to be {entry}, which {stored} bytes cannot hold")
