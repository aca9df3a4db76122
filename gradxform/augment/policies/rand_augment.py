"""RandAugment and TrivialAugment."""

from __future__ import annotations

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import INTERPOLATIONS, Fill, border_of
from gradxform.augment.policies.policy import Policy
from gradxform.augment.policies.presets import RAND_AUGMENT, TRIVIAL_AUGMENT, Preset, google
from gradxform.augment.stage import Stage
from gradxform.core import arrays, checks
from gradxform.core.types import Scalar


@augmentation
def rand_augment(
    num_ops: int = 2,
    magnitude: Scalar = 9.0,
    preset: str = "torchvision",
    *,
    probability: Scalar | None = None,
    scaled: bool = False,
    interpolation: str | None = None,
    border: str = "constant",
    fill: Fill | None = None,
    mask_fill: int = 0,
) -> Stage:
    """Some operations at random, all with one magnitude (Cubuk and others, 2020).

    What a magnitude means depends on whose code it comes from: 9 turns the image by up to 27 degrees with
    ``"google"`` and ``"timm"``, and by 9 with ``"torchvision"``, whose magnitudes go to 30.

    ===============  ==========================  ==========================  =======================
    preset           torchvision                 timm                        google
    ===============  ==========================  ==========================  =======================
    operations       14                          15                          16, with Cutout
    magnitude        9 of 0 to 30                9 of 0 to 10, +- 0.5        9 of 0 to 10 or more
    rotation         30 degrees m / 30           30 degrees m / 10           30 degrees m / 10
    shear            0.3 m / 30                  0.3 m / 10                  0.3 m / 10
    shift            150 / 331 of the size m/30  0.45 of the size m / 10     100 pixels m / 10
    enhancement      1 +- 0.9 m / 30             1 +- 0.9 m / 10             0.1 + 1.8 m / 10
    bits             8 - 4 m / 30                4 - int(0.4 m)              int(0.4 m)
    solarized from   255 (1 - m / 30)            256 - int(25.6 m)           int(25.6 m)
    each is done     always                      with probability 0.5        always
    pixels between   nearest                     bilinear                    nearest
    what comes in    black                       gray (0.5)                  gray (0.5)
    ===============  ==========================  ==========================  =======================

    Operations are drawn with replacement, for each image its own. timm's choice between bilinear and bicubic is not
    made, and Google's contrast is about the mean of the image, not about its number of pixels.

    Args:
      num_ops: how many operations one after another, >= 1.
      magnitude: how strong, >= 0; up to 30 with ``"torchvision"`` and 10 with ``"timm"``. May be traced.
      preset: ``"torchvision"``, ``"timm"`` or ``"google"``.
      probability: of each operation to be done at all, in [0, 1].
      scaled: whether the pixels of ``"google"`` are in proportion to the size, as they are for images of 224; as
        published they leave a third of images of 32 in one colour. The other presets are in proportion anyway.
      interpolation: ``"nearest"`` or ``"bilinear"``; masks are always ``"nearest"``.
      border: what comes in from outside: ``"constant"``, ``"edge"`` or ``"reflect"``.
      fill: the constant, from 0, black, to 1, or one for each channel.
      mask_fill: the constant in masks.

    Returns:
      The augmentation; it takes images of 1 or 3 channels.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or the preset is unknown.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> aug = gx.augment.rand_augment(num_ops=2, magnitude=9)
      >>> aug(jax.random.key(0), jnp.zeros((4, 32, 32, 3), jnp.uint8)).shape
      (4, 32, 32, 3)
    """
    num_ops = arrays.size("num_ops", num_ops)
    checks.choice("preset", preset, tuple(RAND_AUGMENT))
    if not isinstance(scaled, bool):
        raise TypeError(f"scaled: expected a bool, got {scaled!r}")
    chosen = google(scaled) if preset == "google" else RAND_AUGMENT[preset]
    checks.real("magnitude", magnitude, at_least=0, at_most=None if preset == "google" else chosen.levels)
    return _policy(chosen, num_ops, magnitude, probability, interpolation, border, fill, mask_fill)


@augmentation
def trivial_augment(
    *, interpolation: str | None = None, border: str = "constant", fill: Fill | None = None, mask_fill: int = 0
) -> Stage:
    """One operation at random with a random magnitude (Mueller and Hutter, 2021): nothing to tune.

    The 14 operations and the wide ranges of the paper and of torchvision: shears up to 0.99, shifts up to 32 pixels,
    rotations up to 135 degrees, enhancements of 1 +- 0.99, 2 to 8 bits; 31 magnitudes.

    Args:
      interpolation: ``"nearest"`` (the default) or ``"bilinear"``; masks are always ``"nearest"``.
      border: what comes in from outside: ``"constant"``, ``"edge"`` or ``"reflect"``.
      fill: the constant, from 0, black (the default), to 1, or one for each channel.
      mask_fill: the constant in masks.

    Returns:
      The augmentation; it takes images of 1 or 3 channels.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.trivial_augment()(jax.random.key(0), jnp.zeros((4, 32, 32, 3))).shape
      (4, 32, 32, 3)
    """
    return _policy(TRIVIAL_AUGMENT, 1, None, None, interpolation, border, fill, mask_fill)


def _policy(
    preset: Preset,
    num_ops: int,
    magnitude: Scalar | None,
    probability: Scalar | None,
    interpolation: str | None,
    border: str,
    fill: Fill | None,
    mask_fill: int,
) -> Stage:
    probability = preset.probability if probability is None else probability
    interpolation = preset.interpolation if interpolation is None else interpolation
    checks.real("probability", probability, at_least=0, at_most=1)
    checks.choice("interpolation", interpolation, INTERPOLATIONS)
    beyond = border_of(border, preset.fill if fill is None else fill, mask_fill)
    return Policy(preset, num_ops, magnitude, probability, beyond, interpolation)
