"""Contrastive losses over all pairs of a batch, in memory linear in the batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradxform.core import arrays, checks
from gradxform.core.isolate import isolated
from gradxform.core.numbers import wide_dtype
from gradxform.core.types import Scalar
from gradxform.losses import vectors
from gradxform.losses.tiles import SAFE_SCALE, Tiling, tiled_lse

AxisName = str | tuple[str, ...] | None
BLOCK = 512
"""Rows and columns of a tile, at least: 1 MiB in float32, which a core's cache holds."""
WHOLE = 2048
"""Up to so many rows and columns are one tile: its exponentials serve forward and backward pass, in 16 MiB at most."""


def nt_xent(z1: jax.Array, z2: jax.Array, temperature: Scalar = 0.5, *, axis_name: AxisName = None,
            reduction: str = "mean", block_size: int | None = None) -> jax.Array:
    """SimCLR's loss: each view is to find the other view of its image among all views of all images.

    Over both views ``u = [z1; z2]`` of ``N`` images, normalized, ``l_i = -log(exp(s_ij / t) / sum_{k != i}
    exp(s_ik / t))`` with ``s`` the cosine and ``j`` the other view of ``i`` (Chen and others, 2020, eq. 1), averaged
    over the ``2 N``. SimCLR's published code returns twice that. The matrix of similarities is never made: it is
    gone through in tiles, once forward and once backward, each tile for both of its triangles. Losses near 0 keep
    their digits.

    Args:
      z1: (N, d), the first views, in any floating-point dtype; they need not be normalized.
      z2: (N, d), the second views in the same order.
      temperature: above 0; may be traced, and has a gradient.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which images are spread: all are negatives, and the
        loss is over all; not needed under plain ``jit``.
      reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the losses of the first views, then of the second.
      block_size: rows and columns of a tile; by default what is fastest. ``2 N`` and more is the dense form.

    Returns:
      The loss in float32 at least, a scalar or (2 N,).

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: shapes differ, there is a single image, or a number is out of range.

    Example:
      >>> import jax
      >>> import gradxform as gx
      >>> z1, z2 = jax.random.normal(jax.random.key(0), (2, 8, 16))
      >>> gx.losses.nt_xent(z1, z1, 0.1).item() < gx.losses.nt_xent(z1, z2, 0.1).item()
      True
    """
    z1, z2 = vectors.pair(("z1", "z2"), z1, z2, at_least=2 if axis_name is None else 1)
    u1, u2 = _both_directions(z1, z2)
    u = jnp.concatenate([u1, u2])
    scale, bounded = _scale(temperature, z1.dtype)
    negatives = _lse(_narrowed(u, z1.dtype), None, scale, 2, axis_name, bounded, block_size)
    positives = scale * jnp.sum(u1 * u2, axis=-1)
    return vectors.reduced(_loss(negatives, jnp.concatenate([positives, positives])), reduction, axis_name)


def info_nce(query: jax.Array, keys: jax.Array, temperature: Scalar = 0.1, *, negatives: jax.Array | None = None,
             axis_name: AxisName = None, reduction: str = "mean", block_size: int | None = None) -> jax.Array:
    """Each query is to find its key among all keys, or among negatives given for all.

    ``l_i = -log(exp(s_ii / t) / sum_k exp(s_ik / t))`` with ``s_ik`` the cosine of query ``i`` and key ``k`` (van den
    Oord and others, 2018, eq. 4). With ``negatives`` the sum is over the own key and those, as in MoCo (He and others,
    2020, eq. 1), whose queue they are. Computed as ``nt_xent`` is.

    Args:
      query: (N, d), in any floating-point dtype; none of the vectors need be normalized.
      keys: (N, d), the key of each query.
      temperature: above 0; may be traced, and has a gradient.
      negatives: (K, d), or None for the keys of the others.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which queries are spread; ``negatives`` are not.
      reduction: ``"mean"``, ``"sum"`` or ``"none"``.
      block_size: rows and columns of a tile; by default what is fastest.

    Returns:
      The loss in float32 at least, a scalar or (N,).

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: shapes do not fit, there is nothing to tell from, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> round(gx.losses.info_nce(jnp.eye(2), jnp.eye(2), 1.0).item(), 4)
      0.3133
    """
    least = 2 if axis_name is None and negatives is None else 1
    query, keys = vectors.pair(("query", "keys"), query, keys, at_least=least)
    q, k = vectors.directions(query), vectors.directions(keys)
    scale, bounded = _scale(temperature, query.dtype)
    positives = scale * jnp.sum(q * k, axis=-1)
    narrow = _narrowed(q, query.dtype)
    if negatives is None:
        lse = _lse(narrow, _narrowed(k, query.dtype), scale, 1, axis_name, bounded, block_size)
    else:
        others = vectors.embeddings("negatives", negatives)
        if others.shape[1] != q.shape[1]:
            raise ValueError(f"negatives: expected vectors of {q.shape[1]} features, as query has, got shape "
                             f"{others.shape}")
        others = _narrowed(vectors.directions(others), query.dtype)
        fewer, more = sorted((q.shape[0], others.shape[0]))
        # The fewer of the two are filled up to a tile.
        tiling = Tiling(min(_block(more, block_size), max(fewer, BLOCK)), False, False, bounded)
        lse, _ = tiled_lse(tiling, narrow, others, scale, jnp.full(q.shape[0], -1), jnp.arange(others.shape[0]))
    return vectors.reduced(_loss(lse, positives), reduction, axis_name)


