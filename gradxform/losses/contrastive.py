"""Contrastive losses over all pairs of a batch, in memory linear in the batch.

Each is ``log sum_k exp(l_ik) - l_ij`` with ``l = scale * cosine``, ``j`` the positive of ``i``, written as
``softplus(log sum_{k != j} exp(l_ik) - l_ij)``: the difference of two logarithms would lose the digits of a small loss.

On a mesh each device takes its own rows: the vectors are sent to all once, and their gradient comes back in one sum.
JAX tells the mesh of an array; where it does not, ``with jax.set_mesh(mesh):`` around the call says it.
"""

from __future__ import annotations

import functools
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gradxform.core import checks
from gradxform.core.isolate import isolated
from gradxform.core.numbers import wide_dtype
from gradxform.core.types import Scalar
from gradxform.losses import vectors
from gradxform.losses.pairs import AxisName, by_example, everyone, lse_of_rows, place
from gradxform.losses.sums import SAFE_SCALE
from gradxform.losses.tiles import tiled_lse
from gradxform.losses.vectors import Precision
from gradxform.losses.walks import Ids, Tiling

Pairs: TypeAlias = tuple[jax.Array, jax.Array, Ids]
"""Vectors, those that each is to find, and their ids."""
RUN = 16
"""Rows of a register of a TPU in 16 bits, and of two in 32."""


def nt_xent(
    z1: jax.Array,
    z2: jax.Array,
    temperature: Scalar = 0.5,
    *,
    ids: jax.Array | None = None,
    axis_name: AxisName = None,
    reduction: str = "mean",
    block_size: int | None = None,
    precision: Precision = "highest",
) -> jax.Array:
    """SimCLR's loss: each view is to find the other view of its image among all views of all images.

    Over both views ``u = [z1; z2]`` of ``N`` images, normalized, ``l_i = -log(exp(s_ij / t) / sum_{k != i}
    exp(s_ik / t))`` with ``s`` the cosine and ``j`` the other view of ``i`` (Chen and others, 2020, eq. 1), averaged
    over the ``2 N``; of a single image it is log 1 = 0. SimCLR's published code returns twice that. The matrix of
    similarities is never made: it is gone through in tiles, once forward and once backward, each tile for both of its
    triangles. Losses near 0 keep their digits. Of a batch on a mesh each device takes its own rows, and the vectors are
    sent once; where JAX does not know the mesh, call it in ``with jax.set_mesh(mesh):``.

    Args:
      z1: (N, d), the first views, in any floating-point dtype; they need not be normalized.
      z2: (N, d), the second views in the same order.
      temperature: above 0; may be traced, and has a gradient.
      ids: (N,) integers, or None: images of equal id are no negatives of each other.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which images are spread: all are negatives, and the
        loss is over all; not needed under plain ``jit``.
      reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the losses of the first views, then of the second.
      block_size: rows and columns of a tile; by default what is fastest. ``2 N`` and more is the dense form.
      precision: of products of float32 vectors, a ``jax.lax.Precision`` or its name. On a TPU ``"highest"`` is six
        passes through the matrix units, ``"high"`` three and ``"default"`` one; on a GPU the last two are TF32; a CPU
        has one. Vectors of 16 bits take one pass, whatever is asked for.

    Returns:
      The loss in float32 at least, a scalar or (2 N,).

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: shapes differ, or a number is out of range.

    Example:
      >>> import jax
      >>> import gradxform as gx
      >>> z1, z2 = jax.random.normal(jax.random.key(0), (2, 8, 16))
      >>> gx.losses.nt_xent(z1, z1, 0.1).item() < gx.losses.nt_xent(z1, z2, 0.1).item()
      True
    """
    z1, z2 = vectors.pair(("z1", "z2"), z1, z2)
    scale, bounded = _scale(temperature, z1.dtype)
    tiling = Tiling(
        triangle=True,
        columns=True,
        bounded=bounded,
        group=2,
        block=_block(block_size),
        precision=vectors.precision(precision),
    )
    ids = None if ids is None else vectors.ids("ids", ids, z1.shape[0])
    losses = by_example(functools.partial(_nt_xent, tiling), scale, (z1, z2, ids), axis_name)
    if reduction == "none":
        return jnp.concatenate([vectors.everywhere(part) for part in losses])
    first, second = (vectors.reduced(part, reduction, axis_name) for part in losses)
    return (first + second) / (2 if reduction == "mean" else 1)


