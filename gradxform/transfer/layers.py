"""Which layer of a network a leaf belongs to, from regular expressions of paths in order from input to output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax

from gradxform.core import checks
from gradxform.core.selectors import compile_pattern
from gradxform.core.trees import keyed_leaves, named_leaves, path_name
from gradxform.core.types import Params, PyTree
from gradxform.core.which import is_hidden, is_partial

Groups = str | Sequence[str]


def patterns(name: str, groups: Groups) -> list[re.Pattern[str]]:
    """The regular expressions of ``groups``.

    Raises:
      TypeError: one is not a string.
      ValueError: one is not a regular expression, or there is none.
    """
    given = [groups] if isinstance(groups, str) else groups
    if not isinstance(given, (list, tuple)) or not all(isinstance(group, str) for group in given):
        raise TypeError(f"{name}: expected a regular expression or a sequence of them, got {groups!r}")
    if not given:
        raise ValueError(f"{name}: expected at least one regular expression, got {groups!r}")
    return [compile_pattern(name, group) for group in given]


def layers_of(tree: PyTree, compiled: list[re.Pattern[str]]) -> tuple[dict[str, int], int]:
    """The layer of every leaf by its path, and how many layers the expressions make.

    A leaf that matches none belongs to the layer after the last. An expression with groups of digits makes a layer
    for each number found. What a mask has taken out of the tree counts, so that a layer keeps its number.

    Raises:
      ValueError: an expression that is the first to match no leaf, or groups in it that are not numbers.
    """
    names = [path for path, _ in named_leaves(tree, is_hidden)]
    keys = {name: _key(name, compiled) for name in names}
    found = sorted({key for key in keys.values() if key is not None})
    rank = {key: i for i, key in enumerate(found)}
    missing = sorted(set(range(len(compiled))) - {key[0] for key in found})
    # A mask may stand for a whole subtree, whose leaves are not known.
    if missing and names and not is_partial(tree):
        raise ValueError(f"groups: expected {compiled[missing[0]].pattern!r} to be the first that matches some path, "
                         f"got the paths {', '.join(names[:8])}{', ...' * (len(names) > 8)}")
    return {name: len(found) if key is None else rank[key] for name, key in keys.items()}, len(found)


def _key(name: str, compiled: list[re.Pattern[str]]) -> tuple[int, ...] | None:
    for i, pattern in enumerate(compiled):
        match = pattern.search(name)
        if match is None:
            continue
        if not all(part is not None and part.isdecimal() for part in match.groups()):
            raise ValueError(f"groups: expected the groups of {pattern.pattern!r} to be numbers, got {match.groups()} "
                             f"at '{name}'; write (?:...) for a group that is none")
        return (i, *map(int, match.groups()))
    return None


def layers_at_depth(params: Params, depth: int = 1) -> tuple[str, ...]:
    """Regular expressions of layers, from the names at a depth of the tree.

    A layer is what has the same first ``depth`` keys in its path; the last one is left out, for it comes after all
    others. The order is that of the tree. The keys of a dict have none that jax keeps: they are sorted, numbers in
    them as numbers. Where that is not the order from input to output, write the result down in the right one.

    Args:
      params: a tree.
      depth: how many keys of a path name a layer, >= 1.

    Returns:
      The regular expressions, for ``scale_by_layer`` and its like.

    Raises:
      TypeError: ``depth`` is no integer.
      ValueError: it is below 1.

    Example:
      >>> import gradxform as gx
      >>> gx.transfer.layers_at_depth({"Dense_0": {"bias": 0.0}, "Dense_2": {"bias": 0.0}, "Dense_10": {"bias": 0.0}})
      ('^Dense_0(?:/|$)', '^Dense_2(?:/|$)')
    """
    checks.integer("depth", depth, at_least=1)
    order: dict[tuple[Any, ...], int] = {}
    prefixes: dict[str, list[Any]] = {}
    for path, _ in keyed_leaves(params):
        rank: list[Any] = []
        for i, key in enumerate(path[:depth]):
            seen = order.setdefault(path[:i + 1], len(order))
            rank.append(natural(str(key.key)) if isinstance(key, jax.tree_util.DictKey) else seen)
        prefixes.setdefault(path_name(path[:depth]), rank)
    names = sorted(prefixes, key=lambda name: prefixes[name])
    return tuple(f"^{re.escape(name)}(?:/|$)" for name in names[:-1])


def natural(name: str) -> list[Any]:
    """A key to sort names by, the numbers in them as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
