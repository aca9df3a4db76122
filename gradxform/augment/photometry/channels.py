"""The channels of an image in another order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.augment.augmentation import augmentation
from gradxform.augment.pixels.canvas import Planes
from gradxform.augment.stage import Pixelwise, Sampled, Shape, Stage

FEW = 4
"""Up to so many channels, each is chosen among all of them."""


@augmentation
def channel_shuffle() -> Stage:
    """The channels in a random order, all orders with the same probability.

    torchvision's ``RandomChannelPermutation``, each image with an order of its own.

    Returns:
      The augmentation; it takes images of any number of channels, and any floats.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.array([[[10, 20, 30]]], jnp.uint8)
      >>> sorted(gx.augment.channel_shuffle()(jax.random.key(0), image)[0, 0].tolist())
      [10, 20, 30]
    """

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        return {"order": jax.random.permutation(key, shape[2]).astype(jnp.int32)}

    def kernel(params: Sampled, planes: Planes) -> Planes:
        order = params["order"]
        if len(planes) > FEW:
            return list(jnp.stack(planes).at[order].get(mode="promise_in_bounds"))
        return [lax.select_n(order[i], *planes) for i in range(len(planes))]

    return Pixelwise(draw, kernel)
