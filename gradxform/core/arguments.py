"""The arguments of a call: what kind each is, how the call keeps it, and how the factory's function receives it."""

from __future__ import annotations

import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gradxform.core.numbers import scalar
from gradxform.core.types import Kind, PyTree


def signature(function: Callable[..., object], name: str) -> inspect.Signature:
    """The signature of a factory with its annotations evaluated.

    Raises:
      TypeError: an annotation cannot be evaluated, and so does not say what its parameter takes.
    """
    found = inspect.signature(function)
    return found.replace(
        parameters=[
            parameter.replace(annotation=_evaluated(function, parameter, name))
            for parameter in found.parameters.values()
        ]
    )


def _evaluated(function: Callable[..., object], parameter: inspect.Parameter, name: str) -> object:
    if parameter.annotation is parameter.empty:
        return parameter.empty
    # get_type_hints also evaluates a name in quotes inside of an annotation, as in Sequence["Scalar"].
    alone = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return typing.get_type_hints(alone, globalns=names, include_extras=True)[parameter.name]
    except Exception as error:
        raise TypeError(
            f"{name}: the annotation of {parameter.name} cannot be evaluated: {parameter.annotation!r} "
            f"({error}); name what the module knows at run time, or leave it out"
        ) from error


def kind(parameter: inspect.Parameter) -> Kind:
    """What a parameter takes, by its annotation; without one, a default that is a float says it is a number."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return Kind.SCALAR if isinstance(parameter.default, float) else Kind(0)
    options = [option for option in _options(annotation) if option is not type(None)]
    if options == [bool]:
        return Kind.BOOL
    return functools.reduce(operator.or_, _kinds(annotation), Kind(0))


def takes_none(parameter: inspect.Parameter) -> bool:
    """Whether None is among what a parameter takes."""
    return parameter.default is None or type(None) in _options(parameter.annotation)


def _options(annotation: object) -> tuple[object, ...]:
    """The members of a union, or the one type that there is."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _kinds(annotation: object) -> Iterator[Kind]:
    """The kinds of numbers and dtypes anywhere in an annotation."""
    if annotation is float:
        yield Kind.SCALAR
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        marks = [mark for mark in inside[1:] if isinstance(mark, Kind)]
        if marks:
            yield from marks
            return
        inside = inside[:1]
    if origin is Callable:
        return  # what a function takes is not what the parameter takes
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        inside = inside[1:]  # the keys are names
    for part in inside:
        yield from _kinds(part)


def kept(name: str, value: PyTree, kind: Kind, takes_none: bool) -> PyTree:
    """An argument as its call keeps it.

    Raises:
      TypeError: ``value`` is not of its kind.
    """
    if kind & Kind.DTYPE:
        return _each(lambda item: dtype_name(name, item), value)
    value = plain(value)
    _check_keys(name, value)
    if kind & Kind.BOOL and not isinstance(value, bool) and not (value is None and takes_none):
        raise TypeError(f"{name}: expected a bool, got {value!r}")
    if kind & Kind.SCALAR:
        if value is None and not takes_none:
            wanted = "a real number or a schedule" if kind & Kind.SCHEDULE else "a real number"
            raise TypeError(f"{name}: expected {wanted}, got None")
        return _each(lambda item: float(item) if type(item) is int else item, value)
    return value


def _check_keys(name: str, value: PyTree) -> None:
    """Refuses a dict that is no pytree, which a value could not be either."""
    if type(value) is dict:
        try:
            sorted(value)
        except TypeError as error:
            raise TypeError(f"{name}: expected keys that can be sorted, got {list(value)}") from error
    if type(value) in (dict, list, tuple):
        for item in value.values() if type(value) is dict else value:
            _check_keys(name, item)


def ready(value: PyTree, kind: Kind) -> PyTree:
    """An argument as the factory's function receives it: arrays of numbers in float32 at least."""
    return _each(_ready, value) if kind & Kind.SCALAR else value


def _ready(x: object) -> object:
    return scalar(x) if isinstance(x, (jax.Array, np.ndarray)) and jnp.issubdtype(x.dtype, jnp.floating) else x


def plain(value: PyTree) -> PyTree:
    """``value`` with containers of its own and NumPy scalars as Python numbers."""
    if type(value) in (list, tuple, dict):
        return _each(plain, value, keys=plain)
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, np.ndarray):
        value = value.copy()  # the caller's may change later
        value.setflags(write=False)
        return value
    known = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    return bool(value) if known and value.dtype == bool and value.ndim == 0 else value


def _each(
    change: Callable[[PyTree], object], value: PyTree, keys: Callable[[object], object] = lambda key: key
) -> PyTree:
    """``change`` of a value, or of each item of the plain containers that hold it."""
    if type(value) in (list, tuple):
        return type(value)(_each(change, item, keys) for item in value)
    if type(value) is dict:
        return {keys(key): _each(change, item, keys) for key, item in value.items()}
    return change(value)


def dtype_name(name: str, value: DTypeLike | None) -> str | None:
    """A dtype by its name, whichever way it was written; None for None.

    Raises:
      TypeError: ``value`` is not a dtype.
    """
    try:
        return None if value is None else jnp.dtype(value).name
    except TypeError as error:
        raise TypeError(f"{name}: expected a dtype, got {value!r}") from error
