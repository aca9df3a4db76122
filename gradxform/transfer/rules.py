"""Rules by regular expression: how the arrays of a file are called and laid out in params."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from jax.typing import ArrayLike

from gradxform.core import checks
from gradxform.core.selectors import Selector, compile_pattern, path_matches
from gradxform.core.types import Mask, PyTree, Shape
from gradxform.core.which import flags
from gradxform.transfer.layers import natural

Convert: TypeAlias = Callable[[np.ndarray, Shape], ArrayLike]
"""A function of an array of a file and the shape of its param."""
Joiner: TypeAlias = Callable[[list[np.ndarray]], ArrayLike]
"""A function that makes one array of several."""
Where: TypeAlias = str | Selector


@dataclasses.dataclass(frozen=True, init=False)
class Copy:
    """In ``rename`` of ``load_pretrained``: one array for several params, as of an embedding tied to the head.

    Args:
      names: what each match is replaced by, once for each copy.

    Raises:
      TypeError: a name is not a string.
      ValueError: there is none.

    Example:
      >>> import pathlib, tempfile
      >>> import gradxform as gx, numpy as np
      >>> params = {"embed": np.zeros((3, 1), np.float32), "head": np.zeros((1, 3), np.float32)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder) / "model.npz"
      ...     np.savez(file, embed=np.float32([[1], [2], [3]]))
      ...     params, _ = gx.transfer.load_pretrained(
      ...         file, params, rename={"^embed$": gx.transfer.Copy("embed", "head")}, transpose={"head": (1, 0)})
      >>> params["head"]
      array([[1., 2., 3.]], dtype=float32)
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        if not names:
            raise ValueError("names: expected at least one, got none")
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"names: expected strings, got {names!r}")
        object.__setattr__(self, "names", names)

    def __repr__(self) -> str:
        return f"Copy({', '.join(map(repr, self.names))})"


@dataclasses.dataclass(frozen=True)
class Join:
    """In ``rename`` of ``load_pretrained``: all arrays that get this name become one, in order.

    The order is that of their names in the file, numbers in them as numbers: layer 2 comes before layer 10.

    Args:
      name: what each match is replaced by.
      by: a function of the list of arrays; by default they are stacked along a new first axis, as a scan over layers
        wants them. ``sum`` adds up the two biases of torch's LSTM.

    Raises:
      TypeError: an argument of the wrong kind.

    Example:
      >>> import pathlib, tempfile
      >>> import gradxform as gx, numpy as np
      >>> arrays = {f"layers.{i}.weight": np.full(2, i, np.float32) for i in range(3)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder) / "model.npz"
      ...     np.savez(file, **arrays)
      ...     params, _ = gx.transfer.load_pretrained(file, {"layers": np.zeros((3, 2), np.float32)},
      ...                                             rename={r"layers.\\d+.weight": gx.transfer.Join("layers")})
      >>> params["layers"]
      array([[0., 0.],
             [1., 1.],
             [2., 2.]], dtype=float32)
    """

    name: str
    by: Joiner = np.stack

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name: expected a string, got {self.name!r}")
        checks.function("by", self.by)


Replacement: TypeAlias = str | Callable[[re.Match[str]], str] | Sequence[str] | Copy | Join
Rename: TypeAlias = Mapping[str, Replacement] | Sequence[tuple[str, Replacement]]


@dataclasses.dataclass(frozen=True)
class Piece:
    """An array of a file, or one of the equal parts it is cut into along its first axis, and the name it goes to."""

    source: str
    name: str
    cut: tuple[int, int] | None = None
    join: Joiner | None = None

    @property
    def place(self) -> tuple[list[int | str], tuple[int, int]]:
        """Where it stands among those that are joined."""
        return natural(self.source), self.cut or (0, 1)


U = TypeVar("U")
V = TypeVar("V")


@dataclasses.dataclass
class Rule(Generic[V]):
    """One rule of an argument, which counts what it applies to.

    Attributes:
      argument: the name of the argument.
      where: the regular expression or selector.
      value: what it says.
      hits: how many names or params it has applied to so far.
    """

    argument: str
    where: Mask | str
    value: V
    hits: int = 0

    def __str__(self) -> str:
        return f"{self.argument} {self.where!r}"


@dataclasses.dataclass
class NameRule(Rule[V]):
    """A rule of names in a file.

    Raises:
      TypeError: the pattern is not a string.
      ValueError: it is not a regular expression.
    """

    def __post_init__(self) -> None:
        self.pattern = re.compile(spelled(compile_pattern(self.argument, self.where).pattern))

    def applies(self, name: str) -> bool:
        """Whether the pattern is found in a name with slashes."""
        found = self.pattern.search(name) is not None
        self.hits += found
        return found


