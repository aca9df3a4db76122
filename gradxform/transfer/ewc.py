"""Elastic weight consolidation: a pull toward earlier weights, each by what it told about the earlier task."""

from __future__ import annotations

import jax

from gradxform.core.bricks import Leafwise
from gradxform.core.transformation import transformation
from gradxform.core.types import Mask, Params, PyTree, Scalar, ScalarOrSchedule
from gradxform.transfer import anchor


def ewc_penalty(
    params: Params,
    pretrained: Params,
    fisher: PyTree,
    *,
    strength: Scalar,
    head_strength: Scalar = 0.0,
    head: Mask | str | None = None,
) -> jax.Array:
    """The penalty of moving weights that an earlier task depends on.

    Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks" (PNAS 2017), equation 3:
    ``strength / 2 sum(F * (w - w0)**2)``, with the diagonal ``F`` of the Fisher information at ``w0``. With ones for
    ``F`` it is ``l2_sp_penalty``. Accumulated in float32 at least.

    Args:
      params: the params, of floating-point numbers.
      pretrained: where they were at the end of the earlier task: a tree with a leaf of the same path and shape for
        each of ``params`` that is not new. What else it holds is not read.
      fisher: how much each weight counts, >= 0, a tree like ``pretrained``: see ``fisher_diagonal``.
      strength: the paper's lambda, >= 0.
      head_strength: the factor on half the sum of squares of the leaves that are new, >= 0.
      head: which leaves of ``params`` are new: a regular expression of their paths, a selector, a tree of bools or a
        prefix of one, or a function from params to one; None for none.

    Returns:
      A scalar of dtype float32, or float64 if a leaf is.

    Raises:
      TypeError: an argument of the wrong kind, or a leaf of integers, with its path.
      ValueError: a number out of its range, a leaf that ``pretrained`` or ``fisher`` lacks or has in another shape,
        or a ``head_strength`` without ``head``.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> start, fisher = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([9.0, 0.5])}
      >>> gx.transfer.ewc_penalty({"w": jnp.array([1.0, 4.0])}, start, fisher, strength=2.0)
      Array(2., dtype=float32)
    """
    return anchor.penalty(params, pretrained, fisher, strength, head_strength, head)


@transformation
def add_ewc(
    pretrained: Params | None,
    fisher: PyTree,
    strength: ScalarOrSchedule,
    *,
    head_strength: ScalarOrSchedule = 0.0,
    head: Mask | str | None = None,
) -> Leafwise:
    """Adds the pull of elastic weight consolidation to the updates.

    ``g + strength * F * (w - w0)``, the gradient of ``ewc_penalty`` (Kirkpatrick et al., PNAS 2017, equation 3), and
    ``g + head_strength * w`` for the leaves that are new. Before an adaptive rule it is the penalty itself, which the
    rule rescales; after it, and before the learning rate, it is decoupled from the rule as AdamW's decay is.

    The state holds the earlier weights and ``fisher``, in their own dtypes, from ``init`` on: they are sharded,
    donated and saved with the rest of it. The transformation itself holds arrays too: ``nnx.Optimizer``, which takes
    none with arrays, takes it as a plain pair, ``optax.GradientTransformationExtraArgs(*tx)``.

    Args:
      pretrained: None for the params that ``init`` sees; or a tree with a leaf of the same path and shape for each of
        the params that is not new.
      fisher: how much each weight counts, >= 0, a tree like ``pretrained``: see ``fisher_diagonal``.
      strength: the paper's lambda, >= 0, or a schedule of it.
      head_strength: the factor on the leaves that are new, >= 0, or a schedule of it.
      head: which leaves are new: a regular expression of their paths, a selector, a tree of bools or a prefix of one,
        or a function from params to one; None for none.

    Returns:
      A transformation that needs params and counts its updates.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a number out of its range, or a ``head_strength`` without ``head``; from ``init``, a leaf that
        ``pretrained`` or ``fisher`` lacks or has in another shape.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.transfer.add_ewc(None, {"w": 4.0}, 0.5)
      >>> state = tx.init({"w": 2.0})
      >>> tx.update({"w": 1.0}, state, {"w": 3.0})[0]
      {'w': Array(3., dtype=float32)}
    """
    return anchor.pull(pretrained, fisher, strength, head_strength, head)
