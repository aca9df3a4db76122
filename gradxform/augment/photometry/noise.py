"""Noise on every pixel."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.photometry.number import Number, OneOrBounds
from gradxform.augment.pixels.arithmetic import whole, within
from gradxform.augment.pixels.canvas import Planes
from gradxform.augment.stage import Pixelwise, Sampled, Shape, Stage


@augmentation
def gaussian_noise(std: OneOrBounds = 0.1, *, clip: bool = True) -> Stage:
    """Normal noise of mean 0 added to every value, each pixel and each channel its own.

    8-bit images are rounded to the nearest level; what leaves the range is cut to it, as by torchvision's
    ``GaussianNoise``.

    Args:
      std: the standard deviation on the scale of [0, 1], >= 0, or its bounds, and then each image has its own.
      clip: whether float images are cut to [0, 1]; if not, they may be any floats, behind ``normalize`` too. Images of
        integers are cut in any case.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gray = jnp.full((64, 64, 3), 128, jnp.uint8)
      >>> round(float(gx.augment.gaussian_noise(0.04)(jax.random.key(0), gray).std()))
      10
    """
    number = Number.of("std", std, at_least=0)
    if not isinstance(clip, bool):
        raise TypeError(f"clip: expected a bool, got {clip!r}")

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        return number.draw(key) | {"seed": jax.random.bits(jax.random.fold_in(key, 1), (), jnp.uint32)}

    def kernel(params: Sampled, planes: Planes) -> Planes:
        noise = normal(params["seed"], planes) * jnp.asarray(number.among(params), jnp.float32)
        if planes[0].dtype == jnp.int32:
            return [
                whole(within(plane.astype(jnp.float32) + (255 * noise[i] + 0.5), 0.0, 255.0))
                for i, plane in enumerate(planes)
            ]
        noisy = [plane + noise[i] for i, plane in enumerate(planes)]
        return [within(plane, 0.0, 1.0) for plane in noisy] if clip else noisy

    return Pixelwise(draw, kernel, needs_unit=clip, leaves_unit=not clip)


def normal(seed: jax.Array, planes: Planes) -> jax.Array:
    """Standard normal numbers for channels, (C, H, W)."""
    return jax.random.normal(jax.random.key(seed), (len(planes), *planes[0].shape), jnp.float32)
