"""Crops about an object or a class."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import is_real
from gradxform.augment.geometry.crop import fitting
from gradxform.augment.geometry.placement import Affine
from gradxform.augment.geometry.run import Geometric, Resampling, true_shape
from gradxform.augment.stage import Sampled, Shape, Stage, Targets
from gradxform.core import arrays, checks

THINGS = ("boxes", "mask")


@augmentation
def random_object_crop(
    size: int | tuple[int, int], of: str = "boxes", *, classes: tuple[int, ...] | None = None
) -> Stage:
    """A window about something that there is: one of the boxes, or a pixel of the mask.

    The window is anywhere in the image where it holds all of the box, or as much of it as it can, or the pixel. With
    ``classes`` one of those that the image has is drawn first, each as likely, and then one of its boxes or pixels, so
    that rare classes are seen as often as common ones. Where there is nothing the window is anywhere, as that of
    ``random_crop``; ``one_of`` of the two takes some of each.

    Args:
      size: height and width of the window in pixels, or one number for both.
      of: ``"boxes"``, those with an area, or ``"mask"``, of integers (H, W), where 0 is nothing.
      classes: which numbers count in the mask or, with boxes, in ``label``, one for each box; 0 too, if it is
        among them. All by default.

    Returns:
      The augmentation; it gives images of ``size``.

    Raises:
      TypeError: an argument is of the wrong type, or (when called) the mask is not of integers.
      ValueError: a number is out of range, or (when called) the window is larger than the image, or what it is about
        is not among the inputs.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> mask = jnp.zeros((64, 64), jnp.int32).at[3, 50].set(7)
      >>> crop = gx.augment.random_object_crop(16, of="mask")
      >>> crop(jax.random.key(0), {"image": jnp.zeros((64, 64, 3)), "mask": mask})["mask"].max()
      Array(7, dtype=int32)
    """
    height, width = arrays.pair("size", size)
    checks.choice("of", of, THINGS)
    if classes is not None:
        if not isinstance(classes, (tuple, list)) or not classes:
            raise TypeError(f"classes: expected a tuple of integers, got {classes!r}")
        for one in classes:
            checks.integer("classes", one)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        return {"shares": jax.random.uniform(key, (5,))}

    def choose(params: Sampled, targets: Targets) -> tuple[Sampled, Targets]:
        rows, columns, _ = true_shape(targets)
        which, first, second, down, across = params["shares"]
        found = _box_of if of == "boxes" else _pixel_of
        box, any_there = found(targets, classes, which, first, second)
        corner = []
        for share, low, high, window, room in (
            (down, box[1], box[3], height, rows),
            (across, box[0], box[2], width, columns),
        ):
            # All of the box in the window, or all of the window in the box; in the image in any case.
            least, most = jnp.ceil(jnp.minimum(low, high - window)), jnp.floor(jnp.maximum(low, high - window))
            end = jnp.asarray(room - window, jnp.float32)
            least, most = (
                jnp.clip(jnp.where(any_there, one, other), 0, end) for one, other in ((least, 0), (most, end))
            )
            corner.append(jnp.minimum(jnp.floor(least + share * (most - least + 1)), most))
        return {"top": corner[0], "left": corner[1]}, targets

    def place(params: Sampled, shape: Shape) -> Affine:
        return Affine(1.0, 0.0, params["left"], 0.0, 1.0, params["top"])

    def result(shape: Shape) -> tuple[int, int]:
        fitting((height, width), shape[:2], shape, "")
        return height, width

    return Resampling((Geometric(draw, place, "shift", result, choose=choose),))


def _box_of(
    targets: Targets, classes: tuple[int, ...] | None, which: jax.Array, share: jax.Array, _: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A box by chance, and whether there is one."""
    if "boxes" not in targets:
        raise ValueError("boxes: expected them beside the image, since the window is about one of them; got none")
    boxes = targets["boxes"]
    there = jnp.all(boxes[:, 2:] > boxes[:, :2], -1)
    if classes is not None:
        label = targets.get("label")
        if label is None or label.shape != there.shape:
            raise ValueError(
                f"label: expected the class of each box, shape {there.shape}, since classes were named, got "
                f"{'none' if label is None else f'shape {label.shape}'}"
            )
        there &= label == _one_of(classes, jnp.stack([jnp.any(there & (label == one)) for one in classes]), which)
    if not there.shape[0]:
        return jnp.zeros(4), jnp.asarray(False)
    return boxes[_place(there, share)], jnp.any(there)


def _pixel_of(
    targets: Targets, classes: tuple[int, ...] | None, which: jax.Array, share: jax.Array, other: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The box of a pixel of the mask by chance, and whether there is one."""
    if "mask" not in targets:
        raise ValueError("mask: expected one beside the image, since the window is about a pixel of it; got none")
    mask = targets["mask"]
    if mask.ndim != 2 or not jnp.issubdtype(mask.dtype, jnp.integer):
        raise TypeError(
            f"mask: expected integers (H, W), since the window is about one of its pixels, got {mask.dtype} "
            f"{mask.shape}"
        )
    real = is_real(targets["size"], *mask.shape) if "size" in targets else jnp.ones(mask.shape, bool)
    if classes is None:
        there = real & (mask != 0)
    else:
        present = jnp.stack([jnp.any(real & (mask == one)) for one in classes])
        there = real & (mask == _one_of(classes, present, which))
    # A row by how many there are in each, and then one of those: each pixel is as likely.
    row = _place(jnp.sum(there, 1, dtype=jnp.int32), share)
    y, x = row.astype(jnp.float32), _place(there[row], other).astype(jnp.float32)
    return jnp.stack([x, y, x + 1, y + 1]), jnp.any(there)


def _one_of(classes: tuple[int, ...], present: jax.Array, share: jax.Array) -> jax.Array:
    """One of the classes that are there."""
    return jnp.asarray(classes)[_place(present, share)]


def _place(counts: jax.Array, share: jax.Array) -> jax.Array:
    """Where in counts (N,), each as likely as it is large, a share in [0, 1) of their sum is reached."""
    upto = jnp.cumsum(counts.astype(jnp.int32))
    wanted = jnp.minimum(jnp.floor(share * upto[-1]).astype(jnp.int32), upto[-1] - 1)
    return jnp.minimum(jnp.sum(upto <= wanted, dtype=jnp.int32), counts.shape[0] - 1)
