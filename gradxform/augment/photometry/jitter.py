"""Random changes of colour: brightness, contrast, saturation and hue, alone or all in a random order; gray."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.crop import bounds
from gradxform.augment.pixels import color
from gradxform.augment.pixels.canvas import Canvas
from gradxform.augment.stage import Pixelwise, Sampled, Shape, Stage, Targets, canvas_of, few
from gradxform.core import checks
from gradxform.core.types import Scalar

Strength = Scalar | tuple[Scalar, Scalar]
"""How strong a change may be: a number, or the bounds between which it is uniform."""

_KERNELS = (color.brightness, color.contrast, color.saturation, color.adjust_hue)
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)
SMALL = 1 << 12
"""Up to so many pixels a float image is changed in every way at every step, which its neighbours share, rather than in
the one way that is asked for."""
PIXELS_AT_ONCE = 1 << 19
"""Of small float images."""


class _Range(NamedTuple):
    low: Scalar
    high: Scalar


@augmentation
def color_jitter(
    brightness: Strength = 0.0, contrast: Strength = 0.0, saturation: Strength = 0.0, hue: Strength = 0.0
) -> Stage:
    """Brightness, contrast, saturation and hue changed at random, in a random order, each image its own.

    As torchvision's ``ColorJitter`` for Pillow images, to the bit for 8-bit images; after each step values are cut to
    their range. What has a strength of 0 is left out.

    Args:
      brightness: a number v >= 0 for a factor uniform in [max(0, 1 - v), 1 + v], or the bounds of the factor, >= 0.
      contrast: the same for the contrast.
      saturation: the same for the saturation.
      hue: a number v in [0, 0.5] for a shift uniform in [-v, v] turns of the colour wheel, or bounds of the shift in
        [-0.5, 0.5].

    Returns:
      The augmentation; it takes images of 1 or 3 channels.

    Raises:
      TypeError: an argument is neither a number nor a pair of numbers.
      ValueError: a number is out of range, or (when called) the image has another number of channels.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> jitter = gx.augment.color_jitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
      >>> jitter(jax.random.key(0), jnp.full((16, 32, 32, 3), 0.5)).shape
      (16, 32, 32, 3)
    """
    ranges = (
        _factors("brightness", brightness),
        _factors("contrast", contrast),
        _factors("saturation", saturation),
        _shifts("hue", hue),
    )
    return Jitter(ranges, tuple(i for i in range(4) if _is_only(ranges[i], _NEUTRAL[i]) is not True))


@dataclasses.dataclass(frozen=True)
class Jitter(Stage):
    """Changes of colour in a random order.

    Attributes:
      ranges: the bounds of the factors of brightness, contrast and saturation, and of the shift of the hue.
      active: which of them are made.
    """

    ranges: tuple[_Range, ...]
    active: tuple[int, ...]
    needs_unit = True

    def sample(self, key: jax.Array, shape: Shape) -> Sampled:
        """The strength of each change, and which one comes first, second and so on."""
        # Drawn for all four, so that what is drawn for one does not depend on the others being made.
        draws = jax.random.uniform(key, (2, 4), jnp.float32)
        order = jnp.argsort(draws[0][np.array(self.active, np.int32)])
        return {
            "order": order.astype(jnp.int32),
            "strengths": tuple(_between(draws[1, i], self.ranges[i]) for i in self.active),
        }

    def out_shape(self, shape: Shape) -> Shape:
        """The same shape."""
        if self.active:
            color.check_channels(shape[2])
        return shape

    def images(self, shape: Shape, dtype: DTypeLike) -> int | None:
        """As many small float images as keep the processor's cores busy, else one, which takes its own branches."""
        if len(self.active) < 2:
            return None
        small = dtype != jnp.uint8 and isinstance(shape[0], int) and shape[0] * shape[1] <= SMALL
        return few(PIXELS_AT_ONCE)(shape, dtype) if small else 1

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The targets with another image."""
        canvas, strengths, steps = canvas_of(targets), params["strengths"], self._steps()
        for i in range(len(steps)):
            canvas = lax.switch(params["order"][i], steps, (strengths, canvas))
        return targets | {"image": canvas}

    def _steps(self) -> list[Any]:
        def step(place: int, operands: tuple[tuple[jax.Array, ...], Canvas]) -> Canvas:
            strengths, canvas = operands
            which = self.active[place]
            new = canvas.with_planes(_KERNELS[which](canvas.planes(), strengths[place]))
            # A strength of 0 that is only known when the program runs: even a hue turned by 0 would not be the same.
            off = _is_only(self.ranges[which], _NEUTRAL[which])
            return new if off is False else jax.tree.map(lambda *each: jnp.where(off, *each), canvas, new)

        return [lambda operands, i=i: step(i, operands) for i in range(len(self.active))]


@augmentation
def random_brightness(amount: Strength) -> Stage:
    """Every value times a random factor.

    Args:
      amount: a number v >= 0 for a factor uniform in [max(0, 1 - v), 1 + v], or the bounds of the factor, >= 0.

    Returns:
      The augmentation.

    Raises:
      TypeError: ``amount`` is neither a number nor a pair of numbers.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.random_brightness((0.5, 0.5))(jax.random.key(0), jnp.ones((1, 2, 1)))[..., 0]
      Array([[0.5, 0.5]], dtype=float32)
    """
    return _one(0, _factors("amount", amount))


@augmentation
def random_contrast(amount: Strength) -> Stage:
    """The distance of every value from the mean gray of its image times a random factor.

    The gray of an image of neither 1 nor 3 channels is the mean of its channels.

    Args:
      amount: a number v >= 0 for a factor uniform in [max(0, 1 - v), 1 + v], or the bounds of the factor, >= 0.

    Returns:
      The augmentation; it takes images of any number of channels.

    Raises:
      TypeError: ``amount`` is neither a number nor a pair of numbers.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.array([[[0.25], [0.75]]])
      >>> gx.augment.random_contrast((0.5, 0.5))(jax.random.key(0), image)[..., 0]
      Array([[0.375, 0.625]], dtype=float32)
    """
    return _one(1, _factors("amount", amount))


@augmentation
def random_saturation(amount: Strength) -> Stage:
    """The distance of every pixel from its gray times a random factor; gray images stay.

    Args:
      amount: a number v >= 0 for a factor uniform in [max(0, 1 - v), 1 + v], or the bounds of the factor, >= 0.

    Returns:
      The augmentation; it takes images of 1 or 3 channels.

    Raises:
      TypeError: ``amount`` is neither a number nor a pair of numbers.
      ValueError: a number is out of range, or (when called) the image has another number of channels.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> image = jnp.array([[[200, 100, 0]]], jnp.uint8)
      >>> gx.augment.random_saturation((0.0, 0.0))(jax.random.key(0), image)
      Array([[[118, 118, 118]]], dtype=uint8)
    """
    return _one(2, _factors("amount", amount))


@augmentation
def random_hue(amount: Strength) -> Stage:
    """Every colour turned about the colour wheel by the same random angle; gray images stay.

    8-bit images go through the 8-bit hue, saturation and value of Pillow, which changes some values by a few levels
    even for an angle of 0.

    Args:
      amount: a number v in [0, 0.5] for an angle uniform in [-v, v] turns, or the bounds of the angle in [-0.5, 0.5].

    Returns:
      The augmentation; it takes images of 1 or 3 channels.

    Raises:
      TypeError: ``amount`` is neither a number nor a pair of numbers.
      ValueError: a number is out of range, or (when called) the image has another number of channels.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> red = jnp.array([[[255, 0, 0]]], jnp.uint8)
      >>> gx.augment.random_hue((0.5, 0.5))(jax.random.key(0), red)
      Array([[[  0, 255, 252]]], dtype=uint8)
    """
    return _one(3, _shifts("amount", amount))


@augmentation
def random_grayscale(p: Scalar = 0.1) -> Stage:
    """Some of the images gray; the number of channels stays.

    Args:
      p: for which share of them, in [0, 1].

    Returns:
      The augmentation; it takes images of 1 or 3 channels.

    Raises:
      TypeError: ``p`` is no number.
      ValueError: ``p`` is out of range, or (when called) the image has another number of channels.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> gx.augment.random_grayscale(1.0)(jax.random.key(0), jnp.array([[[200, 100, 0]]], jnp.uint8))
      Array([[[118, 118, 118]]], dtype=uint8)
    """
    checks.real("p", p, at_least=0, at_most=1)

    def draw(key: jax.Array, shape: Shape) -> Sampled:
        return {"gray": jax.random.uniform(key, (), jnp.float32) < p}

    def kernel(params: Sampled, planes: list[jax.Array]) -> list[jax.Array]:
        return [
            jnp.where(params["gray"], gray, plane) for gray, plane in zip(color.grayscale(planes), planes, strict=True)
        ]

    return Pixelwise(draw, kernel)


def _one(which: int, allowed: _Range) -> Stage:
    return Pixelwise(
        lambda key, shape: {"strength": _between(jax.random.uniform(key, (), jnp.float32), allowed)},
        lambda params, planes: _KERNELS[which](planes, params["strength"]),
        needs_unit=True,
    )


def _factors(name: str, strength: Strength) -> _Range:
    if isinstance(strength, (tuple, list)):
        return _Range(*bounds(name, strength, at_least=0))
    checks.real(name, strength, at_least=0)
    if checks.is_concrete(strength):
        # Rounded as where it is traced, for the same factors.
        number = np.float32(strength)
        return _Range(float(max(np.float32(0), 1 - number)), float(1 + number))
    return _Range(jnp.maximum(1 - strength, 0), 1 + strength)


def _shifts(name: str, strength: Strength) -> _Range:
    if isinstance(strength, (tuple, list)):
        return _Range(*bounds(name, strength, at_least=-0.5, at_most=0.5))
    checks.real(name, strength, at_least=0, at_most=0.5)
    return _Range(-strength, strength)


def _is_only(allowed: _Range, neutral: float) -> bool | jax.Array:
    if all(checks.is_concrete(bound) for bound in allowed):
        return bool(allowed.low == neutral == allowed.high)
    return (jnp.asarray(allowed.low) == neutral) & (jnp.asarray(allowed.high) == neutral)


def _between(share: jax.Array, allowed: _Range) -> jax.Array:
    low, high = jnp.asarray(allowed.low, jnp.float32), jnp.asarray(allowed.high, jnp.float32)
    return low + (high - low) * share
