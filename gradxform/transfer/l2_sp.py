"""L2-SP: a pull toward the pretrained weights."""

from __future__ import annotations

import jax

from gradxform.core.bricks import Leafwise
from gradxform.core.transformation import transformation
from gradxform.core.types import Mask, Params, Scalar, ScalarOrSchedule
from gradxform.transfer import anchor


def l2_sp_penalty(
    params: Params, pretrained: Params, *, strength: Scalar, head_strength: Scalar = 0.0, head: Mask | str | None = None
) -> jax.Array:
    """The penalty of moving away from pretrained weights.

    Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks" (ICML
    2018), equation 2: ``strength / 2 ||w - w0||**2 + head_strength / 2 ||w_new||**2``, where ``w0`` is where the
    training started. A sum of squares in float32 at least, whose gradient is 0 at the start. The paper has
    ``head_strength=0.01`` and ``strength`` from 0.001 to 1.

    Args:
      params: the params, of floating-point numbers.
      pretrained: where they started: a tree with a leaf of the same path and shape for each of ``params`` that is not
        new. What else it holds is not read.
      strength: the paper's alpha, >= 0.
      head_strength: the paper's beta, >= 0, for the leaves that are new.
      head: which leaves of ``params`` are new: a regular expression of their paths, a selector, a tree of bools or a
        prefix of one, or a function from params to one; None for none.

    Returns:
      A scalar of dtype float32, or float64 if a leaf is.

    Raises:
      TypeError: an argument of the wrong kind, or a leaf of integers, with its path.
      ValueError: a number out of its range, a leaf that ``pretrained`` lacks or has in another shape, or a
        ``head_strength`` without ``head``.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> start = {"body": jnp.array([1.0, 2.0])}
      >>> params = {"body": jnp.array([1.0, 4.0]), "head": jnp.array([3.0])}
      >>> gx.transfer.l2_sp_penalty(params, start, strength=0.5, head_strength=0.25, head="^head")
      Array(2.125, dtype=float32)
    """
    return anchor.penalty(params, pretrained, None, strength, head_strength, head)


@transformation
def add_l2_sp(
    pretrained: Params | None,
    strength: ScalarOrSchedule,
    *,
    head_strength: ScalarOrSchedule = 0.0,
    head: Mask | str | None = None,
) -> Leafwise:
    """Adds a pull toward the pretrained weights to the updates.

    ``g + strength * (w - w0)``, and ``g + head_strength * w`` for the leaves that are new: the gradient of
    ``l2_sp_penalty`` (Li, Grandvalet and Davoine, ICML 2018, equation 2). Before an adaptive rule it is the penalty
    itself, which the rule rescales; after it, and before the learning rate, it is decoupled from the rule as AdamW's
    decay is: ``chain(scale_by_adam(), add_l2_sp(None, 0.1), scale_by_learning_rate(1e-3))``.

    The state holds the pretrained weights, in their own dtype, from ``init`` on: they are sharded, donated and saved
    with the rest of it.

    Args:
      pretrained: None for the params that ``init`` sees, so that the transformation itself holds no array; or a tree
        with a leaf of the same path and shape for each of the params that is not new. (``nnx.Optimizer`` takes no
        transformation with arrays, but its plain pair, ``optax.GradientTransformationExtraArgs(*tx)``.)
      strength: the paper's alpha, >= 0, or a schedule of it.
      head_strength: the paper's beta, >= 0, or a schedule of it, for the leaves that are new.
      head: which leaves are new: a regular expression of their paths, a selector, a tree of bools or a prefix of one,
        or a function from params to one; None for none.

    Returns:
      A transformation that needs params and counts its updates.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a number out of its range, or a ``head_strength`` without ``head``; from ``init``, a leaf that
        ``pretrained`` lacks or has in another shape.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.transfer.add_l2_sp(None, 0.5)
      >>> state = tx.init({"w": 2.0})
      >>> tx.update({"w": 1.0}, state, {"w": 3.0})[0]
      {'w': Array(1.5, dtype=float32)}
    """
    return anchor.pull(pretrained, None, strength, head_strength, head)
