"""The sigmoid loss of image and text pairs, in memory linear in the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core import checks
from gradxform.core.types import Scalar
from gradxform.losses import vectors
from gradxform.losses.pairs import AxisName

BLOCK = 512


def siglip(image: jax.Array, text: jax.Array, logit_scale: Scalar, logit_bias: Scalar, *, axis_name: AxisName = None,
           block_size: int | None = None) -> jax.Array:
    """SigLIP: each image and text are told to be a pair or not, without a sum over all in each loss.

    ``-1 / N sum_ij log sigmoid(y_ij (t s_ij + b))`` with ``s`` the cosine, ``y_ij`` 1 for a pair and -1 else (Zhai and
    others, 2023, algorithm 1). The texts are gone through in blocks, forward and again backward.

    Args:
      image: (N, d), in any floating-point dtype; they need not be normalized.
      text: (N, d), the text of each image.
      logit_scale: the factor ``t`` of the cosines, above 0; the paper starts at 10 and learns its logarithm.
      logit_bias: the summand ``b``; the paper starts at -10.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which pairs are spread; all texts count.
      block_size: how many texts are taken at once; by default what is fastest.

    Returns:
      The loss, a scalar in float32 at least.

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: shapes differ, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> gx.losses.siglip(jnp.eye(2), jnp.eye(2), 10.0, -5.0).round(4)
      Array(0.0134, dtype=float32)
    """
    image, text = vectors.pair(("image", "text"), image, text)
    vectors.positive("logit_scale", logit_scale)
    checks.real("logit_bias", logit_bias)
    vectors.number("logit_bias", logit_bias)
    u, v = vectors.directions(image), vectors.directions(text)
    count, first = u.shape[0], jnp.asarray(0)
    if axis_name is not None:
        first = lax.axis_index(axis_name) * count
        v = lax.all_gather(v, axis_name, tiled=True)
    block = min(v.shape[0], BLOCK if block_size is None else vectors.static_size("block_size", block_size))
    own = first + jnp.arange(count)

    # Nothing of a block is kept for the backward pass but the texts.
    @jax.checkpoint
    def losses(u: jax.Array, texts: jax.Array, ids: jax.Array) -> jax.Array:
        logits = jnp.dot(u, texts.T, precision=lax.Precision.HIGHEST) * logit_scale + logit_bias
        signed = jnp.where(own[:, None] == ids[None], -logits, logits)
        return jnp.sum(jnp.where(ids[None] < v.shape[0], jax.nn.softplus(signed), 0), axis=1)

    blocks = -(-v.shape[0] // block)
    texts = jnp.pad(v, ((0, blocks * block - v.shape[0]), (0, 0))).reshape(blocks, block, -1)
    ids = jnp.arange(blocks * block).reshape(blocks, block)
    total, _ = lax.scan(lambda sums, one: (sums + losses(u, *one), None), u[:, 0] * 0, (texts, ids))
    return vectors.reduced(total, "mean", axis_name)
