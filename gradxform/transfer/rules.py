"""Rules by regular expression: how the arrays of a file are called and laid out in params."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from gradxform.core.selectors import Selector, compile_pattern
from gradxform.core.types import PyTree
from gradxform.core.which import flags

Shape: TypeAlias = tuple[int, ...]
Replacement: TypeAlias = str | Callable[[re.Match[str]], str] | Sequence[str]
Rename: TypeAlias = Mapping[str, Replacement] | Sequence[tuple[str, Replacement]]
Convert: TypeAlias = Callable[[Any, Shape], Any]
Where: TypeAlias = str | Selector


@dataclasses.dataclass(frozen=True)
class Piece:
    """An array of a file, or one of the equal parts it is cut into along its first axis, and the name it goes to."""

    source: str
    name: str
    part: int = 0
    parts: int = 1


def with_slashes(name: str) -> str:
    """A name of torch, such as ``layer1.0.conv1.weight``, as a path."""
    return name.replace(".", "/")


def expressions(name: str, patterns: str | Sequence[str]) -> list[re.Pattern[str]]:
    """The compiled regular expressions of an argument.

    Raises:
      TypeError: one is not a string.
      ValueError: one is not a regular expression.
    """
    return [compile_pattern(name, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns)]


def renamed(sources: Iterable[str], rename: Rename, idle: list[str]) -> list[Piece]:
    """What becomes of the names of a file when all rules are applied, one after the other.

    Args:
      sources: the names.
      rename: regular expressions and what each match in a name is replaced by, as in ``re.sub``.
      idle: takes up the rules that match nothing.

    Raises:
      TypeError: a rule is of the wrong kind.
      ValueError: a rule is not a regular expression, names a group that it has not, or cuts a part again.
    """
    pieces = [Piece(source, with_slashes(source)) for source in sources]
    for pattern, replacement in rename.items() if isinstance(rename, Mapping) else rename:
        compiled, made = compile_pattern("rename", pattern), list[Piece]()
        for piece in pieces:
            made += _renamed(piece, compiled, replacement) if compiled.search(piece.name) else [piece]
        if not any(compiled.search(piece.name) for piece in pieces):
            idle.append(f"rename {pattern!r}")
        pieces = made
    return pieces


def _renamed(piece: Piece, pattern: re.Pattern[str], replacement: Replacement) -> list[Piece]:
    try:
        if isinstance(replacement, str) or callable(replacement):
            return [dataclasses.replace(piece, name=pattern.sub(replacement, piece.name))]
        if piece.parts > 1:
            raise ValueError(f"rename: {pattern.pattern!r} cuts '{piece.source}', which another rule has cut already")
        return [Piece(piece.source, pattern.sub(name, piece.name), i, len(replacement))
                for i, name in enumerate(replacement)]
    except re.error as error:
        raise ValueError(f"rename: {replacement!r} does not fit {pattern.pattern!r} ({error})") from error


def chosen(name: str, rules: Mapping[Where, Any], params: PyTree, count: int, idle: list[str]) -> list[Any]:
    """The value of the first rule that selects each of the ``count`` leaves of ``params``, or None.

    Args:
      name: the name of the argument, for messages.
      rules: values by regular expressions of paths or selectors.
      params: the tree.
      count: the number of its leaves.
      idle: takes up the rules that select nothing.

    Raises:
      TypeError: a rule is of the wrong kind.
      ValueError: a rule is not a regular expression.
    """
    if not isinstance(rules, Mapping):
        raise TypeError(f"{name}: expected a dict by regular expressions of paths or by selectors, got {rules!r}")
    found: list[Any] = [None] * count
    for where, value in rules.items():
        selected = flags(f"{name}[{where!r}]", where, params)
        found = [value if flag and own is None else own for own, flag in zip(found, selected, strict=True)]
        if not any(selected):
            idle.append(f"{name} {where!r}")
    return found


def permutation(name: str, value: Any) -> tuple[int, ...] | None:
    """A permutation of axes as a tuple.

    Raises:
      ValueError: it is none.
    """
    if value is None:
        return None
    axes = tuple(value)
    if sorted(axes) != list(range(len(axes))):
        raise ValueError(f"{name}: expected a permutation of axes such as (2, 3, 1, 0), got {value!r}")
    return axes


def hint(found: Shape, expected: Shape) -> str:
    """What would make an array of one shape fit another, where something would."""
    if found != expected and sorted(found) == sorted(expected) and len(found) <= 6:
        # The orders of torch come before others that fit as well.
        usual = [(1, 0), (2, 1, 0), (2, 3, 1, 0), (2, 3, 4, 1, 0)]
        for axes in itertools.chain(usual, itertools.permutations(range(len(found)))):
            if len(axes) == len(found) and tuple(found[axis] for axis in axes) == expected:
                return f"; transpose {axes} fits"
    if found != expected and math.prod(found) == math.prod(expected):
        return "; it has as many numbers, so that it could be reshaped"
    return ""


