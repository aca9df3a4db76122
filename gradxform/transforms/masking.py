"""Transformations of a part of the tree: each is a rewrite of the bricks in what it is given."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import jax
import optax

from gradxform.core.foreign import stage_of
from gradxform.core.stages import Chain, Stage, only
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.trees import named_leaves
from gradxform.core.types import AnyTransformation, Mask, Params, PyTree, State
from gradxform.core.which import Where, as_mask
from gradxform.transforms.combine import set_to_zero


@transformation
def masked(inner: AnyTransformation, mask: Mask | str, *, mask_compatible_extra_args: bool = False) -> Chain:
    """Applies a transformation where the mask is True and passes the other updates through unchanged.

    To hold the other params fixed use ``selective_transform`` or ``freeze``: what passes through here is still added.

    Args:
      inner: the transformation; it sees no trace of the other leaves and keeps no state for them.
      mask: a tree of bools or a prefix of one, a function from params to one, a selector, or a regular
        expression of paths. A function is given the params, and the gradients as they come in: it may look at paths,
        shapes and dtypes, but not at values.
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
    where = Where(as_mask("mask", mask), "mask", mask_compatible_extra_args)
    return Chain(
        (only(stage_of(inner, "inner"), where),),
        lambda states: optax.MaskedState(states[0]),
        lambda state: [state.inner_state],
        optax.MaskedState,
    )


@transformation
def partition(
    transforms: Mapping[Hashable, AnyTransformation],
    param_labels: PyTree | Callable[[Params], PyTree],
    *,
    mask_compatible_extra_args: bool = False,
) -> Chain:
    """Applies to each leaf the transformation of its label.

    Args:
      transforms: the transformations by label.
      param_labels: a tree of labels or a prefix of one, or a function from params to one.
      mask_compatible_extra_args: as in ``masked``.

    Returns:
      A transformation with the state of optax's.

    Raises:
      TypeError: a value of ``transforms`` is not a transformation, or the labels cannot be sorted, as jax sorts the
        keys of a dict.
      ValueError: a leaf has a label without a transformation (with its path), or the labels do not fit the params.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.partition({"fast": gx.scale(-1.0), "slow": gx.scale(-0.1)}, {"head": "fast", "body": "slow"})
      >>> tx.update({"head": 1.0, "body": 1.0}, tx.init({"head": 0.0, "body": 0.0}))[0]
      {'body': Array(-0.1, dtype=float32), 'head': Array(-1., dtype=float32)}
    """
    if not isinstance(transforms, Mapping):
        raise TypeError(f"transforms: expected a dict of transformations by label, got {transforms!r}")
    numbers = {label: i for i, label in enumerate(transforms)}

    def numbered(tree: PyTree) -> PyTree:
        if not jax.tree.leaves(tree):
            return tree
        labels = param_labels(tree) if callable(param_labels) else param_labels
        for path, label in named_leaves(labels):
            if label not in numbers:
                raise ValueError(
                    f"param_labels: expected one of {sorted(map(repr, numbers))} at '{path}', got {label!r}"
                )
        return jax.tree.map(numbers.__getitem__, labels)

    return _divided(
        {
            label: only(
                stage_of(tx, f"transforms[{label!r}]"), Where(numbered, "param_labels", mask_compatible_extra_args, i)
            )
            for i, (label, tx) in enumerate(transforms.items())
        }
    )


@transformation
def freeze(mask: Mask | str) -> Transformation:
    """Makes the updates zero where the mask is True.

    Placed last in a chain it holds those params fixed. ``selective_transform`` also spares their state.

    Args:
      mask: as in ``masked``.

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
def selective_transform(optimizer: AnyTransformation, *, freeze_mask: Mask | str) -> Chain:
    """Applies a transformation to what is not frozen; the frozen leaves get a zero update.

    A frozen leaf is invisible to ``optimizer``: it holds no state for it, its gradient does not count in a norm, no
    weight decay moves it, and it may be of any dtype.

    Args:
      optimizer: the transformation of the other leaves.
      freeze_mask: True where a leaf is frozen, in any form that ``masked`` takes.

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
    mask = as_mask("freeze_mask", freeze_mask)
    return _divided(
        {
            "train": only(stage_of(optimizer, "optimizer"), Where(mask, "freeze_mask", label=False)),
            "freeze": only(stage_of(set_to_zero()), Where(mask, "freeze_mask")),
        }
    )


def _divided(parts: Mapping[Hashable, Stage]) -> Chain:
    """Stages that each have leaves of their own, the state as optax nests it."""

    def pack(states: list[State]) -> optax.transforms.PartitionState:
        return optax.transforms.PartitionState(dict(zip(parts, map(optax.MaskedState, states), strict=True)))

    return Chain(
        tuple(parts.values()),
        pack,
        lambda state: [state.inner_states[label].inner_state for label in parts],
        optax.transforms.PartitionState,
    )