def _nt_xent(tiling: Tiling, scale: jax.Array, batch: Pairs, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    z1, z2, ids = batch
    u1, u2 = _both_directions(z1, z2)
    # Some first views, then the second ones of the same images: what is left out stands on the diagonal. In runs of
    # whole registers a TPU copies them as they are.
    run = math.gcd(z1.shape[0], RUN, (tiling.block or 2 * RUN) // 2 or 1)

    def side_by_side(*parts: jax.Array) -> jax.Array:
        return jnp.stack([part.reshape(-1, run, *part.shape[1:]) for part in parts], 1).reshape(-1, *parts[0].shape[1:])

    views = side_by_side(*(vectors.narrowed(u, z1.dtype) for u in (u1, u2)))
    negatives, _ = lse_of_rows(
        tiling._replace(run=run), scale, views, views, None if ids is None else side_by_side(ids, ids), axis_name
    )
    positives = scale * jnp.sum(u1 * u2, axis=-1)
    first, second = (part.reshape(-1) for part in jnp.moveaxis(negatives.reshape(-1, 2, run), 1, 0))
    return jax.nn.softplus(first - positives), jax.nn.softplus(second - positives)


def info_nce(
    query: jax.Array,
    keys: jax.Array,
    temperature: Scalar = 0.1,
    *,
    negatives: jax.Array | None = None,
    ids: jax.Array | None = None,
    axis_name: AxisName = None,
    reduction: str = "mean",
    block_size: int | None = None,
    precision: Precision = "highest",
) -> jax.Array:
    """Each query is to find its key among all keys, or among negatives given for all.

    ``l_i = -log(exp(s_ii / t) / sum_k exp(s_ik / t))`` with ``s_ik`` the cosine of query ``i`` and key ``k`` (van den
    Oord and others, 2018, eq. 4). With ``negatives`` the sum is over the own key and those, as in MoCo (He and others,
    2020, eq. 1), whose queue they are. Computed, and divided over a mesh, as ``nt_xent`` is.

    Args:
      query: (N, d), in any floating-point dtype; none of the vectors need be normalized.
      keys: (N, d), the key of each query.
      temperature: above 0; may be traced, and has a gradient.
      negatives: (K, d), or None for the keys of the others.
      ids: (N,) integers, or None: keys of the id of a query, but its own, are no negatives; not beside ``negatives``.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which queries are spread; ``negatives`` are not.
      reduction: ``"mean"``, ``"sum"`` or ``"none"``.
      block_size: rows and columns of a tile; by default what is fastest.
      precision: of products of float32 vectors; see ``nt_xent``.

    Returns:
      The loss in float32 at least, a scalar or (N,).

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: shapes do not fit, there are ids beside negatives, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> round(gx.losses.info_nce(jnp.eye(2), jnp.eye(2), 1.0).item(), 4)
      0.3133
    """
    query, keys = vectors.pair(("query", "keys"), query, keys)
    scale, bounded = _scale(temperature, query.dtype)
    tiling = Tiling(
        triangle=False,
        columns=False,
        bounded=bounded,
        group=int(negatives is None),
        block=_block(block_size),
        precision=vectors.precision(precision),
    )
    if negatives is None:
        ids = None if ids is None else vectors.ids("ids", ids, query.shape[0])
        whole: jax.Array | tuple[jax.Array, jax.Array] = scale
    else:
        if ids is not None:
            raise ValueError("ids: expected None beside negatives, which have no ids")
        negatives = vectors.embeddings("negatives", negatives)
        if negatives.shape[1] != query.shape[1]:
            raise ValueError(
                f"negatives: expected vectors of {query.shape[1]} features, as query has, got shape {negatives.shape}"
            )
        whole = scale, vectors.narrowed(vectors.directions(negatives), query.dtype)
    losses = by_example(functools.partial(_info_nce, tiling), whole, (query, keys, ids), axis_name)
    return vectors.reduced(losses, reduction, axis_name)


def _info_nce(
    tiling: Tiling, whole: jax.Array | tuple[jax.Array, jax.Array], batch: Pairs, axis_name: AxisName
) -> jax.Array:
    query, keys, ids = batch
    scale, negatives = whole if isinstance(whole, tuple) else (whole, None)
    q, k = vectors.directions(query), vectors.directions(keys)
    rows = vectors.narrowed(q, query.dtype)
    if negatives is None:
        lse, _ = lse_of_rows(tiling, scale, rows, vectors.narrowed(k, query.dtype), ids, axis_name)
    else:
        lse, _ = tiled_lse(tiling, rows, negatives, scale, 0, None, None)
    return jax.nn.softplus(lse - scale * jnp.sum(q * k, axis=-1))


def clip_loss(
    image: jax.Array,
    text: jax.Array,
    logit_scale: Scalar,
    *,
    ids: jax.Array | None = None,
    axis_name: AxisName = None,
    reduction: str = "mean",
    block_size: int | None = None,
    precision: Precision = "highest",
) -> jax.Array:
    """CLIP's loss: each image is to find its text among all, and each text its image.

    The mean of ``info_nce`` in both directions at temperature ``1 / logit_scale`` (Radford and others, 2021, figure 3);
    one pass of tiles serves both. Computed, and divided over a mesh, as ``nt_xent`` is.

    Args:
      image: (N, d), in any floating-point dtype; they need not be normalized.
      text: (N, d), the text of each image.
      logit_scale: the factor of the cosines, above 0; CLIP learns its logarithm. May be traced, and has a gradient.
      ids: (N,) integers, or None: pairs of equal id, as where a caption occurs twice, are no negatives of each other.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which pairs are spread; all are negatives.
      reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the loss of each pair.
      block_size: rows and columns of a tile; by default what is fastest.
      precision: of products of float32 vectors; see ``nt_xent``.

    Returns:
      The loss in float32 at least, a scalar or (N,).

    Raises:
      TypeError: an array is not floating-point, or an argument is of the wrong type.
      ValueError: shapes differ, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> round(gx.losses.clip_loss(jnp.eye(2), jnp.eye(2), 1.0).item(), 4)
      0.3133
    """
    image, text = vectors.pair(("image", "text"), image, text)
    vectors.positive("logit_scale", logit_scale)
    scale, bounded = _factor(logit_scale, image.dtype)
    tiling = Tiling(
        triangle=False,
        columns=True,
        bounded=bounded,
        group=1,
        block=_block(block_size),
        precision=vectors.precision(precision),
    )
    ids = None if ids is None else vectors.ids("ids", ids, image.shape[0])
    losses = by_example(functools.partial(_clip_loss, tiling), scale, (image, text, ids), axis_name)
    return vectors.reduced(losses, reduction, axis_name)


def _clip_loss(tiling: Tiling, scale: jax.Array, batch: Pairs, axis_name: AxisName) -> jax.Array:
    image, text, ids = batch
    u, v = vectors.directions(image), vectors.directions(text)
    positives = scale * jnp.sum(u * v, axis=-1)
    rows, columns = vectors.narrowed(u, image.dtype), vectors.narrowed(v, image.dtype)
    by_image, by_text = lse_of_rows(tiling, scale, rows, columns, ids, axis_name)
    return (jax.nn.softplus(by_image - positives) + jax.nn.softplus(by_text - positives)) / 2


def sup_con(
    z: jax.Array,
    labels: jax.Array,
    temperature: Scalar = 0.1,
    *,
    axis_name: AxisName = None,
    reduction: str = "mean",
    block_size: int | None = None,
    precision: Precision = "highest",
) -> jax.Array:
    """Supervised contrast: each vector is to find those of its class among all others.

    ``l_i = -1 / |P(i)| sum_{p in P(i)} log(exp(s_ip / t) / sum_{a != i} exp(s_ia / t))`` with ``P(i)`` the others of
    the class of ``i`` (Khosla and others, 2020, eq. 2, L_out). A vector without another of its class has loss 0 and
    does not count in the mean; of two vectors a class it is ``nt_xent``. Computed, and divided over a mesh, as that is.

    Args:
      z: (N, d), in any floating-point dtype; they need not be normalized. Several views of an image are as many rows.
      labels: (N,) integers.
      temperature: above 0; may be traced, and has a gradient.
      axis_name: the named axes of ``shard_map`` or ``vmap`` over which vectors are spread.
      reduction: ``"mean"``, ``"sum"`` or ``"none"``.
      block_size: rows and columns of a tile; by default what is fastest.
      precision: of products of float32 vectors; see ``nt_xent``.

    Returns:
      The loss in float32 at least, a scalar or (N,).

    Raises:
      TypeError: an array is of the wrong type.
      ValueError: there are not as many labels as vectors, or a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradxform as gx
      >>> z = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
      >>> round(gx.losses.sup_con(z, jnp.array([3, 3, 7, 7]), 0.1).item(), 4)
      0.0001
    """
    z = vectors.embeddings("z", z)
    labels = vectors.ids("labels", labels, z.shape[0])
    checks.choice("reduction", reduction, vectors.REDUCTIONS)
    scale, bounded = _scale(temperature, z.dtype)
    tiling = Tiling(
        triangle=True,
        columns=True,
        bounded=bounded,
        group=1,
        block=_block(block_size),
        precision=vectors.precision(precision),
    )
    losses, some = by_example(functools.partial(_sup_con, tiling), scale, (z, labels), axis_name)
    if reduction != "mean":
        return vectors.reduced(losses, reduction, axis_name)
    total, count = jnp.sum(losses), jnp.sum(some)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1)


def _sup_con(
    tiling: Tiling, scale: jax.Array, batch: tuple[jax.Array, jax.Array], axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
    z, labels = batch
    u = vectors.directions(z)
    rows, count = vectors.narrowed(u, z.dtype), z.shape[0]
    columns, classes = everyone(rows, axis_name), everyone(labels, axis_name)
    # All of a class together, by its place among the sorted labels: as many sums as vectors, whatever the labels are.
    spots, sizes = _classes(classes)
    sums = jax.ops.segment_sum(columns.astype(u.dtype), spots, classes.shape[0])
    spot, size = (lax.dynamic_slice_in_dim(part, place(count, axis_name), count) for part in (spots, sizes))
    others = size - 1
    positives = scale * jnp.sum(u * (sums[spot] - rows), axis=-1) / jnp.maximum(others, 1)
    # A single positive is left out of the sum, and the loss keeps its digits; beside others it is log 2 at least.
    left_out = jnp.where(sizes == 2, spots, classes.shape[0] + jnp.arange(classes.shape[0]))
    lse, _ = lse_of_rows(tiling, scale, rows, columns, left_out, axis_name)
    losses = jnp.where(others == 1, jax.nn.softplus(lse - positives), lse - positives)
    return jnp.where(others > 0, losses, 0), others > 0


def _classes(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each label its place among the sorted ones, and how many there are of it; without a look-up."""
    places = jnp.arange(labels.shape[0], dtype=jnp.int32) + jnp.zeros_like(labels)
    ordered, origins = lax.sort((labels, places), num_keys=1)
    another = ordered[1:] != ordered[:-1]
    edge = jnp.ones_like(another, shape=1)
    starts = lax.cummax(jnp.where(jnp.concatenate([edge, another]), places, 0))
    ends = lax.cummin(jnp.where(jnp.concatenate([another, edge]), places, labels.shape[0]), reverse=True)
    _, starts, sizes = lax.sort((origins, starts, ends - starts + 1), num_keys=1)
    return starts, sizes


@jax.jit
def _both_directions(z1: jax.Array, z2: jax.Array) -> tuple[jax.Array, jax.Array]:
    # XLA's CPU backend would else hold what it made the directions of until their gradient is there.
    return isolated(lambda *views: tuple(map(vectors.directions, views)), z1, z2)


def _scale(temperature: Scalar, dtype: DTypeLike) -> tuple[jax.Array, bool]:
    return _factor(1 / vectors.positive("temperature", temperature), dtype)


def _factor(scale: Scalar, dtype: DTypeLike) -> tuple[jax.Array, bool]:
    """The factor of cosines as an array, and whether it is known to be small."""
    return jnp.asarray(scale, wide_dtype(dtype)), isinstance(scale, (int, float)) and scale <= SAFE_SCALE


def _block(block_size: int | None) -> int | None:
    return None if block_size is None else vectors.static_size("block_size", block_size)
