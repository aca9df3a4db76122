"""How a batch is gone through, so that no image pays for a branch that it does not take.

Under ``vmap`` a branch becomes a selection between the results of all branches. One image after another takes only
its own, which suits a processor with few cores (where nothing branches, a few at a time); sorted by branch, each branch
goes through its images in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from gradxform.augment.pixels.canvas import Canvas
from gradxform.augment.stage import Stage, Targets, closed, opened
from gradxform.core.isolate import isolated
from gradxform.core.manual import varying_like

STRATEGIES = ("auto", "map", "vmap", "sort")
CHUNK = 4
"""Images that a sorted branch takes at a time."""


def apply_batch(stage: Stage, params: Any, targets: Targets, strategy: str) -> Any:
    """The targets of a batch by one of the ``STRATEGIES``; ``"auto"`` is what suits the platform."""
    axes = _batch_axes(targets)
    if axes is not None:
        spec = P(axes)
        return jax.shard_map(lambda params, targets: apply_batch(stage, params, targets, strategy),
                             in_specs=(spec, spec), out_specs=spec)(jax.sharding.reshard(params, spec), targets)
    if strategy == "sort" and stage.branches:
        return closed(stage.apply_sorted(params, opened(stage, targets)))

    def apply(params: Any, targets: Targets) -> Any:
        if targets["image"].dtype == jnp.uint8 and not stage.whole_pixels:
            # In a loop of its own, for with what leads to the image it would not be vectorized.
            targets = targets | {"image": isolated(Canvas.of, targets["image"], targets.get("size"))}
        return closed(stage.apply(params, opened(stage, targets)))

    if strategy in ("vmap", "sort") or not stage.branches:
        return closed(jax.vmap(stage.apply)(params, opened(stage, targets)))
    if strategy == "map":
        image = targets["image"]
        few = images_at_once(stage.at_once(image.shape[-3:], image.dtype), image.shape[0])
        return _mapped(lambda one: apply(*one), (params, targets), few)
    return lax.platform_dependent(params, targets,
                                  cpu=lambda params, targets: apply_batch(stage, params, targets, "map"),
                                  default=lambda params, targets: apply_batch(stage, params, targets, "sort"))


def images_at_once(most: int, size: Any) -> int:
    """At most so many at a time of a batch of a size, and not many fewer.

    Without a rest where that can be, since a rest has a loop of its own and is copied behind the others.
    """
    if not isinstance(size, int):
        return 1  # known only when the program is called
    most = min(most, size)
    return next((few for few in range(most, most // 2, -1) if size % few == 0), most)


def _mapped(function: Callable[[Any], Any], operands: Any, few: int) -> Any:
    """``function`` of each of a batch, a few at a time under ``vmap``; ``lax.map`` fails on arrays without elements."""
    if few == 1:
        return lax.map(function, operands)
    size = jax.tree.leaves(operands)[0].shape[0]
    several, whole = jax.vmap(function), size - size % few
    if size == few:
        return several(operands)
    results = lax.map(several, jax.tree.map(
        lambda x: x[:whole].reshape(whole // few, few, *x.shape[1:]), operands))
    results = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), results)
    if whole == size:
        return results
    rest = several(jax.tree.map(lambda x: x[whole:], operands))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), results, rest)


def _batch_axes(targets: Targets) -> Any:
    """The axes of a mesh that images are spread over by explicit sharding: each device goes through its own."""
    spec = getattr(jax.typeof(targets["image"]).sharding, "spec", P())
    return spec[0] if len(spec) else None


def sorted_switch(index: jax.Array, branches: Sequence[Callable[[Any], Any]], operands: Any) -> Any:
    """``lax.switch`` for each of a batch: each branch works on the images that take it, a chunk at a time.

    Args:
      index: (B,) integers, the branch of each image.
      branches: functions of the operands of one image, with results alike.
      operands: a tree of arrays (B, ...).

    Returns:
      The results, arrays (B, ...).
    """
    size = index.shape[0]
    chunk = min(CHUNK, size)
    order = jnp.argsort(index)
    counts = jnp.bincount(index, length=len(branches))
    starts = jnp.cumsum(counts) - counts
    one = jax.eval_shape(branches[0], jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), operands))
    results = varying_like((index, operands), jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), one))
    for i, branch in enumerate(branches):
        def step(k: jax.Array, results: Any, i: int = i, branch: Callable[[Any], Any] = branch) -> Any:
            places = k * chunk + jnp.arange(chunk)
            # The last chunk is filled up by images of other branches, whose results are dropped.
            chosen = order[jnp.minimum(starts[i] + places, size - 1)]
            new = jax.vmap(branch)(jax.tree.map(lambda x: x[chosen], operands))
            targets = jnp.where(places < counts[i], chosen, size)
            return jax.tree.map(lambda old, x: old.at[targets].set(x, mode="drop"), results, new)

        results = lax.fori_loop(0, -(-counts[i] // chunk), step, results)
    return results
