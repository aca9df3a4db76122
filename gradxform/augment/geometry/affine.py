"""Mirror images, rotations and the other affine maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import INTERPOLATIONS, Fill, border_of
from gradxform.augment.geometry.crop import bounds
from gradxform.augment.geometry.placement import Affine, as_float
from gradxform.augment.geometry.run import Geometric, Resampling
from gradxform.augment.pixels.arithmetic import exact
from gradxform.augment.stage import Sampled, Shape, Stage
from gradxform.core import arrays, checks
from gradxform.core.types import Scalar


@augmentation
def random_flip_left_right(p: Scalar = 0.5, *, joints: tuple[tuple[int, int], ...] = ()) -> Stage:
    """The image mirrored, left to right, for some of the images.

    Args:
      p: for which share of them, in [0, 1].
      joints: pairs of points that change places in a mirror image, as a left and a right shoulder do: numbers of rows
        of ``keypoints``, as ``((5, 6), (7, 8))``.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or (when called) there are not as many points.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.arange(3, dtype=jnp.uint8).reshape(1, 3, 1)
      >>> gx.augment.random_flip_left_right(1.0)(jax.random.key(0), image)[..., 0]
      Array([[2, 1, 0]], dtype=uint8)
    """
    return _flip(p, 1, joints)


@augmentation
def random_flip_up_down(p: Scalar = 0.5, *, joints: tuple[tuple[int, int], ...] = ()) -> Stage:
    """The image mirrored, top to bottom, for some of the images.

    Args:
      p: for which share of them, in [0, 1].
      joints: pairs of points that change places in a mirror image, as in ``random_flip_left_right``.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range, or (when called) there are not as many points.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.arange(3, dtype=jnp.uint8).reshape(3, 1, 1)
      >>> gx.augment.random_flip_up_down(1.0)(jax.random.key(0), image)[:, 0, 0]
      Array([2, 1, 0], dtype=uint8)
    """
    return _flip(p, 0, joints)


@augmentation
def random_rotation(
    max_degrees: Scalar | tuple[Scalar, Scalar],
    *,
    interpolation: str = "bilinear",
    border: str = "constant",
    fill: Fill = 0.0,
    mask_fill: int = 0,
    crop_border: bool = False,
) -> Stage:
    """The image turned about its middle by a random angle; its size stays.

    Args:
      max_degrees: the angle is uniform between minus and plus this, >= 0; or between a pair of bounds, the lower one
        first. Above 0 is counter-clockwise.
      interpolation: ``"bilinear"`` or ``"nearest"``; masks are always ``"nearest"``.
      border: what comes in at the corners: ``"constant"``, ``"edge"`` or ``"reflect"``.
      fill: the constant, from 0, black, to 1, or one for each channel.
      mask_fill: the constant in masks.
      crop_border: whether the turned image is enlarged just so far that nothing from outside comes in: the largest
        window of its shape without corners.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.random_rotation(15)(jax.random.key(0), jnp.ones((8, 32, 32, 3))).shape
      (8, 32, 32, 3)
    """
    angles = _angles(max_degrees)
    checks.choice("interpolation", interpolation, INTERPOLATIONS)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        return {"degrees": angles(key)}

    def place(params: Sampled, shape: Shape) -> Affine:
        return about_middle(
            shape, degrees=params["degrees"], scale=_covering(shape, params["degrees"]) if crop_border else 1.0
        )

    return Resampling(
        (
            Geometric(
                draw,
                place,
                border=border_of(border, fill, mask_fill),
                interpolation=interpolation,
                fixed=True,
                known=crop_border,
            ),
        )
    )


@augmentation
def rotate(
    degrees: Scalar,
    *,
    interpolation: str = "bilinear",
    border: str = "constant",
    fill: Fill = 0.0,
    mask_fill: int = 0,
    crop_border: bool = False,
) -> Stage:
    """The image turned about its middle by a given angle; its size stays.

    Args:
      degrees: the angle; above 0 is counter-clockwise. A square image is turned by 90 degrees without a loss.
      interpolation: ``"bilinear"`` or ``"nearest"``; masks are always ``"nearest"``.
      border: what comes in at the corners: ``"constant"``, ``"edge"`` or ``"reflect"``.
      fill: the constant, from 0, black, to 1, or one for each channel.
      mask_fill: the constant in masks.
      crop_border: as for ``random_rotation``.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.arange(4, dtype=jnp.uint8).reshape(2, 2, 1)
      >>> gx.augment.rotate(90)(jax.random.key(0), image)[..., 0]
      Array([[1, 3],
             [0, 2]], dtype=uint8)
    """
    checks.real("degrees", degrees)
    checks.choice("interpolation", interpolation, INTERPOLATIONS)

    def place(params: Sampled, shape: Shape) -> Affine:
        return about_middle(shape, degrees=degrees, scale=_covering(shape, degrees) if crop_border else 1.0)

    return Resampling(
        (
            Geometric(
                lambda key, shape: (),
                place,
                border=border_of(border, fill, mask_fill),
                interpolation=interpolation,
                fixed=True,
                known=crop_border,
            ),
        )
    )


@augmentation
def random_affine(
    max_degrees: Scalar | tuple[Scalar, Scalar] = 0.0,
    translate: tuple[Scalar, Scalar] = (0.0, 0.0),
    scale: tuple[Scalar, Scalar] = (1.0, 1.0),
    shear: tuple[Scalar, Scalar] = (0.0, 0.0),
    *,
    interpolation: str = "bilinear",
    antialias: bool = False,
    border: str = "constant",
    fill: Fill = 0.0,
    mask_fill: int = 0,
) -> Stage:
    """The image sheared, scaled and turned about its middle, and moved, each at random; its size stays.

    Args:
      max_degrees: the angle is uniform between minus and plus this, >= 0; or between a pair of bounds, the lower one
        first. Above 0 is counter-clockwise.
      translate: by which share of height and width, in [0, 1], it is moved at most down or up, and right or left.
      scale: bounds of the factor of the size, above 0; uniform between them.
      shear: the greatest angle in degrees by which columns and by which rows lean, >= 0 and < 90, to either side.
      interpolation: ``"bilinear"`` or ``"nearest"``; masks are always ``"nearest"``.
      antialias: whether an image is smoothed before it is made smaller, as far as its own factor asks for. Other
        images, with a factor of 1 or more, come out as without. Neither Pillow's ``transform`` nor torchvision smooths.
        ``scale`` has to be known before the program runs, and what comes after in a chain is another resampling.
      border: what comes in from outside: ``"constant"``, ``"edge"`` or ``"reflect"``.
      fill: the constant, from 0, black, to 1, or one for each channel.
      mask_fill: the constant in masks.

    Returns:
      The augmentation.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> aug = gx.augment.random_affine(10, translate=(0.1, 0.1), scale=(0.9, 1.1), border="reflect")
      >>> aug(jax.random.key(0), jnp.ones((8, 32, 32, 3))).min()
      Array(1., dtype=float32)
    """
    angles = _angles(max_degrees)
    down, across = _two("translate", translate, at_most=1)
    low, high = bounds("scale", scale, above=0)
    columns, rows = _two("shear", shear, below=90)
    checks.choice("interpolation", interpolation, INTERPOLATIONS)
    most = 1 / arrays.number("scale", low, above=0) if antialias else 1.0

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        angle, y, x, size, lean_x, lean_y = jax.random.split(key, 6)

        def signed(key: jax.Array, most: Scalar) -> jax.Array:
            return jax.random.uniform(key, minval=-1.0) * most

        return {
            "degrees": angles(angle),
            "down": signed(y, down) * shape[0],
            "right": signed(x, across) * shape[1],
            "scale": jax.random.uniform(size, minval=low, maxval=high),
            "shear_x": jnp.tan(jnp.radians(signed(lean_x, columns))),
            "shear_y": jnp.tan(jnp.radians(signed(lean_y, rows))),
        }

    def place(params: Sampled, shape: Shape) -> Affine:
        return about_middle(shape, **params)

    return Resampling(
        (
            Geometric(
                draw,
                place,
                border=border_of(border, fill, mask_fill),
                interpolation=interpolation,
                antialias=antialias,
                shrink=lambda shape: (most, most),
            ),
        )
    )


def about_middle(
    shape: Shape,
    *,
    degrees: Scalar = 0.0,
    down: Scalar = 0.0,
    right: Scalar = 0.0,
    scale: Scalar = 1.0,
    shear_x: Scalar = 0.0,
    shear_y: Scalar = 0.0,
) -> Affine:
    """From positions in the result to those in the image: back by the shift, the angle, the scale and the shears.

    Args:
      shape: of the image.
      degrees: of the rotation about the middle, counter-clockwise.
      down: pixels.
      right: pixels.
      scale: the factor of the size.
      shear_x: by how many pixels the source moves to the right for each pixel further down.
      shear_y: by how many pixels the source moves down for each pixel further right.

    Returns:
      The map.
    """
    middle_x, middle_y = shape[1] / 2, shape[0] / 2
    smaller = 1 / jnp.asarray(scale, jnp.float32)
    cos, sin = (exact(one * smaller) for one in _cos_sin(degrees))
    # Shears times the inverse rotation; rows of pixels go down, so it turns clockwise on the screen.
    turned = Affine(
        cos + exact(shear_x * sin),
        exact(shear_x * cos) - sin,
        0.0,
        sin + exact(shear_y * cos),
        cos - exact(shear_y * sin),
        0.0,
    )
    x, y = turned(middle_x + right, middle_y + down)
    return turned._replace(x0=middle_x - x, y0=middle_y - y)


def _cos_sin(degrees: Scalar) -> tuple[Scalar, Scalar]:
    """Of an angle; exact at multiples of 90 degrees where it is known before the program runs."""
    if not checks.is_concrete(degrees):
        return jnp.cos(jnp.radians(degrees)), jnp.sin(jnp.radians(degrees))
    quarters, rest = divmod(float(degrees), 90.0)
    cos, sin = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    return ((cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos))[int(quarters % 4)]


def _covering(shape: Shape, degrees: Scalar) -> jax.Array:
    """By which factor a turned image covers all of its frame again."""
    cos, sin = (jnp.abs(jnp.asarray(one, jnp.float32)) for one in _cos_sin(degrees))
    return cos + sin * (max(shape[:2]) / min(shape[:2]))


def _angles(max_degrees: Scalar | tuple[Scalar, Scalar]) -> Callable[[jax.Array], jax.Array]:
    """What draws an angle: between minus and plus a number, or between a pair of bounds."""
    if isinstance(max_degrees, (tuple, list)):
        low, high = bounds("max_degrees", max_degrees)
        return lambda key: jax.random.uniform(key, minval=low, maxval=high)
    checks.real("max_degrees", max_degrees, at_least=0)
    return lambda key: jax.random.uniform(key, minval=-1.0) * max_degrees


def _flip(p: Scalar, axis: int, joints: tuple[tuple[int, int], ...]) -> Stage:
    checks.real("p", p, at_least=0, at_most=1)
    pairs = _pairs(joints)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        return {"flip": jax.random.uniform(key) < p}

    def place(params: Sampled, shape: Shape) -> Affine:
        sign, start = jnp.where(params["flip"], -1.0, 1.0), jnp.where(params["flip"], as_float(shape[axis]), 0.0)
        return Affine(1.0, 0.0, 0.0, 0.0, sign, start) if axis == 0 else Affine(sign, 0.0, start, 0.0, 1.0, 0.0)

    return Resampling((Geometric(draw, place, "shift", mirrors=(axis == 0, axis == 1), joints=pairs),))


def _pairs(joints: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Pairs of points, each point in one of them."""
    if not isinstance(joints, (tuple, list)) or not all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in joints
    ):
        raise TypeError(f"joints: expected pairs of numbers of points, as ((5, 6), (7, 8)), got {joints!r}")
    for one in itertools.chain(*joints):
        checks.integer("joints", one, at_least=0)
    numbers = [int(one) for one in itertools.chain(*joints)]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"joints: expected each point in one pair, got {joints!r}")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _two(
    name: str, pair: tuple[Scalar, Scalar], *, at_most: float | None = None, below: float | None = None
) -> tuple[Scalar, Scalar]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name}: expected a pair of numbers, got {pair!r}")
    for one in pair:
        checks.real(name, one, at_least=0, at_most=at_most, below=below)
    return pair[0], pair[1]
