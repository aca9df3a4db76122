"""What stands beside a checkpoint: the paths, shapes and dtypes in it, and the settings it was made with."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias, TypedDict

import flax
import jax
import numpy as np
import optax

from gradxform.core.config import to_config
from gradxform.core.value import Value
from gradxform.resume.leaves import Entry

VERSION = 2
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class Manifest(TypedDict):
    """What stands beside a checkpoint.

    Attributes:
      version: of this form.
      leaves: the shape and dtype of each leaf of the state, by path.
      config: the settings of the run.
      position: whether the position of a reader of data stands beside it.
      versions: of what made it, to be read by people.
    """

    version: int
    leaves: dict[str, Entry]
    config: dict[str, Json]
    position: bool
    versions: dict[str, str]


class MismatchError(ValueError):
    """What was saved is not what is asked for; the message lists all that differs.

    Example:
      >>> import gradxform as gx
      >>> issubclass(gx.resume.MismatchError, ValueError)
      True
    """


def make(leaves: dict[str, Entry], config: dict[str, Json], *, position: bool) -> Manifest:
    """The manifest of a state's leaves and of settings as ``settings`` makes them."""
    return {
        "version": VERSION,
        "leaves": leaves,
        "config": config,
        "position": position,
        "versions": {"jax": jax.__version__, "optax": optax.__version__, "flax": flax.__version__},
    }


def settings(config: Mapping[str, object]) -> dict[str, Json]:
    """Settings as JSON holds them.

    Raises:
      TypeError: a function or another value that JSON cannot hold, with the argument it is in; no names at all.
    """
    if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
        raise TypeError(f"config: expected settings by their names, got {config!r}")
    return {name: _plain(f"config {name}", value) for name, value in config.items()}


def differences(saved: Manifest, now: Manifest) -> Iterator[tuple[str, str]]:
    """All that differs, each as its path and as text."""
    if saved.get("version") != VERSION:
        yield "version", f"version: saved {saved.get('version')!r}, this library reads {VERSION}"
        return
    if now["position"] and not saved["position"]:
        yield "position", "position: not saved"
    here, there = saved["leaves"], now["leaves"]
    for path in sorted({*here, *there}):
        if path not in here:
            yield f"state/{path}", f"state {path}: not saved"
        elif path not in there:
            yield f"state/{path}", f"state {path}: saved, not expected"
        else:
            for what, a, b in (
                ("shape", here[path]["shape"], there[path]["shape"]),
                ("dtype", here[path]["dtype"], there[path]["dtype"]),
            ):
                if a != b:
                    yield f"state/{path}", f"state {path}: saved {what} {a}, now {b}"
    for name in sorted({*saved["config"], *now["config"]}):
        if name not in saved["config"] or name not in now["config"]:
            known = "not saved" if name not in saved["config"] else "saved, not given now"
            yield f"config/{name}", f"config {name}: {known}"
            continue
        for keys, old, new in _apart(saved["config"][name], now["config"][name]):
            inside = f"{'/'.join(keys)}: " if keys else ""
            yield "/".join(("config", name, *keys)), f"config {name}: {inside}saved {old}, now {new}"


def compare(saved: Manifest, now: Manifest, where: str, on_change: str | Iterable[str]) -> list[str]:
    """Refuses what may not differ.

    Args:
      saved: the manifest of a checkpoint.
      now: that of what is asked for.
      where: the checkpoint, for the message.
      on_change: ``"refuse"``, ``"warn"`` to let settings differ, or the paths that may.

    Returns:
      What differs and may.

    Raises:
      MismatchError: all that differs and may not.
    """
    wrong: list[str] = []
    passed: list[str] = []
    allowed = () if isinstance(on_change, str) else tuple(on_change)
    for path, text in differences(saved, now):
        settings_may = on_change == "warn" and path.startswith("config/")
        may = settings_may or any(path == one or path.startswith(f"{one}/") for one in allowed)
        (passed if may else wrong).append(text)
    if wrong:
        listed = "\n  ".join(wrong)
        raise MismatchError(
            f"{where}: expected what was saved there, got something else in {len(wrong)} places:\n"
            f"  {listed}\nAnother directory begins anew; on_change lets settings differ."
        )
    return passed


def _plain(where: str, value: object) -> Json:
    if isinstance(value, Value):
        try:
            return to_config(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{where}: {error}") from error
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: expected names that are texts, got {key!r}")
        return {key: _plain(f"{where}/{key}", one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(f"{where}/{i}", one) for i, one in enumerate(value)]
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) and value.ndim == 0:
        return _plain(where, value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # in JSON NaN is no number, and it does not equal itself
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):  # not a type made of one: what JSON gives back is none
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(
        f"{where}: expected a value of this library, a number, a text, or lists, dicts and dataclasses of them, got a "
        f"{type(value).__name__}"
    )


class _Missing:
    """In the place of what one of two settings has and the other has not."""

    def __repr__(self) -> str:
        return "nothing"


_MISSING = _Missing()


def _apart(old: Json | _Missing, new: Json | _Missing) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Where two settings differ: a call's arguments by their names, the parts of a chain by their places."""
    if isinstance(old, dict) and isinstance(new, dict) and _is_call(old) and _is_call(new):
        if old["call"] == new["call"]:
            yield from _apart(old["arguments"], new["arguments"])
        else:
            yield (), _short(old), _short(new)
    elif isinstance(old, dict) and isinstance(new, dict) and not _is_call(old) and not _is_call(new):
        chained = old.keys() == new.keys() == {"transformations"}
        for name in sorted({*old, *new}):
            for path, a, b in _apart(old.get(name, _MISSING), new.get(name, _MISSING)):
                yield path if chained else (name, *path), a, b
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            for path, a, b in _apart(*pair):
                yield (str(i), *path), a, b
    elif old != new or type(old) is not type(new):
        yield (), _short(old), _short(new)


def _is_call(value: dict[str, Json]) -> bool:
    """Whether it is what ``to_config`` makes of a value; beside the call stands the form that it was written in."""
    return value.keys() - {"gradxform"} == {"call", "arguments"}


def _short(value: Json | _Missing) -> str:
    if isinstance(value, dict) and "call" in value:
        return f"{value['call']}(...)"
    return repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."
