"""The 3-Augment of DeiT III."""

from __future__ import annotations

from gradxform.augment.augmentation import augmentation
from gradxform.augment.compose import chain, one_of
from gradxform.augment.geometry.affine import random_flip_left_right
from gradxform.augment.photometry.jitter import color_jitter, random_grayscale
from gradxform.augment.photometry.levels import gaussian_blur, solarize
from gradxform.augment.sequence import Built
from gradxform.core import checks
from gradxform.core.types import Scalar


@augmentation
def three_augment(strength: Scalar = 0.3) -> Built:
    """Gray, solarized or blurred, and a colour jitter: 3-Augment (Touvron and others, "DeiT III", 2022).

    A flip with probability 0.5, then one of three with the same probability: gray, levels from 128 on inverted, a
    Gaussian blur with a sigma uniform in [0.1, 2]; then a jitter of brightness, contrast and saturation. The paper's
    code crops before it: ``chain(random_resized_crop(224), three_augment(), normalize("imagenet"))``, where the flip
    and the crop are one. Its blur is Pillow's, box blurs in place of the Gaussian.

    Args:
      strength: v >= 0 of the jitter, for factors uniform in [max(0, 1 - v), 1 + v].

    Returns:
      The augmentation; it takes images of 1 or 3 channels.

    Raises:
      TypeError: ``strength`` is no number.
      ValueError: ``strength`` is negative.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> aug = gx.augment.chain(gx.augment.random_crop(24, padding=4), gx.augment.three_augment())
      >>> aug(jax.random.key(0), jnp.zeros((4, 32, 32, 3), jnp.uint8)).shape
      (4, 24, 24, 3)
    """
    checks.real("strength", strength, at_least=0)
    return chain(
        random_flip_left_right(),
        one_of(random_grayscale(1.0), solarize(128), gaussian_blur((0.1, 2.0))),
        color_jitter(strength, strength, strength),
    ).stage
