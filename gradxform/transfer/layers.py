"""Which layer of a network a leaf belongs to, from regular expressions of paths in order from input to output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.selectors import compile_pattern
from gradxform.core.trees import keyed_leaves, named_leaves, path_name
from gradxform.core.types import KeyPath, Params, PyTree
from gradxform.core.which import is_hidden, is_partial

Groups = str | Sequence[str | tuple[str, int]]


class Group(NamedTuple):
    """Leaves by a regular expression; with an axis, each of them holds a layer for every index along it."""

    pattern: re.Pattern[str]
    axis: int | None = None


class Layers(NamedTuple):
    """The layer of a leaf, or those along an axis of it."""

    numbers: tuple[int, ...]
    axis: int | None = None


def groups_of(name: str, groups: Groups) -> list[Group]:
    """The groups in an argument.

    Raises:
      TypeError: one is neither a string nor a pair of a string and an integer.
      ValueError: one is not a regular expression, or there is none.
    """
    given = [groups] if isinstance(groups, str) else groups
    expected = f"{name}: expected a regular expression or a sequence of them, or of pairs (regular expression, axis)"
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{expected}, got {groups!r}")
    if not given:
        raise ValueError(f"{name}: expected at least one regular expression, got {groups!r}")
    pairs = [(group, None) if isinstance(group, str) else group for group in given]
    for pair in pairs:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"{expected}, got {groups!r}")
        if pair[1] is not None:
            checks.integer(f"{name}: axis of {pair[0]!r}", pair[1])
    return [Group(compile_pattern(name, pattern), axis) for pattern, axis in pairs]


def layers_of(tree: PyTree, groups: list[Group]) -> tuple[dict[str, Layers], int]:
    """The layers of every leaf by its path, and how many layers the groups make.

    A leaf that matches none belongs to the layer after the last. An expression with groups of digits makes a layer
    for each number found, and one with an axis for each index. What a mask has taken out of the tree counts, so that a
    layer keeps its number.

    Raises:
      ValueError: an expression that is the first to match no leaf, groups in it that are not numbers, or leaves
        without the axis or with other numbers of layers along it.
    """
    leaves = dict(named_leaves(tree, is_hidden))
    keys = {path: _key(path, groups) for path in leaves}
    # A mask may stand for a whole subtree, whose leaves are not known.
    missing = sorted(set(range(len(groups))) - {key[0] for key in keys.values() if key is not None})
    if missing and leaves and not is_partial(tree):
        raise ValueError(
            f"groups: expected {groups[missing[0]].pattern.pattern!r} to be the first that matches some "
            f"path, got the paths {', '.join([*leaves][:8])}{', ...' * (len(leaves) > 8)}"
        )
    stacks = {path: key for path, key in keys.items() if key is not None and groups[key[0]].axis is not None}
    counts = _counts(leaves, stacks, groups)
    members = {
        path: [] if key is None else [key] if path not in stacks else [(*key, i) for i in range(counts[key])]
        for path, key in keys.items()
    }
    rank = {key: i for i, key in enumerate(sorted({key for own in members.values() for key in own}))}
    return {
        path: Layers(
            tuple(rank[key] for key in own) or (len(rank),), groups[stacks[path][0]].axis if path in stacks else None
        )
        for path, own in members.items()
    }, len(rank)


def _counts(
    leaves: dict[str, PyTree], stacks: dict[str, tuple[int, ...]], groups: list[Group]
) -> dict[tuple[int, ...], int]:
    """How many layers there are along the axis of each key of a group that has one."""
    seen: dict[tuple[int, ...], tuple[int, str]] = {}
    for path, key in stacks.items():
        if is_hidden(leaves[path]):
            continue
        pattern, axis = groups[key[0]]
        shape = jnp.shape(leaves[path])
        if axis is None or not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"groups: expected a layer for each index along axis {axis} at '{path}', which "
                f"{pattern.pattern!r} matches, got shape {shape}"
            )
        count, first = seen.setdefault(key, (shape[axis], path))
        if count != shape[axis]:
            raise ValueError(
                f"groups: expected {count} layers along axis {axis} at '{path}', as at '{first}', got shape {shape}"
            )
    for path, key in stacks.items():
        if key not in seen and not all(map(is_hidden, leaves.values())):
            raise ValueError(
                f"groups: expected to see how many layers '{path}' has along axis {groups[key[0]].axis}, "
                "got a mask that hides it; put the mask around what comes before, not around this"
            )
    return {key: seen.get(key, (0, ""))[0] for key in stacks.values()}


def _key(name: str, groups: list[Group]) -> tuple[int, ...] | None:
    for i, (pattern, _) in enumerate(groups):
        match = pattern.search(name)
        if match is None:
            continue
        if not all(part is not None and part.isdecimal() for part in match.groups()):
            raise ValueError(
                f"groups: expected the groups of {pattern.pattern!r} to be numbers, got {match.groups()} "
                f"at '{name}'; write (?:...) for a group that is none"
            )
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
    order: dict[KeyPath, int] = {}
    prefixes: dict[str, list[list[int | str] | int]] = {}
    for path, _ in keyed_leaves(params):
        rank: list[list[int | str] | int] = []
        for i, key in enumerate(path[:depth]):
            seen = order.setdefault(path[: i + 1], len(order))
            rank.append(natural(str(key.key)) if isinstance(key, jax.tree_util.DictKey) else seen)
        prefixes.setdefault(path_name(path[:depth]), rank)
    names = sorted(prefixes, key=lambda name: prefixes[name])
    return tuple(f"^{re.escape(name)}(?:/|$)" for name in names[:-1])


def natural(name: str) -> list[int | str]:
    """A key to sort names by, the numbers in them as numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
