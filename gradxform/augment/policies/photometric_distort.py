"""SSD's distortion of colours."""

from __future__ import annotations

from gradxform.augment.augmentation import augmentation
from gradxform.augment.compose import chain, one_of, random_apply
from gradxform.augment.photometry.channels import channel_shuffle
from gradxform.augment.photometry.jitter import (
    Strength,
    color_jitter,
    random_brightness,
    random_contrast,
    random_hue,
    random_saturation,
)
from gradxform.augment.sequence import Built
from gradxform.core import checks
from gradxform.core.types import Scalar


@augmentation
def random_photometric_distort(
    brightness: Strength = (0.875, 1.125),
    contrast: Strength = (0.5, 1.5),
    saturation: Strength = (0.5, 1.5),
    hue: Strength = (-0.05, 0.05),
    p: Scalar = 0.5,
) -> Built:
    """Each of five changes of colour by chance: the distortion of SSD (Liu and others, 2016), for detectors.

    Brightness, then contrast, saturation and hue or, as often, saturation, hue and contrast, then the channels in
    another order; torchvision's ``RandomPhotometricDistort``.

    Args:
      brightness: a number v >= 0 for a factor uniform in [max(0, 1 - v), 1 + v], or the bounds of the factor, >= 0.
      contrast: the same for the contrast.
      saturation: the same for the saturation.
      hue: a number v in [0, 0.5] for a shift uniform in [-v, v] turns of the colour wheel, or bounds of the shift in
        [-0.5, 0.5].
      p: how often each of the five is done, in [0, 1].

    Returns:
      The augmentation; it takes images of 1 or 3 channels.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or (when called) the image has another number of channels.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> boxes = jnp.tile(jnp.array([[4.0, 4.0, 28.0, 20.0]]), (4, 1, 1))
      >>> inputs = {"image": jnp.zeros((4, 32, 32, 3), jnp.uint8), "boxes": boxes}
      >>> aug = gx.augment.chain(gx.augment.random_photometric_distort(), gx.augment.random_iou_crop(24))
      >>> aug(jax.random.key(0), inputs)["image"].shape
      (4, 24, 24, 3)
    """
    checks.real("p", p, at_least=0, at_most=1)
    color_jitter(brightness, contrast, saturation, hue)  # which refuses by their names what the four would not take
    some = random_apply(random_contrast(contrast), p)
    colors = chain(random_apply(random_saturation(saturation), p), random_apply(random_hue(hue), p))
    return chain(
        random_apply(random_brightness(brightness), p),
        one_of(chain(some, colors), chain(colors, some)),
        random_apply(channel_shuffle(), p),
    ).stage
