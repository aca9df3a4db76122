"""The pretraining step of ``examples/pipeline.py``: views, network, loss, update."""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compiled.program import OURS, Call, Program, shaped
from benchmarks.compiled.programs_augment import KEY

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
SHAPES = {"digits": (8, 8, 1), "colour images": (32, 32, 3)}
VIEWS, STEP = "views", "views, network, loss and update"


def _simclr() -> Any:
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    try:
        return importlib.import_module("pretrain_simclr")
    except ModuleNotFoundError as error:
        raise RuntimeError(f"the examples need {error.name}: pip install -e '.[examples]'") from error


def call_of(part: str, shape: tuple[int, int, int]) -> Call:
    """A part of the step on images of this shape."""
    simclr = _simclr()
    images = shaped((simclr.BATCH_SIZE, *shape))
    course, run = simclr.begin(np.zeros((1000, *shape), np.float32), 10, 0)
    if part == VIEWS:
        return Call(course.views, (KEY, images))

    def step(run: Any, images: jax.Array, key: jax.Array) -> Any:
        return simclr.train_step(course.graph, course.tx, course.views, run, images, key)

    run = jax.tree.map(lambda x: shaped(jnp.shape(x), x.dtype), run)
    return Call(step, (run, images, KEY), (0,))


def programs() -> Iterator[Program]:
    """The room's programs."""
    for name, shape in SHAPES.items():
        for part in (VIEWS, STEP):
            yield Program(
                "pipeline",
                f"{name} {shape}, batch 64: {part}",
                OURS,
                lambda _, part=part, shape=shape: call_of(part, shape),
            )
