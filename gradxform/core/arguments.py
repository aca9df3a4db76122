"""The arguments of a call as they are kept: plain Python numbers, checked by the annotations of their parameters."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a factory, its annotations evaluated where they can be."""
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # an annotation that names something local
        return inspect.signature(function)


def kind(parameter: inspect.Parameter) -> str:
    """What a parameter takes, by its annotation: a ``bool``, a ``real`` number, a ``schedule`` or real number."""
    if parameter.annotation is parameter.empty:
        return "real" if isinstance(parameter.default, float) else ""
    if parameter.annotation is bool:
        return "bool"
    if not _mentions_float(parameter.annotation):
        return ""
    options = typing.get_args(parameter.annotation)
    return "schedule" if any(typing.get_origin(option) is Callable for option in options) else "real"


def takes_none(parameter: inspect.Parameter) -> bool:
    """Whether None is among what a parameter takes."""
    return parameter.default is None or type(None) in typing.get_args(parameter.annotation)


def _mentions_float(annotation: Any) -> bool:
    if annotation is float:
        return True
    options = typing.get_args(annotation)
    if typing.get_origin(annotation) is Callable:
        return False
    if typing.get_origin(annotation) in (dict, Mapping):
        options = options[1:]  # the keys are names
    return any(_mentions_float(option) for option in options)


def plain(value: Any) -> Any:
    """``value`` with containers of its own and NumPy scalars as Python numbers."""
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if type(value) is dict:
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, np.ndarray):
        value = value.copy()  # the caller's may change later
        value.setflags(write=False)
        return value
    if isinstance(value, jax.Array) and value.dtype == bool and value.ndim == 0 and not is_traced(value):
        return bool(value)
    return value


def floats(value: Any) -> Any:
    """``value`` with ints as floats, in containers too."""
    if type(value) in (list, tuple):
        return type(value)(floats(item) for item in value)
    if type(value) is dict:
        return {key: floats(item) for key, item in value.items()}
    return float(value) if type(value) is int else value


def dtype_name(name: str, value: Any) -> str | None:
    """A dtype by its name, whichever way it was written; None for None.

    Raises:
      TypeError: ``value`` is not a dtype.
    """
    try:
        return None if value is None else jnp.dtype(value).name
    except TypeError as error:
        raise TypeError(f"{name}: expected a dtype, got {value!r}") from error


def is_traced(x: Any) -> bool:
    """Whether ``x`` stands for an array that is only known when the program runs."""
    return isinstance(x, jax.core.Tracer)
