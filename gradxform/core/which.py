"""Which leaves of a tree: masks, selectors and regular expressions of paths, and what they leave of a tree."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from gradxform.core.arguments import plain
from gradxform.core.selectors import Selector, compile_pattern, path_matches
from gradxform.core.trees import align, check_shapes, flatten, mismatch, named_leaves, paths, refuse_integers, structure
from gradxform.core.types import Mask, Params, PyTree, Updates


def as_mask(name: str, which: Mask | str) -> Mask:
    """A mask from what the caller gave; a string is a regular expression of paths.

    Raises:
      TypeError: a leaf of it is not a bool.
      ValueError: a string is not a regular expression.
    """
    if isinstance(which, str):
        compile_pattern(name, which)
        return path_matches(which)
    if not callable(which):
        _bools(name, which)
    return which


def mask_tree(mask: Mask, tree: PyTree, name: str = "mask") -> PyTree:
    """The mask as a tree of bools. A tree without leaves (a placeholder) is its own mask."""
    if not jax.tree.leaves(tree):
        return tree
    return _bools(name, jax.tree.map(plain, mask(tree))) if callable(mask) else mask


def flags(name: str, which: Mask | str | None, tree: PyTree, what: str = "params") -> list[bool]:
    """Whether each leaf of ``tree`` is selected, in the order of its leaves; with None, none is.

    Raises:
      TypeError: a leaf of the mask is not a bool.
      ValueError: the mask does not fit the tree, with the first path that differs.
    """
    leaves, treedef = flatten(tree)
    if which is None or not leaves:
        return [False] * len(leaves)
    mask = mask_tree(as_mask(name, which), tree, name)
    chosen = {*jax.tree.leaves(keep(mask, treedef.unflatten(range(len(leaves))), what, name))}
    return [place in chosen for place in range(len(leaves))]


def keep(mask: PyTree, tree: PyTree, what: str = "updates", name: str = "mask") -> PyTree:
    """``tree`` with an empty node wherever the mask is False.

    The mask is a prefix of the tree, or has another kind of containers with the same paths.

    Raises:
      ValueError: it does not fit, with the first path that differs.
    """
    if mask is tree:
        return tree
    chosen, treedef = flatten(mask)
    try:
        parts = treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError):
        return _keep_by_path(mask, tree, what, name)
    return treedef.unflatten([part if flag else optax.MaskedNode() for flag, part in zip(chosen, parts, strict=True)])


def is_hidden(x: Any) -> bool:
    """Whether ``x`` stands for what a mask has taken out of a tree."""
    return isinstance(x, optax.MaskedNode)


def is_partial(tree: PyTree) -> bool:
    """Whether a mask has taken something out of the tree."""
    return any(map(is_hidden, jax.tree.leaves(tree, is_leaf=is_hidden)))


@dataclasses.dataclass(frozen=True, eq=False)
class Where:
    """One mask around a stage.

    Attributes:
      mask: as the user gave it, or a function that makes it a tree.
      name: of the argument, for messages.
      extra: whether extra arguments with the structure of the updates are masked too.
    """

    mask: Any
    name: str = "mask"
    extra: bool = False

    def __call__(self, tree: PyTree) -> PyTree:
        """The tree of bools for ``tree``."""
        return mask_tree(self.mask, tree, self.name)


def kept_params(where: tuple[Where, ...], params: Params) -> Params:
    """What some masks, from the outermost in, leave of the params of a run that starts.

    Raises:
      ValueError: a mask does not fit, or a pattern in it matches nothing.
    """
    for one in where:
        if isinstance(one.mask, Selector):
            _refuse_idle(one, params)
        params = keep(one(params), params, "params", one.name)
    return params


def kept_extra(where: tuple[Where, ...], updates: Updates, extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """The extra arguments of an update, those that are like the updates masked as they are."""
    for one in where:
        if one.extra:
            mask, same = one(updates), structure(updates)
            extra = {key: keep(mask, value) if structure(value) == same else value for key, value in extra.items()}
        updates = keep(one(updates), updates)
    return extra


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Some of the leaves of the updates.

    Attributes:
      tree: the updates with empty nodes for the others.
      treedef: its structure.
      places: where its leaves are among all leaves, in order.
      order: the other way round: the number of the leaf at a place.
      params: the params of these leaves, or None.
    """

    tree: Updates
    treedef: Any
    places: list[int]
    order: dict[int, int]
    params: Params | None

    @functools.cached_property
    def checked(self) -> bool:
        """True, once no leaf was found to be of integers and no param of another shape.

        Raises:
          TypeError: a leaf of integers, with its path.
          ValueError: a param of another shape, with its path.
        """
        refuse_integers(self.tree, "updates")
        if self.params is not None:
            check_shapes(self.tree, jax.tree.leaves(self.tree), jax.tree.leaves(self.params), "updates", "params")
        return True

    def take(self, leaves: list[Any]) -> Updates:
        """The tree of these leaves out of all."""
        return self.treedef.unflatten([leaves[place] for place in self.places])


