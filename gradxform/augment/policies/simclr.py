"""The two views of SimCLR."""

from __future__ import annotations

from gradxform.augment.augmentation import augmentation
from gradxform.augment.compose import chain, random_apply, two_views
from gradxform.augment.geometry.affine import random_flip_left_right
from gradxform.augment.geometry.crop import random_resized_crop
from gradxform.augment.photometry.jitter import color_jitter, random_grayscale
from gradxform.augment.photometry.levels import gaussian_blur
from gradxform.augment.sequence import Built
from gradxform.core import arrays, checks
from gradxform.core.types import Scalar


@augmentation
def simclr_views(size: int | tuple[int, int], strength: Scalar = 1.0, *, blur: bool = True) -> Built:
    """Two views of each image as SimCLR makes them (Chen and others, 2020, appendix A).

    A random resized crop, a flip with probability 0.5, a colour jitter of 0.8, 0.8, 0.8 and 0.2 times the strength
    with probability 0.8, gray with probability 0.2, and a Gaussian blur with probability 0.5 whose sigma is uniform
    in [0.1, 2] and whose kernel is a tenth of the height.

    Args:
      size: height and width of the views in pixels, or one number for both.
      strength: of the colour jitter, in [0, 2.5], where the hue goes all round; 1 for ImageNet, 0.5 for CIFAR-10.
      blur: whether to blur; the paper does not for images of 32 x 32.

    Returns:
      The augmentation, whose result is a pair of views.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> views = gx.augment.simclr_views((32, 32), strength=0.5, blur=False)
      >>> one, other = views(jax.random.key(0), jnp.zeros((4, 40, 40, 3), jnp.uint8))
      >>> one.shape
      (4, 32, 32, 3)
    """
    height, width = arrays.pair("size", size)
    checks.real("strength", strength, at_least=0, at_most=2.5)
    jitter = color_jitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    parts = [
        random_resized_crop((height, width)),
        random_flip_left_right(),
        random_apply(jitter, p=0.8),
        random_grayscale(p=0.2),
    ]
    radius = height // 10 // 2
    if blur and radius:
        parts.append(random_apply(gaussian_blur((0.1, 2.0), kernel_size=2 * radius + 1), p=0.5))
    return two_views(chain(*parts)).stage
