"""The operations that policies choose from, each with one number that says how much."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gradxform.augment.geometry.affine import about_middle
from gradxform.augment.geometry.borders import Border
from gradxform.augment.geometry.placement import Affine
from gradxform.augment.geometry.resample import Method
from gradxform.augment.geometry.run import move, true_shape
from gradxform.augment.photometry.erase import erased
from gradxform.augment.pixels import color, filters, histogram, tone
from gradxform.augment.pixels.canvas import Planes, true_size
from gradxform.augment.stage import Shape, Targets
from gradxform.core.types import Scalar

Operation = Callable[[jax.Array, jax.Array, Targets], Targets]
"""From the number, a place in [0, 1)^2 and the targets of one image to the targets."""


def operation(name: str, interpolation: str, border: Border) -> Operation:
    """The operation of a name.

    Args:
      name: one of ``POINTWISE``, ``GEOMETRIC``, ``"identity"`` and ``"cutout"``.
      interpolation: ``"nearest"`` or ``"bilinear"``.
      border: what comes in from outside, and fills a cutout.

    Returns:
      The operation.
    """
    if name == "identity":
        return lambda value, place, targets: targets
    if name in GEOMETRIC:
        placed, kind = GEOMETRIC[name], "any"
        if name in ("shift_x", "shift_y") or (name.startswith("translate") and interpolation == "nearest"):
            kind, interpolation = "scale", "nearest"  # whole rows and columns
        method = Method(kind, interpolation, border, (0, 0), (1.0, 1.0), (False, False), True)

        def moved(value: jax.Array, place: jax.Array, targets: Targets) -> Targets:
            height, width, _ = shape = true_shape(targets)
            return move(targets, method, [placed(value, shape)], height, width)

        return moved
    kernel = POINTWISE[name] if name != "cutout" else None

    def changed(value: jax.Array, place: jax.Array, targets: Targets) -> Targets:
        canvas = targets["image"]
        planes = canvas.planes()
        planes = _cut(value, place, planes, border) if kernel is None else kernel(planes, value)
        return targets | {"image": canvas.with_planes(planes)}

    return changed


POINTWISE: dict[str, Callable[[Planes, jax.Array], Planes]] = {
    "auto_contrast": lambda planes, value: histogram.autocontrast(planes),
    "equalize": lambda planes, value: histogram.equalize(planes),
    "invert": lambda planes, value: tone.invert(planes),
    "posterize": lambda planes, bits: tone.posterize(planes, bits),
    "solarize": lambda planes, threshold: tone.solarize(planes, threshold),
    "solarize_add": lambda planes, addition: tone.solarize_add(planes, addition),
    "color": lambda planes, factor: color.saturation(planes, factor),
    "contrast": lambda planes, factor: color.contrast(planes, factor),
    "brightness": lambda planes, factor: color.brightness(planes, factor),
    "sharpness": lambda planes, factor: filters.sharpness(planes, factor),
}
"""Operations that leave every pixel where it is; the number is that of the kernel."""


def _shear_x(value: jax.Array, shape: Shape) -> Affine:
    return Affine(1.0, value, 0.0, 0.0, 1.0, 0.0)


def _shear_y(value: jax.Array, shape: Shape) -> Affine:
    return Affine(1.0, 0.0, 0.0, value, 1.0, 0.0)


def _translate_x(pixels: jax.Array, shape: Shape) -> Affine:
    return Affine(1.0, 0.0, -pixels, 0.0, 1.0, 0.0)


def _translate_y(pixels: jax.Array, shape: Shape) -> Affine:
    return Affine(1.0, 0.0, 0.0, 0.0, 1.0, -pixels)


GEOMETRIC: dict[str, Callable[[jax.Array, Shape], Affine]] = {
    "rotate": lambda degrees, shape: about_middle(shape, degrees=degrees),
    # About the top-left corner, as in Pillow's transform and in all published policies.
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "shift_x": _translate_x,
    "shift_y": _translate_y,
}
"""Operations that move pixels: degrees counter-clockwise, pixels of the source per pixel, pixels right or down; the
pixels of a shift are whole."""


def _cut(value: jax.Array, place: jax.Array, planes: Planes, border: Border) -> Planes:
    """A square of twice ``value`` pixels about a random pixel, as the policies have it."""
    half = value.astype(jnp.int32)
    middle = [jnp.floor(place[i] * size).astype(jnp.int32) for i, size in enumerate(true_size(planes))]
    box: dict[str, Scalar] = {"top": middle[0] - half, "left": middle[1] - half, "height": 2 * half, "width": 2 * half}
    return erased(planes, box, border.fill)
