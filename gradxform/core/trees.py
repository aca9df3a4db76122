"""Trees of arrays and their paths: ``encoder/dense/kernel`` names a leaf in every error and every selector."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NoReturn

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradxform.core.numbers import widen
from gradxform.core.types import IsLeaf, KeyPath, PyTree, Treedef


def path_name(path: KeyPath) -> str:
    """A key path as text, ``/`` between its keys; see ``named_leaves`` for those of a tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"


def keyed_leaves(tree: PyTree, is_leaf: IsLeaf | None = None) -> list[tuple[KeyPath, PyTree]]:
    """``jax.tree_util.tree_leaves_with_path``, but what is inside a variable of Flax NNX has the variable's path.

    jax gives it the key ``value``, as it does to a field of that name; which of the two it is only the tree can tell.
    """
    found: list[tuple[KeyPath, PyTree]] = []
    stop = _is_variable if is_leaf is None else lambda x: _is_variable(x) or is_leaf(x)
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=stop):
        if not _is_variable(node) or (is_leaf is not None and is_leaf(node)):
            found.append((path, node))
        else:
            found += [
                ((*path, *below[1:]), leaf)
                for below, leaf in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_leaf)
            ]
    return found


def named_leaves(tree: PyTree, is_leaf: IsLeaf | None = None) -> list[tuple[str, PyTree]]:
    """Every leaf with its path as text, in the order of ``jax.tree.leaves``."""
    return [(path_name(path), leaf) for path, leaf in keyed_leaves(tree, is_leaf)]


def paths(tree: PyTree, *, none: bool = False) -> list[str]:
    """The path of every leaf, in the order of ``jax.tree.leaves``; ``none`` counts None as a leaf."""
    return [path for path, _ in named_leaves(tree, (lambda x: x is None) if none else None)]


def _is_variable(x: object) -> bool:
    nnx = sys.modules.get("flax.nnx")  # who has a variable has imported it
    return nnx is not None and isinstance(x, nnx.Variable)


def flatten(tree: PyTree, is_leaf: IsLeaf | None = None) -> tuple[list[PyTree], Treedef]:
    """``jax.tree.flatten``, whose types the stubs of jax leave open."""
    return jax.tree.flatten(tree, is_leaf)


def structure(tree: PyTree) -> Treedef:
    """``jax.tree.structure``, whose type the stubs of jax leave open."""
    return jax.tree.structure(tree)


def is_tracing(leaves: Iterable[object]) -> bool:
    """Whether any of ``leaves`` is a tracer."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def is_inexact(leaf: object) -> bool:
    """Whether ``leaf`` is a floating-point or complex number or an array of them."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, (float, complex)) if dtype is None else jnp.issubdtype(dtype, jnp.inexact)


def widened(tree: PyTree) -> PyTree:
    """The tree with every leaf in the dtype it is computed in; integers and keys stay as they are."""
    return jax.tree.map(lambda x: widen(jnp.asarray(x)) if is_inexact(x) else jnp.asarray(x), tree)


def refuse_integers(tree: PyTree, what: str) -> None:
    """Refuses a tree with an integer, bool or key leaf.

    Raises:
      TypeError: with the path of the first such leaf.
    """
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        if not is_inexact(leaf):  # paths are only worked out where one is to be named
            way = "masked(...) or selective_transform(...)"
            if callable(leaf):  # a module of equinox has its activation among its leaves
                way = f"eqx.filter(model, eqx.is_inexact_array) if it is part of a module of equinox, or with {way}"
            raise TypeError(
                f"{what}: expected a leaf of floating-point or complex numbers at '{paths(tree)[i]}', got "
                f"{getattr(leaf, 'dtype', type(leaf).__name__)}; leave it out with {way}"
            )


def align(
    treedef: Treedef, reference: PyTree, tree: PyTree, what: str, reference_name: str = "updates"
) -> list[PyTree]:
    """The leaves of ``tree``, which has to have the structure of ``reference``.

    Args:
      treedef: the structure to follow.
      reference: the tree it came from, for the message.
      tree: the tree to take apart.
      what: the name of ``tree``, for the message.
      reference_name: the name of ``reference``, for the message.

    Raises:
      ValueError: with the first path at which the two differ.
    """
    parts = subtrees(treedef, reference, tree, what, reference_name)
    if not jax.tree_util.all_leaves(parts):
        mismatch(reference, tree, reference_name, what)
    return parts


def subtrees(treedef: Treedef, reference: PyTree, tree: PyTree, what: str, reference_name: str) -> list[PyTree]:
    """The subtrees of ``tree`` at the leaves of ``reference``, which has to be a prefix of it: see ``align``."""
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError):
        mismatch(reference, tree, reference_name, what, prefix=True)


def mismatch(a: PyTree, b: PyTree, a_name: str, b_name: str, *, prefix: bool = False) -> NoReturn:
    """Raises the ValueError that names the first path at which two trees differ.

    With ``prefix``, a leaf of ``a`` may stand for a whole subtree of ``b``.
    """
    here, there = _leaves_by_path(a), _leaves_by_path(b)

    def fits(path: str) -> bool:
        if path in here and path in there:
            return _emptiness(here[path]) == _emptiness(there[path])
        below = not _emptiness(here.get(path)) and any(other.startswith(path + "/") for other in there)
        above = path in there and any(path.startswith(other + "/") for other in here)
        return prefix and (below or above or "(root)" in here)

    for path in [*here, *there]:
        if not fits(path):
            raise ValueError(
                f"{b_name} and {a_name} do not fit at '{path}': "
                f"{a_name}: {_describe(here, path)}; {b_name}: {_describe(there, path)}"
            )
    # The same leaves in other containers, or None for a subtree: the first node that is another.
    key_path: KeyPath = ()
    while True:
        (ours, a_node), (theirs, b_node) = map(_one_level, (a, b))
        if a_node != b_node:
            raise ValueError(
                f"{b_name} and {a_name} do not fit at '{path_name(key_path)}': {a_name}: {structure(a)}; "
                f"{b_name}: {structure(b)}"
            )
        key_path, a, b = next(
            ((*key_path, *key), x, y)
            for (key, x), (_, y) in zip(ours, theirs, strict=True)
            if structure(x) != structure(y) and not (prefix and jax.tree_util.all_leaves([x]))
        )


def _one_level(tree: PyTree) -> tuple[list[tuple[KeyPath, PyTree]], Treedef]:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)


def _emptiness(leaf: object) -> str:
    """What stands in place of an array: None, or what a mask leaves; nothing for an array."""
    return "None" if leaf is None else "masked out" if isinstance(leaf, optax.MaskedNode) else ""


def _leaves_by_path(tree: PyTree) -> dict[str, ArrayLike | None]:
    return dict(named_leaves(tree, lambda x: bool(_emptiness(x))))


def check_shapes(reference: PyTree, leaves: list[ArrayLike], others: list[ArrayLike], a_name: str, b_name: str) -> None:
    """Refuses two lists of leaves whose shapes differ.

    Raises:
      ValueError: with the path of the first pair that differs.
    """
    for i, (a, b) in enumerate(zip(leaves, others, strict=True)):
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(
                f"{b_name} and {a_name} do not fit at '{paths(reference)[i]}': "
                f"{a_name}: shape {jnp.shape(a)}; {b_name}: shape {jnp.shape(b)}"
            )


def _describe(leaves: dict[str, ArrayLike | None], path: str) -> str:
    if path not in leaves:
        return "no leaf"
    leaf = leaves[path]
    if leaf is None:
        return "None"
    return _emptiness(leaf) or f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
