"""Boxes of which too little is left."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.stage import Sampled, Shape, Stage, Targets
from gradxform.core import checks
from gradxform.core.types import Scalar


@augmentation
def drop_slivers(visibility: Scalar = 0.1, side: Scalar = 1.0) -> Stage:
    """Boxes of which little is left made zeros, as those out of sight are; the image stays.

    It goes behind what moves boxes. How much is left of a box is a share of its area, multiplied up over all that
    moved it within the chain, and, where the inputs have ``visibility``, ahead of it.

    Args:
      visibility: the least share of its area that a box needs, in [0, 1].
      side: the least width and height in pixels, >= 0.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is no number.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> aug = gx.augment.chain(gx.augment.center_crop(8), gx.augment.drop_slivers(visibility=0.5))
      >>> boxes = jnp.array([[0.0, 0.0, 5.0, 5.0], [3.0, 3.0, 9.0, 9.0]])    # 1 of 25 and 25 of 36 pixels stay
      >>> aug(jax.random.key(0), {"image": jnp.zeros((16, 16, 3)), "boxes": boxes})["boxes"].tolist()
      [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 5.0]]
    """
    checks.real("visibility", visibility, at_least=0, at_most=1)
    checks.real("side", side, at_least=0)
    return Slivers(visibility, side)


@dataclasses.dataclass(frozen=True)
class Slivers(Stage):
    """See ``drop_slivers``."""

    visibility: Scalar
    side: Scalar

    def sample(self, key: jax.Array, shape: Shape) -> Sampled:
        """Nothing."""
        return ()

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The targets with fewer boxes."""
        if "boxes" not in targets:
            return targets
        boxes, left = targets["boxes"], targets["visibility"]
        fine = (left >= self.visibility) & jnp.all(boxes[:, 2:] - boxes[:, :2] >= self.side, -1)
        return targets | {"boxes": jnp.where(fine[:, None], boxes, 0), "visibility": jnp.where(fine, left, 0)}
