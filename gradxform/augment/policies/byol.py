"""The two views of BYOL, which are not alike."""

from __future__ import annotations

from gradxform.augment.augmentation import Augmentation, augmentation
from gradxform.augment.compose import chain, random_apply, two_views
from gradxform.augment.geometry.affine import random_flip_left_right
from gradxform.augment.geometry.crop import random_resized_crop
from gradxform.augment.photometry.jitter import color_jitter, random_grayscale
from gradxform.augment.photometry.levels import gaussian_blur, solarize
from gradxform.augment.sequence import Built
from gradxform.core import arrays


@augmentation
def byol_views(size: int | tuple[int, int]) -> Built:
    """Two views of each image as BYOL makes them (Grill and others, 2020, appendix B).

    ======================================================  ==========  ===========
    view                                                    first       second
    ======================================================  ==========  ===========
    a random resized crop, a flip with probability 0.5      yes         yes
    a colour jitter of 0.4, 0.4, 0.2 and 0.1                0.8         0.8
    gray                                                    0.2         0.2
    a Gaussian blur, sigma uniform in [0.1, 2]              always      0.1
    levels from 128 on inverted                             never       0.2
    ======================================================  ==========  ===========

    The kernel of the blur is a tenth of the height, 23 pixels of 224.

    Args:
      size: height and width of the views in pixels, or one number for both.

    Returns:
      The augmentation, whose result is a pair of views.

    Raises:
      TypeError: ``size`` is of the wrong type.
      ValueError: ``size`` is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> views = gx.augment.byol_views(32)
      >>> one, other = views(jax.random.key(0), jnp.zeros((4, 40, 40, 3), jnp.uint8))
      >>> one.shape
      (4, 32, 32, 3)
    """
    height, width = arrays.pair("size", size)
    colors = random_apply(color_jitter(0.4, 0.4, 0.2, 0.1), p=0.8), random_grayscale(p=0.2)
    first: list[Augmentation] = [random_resized_crop((height, width)), random_flip_left_right(), *colors]
    second = list(first)
    radius = height // 10 // 2
    if radius:
        blur = gaussian_blur((0.1, 2.0), kernel_size=2 * radius + 1)
        first.append(blur)
        second.append(random_apply(blur, p=0.1))
    return two_views(chain(*first), chain(*second, random_apply(solarize(128), p=0.2))).stage
