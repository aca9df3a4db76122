"""Augmentations made of others: one after another, by chance, one of several, several views of one image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gradxform.augment.augmentation import Augmentation, augmentation
from gradxform.augment.geometry.run import Resampling
from gradxform.augment.ranges import check_order
from gradxform.augment.sequence import Built, Mixed, Sequence, fewest
from gradxform.augment.stage import Mix, Sampled, Shape, Stage, Targets, canvas_of
from gradxform.core import checks
from gradxform.core.types import PyTree, Scalar, Size


@dataclasses.dataclass(frozen=True)
class Choice(Stage):
    """One of several stages, each image its own."""

    stages: tuple[Stage, ...]
    probabilities: tuple[Scalar, ...] | None

    @property
    def dear(self) -> bool:  # type: ignore[override]
        """Whether a stage is."""
        return any(stage.dear for stage in self.stages)

    @property
    def chooses(self) -> bool:  # type: ignore[override]
        """Whether there is something dear to choose from."""
        return any(stage.dear or stage.chooses for stage in self.stages)

    def images(self, shape: Shape, dtype: DTypeLike) -> int | None:
        """One, which takes its own branch."""
        return 1

    def sample(self, key: jax.Array, shape: Shape) -> Sampled:
        """Which one, and the parameters of each."""
        which, rest = jax.random.split(key)
        count = len(self.stages)
        if self.probabilities is None:
            index = jax.random.randint(which, (), 0, count)
        else:
            # The first whose sum of probabilities is above a uniform number: 0 is never and 1 is always.
            sums = jnp.cumsum(jnp.stack([jnp.asarray(p, jnp.float32) for p in self.probabilities]))
            index = jnp.sum(jax.random.uniform(which) * sums[-1] >= sums[:-1])
        return index.astype(jnp.int32), tuple(
            stage.sample(jax.random.fold_in(rest, i), shape) for i, stage in enumerate(self.stages)
        )

    def out_shape(self, shape: Shape) -> Shape:
        """The shape that all of them make."""
        shapes = [stage.out_shape(shape) for stage in self.stages]
        if not all(_is_same(a, b) for shape in shapes for a, b in zip(shape, shapes[0], strict=True)):
            raise ValueError(
                f"image: expected all choices to give one shape, got {', '.join(map(str, shapes))} from {shape}"
            )
        return shapes[0]

    def apply(self, params: Sampled, targets: Targets) -> PyTree:
        """The targets as the chosen stage makes them."""
        index, each = params

        def branch(i: int, stage: Stage) -> Callable[[Sampled, Targets], Targets]:
            def made(each: Sampled, targets: Targets) -> Targets:
                made = stage.apply(each[i], targets)
                return made | {"image": canvas_of(made)}

            return made

        return lax.switch(
            index,
            [branch(i, stage) for i, stage in enumerate(self.stages)],
            each,
            targets | {"image": canvas_of(targets)},
        )


@dataclasses.dataclass(frozen=True)
class Views(Stage):
    """Several results of one image, each with parameters of its own."""

    stages: tuple[Stage, ...]
    several = True

    @property
    def dear(self) -> bool:  # type: ignore[override]
        """Whether a stage is."""
        return any(stage.dear for stage in self.stages)

    @property
    def chooses(self) -> bool:  # type: ignore[override]
        """Whether a stage does."""
        return any(stage.chooses for stage in self.stages)

    def images(self, shape: Shape, dtype: DTypeLike) -> int | None:
        """As few as a stage wants."""
        return fewest(((stage, shape) for stage in self.stages), dtype)

    def sample(self, key: jax.Array, shape: Shape) -> Sampled:
        """The parameters of each view."""
        return tuple(stage.sample(jax.random.fold_in(key, i), shape) for i, stage in enumerate(self.stages))

    def apply(self, params: Sampled, targets: Targets) -> PyTree:
        """The targets of each view."""
        return tuple(stage.apply(one, targets) for stage, one in zip(self.stages, params, strict=True))

    def out_shape(self, shape: Shape) -> Shape:
        """The shape of the first view, once all have agreed to theirs."""
        shapes = [stage.out_shape(shape) for stage in self.stages]
        return shapes[0]


@augmentation
def chain(*augmentations: Augmentation) -> Built:
    """One augmentation after another.

    Neighbouring geometric ones are one resampling as far as they ask the same of borders and of what lies between
    pixels; then the image is interpolated once, and what one of them moved out of sight another may move back. What
    comes after several views is done to each of them, with parameters of its own.

    Args:
      *augmentations: what to do, in order; without any, the chain changes nothing.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is no augmentation.
      ValueError: images of a batch are mixed after several views, or what needs values in [0, 1] is behind what leaves
        it, as ``normalize`` does.

    Example:
      >>> import gradxform as gx
      >>> gx.augment.chain(gx.augment.random_crop((24, 24)), gx.augment.random_flip_left_right())
      augment.chain(augment.random_crop(size=(24, 24), padding=0), augment.random_flip_left_right(p=0.5))
    """
    stages = [_checked(f"augmentations[{i}]", one).stage for i, one in enumerate(augmentations)]
    check_order(augmentations)
    return _joined(stages)


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
            raise ValueError(
                f"probabilities: expected one for each of {len(augmentations)} augmentations, got {len(probabilities)}"
            )
        for p in probabilities:
            checks.real("probabilities", p, at_least=0)
        if all(checks.is_concrete(p) for p in probabilities) and not any(probabilities):
            raise ValueError("probabilities: expected at least one above 0, got all 0")
    return Choice(tuple(_single(f"augmentations[{i}]", one) for i, one in enumerate(augmentations)), probabilities)


@augmentation
def views(*augmentations: Augmentation) -> Stage:
    """Several augmented views of each image, each with parameters of its own and maybe of another size.

    What comes after it in a ``chain`` is done to each view.

    Args:
      *augmentations: what makes each view, at least one.

    Returns:
      The augmentation, whose result is a tuple of what each of them gives.

    Raises:
      TypeError: an argument is no augmentation.
      ValueError: there are none, or one of them mixes images or gives several views itself.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> large, small = gx.augment.random_crop(24), gx.augment.random_crop(8)
      >>> aug = gx.augment.chain(gx.augment.views(large, small, small), gx.augment.normalize(0.5, 0.5))
      >>> [view.shape for view in aug(jax.random.key(0), jnp.zeros((4, 32, 32, 3)))]
      [(4, 24, 24, 3), (4, 8, 8, 3), (4, 8, 8, 3)]
    """
    if not augmentations:
        raise ValueError("augmentations: expected at least one, got none")
    return Views(tuple(_single(f"augmentations[{i}]", one) for i, one in enumerate(augmentations)))


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


def _checked(name: str, aug: Augmentation) -> Augmentation:
    if not isinstance(aug, Augmentation):
        raise TypeError(f"{name}: expected an augmentation, got {aug!r}")
    return aug


def _is_same(side: Size, other: Size) -> bool:
    """Whether two sides are known to be equal; those of images of several sizes are arrays."""
    return side is other or (not isinstance(side, jax.Array) and not isinstance(other, jax.Array) and side == other)


def _single(name: str, aug: Augmentation) -> Stage:
    stage = _checked(name, aug).stage
    if not isinstance(stage, Stage):
        raise ValueError(
            f"{name}: expected an augmentation of one image, got {aug.name}, which mixes images of a batch"
        )
    if isinstance(stage, Views) or (
        isinstance(stage, Sequence) and any(isinstance(one, Views) for one in stage.stages)
    ):
        raise ValueError(f"{name}: expected an augmentation of one image, got {aug.name}, which gives several views")
    return stage


def _joined(parts: Iterable[Built]) -> Built:
    """Stages and mixes one after another, as one."""
    flat: list[Stage | Mix] = []
    for part in parts:
        flat.extend(part.stages if isinstance(part, Sequence) else part.parts if isinstance(part, Mixed) else [part])
    first = next((i for i, part in enumerate(flat) if isinstance(part, Views)), len(flat))
    rest = flat[first + 1 :]
    if rest:
        if any(isinstance(part, (Mix, Views)) for part in rest):
            raise ValueError(
                "augmentations: expected nothing after several views that mixes images or gives several "
                "views again; put it before, or into the views"
            )
        views: Any = flat[first]
        flat[first:] = [Views(tuple(_joined([view, *rest]) for view in views.stages))]  # type: ignore[misc]
    flat = _fused(flat)
    if any(isinstance(part, Mix) for part in flat):
        return Mixed(tuple(flat))
    return Sequence(tuple(flat))  # type: ignore[arg-type]


def _fused(stages: Iterable[Stage | Mix]) -> list[Stage | Mix]:
    """The stages, with neighbouring geometric ones as one where one resampling can do them."""
    result: list[Stage | Mix] = []
    for stage in stages:
        last = result[-1] if result else None
        if (
            isinstance(stage, Resampling)
            and isinstance(last, Resampling)
            and all(one.fits(other) for one in last.ops for other in stage.ops)
        ):
            result[-1] = Resampling(last.ops + stage.ops)
        else:
            result.append(stage)
    return result
