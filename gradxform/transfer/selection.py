"""Which leaves of a tree: by a mask, a selector or a regular expression of their paths."""

from __future__ import annotations

from typing import Any

import jax

from gradxform.core.selectors import path_matches
from gradxform.core.trees import named_leaves, structure, subtrees
from gradxform.core.types import Mask, PyTree
from gradxform.transforms.masking import check_mask, mask_tree


def as_mask(name: str, which: Mask | str) -> Mask:
    """A mask from what the caller gave; a string is a regular expression of paths.

    Raises:
      TypeError: a leaf of it is not a bool.
      ValueError: a string is not a regular expression.
    """
    if isinstance(which, str):
        try:
            return path_matches(which)
        except ValueError as error:
            raise ValueError(str(error).replace("pattern", name, 1)) from error
    check_mask(name, which)
    return which


def flags(name: str, which: Mask | str | None, tree: PyTree, what: str = "params") -> list[bool]:
    """Whether each leaf of ``tree`` is selected, in the order of its leaves; with None, none is.

    Raises:
      TypeError: a leaf of the mask is not a bool.
      ValueError: the mask does not fit the tree, with the first path that differs.
    """
    leaves = jax.tree.leaves(tree)
    if which is None or not leaves:
        return [False] * len(leaves)
    mask = mask_tree(as_mask(name, which), tree)
    parts = subtrees(structure(mask), mask, tree, what, name)
    return [flag for flag, part in zip(jax.tree.leaves(mask), parts, strict=True) for _ in jax.tree.leaves(part)]


def by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    return dict(named_leaves(tree))