def clip_loss(image: jax.Array, text: jax.Array, logit_scale: Scalar, *, axis_name: AxisName = None,
              reduction: str = "mean", block_size: int | None = None) -> jax.Array:
    """CLIP's loss: each image is to find its text among all, and each text its image.

    The mean of ``info_nce`` in both directions at temperature ``1 / logit_scale`` (Radford and others, 2021, figure 3);
    one pass of tiles serves both.

    Args:
      image: (N, d), in any floating-point dtype; they need not be normalized.
      text: (N, d), the text of each image.
      logit_scale: the factor of the cosines, above 0; CLIP learns its logarithm. May be traced, and has a gradient.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which pairs are spread; all are negatives.
      reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the loss of each pair.
      block_size: rows and columns of a tile; by default what is fastest.

    Returns:
      The loss in float32 at least, a scalar or (N,).

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: shapes differ, there is a single pair, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> round(gx.losses.clip_loss(jnp.eye(2), jnp.eye(2), 1.0).item(), 4)
      0.3133
    """
    image, text = vectors.pair(("image", "text"), image, text, at_least=2 if axis_name is None else 1)
    vectors.positive("logit_scale", logit_scale)
    scale, bounded = _factor(logit_scale, image.dtype)
    u, v = vectors.directions(image), vectors.directions(text)
    positives = scale * jnp.sum(u * v, axis=-1)
    x, y = _narrowed(u, image.dtype), _narrowed(v, image.dtype)
    if axis_name is None:
        ids = jnp.arange(x.shape[0])
        by_image, by_text = tiled_lse(Tiling(_block(x.shape[0], block_size), False, True, bounded), x, y, scale, ids,
                                      ids)
    else:
        by_image, by_text = (_lse(a, b, scale, 1, axis_name, bounded, block_size) for a, b in ((x, y), (y, x)))
    losses = (_loss(by_image, positives) + _loss(by_text, positives)) / 2
    return vectors.reduced(losses, reduction, axis_name)


