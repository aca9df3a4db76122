"""Mosaic: four images of a batch on one canvas."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import Border, Fill, border_of
from gradxform.augment.geometry.crop import bounds
from gradxform.augment.geometry.placement import Affine
from gradxform.augment.geometry.resample import Method
from gradxform.augment.geometry.run import move
from gradxform.augment.mixing import check_batch, of_partner
from gradxform.augment.pixels.canvas import Canvas
from gradxform.augment.stage import Mix, Sampled, Shape, Targets
from gradxform.core import arrays
from gradxform.core.types import PyTree, Scalar

MOVED = ("image", "mask", "boxes", "visibility", "keypoints")
PER_OBJECT = ("boxes", "visibility", "keypoints", "label")


@augmentation
def mosaic(
    size: int | tuple[int, int], center: tuple[Scalar, Scalar] = (0.25, 0.75), *, fill: Fill = 0.0, mask_fill: int = 0
) -> Mix:
    """Four images of a batch around a random point of a canvas, as YOLOv4 has it (Bochkovskiy and others, 2020).

    A corner of each lies at the point, the image itself to the upper left of it and three others of the batch, from
    random permutations, to the upper right, the lower left and the lower right; no image is resized, what goes beyond
    the canvas is cut off, and what no image reaches is filled. With a canvas of twice the size of the images and gray
    (114 / 255) as fill it is that of YOLOv5, which crops and scales behind it; of the size of the images it is covered
    in full.

    Masks go along, boxes (B, N, 4) and points become those of all four images, (B, 4 N, ...), in this order, with four
    zeros for a box of which nothing is left; and so does ``label``, one for each box, (B, N). Fields that no
    augmentation knows stay those of the image to the upper left.

    Args:
      size: height and width of the canvas in pixels, or one number for both.
      center: the bounds of the point, as shares of height and width in [0, 1].
      fill: what no image reaches, from 0, black, to 1, or one for each channel.
      mask_fill: the same in masks.

    Returns:
      The augmentation; it takes a batch and gives images of ``size``. Its parameters are ``partner`` (B, 4), the images
      of each canvas, and ``center`` (B, 2), the row and the column below and right of the point.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or (when called) there is a single image, or a label that is not of boxes.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> batch = {"image": jnp.zeros((8, 32, 32, 3), jnp.uint8), "boxes": jnp.zeros((8, 5, 4)),
      ...          "label": jnp.zeros((8, 5), jnp.int32)}
      >>> {name: x.shape for name, x in gx.augment.mosaic(48)(jax.random.key(0), batch).items()}
      {'image': (8, 48, 48, 3), 'boxes': (8, 20, 4), 'label': (8, 20)}
    """
    low, high = bounds("center", center, at_least=0, at_most=1)
    return Mosaic(arrays.pair("size", size), low, high, border_of("constant", fill, mask_fill))


@dataclasses.dataclass(frozen=True)
class Mosaic(Mix):
    """See ``mosaic``.

    Attributes:
      size: of the canvas.
      low: the least share of height and width that the point is at.
      high: the greatest.
      border: what no image reaches.
    """

    size: tuple[int, int]
    low: Scalar
    high: Scalar
    border: Border

    def out_shape(self, shape: Shape) -> Shape:
        """The shape of the canvas."""
        return (*self.size, shape[2])

    def sample_batch(self, key: jax.Array, shape: tuple[int, ...]) -> Sampled:
        """The parameters of a batch."""
        check_batch(shape)
        where, *keys = jax.random.split(key, 4)
        own = jnp.arange(shape[0], dtype=jnp.int32)
        others = [jax.random.permutation(one, shape[0]).astype(jnp.int32) for one in keys]
        share = jax.random.uniform(where, (shape[0], 2), jnp.float32, self.low, self.high)
        return {
            "partner": jnp.stack([own, *others], 1),
            "center": jnp.round(share * jnp.array(self.size, jnp.float32)).astype(jnp.int32),
        }

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The canvases of a batch, and what is on them."""
        image = targets["image"]
        check_batch(image.shape)
        if params["partner"].shape[0] != image.shape[0]:
            raise ValueError(
                f"params: expected those of a batch of {image.shape[0]}, got those of {params['partner'].shape[0]}"
            )
        if "label" in targets and ("boxes" not in targets or targets["label"].shape[:2] != targets["boxes"].shape[:2]):
            raise ValueError(
                f"label: expected one for each of 'boxes', (B, N), since a mosaic is of four images, got "
                f"shape {targets['label'].shape}"
            )
        quarters = [self._quarter(i, params, targets) for i in range(4)]
        result = targets | {"image": self._joined(params["center"], [one["image"] for one in quarters]).image()}
        if "mask" in targets:
            result["mask"] = self._joined(params["center"], [one["mask"] for one in quarters])
        for name in PER_OBJECT:
            if name in targets:
                result[name] = jnp.concatenate([one[name] for one in quarters], 1)
        return result

    def _quarter(self, place: int, params: Sampled, targets: Targets) -> Targets:
        """The images of a batch that go to one of the four places, on canvases of their own."""
        found = {
            name: of_partner(params["partner"][:, place], x) for name, x in targets.items() if name in (*MOVED, "label")
        }
        moving = {name: x for name, x in found.items() if name in MOVED}
        height, width = moving["image"].shape[1:3]
        corner = params["center"] - jnp.array([height * (place < 2), width * (place % 2 == 0)])
        method = Method("scale", "nearest", self.border, (0, 0), (1.0, 1.0), (False, False), False)

        def placed(corner: jax.Array, one: Targets) -> Targets:
            down, right = corner.astype(jnp.float32)
            one = one | {"image": Canvas.of(one["image"])}
            return move(one, method, [Affine(1.0, 0.0, -right, 0.0, 1.0, -down)], *self.size)

        return found | jax.vmap(placed)(corner, moving)

    def _joined(self, center: jax.Array, quarters: list[PyTree]) -> PyTree:
        """Arrays (B, height, width, ...), or canvases of them, each of the four where it belongs."""
        row, column = (lax.broadcasted_iota(jnp.int32, (1, *self.size), axis) for axis in (1, 2))
        upper, left = row < center[:, 0, None, None], column < center[:, 1, None, None]

        def chosen(condition: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
            return jnp.where(condition.reshape(condition.shape + (1,) * (one.ndim - 3)), one, other)

        halves = [jax.tree.map(functools.partial(chosen, left), *pair) for pair in (quarters[:2], quarters[2:])]
        return jax.tree.map(functools.partial(chosen, upper), *halves)
