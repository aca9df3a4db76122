"""Copy-Paste: objects of one image on another one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.augment.augmentation import augmentation
from gradxform.augment.mixing import check_batch, of_partner
from gradxform.augment.stage import Mix, Sampled, Targets
from gradxform.core import checks
from gradxform.core.types import Scalar

PER_OBJECT = ("boxes", "visibility", "label")


@augmentation
def copy_paste(p: Scalar = 0.5) -> Mix:
    """Objects of another image of the batch pasted on each, where they were in theirs (Ghiasi and others, 2021).

    The objects are cut out by their masks, ``image (1 - a) + other a`` with ``a`` 1 on those that are pasted; the masks
    of what they cover lose it, boxes of those become the boxes of what is left, four zeros if nothing is. The other
    image is from a random permutation of the batch. As in the paper ``random_scale_jitter`` goes before it, so that
    objects are of another size and place.

    It takes a dict of ``image`` (B, H, W, C) and ``mask`` (B, H, W, N), a mask for each object, of which all but zero
    counts, empty where there are fewer; and maybe ``boxes`` (B, N, 4), ``visibility`` (B, N) and ``label``, (B, N).
    They come out with the objects of the other image behind their own: (B, H, W, 2 N), (B, 2 N, 4), (B, 2 N); with
    empty masks and zeros for boxes where one is not pasted. Points are refused, for a mask does not tell whose they
    are. Fields that no augmentation knows stay those of the image in the same place.

    Args:
      p: for which share of the objects, in [0, 1], each by itself.

    Returns:
      The augmentation. Its parameters are ``partner`` (B,), the other one of each image, and ``seed`` (B,), of the
      chances of its objects.

    Raises:
      TypeError: ``p`` is no number, or (when called) there are points.
      ValueError: ``p`` is out of range, or (when called) there is a single image, or masks, boxes and labels are not of
        as many objects.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> batch = {"image": jnp.zeros((4, 32, 32, 3), jnp.uint8), "mask": jnp.zeros((4, 32, 32, 5), bool),
      ...          "boxes": jnp.zeros((4, 5, 4)), "label": jnp.zeros((4, 5), jnp.int32)}
      >>> {name: x.shape for name, x in gx.augment.copy_paste()(jax.random.key(0), batch).items()}
      {'image': (4, 32, 32, 3), 'mask': (4, 32, 32, 10), 'boxes': (4, 10, 4), 'label': (4, 10)}
    """
    checks.real("p", p, at_least=0, at_most=1)
    return CopyPaste(p)


@dataclasses.dataclass(frozen=True)
class CopyPaste(Mix):
    """See ``copy_paste``."""

    p: Scalar

    def sample_batch(self, key: jax.Array, shape: tuple[int, ...]) -> Sampled:
        """The parameters of a batch."""
        check_batch(shape)
        partner, seed = jax.random.split(key)
        return {
            "partner": jax.random.permutation(partner, shape[0]).astype(jnp.int32),
            # How many objects there are is known when it is applied.
            "seed": jax.random.bits(seed, (shape[0],), jnp.uint32),
        }

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The images of a batch with objects of others on them."""
        image, mask, partner = targets["image"], _checked(targets), params["partner"]
        if partner.shape != image.shape[:1]:
            raise ValueError(f"params: expected those of a batch of {image.shape[0]}, got those of {partner.size}")
        others = {
            name: of_partner(partner, targets[name]) for name in targets if name in ("image", "mask", *PER_OBJECT)
        }
        count = mask.shape[-1]
        chances = jax.vmap(lambda seed: jax.random.uniform(jax.random.key(seed), (count,)))(params["seed"])
        pasted = chances < self.p
        theirs = jnp.where(pasted[:, None, None], others["mask"], 0).astype(mask.dtype)
        covered = jnp.any(theirs != 0, -1, keepdims=True)
        mine = jnp.where(covered, 0, mask).astype(mask.dtype)
        result = targets | {
            "image": jnp.where(covered, others["image"], image),
            "mask": jnp.concatenate([mine, theirs], -1),
        }
        if "boxes" in targets:
            before, after = (jnp.sum(one != 0, (1, 2), dtype=jnp.int32) for one in (mask, mine))
            boxes = jnp.where((after < before)[..., None], _around(mine), targets["boxes"])
            left = after.astype(jnp.float32) / jnp.maximum(before, 1).astype(jnp.float32)
            seen = targets["visibility"] * jnp.where(before > 0, left, 1)
            result["boxes"] = jnp.concatenate([boxes, jnp.where(pasted[..., None], others["boxes"], 0)], 1)
            result["visibility"] = jnp.concatenate([seen, jnp.where(pasted, others["visibility"], 0)], 1)
        if "label" in targets:
            result["label"] = jnp.concatenate([targets["label"], others["label"]], 1)
        return result


def _checked(targets: Targets) -> jax.Array:
    """The masks, one for each object.

    Raises:
      TypeError: there are points.
      ValueError: there are no masks, or not as many boxes or labels.
    """
    image, mask = targets["image"], targets.get("mask")
    check_batch(image.shape)
    if "keypoints" in targets:
        raise TypeError("keypoints: expected none, since there is no telling of which object one is, got 'keypoints'")
    if mask is None or mask.ndim != 4:
        found = "none" if mask is None else f"shape {mask.shape}"
        raise ValueError(f"mask: expected one for each object, (B, H, W, N), by which it is cut out, got {found}")
    for name in PER_OBJECT:
        if name in targets and targets[name].shape[:2] != (image.shape[0], mask.shape[-1]):
            raise ValueError(
                f"{name}: expected one for each of {mask.shape[-1]} masks, {(image.shape[0], mask.shape[-1])}, got "
                f"shape {targets[name].shape}"
            )
    return mask


def _around(masks: jax.Array) -> jax.Array:
    """The boxes (B, N, 4) around what is not zero in masks (B, H, W, N), four zeros around nothing."""
    there = masks != 0
    sides = []
    for axis in (2, 1):
        along = jnp.any(there, 3 - axis)
        place, size = lax.broadcasted_iota(jnp.int32, along.shape, 1), along.shape[1]
        sides.append((jnp.min(jnp.where(along, place, size), 1), jnp.max(jnp.where(along, place + 1, 0), 1)))
    (x1, x2), (y1, y2) = sides
    boxes = jnp.stack([x1, y1, x2, y2], -1).astype(jnp.float32)
    return jnp.where((x2 > x1)[..., None], boxes, 0)
