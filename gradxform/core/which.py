"""Which leaves of a tree: masks, selectors and regular expressions of paths, and what they leave of a tree."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import optax

from gradxform.core.arguments import plain
from gradxform.core.selectors import Selector, compile_pattern, path_matches
from gradxform.core.trees import align, check_shapes, flatten, mismatch, named_leaves, paths, refuse_integers, structure
from gradxform.core.types import Extra, Mask, Params, PyTree, Treedef


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


def flags(
    name: str, which: Mask | str | None, tree: PyTree, what: str = "params", *, every_pattern: bool = False
) -> list[bool]:
    """Whether each leaf of ``tree`` is selected, in the order of its leaves; with None, none is.

    Raises:
      TypeError: a leaf of the mask is not a bool.
      ValueError: the mask does not fit the tree, with the first path that differs; or a pattern in it matches nothing,
        where ``every_pattern`` has to.
    """
    leaves, treedef = flatten(tree)
    if which is None or not leaves:
        return [False] * len(leaves)
    which = as_mask(name, which)
    if every_pattern:
        _refuse_idle(name, which, tree)
    mask = mask_tree(which, tree, name)
    chosen = {*jax.tree.leaves(keep(mask, treedef.unflatten(range(len(leaves))), what, name))}
    return [place in chosen for place in range(len(leaves))]


def keep(mask: PyTree, tree: PyTree, what: str = "updates", name: str = "mask") -> PyTree:
    """``tree`` with an empty node wherever the mask is False.

    The mask is a prefix of the tree, or has another kind of containers with the same paths.

    Raises:
      ValueError: it does not fit, with the first path that differs.
    """
    chosen, treedef = flatten(mask)
    try:
        parts = treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError):
        return _keep_by_path(mask, tree, what, name)
    return treedef.unflatten([part if flag else optax.MaskedNode() for flag, part in zip(chosen, parts, strict=True)])


def is_hidden(x: object) -> bool:
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
      label: what its leaves are where the stage works; one that is no bool is of a function that checks its own.
    """

    mask: Mask
    name: str = "mask"
    extra: bool = False
    label: bool | int = True

    def labels(self, tree: PyTree) -> PyTree:
        """The mask as a tree of bools, or of other labels."""
        return mask_tree(self.mask, tree, self.name) if isinstance(self.label, bool) else self.mask(tree)


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Some of the leaves of a tree.

    Attributes:
      tree: the tree with empty nodes for the others.
      treedef: its structure.
      order: the number of each of its leaves by the place of the leaf among all, in order.
      params: the params of these leaves, or None.
    """

    tree: PyTree
    treedef: Treedef
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

    def take(self, leaves: Sequence[PyTree]) -> PyTree:
        """The tree of these leaves out of all."""
        return self.treedef.unflatten([leaves[place] for place in self.order])


class Selections:
    """What masks, from the outermost in, leave of the updates of a step, or of the params of a run that starts.

    Each mask is worked out once, for all stages that it is around.
    """

    def __init__(self, tree: PyTree, params: Params | None = None, *, starts: bool = False):
        leaves, treedef = flatten(tree)
        self._what, self._starts = "params" if starts else "updates", starts
        self._made, self._labels = dict[tuple[Where, ...], Selection](), dict[tuple[object, ...], PyTree]()
        # The tree, the places of its leaves and the params, as the masks leave them.
        self._left: dict[tuple[Where, ...], tuple[PyTree, PyTree, Params | None]] = {
            (): (tree, treedef.unflatten(range(len(leaves))), params)
        }
        self.param_leaves: list[PyTree] = [None] * len(leaves)
        # What a mask hides may have another structure; what it does not hide is checked where it is used.
        with contextlib.suppress(ValueError, TypeError, KeyError):
            self.param_leaves = [x if jax.tree_util.all_leaves([x]) else None for x in treedef.flatten_up_to(params)]

    def __getitem__(self, where: tuple[Where, ...]) -> Selection:
        """The selection by some masks.

        Raises:
          ValueError: a mask does not fit, or a pattern in it matches nothing in the params of a run that starts.
        """
        if where not in self._made:
            tree, numbered, params = self._behind(where)
            places, treedef = flatten(numbered)
            if params is not None:
                for place, param in zip(places, align(treedef, tree, params, "params"), strict=True):
                    self.param_leaves[place] = param
            self._made[where] = Selection(tree, treedef, {place: i for i, place in enumerate(places)}, params)
        return self._made[where]

    def extra(self, where: tuple[Where, ...], given: Extra) -> Extra:
        """The extra arguments of an update, those that are like the updates masked as they are."""
        for n, one in enumerate(where, 1):
            if one.extra:
                mask, same = self._mask(where[:n]), structure(self._behind(where[: n - 1])[0])
                given = {key: keep(mask, value) if structure(value) == same else value for key, value in given.items()}
        return given

    def _behind(self, where: tuple[Where, ...]) -> tuple[PyTree, PyTree, Params | None]:
        if where not in self._left:
            (tree, numbered, params), mask, name = self._behind(where[:-1]), self._mask(where), where[-1].name
            self._left[where] = (
                keep(mask, tree, self._what, name),
                keep(mask, numbered, self._what, name),
                None if params is None else keep(mask, params, "params", name),
            )
        return self._left[where]

    def _mask(self, where: tuple[Where, ...]) -> PyTree:
        *outer, one = where
        tree, key = self._behind(tuple(outer))[0], (*outer, id(one.mask))
        if key not in self._labels:
            if self._starts:
                _refuse_idle(one.name, one.mask, tree)
            self._labels[key] = one.labels(tree)
        return jax.tree.map(lambda label: label == one.label, self._labels[key])


def _bools(name: str, mask: PyTree) -> PyTree:
    if not all(isinstance(leaf, bool) for leaf in jax.tree.leaves(mask)):
        path, leaf = next(pair for pair in named_leaves(mask) if not isinstance(pair[1], bool))
        raise TypeError(f"{name}: expected a bool at '{path}', got {leaf!r}")
    return mask


def _keep_by_path(mask: PyTree, tree: PyTree, what: str, name: str) -> PyTree:
    """As ``keep``, for a mask whose containers are of another kind: a dict for the state of a module."""
    by_path = dict(named_leaves(mask))
    leaves, treedef = flatten(tree)
    above = [[*itertools.accumulate(path.split("/"), "{}/{}".format)] for path in paths(tree)]
    found = [next((at for at in reversed(prefixes) if at in by_path), "") for prefixes in above]
    if {*found} != {*by_path} or not leaves:
        mismatch(mask, tree, name, what, prefix=True)
    return treedef.unflatten(
        [leaf if by_path[at] else optax.MaskedNode() for leaf, at in zip(leaves, found, strict=True)]
    )


def _refuse_idle(name: str, mask: object, tree: PyTree) -> None:
    """Refuses a selector with a pattern that no path matches; what an outer mask hides may be what it is for."""
    found = paths(tree) if isinstance(mask, Selector) and not is_partial(tree) else []
    for pattern in mask.patterns if isinstance(mask, Selector) and found else ():
        if not any(map(pattern.search, found)):
            raise ValueError(
                f"{name}: expected {pattern.pattern!r} to match some path, got the paths "
                f"{', '.join(found[:8])}{', ...' * (len(found) > 8)}; a part that may be missing goes "
                "into one expression with what is there: 'kernel|adapter'"
            )
