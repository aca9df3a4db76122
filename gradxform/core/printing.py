"""Printing a value as the call that makes it, on one line where it fits and indented where it does not."""

from __future__ import annotations

import inspect
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
        else:
            parts.append(f"{key}={format_argument(value)}")
    return _wrap(f"{name}(", parts, ")")


def format_argument(value: Any) -> str:
    """One argument as it would be typed."""
    if type(value) is tuple:
        return _wrap("(", [format_argument(item) for item in value], ",)" if len(value) == 1 else ")")
    if type(value) is dict:
        return _wrap("{", [f"{key!r}: {format_argument(item)}" for key, item in value.items()], "}")
    if isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, jax.core.Tracer):
        return " ".join(repr(value).split())
    if is_pair(value):
        return f"<{value.init.__module__}.{value.init.__qualname__.split('.')[0]}>"
    if inspect.isfunction(value):
        return f"<{value.__module__}.{value.__qualname__}>"
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
