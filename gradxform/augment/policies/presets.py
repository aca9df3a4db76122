"""The published policies: which operations there are, and what a magnitude means for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradxform.augment.stage import Shape

SCALED_FROM = 224
"""The size of the images that Google's numbers in pixels are for."""
Amount = Callable[[jax.Array, Shape], jax.Array]
"""From a level to the number of an operation, for images of a shape."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An operation in a policy.

    Attributes:
      name: of the operation.
      amount: its number from the level.
      center: where the number starts from: the sign, drawn at random, is that of the amount added to it; None for an
        amount that is the number itself.
      least: what the number is at least.
    """

    name: str
    amount: Amount = lambda level, shape: level
    center: float | None = None
    least: float | None = None

    def number(self, level: jax.Array, sign: jax.Array, shape: Shape) -> jax.Array:
        """The number of the operation."""
        amount = jnp.asarray(self.amount(level, shape), jnp.float32)
        if self.center is not None:
            amount = self.center + sign * amount
        return amount if self.least is None else jnp.maximum(amount, self.least)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A policy.

    Attributes:
      entries: its operations.
      levels: the magnitude that counts as a level of 1.
      spread: the standard deviation of the magnitude from image to image and operation to operation.
      probability: of each operation to be done at all.
      interpolation: of the moved pixels.
      fill: what comes in from outside.
    """

    entries: tuple[Entry, ...]
    levels: float
    spread: float = 0.0
    probability: float = 1.0
    interpolation: str = "nearest"
    fill: float = 0.0


def linear(most: float) -> Amount:
    """``most`` times the level."""
    return lambda level, shape: most * level


def whole(most: float, start: int = 0, sign: int = 1) -> Amount:
    """``start`` and ``sign`` times the whole part of ``most`` times the level."""
    return lambda level, shape: start + sign * jnp.floor(_nudged(most * level))


def pixels(most: float, axis: int | None = None, rounded: bool = False) -> Amount:
    """``most`` times the level in pixels; of images of 224, in proportion, where an axis of the size is named."""

    def amount(level: jax.Array, shape: Shape) -> jax.Array:
        number = most * level if axis is None else most * level * shape[axis] / SCALED_FROM
        return jnp.floor(_nudged(number)) if rounded else number

    return amount


def share(most: float, axis: int, rounded: bool) -> Amount:
    """``most`` times the level of the height or the width in pixels, whole pixels if ``rounded``."""
    return lambda level, shape: (
        jnp.floor(_nudged(most * level * shape[axis])) if rounded else most * level * shape[axis]
    )


def _nudged(x: jax.Array) -> jax.Array:
    # 0.4 * 5 is a little less than 2 in float32.
    return x * (1 + 2.0**-20)


def _both(name: str, x: Amount, y: Amount) -> tuple[Entry, Entry]:
    return Entry(f"{name}_x", x, 0.0), Entry(f"{name}_y", y, 0.0)


def _torchvision(
    shear: float, translate: tuple[Amount, Amount], rotate: float, enhance: float, bits: float
) -> tuple[Entry, ...]:
    return (
        Entry("identity"),
        *_both("shear", linear(shear), linear(shear)),
        *_both("shift", *translate),
        Entry("rotate", linear(rotate), 0.0),
        *(Entry(name, linear(enhance), 1.0) for name in ("brightness", "color", "contrast", "sharpness")),
        Entry("posterize", lambda level, shape: 8 - jnp.round(bits * level)),
        # Clear of the last bits: a threshold a little above 0 would leave black as it is.
        Entry("solarize", lambda level, shape: jnp.round(255 * 64 * (1 - level)) / 64),
        Entry("auto_contrast"),
        Entry("equalize"),
    )


_ENHANCED = ("color", "contrast", "brightness", "sharpness")


def google(scaled: bool) -> Preset:
    """The 16 of Google's code for TPUs and of big_vision.

    Args:
      scaled: whether shifts and the cutout, up to 100 and 80 pixels, are in proportion to height and width, as they are
        for images of 224; as published they are pixels, which leave little of small images.

    Returns:
      The preset.
    """
    down, across = (0, 1) if scaled else (None, None)
    return Preset(
        (
            Entry("auto_contrast"),
            Entry("equalize"),
            Entry("invert"),
            Entry("rotate", linear(30.0), 0.0),
            Entry("posterize", whole(4.0)),
            Entry("solarize", whole(256.0)),
            Entry("solarize_add", whole(110.0)),
            *(Entry(name, lambda level, shape: 1.8 * level + 0.1) for name in _ENHANCED),
            *_both("shear", linear(0.3), linear(0.3)),
            *_both("translate", pixels(100.0, across), pixels(100.0, down)),
            Entry("cutout", pixels(40.0, down, rounded=True)),
        ),
        10.0,
        fill=0.5,
    )


RAND_AUGMENT: dict[str, Preset] = {
    # The 14 of torchvision's RandAugment, on 31 bins.
    "torchvision": Preset(
        _torchvision(0.3, (share(150 / 331, 1, True), share(150 / 331, 0, True)), 30.0, 0.9, 4.0), 30.0
    ),
    # rand-m9-mstd0.5-inc1 of timm: each stronger as the magnitude grows.
    "timm": Preset(
        (
            Entry("auto_contrast"),
            Entry("equalize"),
            Entry("invert"),
            Entry("rotate", linear(30.0), 0.0),
            Entry("posterize", whole(4.0, 4, -1)),
            Entry("solarize", whole(256.0, 256, -1)),
            Entry("solarize_add", lambda level, shape: jnp.minimum(128, jnp.floor(_nudged(110.0 * level)))),
            *(Entry(name, linear(0.9), 1.0, 0.1) for name in _ENHANCED),
            *_both("shear", linear(0.3), linear(0.3)),
            *_both("translate", share(0.45, 1, False), share(0.45, 0, False)),
        ),
        10.0,
        spread=0.5,
        probability=0.5,
        interpolation="bilinear",
        fill=0.5,
    ),
    "google": google(scaled=False),
}

LEARNED = Preset((*RAND_AUGMENT["torchvision"].entries, Entry("invert")), 9.0)
"""What AutoAugment chose from, with ten magnitudes: the ranges of torchvision's RandAugment."""

TRIVIAL_AUGMENT = Preset(_torchvision(0.99, (whole(32.0), whole(32.0)), 135.0, 0.99, 6.0), 30.0)
"""The wide spaces of TrivialAugment, as torchvision has them."""

_AUG_MIX = (
    Entry("auto_contrast"),
    Entry("equalize"),
    Entry("posterize", whole(4.0, 4, -1)),
    Entry("rotate", whole(30.0), 0.0),
    Entry("solarize", whole(256.0, 256, -1)),
    *_both("shear", linear(0.3), linear(0.3)),
    *_both("shift", share(1 / 3, 1, True), share(1 / 3, 0, True)),
)
AUG_MIX = Preset(_AUG_MIX, 10.0, interpolation="bilinear")
"""The 9 operations of AugMix, which share nothing with the corruptions of ImageNet-C."""
AUG_MIX_ALL = dataclasses.replace(
    AUG_MIX,
    entries=_AUG_MIX
    + tuple(
        Entry(name, lambda level, shape: 1.8 * level + 0.1) for name in ("color", "contrast", "brightness", "sharpness")
    ),
)
"""Those and four more, which do."""