def sup_con(z: jax.Array, labels: jax.Array, temperature: Scalar = 0.1, *, axis_name: AxisName = None,
            reduction: str = "mean", block_size: int | None = None) -> jax.Array:
    """Supervised contrast: each vector is to find those of its class among all others.

    ``l_i = -1 / |P(i)| sum_{p in P(i)} log(exp(s_ip / t) / sum_{a != i} exp(s_ia / t))`` with ``P(i)`` the others of
    the class of ``i`` (Khosla and others, 2020, eq. 2, L_out). A vector without another of its class has loss 0 and
    does not count in the mean. Computed as ``nt_xent`` is.

    Args:
      z: (N, d), in any floating-point dtype; they need not be normalized. Several views of an image are as many rows.
      labels: (N,) integers.
      temperature: above 0; may be traced, and has a gradient.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which vectors are spread.
      reduction: ``"mean"``, ``"sum"`` or ``"none"``.
      block_size: rows and columns of a tile; by default what is fastest.

    Returns:
      The loss in float32 at least, a scalar or (N,).

    Raises:
      TypeError: an array is of the wrong type.
      ValueError: there are not as many labels as vectors, there is a single vector, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
      >>> round(gx.losses.sup_con(z, jnp.array([3, 3, 7, 7]), 0.1).item(), 4)
      0.0001
    """
    z = vectors.embeddings("z", z, at_least=2 if axis_name is None else 1)
    if isinstance(labels, np.ndarray) and np.issubdtype(labels.dtype, np.integer):
        # Numbers beyond 32 bits would be cut; their order is all that counts.
        labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)
    labels = vectors.everywhere(arrays.integers("labels", labels))
    if labels.shape != z.shape[:1]:
        raise ValueError(f"labels: expected one for each of the {z.shape[0]} vectors, shape {z.shape[:1]}, got "
                         f"{labels.shape}")
    checks.choice("reduction", reduction, vectors.REDUCTIONS)
    scale, bounded = _scale(temperature, z.dtype)
    u = vectors.directions(z)
    narrow = _narrowed(u, z.dtype)
    lse = _lse(narrow, None, scale, 1, axis_name, bounded, block_size)
    everyone, classes = (u, labels) if axis_name is None else (
        lax.all_gather(part, axis_name, tiled=True) for part in (u, labels))
    # All of a class together, by its place among the sorted labels: as many sums as vectors, whatever the labels are.
    place = jnp.searchsorted(jnp.sort(classes), classes)
    sums = jax.ops.segment_sum(everyone, place, classes.shape[0])
    sizes = jax.ops.segment_sum(jnp.ones(classes.shape[0], u.dtype), place, classes.shape[0])
    own = jnp.searchsorted(jnp.sort(classes), labels)
    others = sizes[own] - 1
    agreement = jnp.sum(u * (sums[own] - u), axis=-1)
    some = others > 0
    losses = jnp.where(some, jnp.where(some, lse, 0) - scale * agreement / jnp.maximum(others, 1), 0)
    if reduction != "mean":
        return vectors.reduced(losses, reduction, axis_name)
    total, count = jnp.sum(losses), jnp.sum(some)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1)


@jax.jit
def _both_directions(z1: jax.Array, z2: jax.Array) -> tuple[jax.Array, jax.Array]:
    # XLA's CPU backend would else hold what it made the directions of until their gradient is there.
    return isolated(lambda *views: tuple(map(vectors.directions, views)), z1, z2)


def _scale(temperature: Scalar, dtype: Any) -> tuple[jax.Array, bool]:
    return _factor(1 / vectors.positive("temperature", temperature), dtype)


def _factor(scale: Any, dtype: Any) -> tuple[jax.Array, bool]:
    """The factor of cosines as an array, and whether it is known to be small."""
    return jnp.asarray(scale, wide_dtype(dtype)), isinstance(scale, (int, float)) and scale <= SAFE_SCALE


def _narrowed(u: jax.Array, dtype: Any) -> jax.Array:
    """Directions in the dtype of the embeddings they come from, for the matrix units; sums are float32."""
    return u.astype(dtype) if jnp.finfo(dtype).bits < 32 else u


def _block(size: int, block_size: int | None) -> int:
    if block_size is not None:
        return min(vectors.static_size("block_size", block_size), size)
    if size <= WHOLE:
        return size
    # Tiles of one size with little to fill up, in whole vectors of the hardware. Larger ones are faster; at the sizes
    # between, their memory would count beside that of the vectors.
    largest = 2 * BLOCK if size < 4 * WHOLE else min(max(size // 16, BLOCK), 2 * BLOCK)
    tiles = -(-size // largest)
    return min(size, -(-size // (tiles * 8)) * 8)


def _lse(rows: jax.Array, columns: jax.Array | None, scale: jax.Array, views: int, axis_name: AxisName,
         bounded: bool, block_size: int | None) -> jax.Array:
    """Each row's log-sum-exp over all columns of all devices but those of its own image; None for the rows."""
    images = rows.shape[0] // views
    if axis_name is None:
        ids = jnp.tile(jnp.arange(images), views)
        tiling = Tiling(_block(rows.shape[0], block_size), columns is None, False, bounded)
        return tiled_lse(tiling, rows, rows if columns is None else columns, scale, ids, ids)[0]
    everyone = lax.all_gather(rows if columns is None else columns, axis_name, tiled=True)
    ids = jnp.tile(lax.axis_index(axis_name) * images + jnp.arange(images), views)
    all_ids = lax.all_gather(ids, axis_name, tiled=True)
    tiling = Tiling(_block(everyone.shape[0], block_size), False, False, bounded)
    tiling = tiling._replace(block=min(tiling.block, max(rows.shape[0], 8)))
    return tiled_lse(tiling, rows, everyone, scale, ids, all_ids)[0]


def _loss(negatives: jax.Array, positives: jax.Array) -> jax.Array:
    # -log(p / (p + n)) as log(1 + n / p): the difference of two logarithms would lose the digits of a small loss.
    return jax.nn.softplus(negatives - positives)
