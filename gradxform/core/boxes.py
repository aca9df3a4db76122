"""Boxes and variables of Flax around params, which name the mesh axes that their arrays are divided over."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeAlias

import jax
from flax.core import meta

from gradxform.core.types import Axes, PyTree, Shape

NAMES = ("out_sharding", "sharding_names", "sharding")
"""What Flax NNX has called the names of a variable's axes."""


Names: TypeAlias = tuple[str | tuple[str, ...] | None, ...]
"""For each axis of an array the axes of a mesh that it is divided over."""


def is_box(x: object) -> bool:
    """Whether ``x`` is an array in a box that names its axes; who has a variable has imported Flax NNX."""
    nnx = sys.modules.get("flax.nnx")
    return isinstance(x, meta.Partitioned) or (nnx is not None and isinstance(x, nnx.Variable))


def map_cut(function: Callable[[jax.Array], jax.Array], params: PyTree, axes: Callable[[Shape], Axes]) -> PyTree:
    """``jax.tree.map`` of a function that keeps some axes of a leaf: the box around it names those.

    Args:
      function: of a leaf.
      params: a tree, in boxes or not.
      axes: of the shape of a leaf, the axes that are kept; None where something else stands in its place.

    Returns:
      A tree like ``params``, boxes and all.
    """

    def one(node: PyTree) -> PyTree:
        if not is_box(node):
            return function(node)
        leaves = jax.tree.leaves(node)
        made = jax.tree.map(function, node)
        if len(leaves) != 1:
            return made
        kept = axes(tuple(leaves[0].shape))
        if isinstance(node, meta.Partitioned):
            return made.replace(names=_cut(node.names, kept))
        named = {name: _cut(found, kept) for name in NAMES if (found := node.get_metadata().get(name)) is not None}
        return made.copy(**named) if named else made

    return jax.tree.map(one, params, is_leaf=is_box)


def _cut(names: Names, kept: Axes) -> Names:
    return (None,) if kept is None else tuple(names[axis] if axis < len(names) else None for axis in kept)
