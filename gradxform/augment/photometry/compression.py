"""The traces of lossy compression."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.crop import bounds
from gradxform.augment.pixels.jpeg import jpeg as kernel
from gradxform.augment.stage import Pixelwise, Sampled, Shape, Stage
from gradxform.core import checks


@augmentation
def jpeg(quality: int | jax.Array | tuple[int | jax.Array, int | jax.Array] = (50, 100)) -> Stage:
    """The image as JPEG leaves it, without the file: blocks of 8 x 8, colours at half the size.

    As Pillow's ``save(..., "JPEG", quality=...)`` and back, to the bit for 8-bit images; a float image gives what its
    8-bit image does. There is no gradient through it, as through no rounding.

    Args:
      quality: libjpeg's, from 1 to 100. Or the least and the greatest, and then each image has its own, all with the
        same probability.

    Returns:
      The augmentation; it takes images of 1 or 3 channels.

    Raises:
      TypeError: ``quality`` is neither an integer nor a pair of integers.
      ValueError: a number is out of range, the bounds are in the wrong order, or (when called) the image has another
        number of channels.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.arange(64, dtype=jnp.uint8).reshape(8, 8, 1)
      >>> gx.augment.jpeg(10)(jax.random.key(0), image)[0, :, 0]
      Array([7, 7, 7, 7, 7, 7, 7, 7], dtype=uint8)
    """
    pair = isinstance(quality, (tuple, list))
    least, most = bounds("quality", quality if pair else (quality, quality), at_least=1, at_most=100)  # type: ignore[arg-type]
    for one in (least, most):
        checks.integer("quality", one)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        return {"quality": jax.random.randint(key, (), least, most + 1, jnp.int32)} if pair else ()

    return Pixelwise(draw, lambda params, planes: kernel(planes, params["quality"] if pair else least), needs_unit=True)
