"""Freezing parts of a model, running statistics included."""

from __future__ import annotations

import dataclasses
import re

import jax
from flax import nnx

from gradxform.core.trees import align, check_shapes, structure
from gradxform.core.types import KeyPath, Mask, PyTree
from gradxform.core.which import as_mask, flags


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A filter of Flax NNX: the params outside of what is frozen.

    Attributes:
      frozen: a regular expression of the paths that are frozen.
    """

    frozen: str

    def __call__(self, path: KeyPath, value: object) -> bool:
        """Whether this variable is a param that trains."""
        return isinstance(value, nnx.Param) and re.search(self.frozen, _name(path)) is None


def freeze_modules(model: nnx.Module, frozen: str) -> Trainable:
    """Freezes parts of a Flax NNX model: their norms use the running statistics and leave them as they are.

    The filter that is returned keeps the optimizer and the gradient to the other params, so that no decay, no
    momentum and no clipping touches the frozen ones or counts them. Dropout goes on.

    A norm of gradxform stays frozen from here on, whatever ``model.train()`` says. One of Flax is only told to use its
    running statistics, which ``model.train()`` takes back: call this after it.

    Args:
      model: the model, whose norms are set.
      frozen: a regular expression of the paths that are frozen, such as ``"^backbone/"``: those of params, and those of
        norms with a ``/`` behind.

    Returns:
      A filter for ``nnx.Optimizer(model, tx, wrt=...)`` and ``nnx.DiffState(0, ...)`` that selects the params which
      train.

    Raises:
      TypeError: ``frozen`` is not a string.
      ValueError: it is not a regular expression, or no param matches it.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> import gradxform as gx
      >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), gx.norm.nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
      ...                        nnx.Linear(4, 1, rngs=nnx.Rngs(0)))
      >>> trainable = gx.transfer.freeze_modules(model, "^layers/[01]/")
      >>> optimizer = nnx.Optimizer(model, gx.adamw(1e-3), wrt=trainable)
      >>> loss = lambda model: model(jax.numpy.ones((8, 3))).mean()
      >>> grads = nnx.grad(loss, argnums=nnx.DiffState(0, trainable))(model)
      >>> [".".join(map(str, path)) for path, _ in nnx.to_flat_state(grads)]
      ['layers.2.bias', 'layers.2.kernel']
      >>> _ = optimizer.update(model, grads)
    """
    if not isinstance(frozen, str):
        raise TypeError(f"frozen: expected a regular expression, got {frozen!r}")
    as_mask("frozen", frozen)
    params = [_name(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    if not any(re.search(frozen, name) for name in params):
        raise ValueError(
            f"frozen: expected a regular expression that matches some param, got {frozen!r} for "
            f"{', '.join(params[:8])}{', ...' * (len(params) > 8)}"
        )
    for path, module in nnx.iter_modules(model):
        if re.search(frozen, f"{_name(path)}/"):
            if hasattr(module, "frozen") and hasattr(module, "use_running_average"):
                module.frozen = True
            elif hasattr(module, "use_running_average"):
                module.use_running_average = True
    return Trainable(frozen)


def keep_frozen(old: PyTree, new: PyTree, frozen: Mask | str) -> PyTree:
    """The new tree, with the old leaves where they are frozen.

    For what a step returns beside the params, such as the ``batch_stats`` of Flax Linen: a frozen part keeps its
    running statistics to the last bit. So that it is also normalized by them, call it with ``use_running_average`` or
    make its norms with ``frozen=True`` (``gx.norm.linen``).

    Args:
      old: the tree before the step.
      new: the tree after it, of the same structure, shapes and dtypes.
      frozen: which leaves are frozen: a regular expression of their paths, a selector, a tree of bools or a prefix of
        one, or a function from ``old`` to one.

    Returns:
      A tree like ``new``.

    Raises:
      TypeError: a leaf of the mask is not a bool.
      ValueError: the trees or the mask do not fit, with the first path that differs.

    Example:
      >>> import gradxform as gx
      >>> old = {"backbone": {"mean": 1.0}, "head": {"mean": 1.0}}
      >>> new = {"backbone": {"mean": 2.0}, "head": {"mean": 2.0}}
      >>> gx.transfer.keep_frozen(old, new, "^backbone/")
      {'backbone': {'mean': 1.0}, 'head': {'mean': 2.0}}
    """
    leaves, treedef = jax.tree.flatten(old)
    others = align(structure(old), old, new, "new", "old")
    check_shapes(old, leaves, others, "old", "new")
    kept = [a if flag else b for a, b, flag in zip(leaves, others, flags("frozen", frozen, old, "old"), strict=True)]
    return jax.tree.unflatten(treedef, kept)


def _name(path: KeyPath) -> str:
    return "/".join(map(str, path))
