"""AutoAugment: pairs of operations that were found by a search."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import INTERPOLATIONS, Border, Fill, border_of
from gradxform.augment.policies.learned import AUTO_AUGMENT, Found
from gradxform.augment.policies.policy import Steps, drawn, operations, performed
from gradxform.augment.policies.presets import LEARNED
from gradxform.augment.stage import Shape, Stage, Targets, canvas_of
from gradxform.core import checks


@augmentation
def auto_augment(
    policy: str = "imagenet",
    *,
    interpolation: str = "nearest",
    border: str = "constant",
    fill: Fill = 0.0,
    mask_fill: int = 0,
) -> Stage:
    """Two operations, with the probabilities and magnitudes that a search found (Cubuk and others, 2019).

    A policy is 25 pairs of operations, of which each image takes one; each of the two is done with a probability and
    a magnitude m of its own, from 0 to 9. The pairs are those of the paper's appendix, what a magnitude means is
    torchvision's:

    ==============================================  =======================================
    operation                                       number
    ==============================================  =======================================
    shears                                          +- 0.3 m / 9
    shifts                                          +- 150 / 331 of the size m / 9, whole
    rotation                                        +- 30 degrees m / 9
    brightness, colour, contrast, sharpness         1 +- 0.9 m / 9
    bits that stay                                  8 - 4 m / 9, rounded
    levels inverted from                            255 (1 - m / 9)
    autocontrast, equalize, invert                  none
    ==============================================  =======================================

    Args:
      policy: what the search was for: ``"imagenet"``, ``"cifar10"`` or ``"svhn"``.
      interpolation: ``"nearest"`` or ``"bilinear"``; masks are always ``"nearest"``.
      border: what comes in from outside: ``"constant"``, ``"edge"`` or ``"reflect"``.
      fill: the constant, from 0, black, to 1, or one for each channel.
      mask_fill: the constant in masks.

    Returns:
      The augmentation; it takes images of 1 or 3 channels.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or the policy is unknown.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.auto_augment("cifar10")(jax.random.key(0), jnp.zeros((4, 32, 32, 3), jnp.uint8)).shape
      (4, 32, 32, 3)
    """
    checks.choice("policy", policy, tuple(AUTO_AUGMENT))
    checks.choice("interpolation", interpolation, INTERPOLATIONS)
    return Learned(AUTO_AUGMENT[policy], border_of(border, fill, mask_fill), interpolation)


@dataclasses.dataclass(frozen=True)
class Learned(Stage):
    """One of several rows of operations.

    Attributes:
      rows: each of operations of ``LEARNED``, in order.
      border: what comes in from outside.
      interpolation: of the moved pixels.
    """

    rows: tuple[tuple[Found, ...], ...]
    border: Border
    interpolation: str
    dear = chooses = True
    needs_unit = True

    def images(self, shape: Shape, dtype: Any) -> int | None:
        """One, which goes through its own operations."""
        return 1

    def sample(self, key: jax.Array, shape: Shape) -> Steps:
        """The operations of one image."""
        which, done, rest = jax.random.split(key, 3)
        names = [entry.name for entry in LEARNED.entries]
        numbers = np.array([[(names.index(name), p, m) for name, p, m in row] for row in self.rows], np.float32)
        op, probability, magnitude = jnp.asarray(numbers)[jax.random.randint(which, (), 0, len(numbers))].T
        keep = jax.random.uniform(done, op.shape) < probability
        return drawn(rest, LEARNED, magnitude / LEARNED.levels, keep, shape, op.astype(jnp.int32))

    def apply(self, params: Steps, targets: Targets) -> Targets:
        """The targets of one image after its operations."""
        return performed(
            operations(LEARNED, self.interpolation, self.border), params, targets | {"image": canvas_of(targets)}
        )
