"""The fields of a state: what each of its leaves is called, and whether it is ever below 0."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from gradxform.core.bricks import Leafwise
from gradxform.core.foreign import stage_of
from gradxform.core.stages import Around, Chain, Stage
from gradxform.core.trees import flatten
from gradxform.core.types import AnyTransformation, Params, PyTree, State
from gradxform.precision.coded import is_coded

SQUARES = frozenset({"exp_avg_sq", "nu", "nu_max", "sum_of_squares", "v", "v_col", "v_row"})
"""What means of squares are called in the states of optax."""


def nonnegative(tx: AnyTransformation, state: State, params: Params) -> list[bool]:
    """Whether each leaf of the state of a transformation is never below 0.

    Ours say it by their slots; of another library's the name of the field tells, never the path: an attention block
    has a param called ``v``.
    """
    leaves, treedef = flatten(state)
    found: set[int] = set()
    _collect(tx, treedef.unflatten(range(len(leaves))), _classes(params), found)
    return [place in found for place in range(len(leaves))]


def fields(state: State, params: Params) -> list[str]:
    """The name of the field of a state that each of its leaves, or codes, belongs to; empty where there is none."""
    return [name for name, _ in _fields(state, _classes(params), "")]


def _collect(tx: AnyTransformation | Stage, numbered: State, classes: set[type], found: set[int]) -> None:
    stage = tx if isinstance(tx, Leafwise | Chain | Around) else stage_of(tx)
    if isinstance(stage, Leafwise):
        for name, slot in stage.slots.items():
            if slot.nonnegative:
                found.update(jax.tree.leaves(getattr(numbered, name)))
    elif isinstance(stage, Chain):
        for part, own in zip(stage.parts, stage.states(numbered, "state"), strict=True):
            _collect(part, own, classes, found)
    elif stage.inner is not None:
        for inner, own in stage.inner(numbered).values():
            _collect(inner, own, classes, found)
    else:
        found.update(leaf for name, leaf in _fields(numbered, classes, "") if name in SQUARES)


def _fields(node: PyTree, classes: set[type], name: str) -> Iterator[tuple[str, PyTree]]:
    """Every leaf with the innermost field around it, of a state's own named tuples and not of the params'."""
    children = jax.tree_util.default_registry.flatten_one_level(node) if not is_coded(node) else None
    if children is None:
        yield name, node
        return
    names = getattr(type(node), "_fields", None) if isinstance(node, tuple) and type(node) not in classes else None
    for i, child in enumerate(children[0]):
        yield from _fields(child, classes, name if names is None else _name(names, i))


def _name(names: tuple[str, ...], i: int) -> str:
    # Adan keeps a mean of differences as v and one of squares as n.
    return {"v": "difference", "n": "nu"}.get(names[i], names[i]) if {"m", "v", "n"} <= {*names} else names[i]


def _classes(params: Params) -> set[type]:
    """The classes of the nodes in a tree of params: a field of one of them is the name of a param."""
    found: set[type] = set()

    def visit(node: object) -> bool:
        found.add(type(node))
        return False

    jax.tree.leaves(params, is_leaf=visit)
    return found