class Selections:
    """The selections of one update by their masks, each worked out once."""

    def __init__(self, updates: Updates, params: Params | None):
        leaves, self._treedef = flatten(updates)
        self._updates, self._params, self._made = updates, params, dict[tuple[Where, ...], Selection]()
        self._numbered = self._treedef.unflatten(range(len(leaves)))
        self.param_leaves: list[Any] = [None] * len(leaves)
        if params is not None:
            self._all_params(leaves)

    def __getitem__(self, where: tuple[Where, ...]) -> Selection:
        if where not in self._made:
            self._made[where] = self._select(where)
        return self._made[where]

    def _select(self, where: tuple[Where, ...]) -> Selection:
        tree, numbered, params = self._updates, self._numbered, self._params
        for one in where:
            mask = one(tree)
            numbered = keep(mask, numbered, name=one.name)
            params = None if params is None else keep(mask, params, "params", one.name)
            tree = keep(mask, tree, name=one.name)
        places, treedef = flatten(numbered)
        if params is not None:
            own = align(treedef, tree, params, "params")
            for place, param in zip(places, own, strict=True):
                self.param_leaves[place] = param
        return Selection(tree, treedef, places, {place: i for i, place in enumerate(places)}, params)

    def _all_params(self, leaves: list[Any]) -> None:
        # What a mask hides may have another structure; what it does not hide is checked where it is used.
        try:
            own = self._treedef.flatten_up_to(self._params)
        except (ValueError, TypeError, KeyError):
            return
        self.param_leaves = [x if jax.tree_util.all_leaves([x]) else None for x in own]


def _bools(name: str, mask: PyTree) -> PyTree:
    if not all(isinstance(leaf, bool) for leaf in jax.tree.leaves(mask)):
        path, leaf = next(pair for pair in named_leaves(mask) if not isinstance(pair[1], bool))
        raise TypeError(f"{name}: expected a bool at '{path}', got {leaf!r}")
    return mask


def _keep_by_path(mask: PyTree, tree: PyTree, what: str, name: str) -> PyTree:
    """As ``keep``, for a mask whose containers are of another kind: a dict for the state of a module."""
    by_path = dict(named_leaves(mask))
    leaves, treedef = flatten(tree)
    found = [next((at for at in _prefixes(path) if at in by_path), "") for path in paths(tree)]
    if {*found} != {*by_path} or not leaves:
        mismatch(mask, tree, name, what, prefix=True)
    return treedef.unflatten([leaf if by_path[at] else optax.MaskedNode()
                              for leaf, at in zip(leaves, found, strict=True)])


def _prefixes(path: str) -> list[str]:
    keys = path.split("/")
    return ["/".join(keys[:n]) for n in range(len(keys), 0, -1)]


def _refuse_idle(where: Where, tree: PyTree) -> None:
    """Refuses a selector with a pattern that no path matches; what an outer mask hides may be what it is for."""
    names = paths(tree)
    for pattern in where.mask.patterns if names and not is_partial(tree) else ():
        if not any(pattern.search(name) for name in names):
            raise ValueError(f"{where.name}: expected {pattern.pattern!r} to match some path, got the paths "
                             f"{', '.join(names[:8])}{', ...' * (len(names) > 8)}")
