"""What bricks declare of themselves, found out by trial: which accumulators are never negative, which rules are
elementwise."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from value_catalog import PARAMS, VALUES

import gradxform as gx
from gradxform.core.bricks import Each, is_empty
from gradxform.core.stages import Chain, Stage

STEPS = 4
SMALL = {"min_dim_size_to_factor": 2}
TXS = [
    *(value for name, value in VALUES.items() if isinstance(value, gx.Transformation) and "schedule" not in name),
    gx.scale_by_factored_rms(**SMALL),
]
FORMS = 2
"""Of a brick that are tried; recipes have most of them again."""
RANDOM = np.random.RandomState(5)


def normal(like: Any, size: float) -> Any:
    return jax.tree.map(lambda p: jnp.float32(size * RANDOM.standard_normal(p.shape)), like)


PARAM = normal(PARAMS, 0.3)
GRADS = [normal(PARAMS, size) for size in np.geomspace(3.0, 0.03, STEPS)]
"""Of both signs, and smaller from step to step: an average is then above what comes in."""


def bricks_of(stage: Stage) -> Iterator[gx.Leafwise]:
    if isinstance(stage, Chain):
        for part in stage.parts:
            yield from bricks_of(part)
    elif isinstance(stage, gx.Leafwise) and not stage.any_dtype:
        yield stage


BRICKS: dict[str, list[gx.Leafwise]] = collections.defaultdict(list)
for tx in TXS:
    for one in bricks_of(tx.stage):
        BRICKS[one.name][:] = [*BRICKS[one.name], one][-FORMS:]


def first_of(now: Any) -> Any:
    return jax.tree.map(lambda x: x[0] if isinstance(x, Each) else x, now, is_leaf=lambda x: isinstance(x, Each))


def moved(x: Any, shape: tuple[int, ...], order: Any, half: Any = None) -> Any:
    """What belongs to the elements of a leaf, in another order, half of it doubled; the rest stays as it is."""
    if getattr(x, "shape", None) != shape:
        return x
    x = np.asarray(x).ravel()[order].reshape(shape)
    return jnp.asarray(x if half is None else np.where(half, x, 2 * x))


def trial(brick: gx.Leafwise) -> tuple[set[str], bool]:
    """The slots that were ever negative, and whether each element went its way alone."""
    state, negative, alone = brick.init(PARAM), set[str](), True
    for grads in GRADS:
        now, rest = brick.begin(state, grads)
        now, treedef = first_of(now), jax.tree.structure(PARAM)
        kept = {name: treedef.flatten_up_to(getattr(state, name)) for name in brick.slots}
        made: dict[str, list[Any]] = {name: [] for name in brick.slots}
        for i, (g, p) in enumerate(zip(jax.tree.leaves(grads), jax.tree.leaves(PARAM), strict=True)):
            own = [values[i] for values in kept.values()]
            update, new = brick.step(now, g, p, own)
            order, half = RANDOM.permutation(g.size), np.arange(g.size).reshape(g.shape) % 2 == 0
            other = [moved(x, g.shape, order, half) for x in (g, p, *own)]
            again = brick.step(now, other[0], other[1], other[2:])
            for x, y in zip((update, *new), (again[0], *again[1]), strict=True):
                if not is_empty(x):
                    same = np.asarray(moved(x, g.shape, order)) == np.asarray(y)
                    alone &= bool(np.all(same[half] if same.shape == half.shape else same))
            for name, x in zip(brick.slots, new, strict=True):
                made[name].append(x)
                if not is_empty(x) and np.any(np.asarray(x) < 0):
                    negative.add(name)
        state = rest._replace(**{name: treedef.unflatten(values) for name, values in made.items()})
    return negative, alone


def test_all_bricks_are_tried() -> None:
    assert len(BRICKS) > 20 and {"scale_by_adam", "scale_by_factored_rms", "clip_by_global_norm"} <= set(BRICKS)


@pytest.mark.parametrize("name", sorted(BRICKS))
def test_a_brick_is_what_it_declares(name: str) -> None:
    tried = [(brick, *trial(brick)) for brick in BRICKS[name]]
    for brick, negative, alone in tried:
        assert negative == {slot for slot, how in brick.slots.items() if not how.nonnegative}
        assert alone or not brick.elementwise
    # One that declares nothing is shown to be nothing by one of its forms at least.
    assert any(brick.elementwise or not alone for brick, _, alone in tried)
