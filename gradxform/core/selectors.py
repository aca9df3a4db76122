"""Selecting leaves of a tree by path or by shape: masks that print, compare and combine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar, ParamSpec, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gradxform.core import checks
from gradxform.core.trees import named_leaves, structure
from gradxform.core.types import Params, PyTree
from gradxform.core.value import Value, factory


class Selector(Value):
    """A function from params to a tree of bools, decided leaf by leaf from its path and its array.

    Combine selectors with ``&``, ``|`` and ``~``.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> decayed = gx.ndim_at_least(2) & ~gx.path_matches("embed")
      >>> decayed({"embed": jnp.ones((4, 2)), "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}})
      {'dense': {'bias': False, 'kernel': True}, 'embed': False}
    """

    has_numbers: ClassVar[bool] = False  # optax takes a pytree without leaves for a mask, not for a function

    def __call__(self, params: Params) -> PyTree:
        """A tree of bools that fits ``params``."""
        return jax.tree.unflatten(
            structure(params), [bool(self.built(path, leaf)) for path, leaf in named_leaves(params)]
        )

    def __and__(self, other: Selector) -> Selector:
        return both(self, other)

    def __or__(self, other: Selector) -> Selector:
        return either(self, other)

    def __invert__(self) -> Selector:
        return negated(self)

    @property
    def patterns(self) -> list[re.Pattern[str]]:
        """The regular expressions in this selector."""
        if self.name == "path_matches":
            return [re.compile(self.arguments["pattern"])]
        return [one for part in self.arguments.values() if isinstance(part, Selector) for one in part.patterns]

    def format_in(self, room: int) -> str:
        """The call, or the operators, that make this selector."""
        parts = [repr(part) for part in self.arguments.values()]
        if self.name in _OPERATORS:
            sign = _OPERATORS[self.name]
            line = f"({parts[0]} {sign} {parts[1]})"
            # Python joins the lines between parentheses.
            return line if len(line) <= room else line.replace(f" {sign} ", f"\n{sign} ")
        return f"~{parts[0]}" if self.name == "negated" else super().format_in(room)


P = ParamSpec("P")
Predicate: TypeAlias = Callable[[str, ArrayLike], bool]


def compile_pattern(name: str, pattern: object) -> re.Pattern[str]:
    """A regular expression of paths.

    Raises:
      TypeError: it is not a string.
      ValueError: it is not a regular expression.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"{name}: expected a regular expression, got {pattern!r}")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}: expected a regular expression, got {pattern!r} ({error})") from error


def _selector(function: Callable[P, Predicate]) -> Callable[P, Selector]:
    return factory(Selector, function)


@_selector
def path_matches(pattern: str) -> Predicate:
    """Selects the leaves whose path contains a match of a regular expression.

    In a mask, a run that starts with params of which no path matches is refused, as a misspelt name: each pattern of
    a combination by ``&``, ``|`` and ``~`` has to match something. One chain for several models, or for a part that
    may be missing, takes one expression of all of them: ``path_matches("kernel|adapter")``. Called by itself, as in
    ``lambda params: path_matches("adapter")(params)``, a selector may select nothing.

    Args:
      pattern: a regular expression, searched for in paths such as ``encoder/dense/kernel``.

    Returns:
      A selector.

    Raises:
      TypeError: ``pattern`` is not a string.
      ValueError: it is not a regular expression.

    Example:
      >>> import gradxform as gx
      >>> gx.path_matches("bias$")({"dense": {"kernel": 1.0, "bias": 0.0}})
      {'dense': {'bias': True, 'kernel': False}}
    """
    compiled = compile_pattern("pattern", pattern)
    return lambda path, leaf: compiled.search(path) is not None


@_selector
def ndim_at_least(n: int) -> Predicate:
    """Selects the leaves with at least ``n`` axes: with 2, the kernels and embeddings but no biases or norm scales.

    That is so unless layers are stacked, as a scan over them stacks their params: the norms of 12 layers have a scale
    of shape (12, features). Ask for one axis more where they are, as in the last example.

    Args:
      n: the number of axes, >= 0.

    Returns:
      A selector.

    Raises:
      TypeError: ``n`` is not an integer.
      ValueError: ``n`` is negative.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.ndim_at_least(2)({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
      {'bias': False, 'kernel': True}
      >>> kernels = gx.ndim_at_least(3) | (gx.ndim_at_least(2) & ~gx.path_matches("^blocks/"))
      >>> kernels({"blocks": {"kernel": jnp.ones((12, 2, 2)), "scale": jnp.ones((12, 2))}, "head": jnp.ones((2, 2))})
      {'blocks': {'kernel': True, 'scale': False}, 'head': True}
    """
    checks.integer("n", n, at_least=0)
    return lambda path, leaf: jnp.ndim(leaf) >= n


@_selector
def both(first: Selector, second: Selector) -> Predicate:
    """Selects what both selectors select; written ``first & second``.

    Raises:
      TypeError: an argument is not a selector.
    """
    return _combine(first, second, lambda a, b: a and b)


@_selector
def either(first: Selector, second: Selector) -> Predicate:
    """Selects what either selector selects; written ``first | second``.

    Raises:
      TypeError: an argument is not a selector.
    """
    return _combine(first, second, lambda a, b: a or b)


@_selector
def negated(selector: Selector) -> Predicate:
    """Selects what a selector does not; written ``~selector``."""
    return lambda path, leaf: not selector.built(path, leaf)


_OPERATORS = {"both": "&", "either": "|"}


def _combine(first: Selector, second: Selector, how: Callable[[bool, bool], bool]) -> Predicate:
    for selector in (first, second):
        if not isinstance(selector, Selector):
            raise TypeError(f"expected a selector such as ndim_at_least(2), got {selector!r}")
    return lambda path, leaf: how(first.built(path, leaf), second.built(path, leaf))
