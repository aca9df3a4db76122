"""The normalization that comes last, and the numbers of the published models."""

from __future__ import annotations

import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.pixels.canvas import Planes
from gradxform.augment.stage import Pixelwise, Sampled, Stage, Targets, canvas_of
from gradxform.core import checks
from gradxform.core.types import Scalar

Numbers = Scalar | tuple[Scalar, ...]

PRESETS: dict[str, tuple[Numbers, Numbers]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": (0.5, 0.5),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@augmentation
def normalize(mean: Numbers | str, std: Numbers | None = None) -> Stage:
    """``(image - mean) / std``, the image taken in [0, 1].

    Its result is not in [0, 1]: behind it a chain takes only what works on any floats, such as what moves pixels,
    ``random_erasing(fill="normal")`` and mixing.

    ================  =================================================================================================
    ``"imagenet"``    the models of torchvision and timm, those pretrained on ImageNet
    ``"half"``        0.5 and 0.5, so that [0, 1] becomes [-1, 1]: Inception, the ViT of Google's code, SigLIP
    ``"clip"``        CLIP, as OpenAI's code has it
    ``"cifar10"``     mean and deviation of all pixels of CIFAR-10's training images; (0.2023, 0.1994, 0.2010), which is
                      often used for the deviation, is the mean of the images' own deviations
    ``"cifar100"``    mean and deviation of all pixels of CIFAR-100's training images
    ================  =================================================================================================

    Args:
      mean: of all channels, or one for each, on the scale of [0, 1]; or the name of a pair of ``mean`` and ``std``,
        from the table.
      std: the standard deviation of all channels, or one for each, on the scale of [0, 1], > 0; left out with a name.

    Returns:
      The augmentation; it gives float32 for uint8 and uint16, and the dtype of a float image.

    Raises:
      TypeError: an argument is neither a number nor a tuple of numbers, or only one of the two is given.
      ValueError: a deviation is not above 0, the name is unknown or comes with a deviation, or (when called) there are
        not as many numbers as channels.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> aug = gx.augment.normalize(mean=(0.5, 0.0, 0.0), std=0.5)
      >>> aug(jax.random.key(0), jnp.array([[[0, 0, 255]]], jnp.uint8))
      Array([[[-1.,  0.,  2.]]], dtype=float32)
      >>> gx.augment.normalize("half")(jax.random.key(0), jnp.array([[[0, 255]]], jnp.uint8)).round(3)
      Array([[[-1.,  1.]]], dtype=float32)
    """
    if isinstance(mean, str):
        checks.choice("mean", mean, tuple(PRESETS))
        if std is not None:
            raise ValueError(f"std: expected none with a name for both, got {std!r} with mean={mean!r}")
        means, deviations = PRESETS[mean]
    elif std is None:
        raise TypeError("std: expected a number or a tuple of numbers with a mean that is no name, got None")
    else:
        means, deviations = mean, std
    for number in means if isinstance(means, (tuple, list)) else (means,):
        checks.real("mean", number)
    for number in deviations if isinstance(deviations, (tuple, list)) else (deviations,):
        checks.real("std", number, above=0)

    def kernel(params: Sampled, planes: Planes) -> Planes:
        each = zip(_each("mean", means, len(planes)), _each("std", deviations, len(planes)), strict=True)
        values = [plane.astype(jnp.float32) / 255 if plane.dtype == jnp.int32 else plane for plane in planes]
        return [(value - m) / s for value, (m, s) in zip(values, each, strict=True)]

    return Normalizing(lambda key, shape: (), kernel, needs_unit=True, leaves_unit=True)


class Normalizing(Pixelwise):
    """Changes that no image of integers can hold."""

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The targets with an image of floats."""
        targets = super().apply(params, targets)
        return targets | {"image": canvas_of(targets).floating()}


def _each(name: str, numbers: Numbers, channels: int) -> list[Scalar]:
    each = list(numbers) if isinstance(numbers, (tuple, list)) else [numbers] * channels
    if len(each) != channels:
        raise ValueError(f"{name}: expected a number or one for each of the {channels} channels, got {len(each)}")
    return [jnp.asarray(one, jnp.float32) for one in each]
