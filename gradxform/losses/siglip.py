"""The sigmoid loss of image and text pairs, in memory linear in the batch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core import checks
from gradxform.core.numbers import wide_dtype
from gradxform.core.types import Scalar
from gradxform.losses import vectors
from gradxform.losses.pairs import AxisName, by_example, everyone, place
from gradxform.losses.vectors import Precision
from gradxform.losses.walks import Ids, fill

BLOCK = 512
"""How many texts are taken at once."""


def siglip(
    image: jax.Array,
    text: jax.Array,
    logit_scale: Scalar,
    logit_bias: Scalar,
    *,
    ids: jax.Array | None = None,
    axis_name: AxisName = None,
    block_size: int | None = None,
    precision: Precision = "highest",
) -> jax.Array:
    """SigLIP: each image and text are told to be a pair or not, without a sum over all in each loss.

    ``-1 / N sum_ij log sigmoid(y_ij (t s_ij + b))`` with ``s`` the cosine, ``y_ij`` 1 for a pair and -1 else (Zhai and
    others, 2023, algorithm 1). The texts are gone through in blocks, forward and again backward. Of a batch on a mesh
    each device takes its own images, and the texts are sent once; where JAX does not know the mesh, call it in
    ``with jax.set_mesh(mesh):``.

    Args:
      image: (N, d), in any floating-point dtype; they need not be normalized.
      text: (N, d), the text of each image.
      logit_scale: the factor ``t`` of the cosines, above 0; the paper starts at 10 and learns its logarithm.
      logit_bias: the summand ``b``; the paper starts at -10.
      ids: (N,) integers, or None: an image and the text of another pair of equal id do not count.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which pairs are spread; all texts count.
      block_size: how many texts are taken at once; by default what is fastest.
      precision: of products of float32 vectors; see ``nt_xent``.

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
    ids = None if ids is None else vectors.ids("ids", ids, image.shape[0])
    block = BLOCK if block_size is None else vectors.static_size("block_size", block_size)
    numbers = tuple(jnp.asarray(number, wide_dtype(image.dtype)) for number in (logit_scale, logit_bias))
    exact = vectors.precision(precision)
    # Vectors of 16 bits take one pass.
    exact = exact if wide_dtype(image.dtype) == image.dtype else lax.Precision.DEFAULT
    return vectors.reduced(
        by_example(functools.partial(_siglip, block, exact), numbers, (image, text, ids), axis_name), "mean", axis_name
    )


def _siglip(
    block: int,
    precision: lax.Precision,
    numbers: tuple[jax.Array, jax.Array],
    batch: tuple[jax.Array, jax.Array, Ids],
    axis_name: AxisName,
) -> jax.Array:
    (scale, bias), (image, text, ids) = numbers, batch
    u, count = vectors.directions(image), image.shape[0]
    texts, all_ids = everyone((vectors.directions(text), ids), axis_name)
    total = texts.shape[0]
    block = min(total, block)
    blocks = -(-total // block)
    rows = place(count, axis_name) + jnp.arange(count)

    def in_blocks(array: jax.Array) -> jax.Array:
        return fill(array, blocks * block).reshape(blocks, block, *array.shape[1:])

    # Nothing of a block is kept for the backward pass but the texts.
    @jax.checkpoint
    def losses(u: jax.Array, texts: jax.Array, columns: jax.Array, column_ids: Ids) -> jax.Array:
        logits = jnp.dot(u, texts.T, precision=precision) * scale + bias
        own = rows[:, None] == columns[None]
        kept = columns[None] < total
        if ids is not None and column_ids is not None:
            kept &= own | (ids[:, None] != column_ids[None])
        return jnp.sum(jnp.where(kept, jax.nn.softplus(jnp.where(own, -logits, logits)), 0), axis=1)

    each = in_blocks(texts), jnp.arange(blocks * block).reshape(blocks, block), jax.tree.map(in_blocks, all_ids)
    found, _ = lax.scan(lambda sums, one: (sums + losses(u, *one), None), u[:, 0] * 0, each)
    return found
