"""Holds gradxform to its annotations while a program runs: what a function took and gave has to be of their types.

Each function of a module that is imported under the hook is looked at by beartype (jaxtyping's shapes included) after
it has returned: what it refuses itself, with an error of its own, it need not annotate. The first calls tell; those
after ``CALLS`` run as they are. ``PYTHONPATH=tests pytest -p typechecked`` runs tests so.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, FrozenDict
from beartype.door import is_bearable
from beartype.roar import BeartypeDecorHintException

CALLS = 20
"""Of a function in a process that are looked at."""
ARRAYS = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | float | int | bool | complex
"""What may stand for an array: the tests are free with what a program would have converted."""
CONF = BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({jax.Array: ARRAYS}))


NAMES = {name: getattr(jaxtyping, name) for name in ("Bool", "Float", "Integer", "PyTree", "Shaped")}
NAMES |= {
    "Array": jax.Array | np.ndarray,
    "Arrays": jaxtyping.PyTree[ARRAYS],
    "Flags": jaxtyping.PyTree[bool | np.bool_],
    "Json": object,
}  # Json is of itself, which beartype cannot follow
"""What the library only names for a type checker; at run time it does without jaxtyping."""


ROOMS: set[str] = set()
"""In which some function was looked at."""


class Untrue(AssertionError):
    """An annotation that does not say what a function takes or returns; no library code catches it."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, looked at after its first calls."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    more = code.co_varnames[code.co_argcount + code.co_kwonlyargcount] if code.co_flags & inspect.CO_VARARGS else ""
    left = CALLS
    hints: dict[str, Any] | None = None

    def look(name: str, value: Any) -> None:
        if name in hints and not is_bearable(value, hints[name], conf=CONF):
            raise Untrue(
                f"{function.__module__}.{function.__qualname__}: {name} is annotated {hints[name]!r}, got "
                f"{value!r} of {type(value)}"
            )

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left, hints
        result = function(*args, **kwargs)
        if left > 0:
            left -= 1
            hints = resolved(function) if hints is None else hints
            ROOMS.add(function.__module__.split(".")[1] if "." in function.__module__ else "")
            with jaxtyping.jaxtyped("context"):
                for name, value in [
                    *zip(names, args, strict=False),
                    *((more, x) for x in args[len(names) :]),
                    *kwargs.items(),
                    ("return", result),
                ]:
                    look(name, value)
        return result

    return call


def resolved(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, evaluated; those that only a type checker understands are left out."""
    found = {}
    for name, hint in function.__annotations__.items():
        alone = types.SimpleNamespace(__annotations__={name: hint})
        with contextlib.suppress(NameError, BeartypeDecorHintException):
            hint = typing.get_type_hints(alone, function.__globals__, NAMES, include_extras=True)[name]
            is_bearable(None, hint, conf=CONF)  # or it is one that beartype does not know by itself, such as Self
            found[name] = hint
    return found


class Loader(importlib.machinery.SourceFileLoader):
    """Puts ``checked`` closest to each function of a module and its classes, under its other decorators."""

    def get_code(self, fullname: str) -> types.CodeType | None:
        def apart(path: str, *, optimization: object = None) -> str:
            return importlib.util.cache_from_source(path, optimization="typechecked")

        with mock.patch("importlib._bootstrap_external.cache_from_source", apart):
            return super().get_code(fullname)

    def source_to_code(self, data: Any, path: Any, **options: Any) -> types.CodeType:  # type: ignore[override]
        tree = ast.parse(data)
        for body in (tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))):
            for node in body:
                if isinstance(node, ast.FunctionDef):
                    node.decorator_list.append(ast.Name("__checked__", ast.Load()))
        return super().source_to_code(ast.fix_missing_locations(tree), path, **options)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__checked__"] = checked
        super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of gradxform."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> Any:
        if name.split(".")[0] != "gradxform":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """From here on, modules of gradxform are imported under the hook."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


def seen() -> str:
    """The rooms in which some function was looked at."""
    return " ".join(sorted(ROOMS))


def pytest_load_initial_conftests() -> None:
    """As a plugin it is there before a test imports gradxform."""
    install()
