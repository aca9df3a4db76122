"""How a batch is gone through: so many images at a time, and on several devices each with its own.

Under ``vmap`` every branch is computed for every image, and one is selected. One image after another takes only its
own. Which of the two is better depends on the machine. A processor works through a few images at a time, as many as its
cache holds. A TPU takes a branch as a branch, so that a batch in which images choose between dear ones goes image by
image, and every other batch at once, but for several views of it, whose steps together do not fit in its memory on
the chip: groups. A GPU is not busy with one image: all at once, every branch for each, and groups of what holds many
times an image (a displacement, several views, AugMix). (Sorting a batch by branch, so that no group pays for another's,
moves fewer bytes there: 56 MB and what its loops of unknown length take, against 218 MB, for two operations of
RandAugment and 64 images. But 218 MB are less than 0.1 ms, and each of its loops asks the host after every round.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gradxform.augment.stage import Sampled, Shape, Stage, Targets, canvas_of, closed, few
from gradxform.core.divide import each_its_own, is_local
from gradxform.core.platform import by_platform
from gradxform.core.types import PyTree, Size

BATCHINGS = ("auto", "map", "vmap")
GROUP = few(1 << 20)
"""How many images keep an accelerator busy; more of them at a time hold more memory and are no faster."""
GPU_GROUP, GPU_GROUPS = few(1 << 19), 8
"""The same of a GPU, which holds more for each, two pixels for each thread that an H100 has at a time; and how many
groups there are at most, for each is a launch of every kernel."""


def apply_batch(
    build: Callable[[PyTree], Stage], arrays: PyTree, params: Sampled, targets: Targets, batching: str
) -> PyTree:
    """The targets of a batch.

    Args:
      build: makes the stage of its arrays.
      arrays: the arrays that it depends on.
      params: of each image.
      targets: of each image, the image as an array.
      batching: one of ``BATCHINGS``; ``"auto"`` is what suits the platform.

    Returns:
      What the stage makes of the targets, arrays with the batch in front.
    """

    def through(arrays: PyTree, batch: tuple[Sampled, Targets]) -> PyTree:
        image = batch[1]["image"]
        # What could not be divided is left to the partitioner, which divides passes over a batch but no loops.
        way = batching if is_local(image) or batching == "map" else "vmap"
        return _through(build, arrays, *batch, way)

    return each_its_own(through, arrays, (params, targets), targets["image"])


def _through(
    build: Callable[[PyTree], Stage], arrays: PyTree, params: Sampled, targets: Targets, batching: str
) -> PyTree:
    def one(arrays: PyTree, params: Sampled, targets: Targets) -> PyTree:
        return closed(build(arrays).apply(params, targets))

    def of_words(arrays: PyTree, params: Sampled, targets: Targets) -> PyTree:
        # A TPU's tiles of bytes have 32 rows: an image that is cut out of a batch of them and put back is laid out anew
        # both times. Of words it is not: a third less of HBM and a tenth fewer cycles, of trivial_augment.
        def opened(targets: Targets) -> Targets:
            return targets | {"image": canvas_of(targets)}

        def each(arrays: PyTree, params: Sampled, targets: Targets) -> PyTree:
            return build(arrays).apply(params, targets)

        return jax.vmap(closed)(_mapped(each, 1, arrays, params, jax.vmap(opened)(targets)))

    stage, image = build(arrays), targets["image"]
    shape, size = image.shape[1:], image.shape[0]

    def grouped(most: int | None) -> Callable[..., PyTree]:
        at_a_time = size if most is None else images_at_a_time(most, size)
        return functools.partial(_mapped, one, at_a_time)

    if batching == "vmap":
        return grouped(None)(arrays, params, targets)
    here = stage.images(shape, image.dtype)
    if batching == "map":
        return grouped(1 if here is None else here)(arrays, params, targets)
    # What a processor's cache cannot hold of a whole batch, a GPU's memory should not either.
    large = stage.chooses or stage.dear or here is not None
    # The branches of one choice after another need less than three times the batch on a GPU, and go through it less
    # often than groups: 218 MB of RandAugment's two operations on 64 images, 372 in eight groups.
    one_branch = stage.chooses and not stage.several
    return by_platform(
        grouped(here),
        arrays,
        params,
        targets,
        gpu=grouped(_gpu_group(shape, image.dtype, size) if large and not one_branch else None),
        tpu=of_words if stage.chooses else grouped(GROUP(shape, image.dtype) if stage.several else None),
    )


def _gpu_group(shape: Shape, dtype: DTypeLike, size: Size) -> int:
    return max(GPU_GROUP(shape, dtype) or 1, -(-size // GPU_GROUPS) if isinstance(size, int) else 1)


def images_at_a_time(most: int, size: Size) -> int:
    """At most so many at a time of a batch of a size, and not many fewer.

    Without a rest where that can be, since a rest has a loop of its own and is copied behind the others.
    """
    if not isinstance(size, int):
        return 1  # known only when the program is called
    most = min(most, size)
    return next((some for some in range(most, most // 2, -1) if size % some == 0), most)


def _mapped(function: Callable[..., PyTree], some: Size, arrays: PyTree, *operands: PyTree) -> PyTree:
    """``function`` of each of a batch, some at a time; ``lax.map`` fails on arrays without elements."""
    several = jax.vmap(function, (None, *(0,) * len(operands)))
    size = jax.tree.leaves(operands)[-1].shape[0]
    if some is size or some == size:
        return several(arrays, *operands)
    if some == 1:
        return lax.map(lambda each: function(arrays, *each), operands)
    whole = size - size % some
    results = lax.map(
        lambda each: several(arrays, *each),
        jax.tree.map(lambda x: x[:whole].reshape(whole // some, some, *x.shape[1:]), operands),
    )
    results = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), results)
    if whole == size:
        return results
    rest = several(arrays, *jax.tree.map(lambda x: x[whole:], operands))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), results, rest)
