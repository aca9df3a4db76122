"""Augmentations made of others: one after another, by chance, one of several, two of one image."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.augment.augmentation import Augmentation, augmentation
from gradxform.augment.batching import apply_batch, sorted_switch
from gradxform.augment.geometry.run import Resampling
from gradxform.augment.stage import Shape, Stage, Targets, fewest
from gradxform.core import checks
from gradxform.core.types import Scalar


@dataclasses.dataclass(frozen=True)
class Sequence(Stage):
    """Stages one after another."""

    stages: tuple[Stage, ...]

    @property
    def branches(self) -> bool:  # type: ignore[override]
        """Whether a stage has them."""
        return any(stage.branches for stage in self.stages)

    @property
    def whole_batch(self) -> bool:  # type: ignore[override]
        """Whether a stage mixes images."""
        return any(stage.whole_batch for stage in self.stages)

    @property
    def views(self) -> bool:  # type: ignore[override]
        """Whether the last stage gives several results."""
        return any(stage.views for stage in self.stages)

    def at_once(self, shape: Shape, dtype: Any) -> int:
        """As few as a stage with branches wants."""
        shapes = itertools.accumulate(self.stages, lambda shape, stage: stage.out_shape(shape), initial=shape)
        return fewest(zip(self.stages, shapes, strict=False), dtype)

    @property
    def whole_pixels(self) -> bool:  # type: ignore[override]
        """Whether all stages do."""
        return all(stage.whole_pixels for stage in self.stages)

    def sample(self, key: jax.Array, shape: Shape) -> Any:
        """The parameters of each stage."""
        params = []
        for i, stage in enumerate(self.stages):
            params.append(stage.sample(jax.random.fold_in(key, i), shape))
            shape = stage.out_shape(shape)
        return tuple(params)

    def apply(self, params: Any, targets: Targets) -> Any:
        """The targets after all stages."""
        for stage, one in zip(self.stages, params, strict=True):
            targets = stage.apply(one, targets)
        return targets

    def apply_sorted(self, params: Any, targets: Targets) -> Any:
        """The targets of a batch after all stages, stage by stage."""
        for stage, one in zip(self.stages, params, strict=True):
            targets = stage.apply_sorted(one, targets)
        return targets

    def out_shape(self, shape: Shape) -> Shape:
        """The shape after all stages."""
        for stage in self.stages:
            shape = stage.out_shape(shape)
        return shape

    def sample_batch(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        """The parameters of each stage for a batch."""
        if not self.whole_batch:
            return super().sample_batch(key, shape)
        params = []
        for i, stage in enumerate(self.stages):
            params.append(stage.sample_batch(jax.random.fold_in(key, i), shape))
            shape = (shape[0], *stage.out_shape((shape[1], shape[2], shape[3])))
        return tuple(params)

    def apply_mixed(self, params: Any, targets: Targets, strategy: str) -> Any:
        """The targets of a batch after stages of which some mix images; those between them work image by image."""
        steps = zip(self.stages, params, strict=True)
        for whole_batch, some in itertools.groupby(steps, lambda step: step[0].whole_batch):
            stages, each = zip(*some, strict=True)
            if whole_batch:
                for stage, one in zip(stages, each, strict=True):
                    targets = stage.apply_mixed(one, targets, strategy)
            else:
                targets = apply_batch(Sequence(stages), each, targets, strategy)
        return targets


@dataclasses.dataclass(frozen=True)
class Choice(Stage):
    """One of several stages, each image its own."""

    stages: tuple[Stage, ...]
    probabilities: tuple[Scalar, ...] | None
    branches = True

    def sample(self, key: jax.Array, shape: Shape) -> Any:
        """Which one, and the parameters of each."""
        which, rest = jax.random.split(key)
        count = len(self.stages)
        if self.probabilities is None:
            index = jax.random.randint(which, (), 0, count)
        else:
            # The first whose sum of probabilities is above a uniform number: 0 is never and 1 is always.
            sums = jnp.cumsum(jnp.stack([jnp.asarray(p, jnp.float32) for p in self.probabilities]))
            index = jnp.sum(jax.random.uniform(which) * sums[-1] >= sums[:-1])
        return index.astype(jnp.int32), tuple(stage.sample(jax.random.fold_in(rest, i), shape)
                                              for i, stage in enumerate(self.stages))

    def out_shape(self, shape: Shape) -> Shape:
        """The shape that all of them make."""
        shapes = [stage.out_shape(shape) for stage in self.stages]
        if not all(_is_same(a, b) for shape in shapes for a, b in zip(shape, shapes[0], strict=True)):
            raise ValueError(f"image: expected all choices to give one shape, got {', '.join(map(str, shapes))} from "
                             f"{shape}")
        return shapes[0]

    def apply(self, params: Any, targets: Targets) -> Any:
        """The targets as the chosen stage makes them."""
        index, each = params
        return lax.switch(index, self._branches(), (each, targets))

    def apply_sorted(self, params: Any, targets: Targets) -> Any:
        """The targets of a batch, one chosen stage after another."""
        index, each = params
        return sorted_switch(index, self._branches(), (each, targets))

    def _branches(self) -> list[Any]:
        return [lambda operands, i=i, stage=stage: stage.apply(operands[0][i], operands[1])
                for i, stage in enumerate(self.stages)]


@dataclasses.dataclass(frozen=True)
class Views(Stage):
    """Several results of one image, each with parameters of its own."""

    stages: tuple[Stage, ...]
    views = True

    @property
    def branches(self) -> bool:  # type: ignore[override]
        """Whether a stage has them."""
        return any(stage.branches for stage in self.stages)

    def at_once(self, shape: Shape, dtype: Any) -> int:
        """As few as a stage with branches wants."""
        return fewest(((stage, shape) for stage in self.stages), dtype)

    def sample(self, key: jax.Array, shape: Shape) -> Any:
        """The parameters of each view."""
        return tuple(stage.sample(jax.random.fold_in(key, i), shape) for i, stage in enumerate(self.stages))

    def apply(self, params: Any, targets: Targets) -> Any:
        """The targets of each view."""
        return tuple(stage.apply(one, targets) for stage, one in zip(self.stages, params, strict=True))

    def apply_sorted(self, params: Any, targets: Targets) -> Any:
        """The targets of each view of a batch."""
        return tuple(stage.apply_sorted(one, targets) for stage, one in zip(self.stages, params, strict=True))

    def out_shape(self, shape: Shape) -> Shape:
        """The shape of the first view."""
        return next(stage.out_shape(shape) for stage in self.stages)


@augmentation
def chain(*augmentations: Augmentation) -> Stage:
    """One augmentation after another.

    Neighbouring geometric ones are one resampling as far as they ask the same of borders and of what lies between
    pixels; then the image is interpolated once, and what one of them moved out of sight another may move back.

    Args:
      *augmentations: what to do, in order; without any, the chain changes nothing.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is no augmentation.

    Example:
      >>> import gradxform as gx
      >>> gx.augment.chain(gx.augment.random_crop((24, 24)), gx.augment.random_flip_left_right())
      augment.chain(augment.random_crop(size=(24, 24), padding=0), augment.random_flip_left_right(p=0.5))
    """
    stages: list[Stage] = []
    for i, one in enumerate(augmentations):
        stage = _checked(f"augmentations[{i}]", one).stage
        if stages and stages[-1].views:
            raise ValueError(f"augmentations[{i}]: expected nothing behind several views, got {one.name}; put it into "
                             f"the views")
        stages.extend(stage.stages if isinstance(stage, Sequence) else [stage])
    return Sequence(tuple(_fused(stages)))


@augmentation
def random_apply(aug: Augmentation, p: Scalar = 0.5) -> Stage:
    """An augmentation for some of the images.

    Args:
      aug: what to do; its result has the shape of its input.
      p: for which share of images, in [0, 1].

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: ``p`` is out of range, or ``aug`` mixes images.

    Example:
      >>> import gradxform as gx
      >>> gx.augment.random_apply(gx.augment.invert(), p=0.1)
      augment.random_apply(aug=augment.invert(), p=0.1)
    """
    checks.real("p", p, at_least=0, at_most=1)
    return Choice((Sequence(()), _single("aug", aug)), (1.0 - p, p))


@augmentation
def one_of(*augmentations: Augmentation, probabilities: tuple[Scalar, ...] | None = None) -> Stage:
    """One of several augmentations, each image its own.

    Args:
      *augmentations: what there is to choose from; all give results of one shape.
      probabilities: of each, >= 0; they need not add up to 1. All alike by default.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: there are none, there are not as many probabilities, one is negative or all are 0, or one of the
        augmentations mixes images.

    Example:
      >>> import gradxform as gx
      >>> gx.augment.one_of(gx.augment.equalize(), gx.augment.autocontrast())
      augment.one_of(augment.equalize(), augment.autocontrast())
    """
    if not augmentations:
        raise ValueError("augmentations: expected at least one, got none")
    if probabilities is not None:
        probabilities = tuple(probabilities)
        if len(probabilities) != len(augmentations):
            raise ValueError(f"probabilities: expected one for each of {len(augmentations)} augmentations, got "
                             f"{len(probabilities)}")
        for p in probabilities:
            checks.real("probabilities", p, at_least=0)
        if all(checks.is_concrete(p) for p in probabilities) and not any(probabilities):
            raise ValueError("probabilities: expected at least one above 0, got all 0")
    return Choice(tuple(_single(f"augmentations[{i}]", one) for i, one in enumerate(augmentations)), probabilities)


@augmentation
def two_views(first: Augmentation, second: Augmentation | None = None) -> Stage:
    """Two augmented views of each image, for contrastive learning.

    Args:
      first: makes the first view.
      second: makes the second; by default the same one, with parameters of its own.

    Returns:
      The augmentation, whose result is a pair of what ``first`` and ``second`` give.

    Raises:
      TypeError: an argument is no augmentation.
      ValueError: one of them mixes images.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> views = gx.augment.two_views(gx.augment.random_crop((24, 24)))
      >>> one, other = views(jax.random.key(0), jnp.zeros((8, 32, 32, 3)))
      >>> one.shape, other.shape
      ((8, 24, 24, 3), (8, 24, 24, 3))
    """
    stage = _single("first", first)
    return Views((stage, stage if second is None else _single("second", second)))


def _checked(name: str, aug: Any) -> Augmentation:
    if not isinstance(aug, Augmentation):
        raise TypeError(f"{name}: expected an augmentation, got {aug!r}")
    return aug


def _is_same(side: Any, other: Any) -> bool:
    """Whether two sides are known to be equal; those of images of several sizes are arrays."""
    return side is other or (not isinstance(side, jax.Array) and not isinstance(other, jax.Array) and side == other)


def _single(name: str, aug: Any) -> Stage:
    stage = _checked(name, aug).stage
    if stage.whole_batch or stage.views:
        raise ValueError(f"{name}: expected an augmentation of one image, got {aug.name}, which "
                         f"{'mixes images of a batch' if stage.whole_batch else 'gives several views'}")
    return stage


def _fused(stages: list[Stage]) -> list[Stage]:
    """The stages, with neighbouring geometric ones as one where one resampling can do them."""
    result: list[Stage] = []
    for stage in stages:
        last = result[-1] if result else None
        if (isinstance(stage, Resampling) and isinstance(last, Resampling)
                and all(one.fits(other) for one in last.ops for other in stage.ops)):
            result[-1] = Resampling(last.ops + stage.ops)
        else:
            result.append(stage)
    return result
