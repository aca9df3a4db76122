"""Printing a value as the call that makes it, on one line where it fits and indented where it does not."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

WIDTH = 120


def format_call(name: str, signature: inspect.Signature, arguments: Mapping[str, Any]) -> str:
    """The call ``name(...)`` with these arguments."""
    parts = []
    for key, value in arguments.items():
        if signature.parameters[key].kind == inspect.Parameter.VAR_POSITIONAL:
            parts += [format_argument(item) for item in value]
        elif signature.parameters[key].kind == inspect.Parameter.VAR_KEYWORD:
            parts += [f"{name}={format_argument(item)}" for name, item in value.items()]
        else:
            parts.append(f"{key}={format_argument(value)}")
    return _wrap(f"{name}(", parts, ")")


def format_argument(value: Any) -> str:
    """One argument as it would be typed."""
    if type(value) is tuple:
        return _wrap("(", [format_argument(item) for item in value], ",)" if len(value) == 1 else ")")
    if type(value) is list:
        return _wrap("[", [format_argument(item) for item in value], "]")
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if type(value) is dict:
        return _wrap("{", [f"{key!r}: {format_argument(item)}" for key, item in value.items()], "}")
    if isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, jax.core.Tracer):
        return " ".join(repr(value).split())
    if is_pair(value):
        # A stateless one shares its init with all others; then the update says what it is.
        maker = value.update if value.init.__name__ == "init_empty_state" else value.init
        return f"<{maker.__module__}.{maker.__qualname__.split('.<locals>')[0]}>"
    if inspect.isfunction(value):
        return f"<{value.__module__}.{value.__qualname__.removesuffix('.<lambda>').split('.<locals>.')[0]}>"
    return repr(value)


def is_pair(value: Any) -> bool:
    """Whether ``value`` is another library's (init, update), whose own repr is two addresses."""
    return type(value) in (optax.GradientTransformation, optax.GradientTransformationExtraArgs)


def _wrap(opening: str, parts: list[str], closing: str) -> str:
    line = opening + ", ".join(parts) + closing
    if len(line) <= WIDTH and "\n" not in line:
        return line
    body = "".join("  " + part.replace("\n", "\n  ") + ",\n" for part in parts)
    return f"{opening}\n{body}{closing.lstrip(',')}"
