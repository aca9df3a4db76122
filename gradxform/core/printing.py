"""Printing a value as the call that makes it, on one line where it fits and indented where it does not."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

WIDTH = 120

Part = tuple[str, Callable[[int], str]]
"""What stands before an argument, and the argument printed in so many columns."""


def format_call(name: str, signature: inspect.Signature, arguments: Mapping[str, Any], room: int = WIDTH) -> str:
    """The call ``name(...)`` with these arguments, in lines of at most ``room`` columns.

    Defaults are printed too, but for options: parameters that can only be given by keyword.
    """
    parts: list[Part] = []
    for key, value in arguments.items():
        kind, default = signature.parameters[key].kind, signature.parameters[key].default
        if kind == inspect.Parameter.KEYWORD_ONLY and type(value) is type(default) and repr(value) == repr(default):
            continue
        if kind == inspect.Parameter.VAR_POSITIONAL:
            parts += [_part("", item) for item in value]
        elif kind == inspect.Parameter.VAR_KEYWORD:
            parts += [_part(f"{name}=", item) for name, item in value.items()]
        else:
            parts.append(_part(f"{key}=", value))
    return _wrap(f"{name}(", parts, ")", room)


def format_argument(value: object, room: int = WIDTH) -> str:
    """One argument as it would be typed."""
    if hasattr(value, "format_in"):
        return value.format_in(room)
    if type(value) is tuple:
        return _wrap("(", [_part("", item) for item in value], ",)" if len(value) == 1 else ")", room)
    if type(value) is list:
        return _wrap("[", [_part("", item) for item in value], "]", room)
    if type(value) is dict:
        return _wrap("{", [_part(f"{key!r}: ", item) for key, item in value.items()], "}", room)
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, jax.core.Tracer):
        return " ".join(repr(value).split())
    if isinstance(value, optax.GradientTransformation):
        # Another library's pair, whose own repr is two addresses. A stateless one shares its init with all others;
        # then the update says what it is.
        return _origin(value.update if value.init.__name__ == "init_empty_state" else value.init)
    return _origin(value) if inspect.isfunction(value) else repr(value)


def _part(before: str, value: object) -> Part:
    return before, lambda room: format_argument(value, room)


def _origin(function: Callable[..., object]) -> str:
    """Where a function comes from: that of the factory, for one made inside it."""
    return f"<{function.__module__}.{function.__qualname__.split('.<locals>')[0]}>"


def _wrap(opening: str, parts: list[Part], closing: str, room: int) -> str:
    line = opening + ", ".join(before + part(10**6) for before, part in parts) + closing
    if len(line) <= room:
        return line
    # Two columns of indentation before each part, a comma after it.
    body = [before + part(room - 3 - len(before)) for before, part in parts]
    return opening + "\n" + "".join("  " + part.replace("\n", "\n  ") + ",\n" for part in body) + closing.lstrip(",")
