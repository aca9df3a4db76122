"""One stage after another."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import jax
from jax.typing import DTypeLike

from gradxform.augment.stage import Mix, Sampled, Shape, Stage, Targets
from gradxform.core.types import PyTree


@dataclasses.dataclass(frozen=True)
class Sequence(Stage):
    """Stages one after another."""

    stages: tuple[Stage, ...]

    @property
    def dear(self) -> bool:  # type: ignore[override]
        """Whether a stage is."""
        return any(stage.dear for stage in self.stages)

    @property
    def chooses(self) -> bool:  # type: ignore[override]
        """Whether a stage does."""
        return any(stage.chooses for stage in self.stages)

    @property
    def several(self) -> bool:  # type: ignore[override]
        """Whether a stage makes several images of each."""
        return any(stage.several for stage in self.stages)

    def images(self, shape: Shape, dtype: DTypeLike) -> int | None:
        """As few as a stage wants."""
        shapes = itertools.accumulate(self.stages, lambda shape, stage: stage.out_shape(shape), initial=shape)
        return fewest(zip(self.stages, shapes, strict=False), dtype)

    def sample(self, key: jax.Array, shape: Shape) -> Sampled:
        """The parameters of each stage."""
        params = []
        for i, stage in enumerate(self.stages):
            params.append(stage.sample(jax.random.fold_in(key, i), shape))
            shape = stage.out_shape(shape)
        return tuple(params)

    def apply(self, params: Sampled, targets: Targets) -> PyTree:
        """The targets after all stages."""
        for stage, one in zip(self.stages, params, strict=True):
            targets = stage.apply(one, targets)
        return targets

    def out_shape(self, shape: Shape) -> Shape:
        """The shape after all stages."""
        for stage in self.stages:
            shape = stage.out_shape(shape)
        return shape


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Stages and mixes one after another."""

    parts: tuple[Stage | Mix, ...]

    def segments(self) -> Iterator[tuple[bool, tuple[int, ...]]]:
        """The places of neighbours that mix, or that do not, and whether they do."""
        for mixes, places in itertools.groupby(range(len(self.parts)), lambda i: isinstance(self.parts[i], Mix)):
            yield mixes, tuple(places)

    def out_shape(self, shape: Shape) -> Shape:
        """The shape after all parts."""
        for part in self.parts:
            shape = part.out_shape(shape)
        return shape

    def sample_batch(self, key: jax.Array, shape: tuple[int, ...]) -> Sampled:
        """The parameters of each part for a batch."""
        params = []
        for i, part in enumerate(self.parts):
            params.append(part.sample_batch(jax.random.fold_in(key, i), shape))
            shape = (shape[0], *part.out_shape((shape[1], shape[2], shape[3])))
        return tuple(params)


Built: TypeAlias = Stage | Mix | Mixed
"""What a factory of augmentations returns."""


def fewest(stages: Iterable[tuple[Stage, Shape]], dtype: DTypeLike) -> int | None:
    """How many images at a time suit all of the stages, each with the shape that it gets."""
    wanted = [images for stage, shape in stages if (images := stage.images(shape, dtype)) is not None]
    return min(wanted, default=None)