class ParamRule(Rule[V]):
    """A rule of params."""

    def flags(self, params: PyTree) -> list[bool]:
        """Whether it selects each leaf.

        Raises:
          TypeError: it is of the wrong kind.
          ValueError: it is not a regular expression, or a mask that does not fit.
        """
        where = self.where
        if isinstance(where, str):
            compile_pattern(self.argument, where)
            where = path_matches(spelled(where))
        found = flags(self.argument, where, params)
        self.hits += sum(found)
        return found


def with_slashes(name: str) -> str:
    """A name of torch, such as ``layer1.0.conv1.weight``, as a path."""
    return name.replace(".", "/")


def spelled(pattern: str) -> str:
    r"""A regular expression whose dots, where they stand for themselves, are slashes too: ``\.`` and ``[^.]``."""

    def either(token: re.Match[str]) -> str:
        if token[0].startswith("["):
            return re.sub(r"\\.|\.", lambda one: "./" if one[0] in (".", r"\.") else one[0], token[0], flags=re.DOTALL)
        return "[./]" if token[0] == r"\." else token[0]

    return re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", either, pattern, flags=re.DOTALL)


def name_rules(argument: str, rules: Mapping[str, V] | Iterable[tuple[str, V]]) -> list[NameRule[V]]:
    """The rules of names in an argument.

    Raises:
      TypeError: a pattern is not a string.
      ValueError: one is not a regular expression.
    """
    return [
        NameRule(argument, where, value) for where, value in (rules.items() if isinstance(rules, Mapping) else rules)
    ]


def param_rules(argument: str, rules: Mapping[Where, U] | None, check: Callable[[str, U], V]) -> list[ParamRule[V]]:
    """The rules of params in an argument, each value as ``check`` returns it.

    Raises:
      TypeError: it is no dict.
    """
    if not isinstance(rules, Mapping | None):
        raise TypeError(f"{argument}: expected a dict by regular expressions of paths or by selectors, got {rules!r}")
    return [ParamRule(argument, where, check(argument, value)) for where, value in (rules or {}).items()]


def selected(argument: str, which: Mask | str | None) -> list[ParamRule[bool]]:
    """The one rule of an argument that says which params; none for None."""
    return [] if which is None else [ParamRule(argument, which, True)]


def first(rules: Sequence[ParamRule[V]], params: PyTree, count: int) -> list[V | None]:
    """The value of the first rule that selects each of the ``count`` leaves of ``params``, or None."""
    found: list[V | None] = [None] * count
    for rule in rules:
        found = [
            rule.value if flag and own is None else own for own, flag in zip(found, rule.flags(params), strict=True)
        ]
    return found


def renamed(sources: Iterable[str], rules: Sequence[NameRule[Replacement]]) -> list[Piece]:
    """What becomes of the names of a file when all rules are applied, one after the other.

    Raises:
      ValueError: a rule names a group that it has not, or cuts a part again.
    """
    pieces = [Piece(source, with_slashes(source)) for source in sources]
    for rule in rules:
        pieces = [made for piece in pieces for made in (_renamed(piece, rule) if rule.applies(piece.name) else [piece])]
    return pieces


def _renamed(piece: Piece, rule: NameRule[Replacement]) -> list[Piece]:
    def to(
        name: str | Callable[[re.Match[str]], str],
        cut: tuple[int, int] | None = piece.cut,
        join: Joiner | None = piece.join,
    ) -> Piece:
        try:
            return dataclasses.replace(piece, name=with_slashes(rule.pattern.sub(name, piece.name)), cut=cut, join=join)
        except re.error as error:
            raise ValueError(f"rename: {rule.value!r} does not fit {rule.where!r} ({error})") from error

    value = rule.value
    if isinstance(value, Copy):
        return [to(name) for name in value.names]
    if isinstance(value, Join):
        return [to(value.name, join=value.by)]
    if isinstance(value, str) or callable(value):
        return [to(value)]
    if not isinstance(value, Sequence):
        raise TypeError(
            f"rename: expected a string, a function, a list of strings, Copy or Join for {rule.where!r}, got {value!r}"
        )
    if piece.cut is not None:
        raise ValueError(f"rename: {rule.where!r} cuts '{piece.source}', which another rule has cut already")
    return [to(name, cut=(i, len(value))) for i, name in enumerate(value)]


def permutation(name: str, value: Iterable[int]) -> tuple[int, ...]:
    """A permutation of axes as a tuple.

    Raises:
      ValueError: it is none.
    """
    axes = tuple(value)
    if sorted(axes) != list(range(len(axes))):
        raise ValueError(f"{name}: expected a permutation of axes such as (2, 3, 1, 0), got {value!r}")
    return axes


def function(name: str, value: Convert) -> Convert:
    """A function of an array and a shape.

    Raises:
      TypeError: it is none.
    """
    if not callable(value):
        raise TypeError(f"{name}: expected functions of an array and a shape, got {value!r}")
    return value


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
