"""Transformations of a part of the tree."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import optax

from gradxform.core import stages
from gradxform.core.arguments import plain
from gradxform.core.stages import General
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.trees import mismatch, named_leaves, structure, subtrees
from gradxform.core.types import AnyTransformation, Mask, Params, PyTree, State, Updates
from gradxform.transforms.combine import check_transformation, set_to_zero


@transformation
def masked(inner: AnyTransformation, mask: Mask, *, mask_compatible_extra_args: bool = False) -> General:
    """Applies a transformation where the mask is True and passes the other updates through unchanged.

    To hold the other params fixed use ``selective_transform`` or ``freeze``: what passes through here is still added.

    Args:
      inner: the transformation; it sees no trace of the other leaves and keeps no state for them.
      mask: a tree of bools or a prefix of one, a function from params to one, or a selector.
      mask_compatible_extra_args: whether extra arguments of ``update`` with the structure of the updates are masked.

    Returns:
      A transformation with the state of optax's.

    Raises:
      TypeError: ``inner`` is not a transformation, or the mask has a leaf that is not a bool.
      ValueError: the mask does not fit the params, with the first path that differs.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.masked(gx.scale(0.5), {"w": True, "b": False})
      >>> tx.update({"w": 1.0, "b": 1.0}, tx.init({"w": 0.0, "b": 0.0}))[0]
      {'b': Array(1., dtype=float32), 'w': Array(0.5, dtype=float32)}
    """
    check_transformation("inner", inner)
    check_mask("mask", mask)
    stage = stages.stage_of(inner)

    def init(params: Params) -> optax.MaskedState:
        return optax.MaskedState(stages.init(stage, _keep(mask_tree(mask, params), params, "params")))

    def update(updates: Updates, state: optax.MaskedState, params: Params | None = None,
               **extra: Any) -> tuple[Updates, optax.MaskedState]:
        tree = mask_tree(mask, updates)
        if mask_compatible_extra_args:
            extra = {k: _keep(tree, v) if structure(v) == structure(updates) else v for k, v in extra.items()}
        new, inner_state = stages.run(stage, _keep(tree, updates), state.inner_state,
                                      None if params is None else _keep(tree, params, "params"), extra, "masked")
        return _merge(tree, new, updates), optax.MaskedState(inner_state)

    return General(init, update, inner=lambda state: {"inner": (inner, state.inner_state)})


@transformation
def partition(transforms: Mapping[Hashable, AnyTransformation], param_labels: PyTree | Callable[[Params], PyTree], *,
              mask_compatible_extra_args: bool = False) -> General:
    """Applies to each leaf the transformation of its label.

    Args:
      transforms: the transformations by label; the labels are of one type and can be sorted, such as strings.
      param_labels: a tree of labels or a prefix of one, or a function from params to one.
      mask_compatible_extra_args: whether extra arguments of ``update`` with the structure of the updates are masked.

    Returns:
      A transformation with the state of optax's.

    Raises:
      TypeError: a value of ``transforms`` is not a transformation, or its labels cannot be sorted.
      ValueError: a leaf has a label without a transformation (with its path), or the labels do not fit the params.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.partition({"fast": gx.scale(-1.0), "slow": gx.scale(-0.1)}, {"head": "fast", "body": "slow"})
      >>> tx.update({"head": 1.0, "body": 1.0}, tx.init({"head": 0.0, "body": 0.0}))[0]
      {'body': Array(-0.1, dtype=float32), 'head': Array(-1., dtype=float32)}
    """
    if not isinstance(transforms, Mapping):
        raise TypeError(f"transforms: expected a dict of transformations by label, got {transforms!r}")
    for label, tx in transforms.items():
        check_transformation(f"transforms[{label!r}]", tx)
    try:
        sorted(transforms)  # type: ignore[type-var]
    except TypeError as error:
        raise TypeError("transforms: expected labels of one type that can be sorted, as jax sorts the keys of a dict, "
                        f"got {', '.join(map(repr, transforms))}") from error

    def part(label: Hashable, tx: AnyTransformation, labels: PyTree) -> Transformation:
        return masked(tx, jax.tree.map(lambda own: own == label, labels),
                      mask_compatible_extra_args=mask_compatible_extra_args)

    def labels_of(tree: PyTree) -> PyTree:
        labels = param_labels(tree) if callable(param_labels) else param_labels
        for path, label in named_leaves(labels):
            if label not in transforms:
                raise ValueError(f"param_labels: expected one of {sorted(map(repr, transforms))} at "
                                 f"'{path}', got {label!r}")
        return labels

    def init(params: Params) -> optax.transforms.PartitionState:
        labels = labels_of(params) if jax.tree.leaves(params) else None
        return optax.transforms.PartitionState({
            label: part(label, tx, labels).init(params) if labels is not None
            else optax.MaskedState(tx.init(params)) for label, tx in transforms.items()})

    def update(updates: Updates, state: optax.transforms.PartitionState, params: Params | None = None,
               **extra: Any) -> tuple[Updates, optax.transforms.PartitionState]:
        labels, new = labels_of(updates), {}
        for label, tx in transforms.items():
            updates, new[label] = stages.run(part(label, tx, labels).stage, updates, state.inner_states[label], params,
                                             extra, "partition")
        return updates, optax.transforms.PartitionState(new)

    return General(init, update, inner=lambda state: {
        f"transforms/{label}": (tx, state.inner_states[label].inner_state) for label, tx in transforms.items()})


@transformation
def freeze(mask: Mask) -> Transformation:
    """Makes the updates zero where the mask is True.

    Placed last in a chain it holds those params fixed. ``selective_transform`` also spares their state.

    Args:
      mask: a tree of bools or a prefix of one, a function from params to one, or a selector.

    Returns:
      A transformation without arrays in its state.

    Raises:
      TypeError: the mask has a leaf that is not a bool.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.freeze(gx.path_matches("body"))
      >>> tx.update({"head": 1.0, "body": 1.0}, tx.init({"head": 0.0, "body": 0.0}))[0]
      {'body': Array(-0., dtype=float32), 'head': Array(1., dtype=float32)}
    """
    return masked(set_to_zero(), mask)


@transformation
def selective_transform(optimizer: AnyTransformation, *, freeze_mask: Mask) -> General:
    """Applies a transformation to what is not frozen; the frozen leaves get a zero update.

    A frozen leaf is invisible to ``optimizer``: it holds no state for it, its gradient does not count in a norm, no
    weight decay moves it, and it may be of any dtype.

    Args:
      optimizer: the transformation of the other leaves.
      freeze_mask: True where a leaf is frozen: a tree of bools or a prefix of one, a function from params to one, or
        a selector.

    Returns:
      A transformation with the state of optax's.

    Raises:
      TypeError: ``optimizer`` is not a transformation, or the mask has a leaf that is not a bool.
      ValueError: the mask does not fit the params, with the first path that differs.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.selective_transform(gx.sgd(0.1), freeze_mask=gx.path_matches("body"))
      >>> tx.update({"head": 1.0, "body": 1.0}, tx.init({"head": 0.0, "body": 0.0}))[0]
      {'body': Array(-0., dtype=float32), 'head': Array(-0.1, dtype=float32)}
    """
    check_transformation("optimizer", optimizer)
    check_mask("freeze_mask", freeze_mask)
    stage = stages.stage_of(optimizer)

    def thawed(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda frozen: not frozen, mask_tree(freeze_mask, tree))

    def init(params: Params) -> optax.transforms.PartitionState:
        return _frozen_state(stages.init(stage, _keep(thawed(params), params, "params")))

    def update(updates: Updates, state: optax.transforms.PartitionState, params: Params | None = None,
               **extra: Any) -> tuple[Updates, optax.transforms.PartitionState]:
        mask = thawed(updates)
        new, inner_state = stages.run(stage, _keep(mask, updates), state.inner_states["train"].inner_state,
                                      None if params is None else _keep(mask, params, "params"), extra,
                                      "selective_transform")
        zeros = set_to_zero().update(updates, optax.EmptyState())[0]
        return _merge(mask, new, zeros), _frozen_state(inner_state)

    return General(init, update, inner=lambda state: {
        "optimizer": (optimizer, state.inner_states["train"].inner_state)})


def check_mask(name: str, mask: Mask) -> None:
    """Refuses a mask with a leaf that is not a bool.

    Raises:
      TypeError: with the path of that leaf.
    """
    if callable(mask):
        return
    for path, leaf in named_leaves(mask):
        if not isinstance(leaf, bool):
            raise TypeError(f"{name}: expected a bool at '{path}', got {leaf!r}")


def mask_tree(mask: Mask, tree: PyTree) -> PyTree:
    """The mask as a tree of bools. A tree without leaves (a placeholder) is its own mask."""
    if not jax.tree.leaves(tree):
        return tree
    if not callable(mask):
        return mask
    made = jax.tree.map(plain, mask(tree))
    check_mask("mask", made)
    return made


def _frozen_state(state: State) -> optax.transforms.PartitionState:
    return optax.transforms.PartitionState(
        {"train": optax.MaskedState(state), "freeze": optax.MaskedState(optax.EmptyState())})


def _keep(mask: PyTree, tree: PyTree, what: str = "updates") -> PyTree:
    """``tree`` with an empty node wherever the mask is False."""
    if mask is tree:
        return tree
    flags, treedef = jax.tree.flatten(mask)
    parts = subtrees(treedef, mask, tree, what, "mask")
    return jax.tree.unflatten(treedef, [
        part if flag else optax.MaskedNode() for flag, part in zip(flags, parts, strict=True)])


def _merge(mask: PyTree, new: Updates, old: Updates) -> Updates:
    """``new`` where the mask is True, ``old`` elsewhere."""
    if structure(_keep(mask, old)) != structure(new):
        mismatch(_keep(mask, old), new, "the updates that came in", "the updates that went out")
    return jax.tree.map(lambda flag, a, b: a if flag else b, mask, new, old)


