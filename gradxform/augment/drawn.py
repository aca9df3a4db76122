"""Parameters as users keep them: with the shape of the image that they were drawn for."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from gradxform.augment.sequence import Built
from gradxform.augment.stage import Sampled, Shape
from gradxform.core.types import PyTree


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tree"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """A tree of small arrays, which reads as that tree does.

    Attributes:
      tree: the parameters.
      shape: (H, W, C) of the image that they were drawn for.
    """

    tree: Sampled
    shape: Shape

    def __getitem__(self, which: str | int) -> PyTree:
        return self.tree[which]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "tree":
            raise AttributeError(name)
        return getattr(self.tree, name)  # ``get`` and ``items`` of a dict

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.tree, dtype)

    def __or__(self, other: PyTree) -> Drawn:
        return dataclasses.replace(self, tree=self.tree | other)

    def __iter__(self) -> Iterator[PyTree]:
        return iter(self.tree)

    def __len__(self) -> int:
        return len(self.tree)


def fitting(params: Sampled, stage: Built, shape: tuple[int, ...]) -> Sampled:
    """The tree of parameters for an image or a batch of a shape.

    Raises:
      ValueError: they were drawn for another height or width, and depend on it.
    """
    if not isinstance(params, Drawn):
        return params
    if params.shape[:2] != shape[-3:-1] and _program(stage, (*params.shape[:2], shape[-1])) != _program(
        stage, (shape[-3], shape[-2], shape[-1])
    ):
        raise ValueError(
            f"params: expected those drawn for images of {tuple(shape[-3:-1])}, since they depend on the "
            f"size, got those for images of {params.shape[:2]}"
        )
    return params.tree


def _program(stage: Built, shape: Shape) -> tuple[str, list[PyTree]]:
    """What draws parameters for a shape; for two shapes the same if they do not depend on it."""
    made = jax.make_jaxpr(lambda key: stage.sample_batch(key, (2, *shape)))(jax.random.key(0))
    # Without the addresses of functions, which two traces need not share.
    return re.sub(r" at 0x[0-9a-f]+", "", str(made.jaxpr)), [
        x if isinstance(x, jax.core.Tracer) else x.tolist() for x in made.consts
    ]
