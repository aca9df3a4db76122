"""A number of an augmentation: one for all images, or uniform between bounds and each image's own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gradxform.augment.geometry.crop import bounds
from gradxform.core.types import Scalar

OneOrBounds = Scalar | tuple[Scalar, Scalar]
"""A number, or the bounds between which it is uniform."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A number, known or drawn.

    Attributes:
      name: of the parameter that it is when it is drawn.
      low: the number, or its lower bound.
      high: the number, or its upper bound.
      varies: whether it is drawn.
      logarithmic: whether its logarithm is uniform.
    """

    name: str
    low: Scalar
    high: Scalar
    varies: bool
    logarithmic: bool = False

    @classmethod
    def of(cls, name: str, number: Any, *, logarithmic: bool = False, **limits: float) -> Number:
        """The number that an argument describes, in the limits of ``bounds``.

        Raises:
          TypeError: the argument is neither a number nor a pair of numbers.
          ValueError: a number is out of range, or the order of the bounds is wrong.
        """
        pair = isinstance(number, (tuple, list))
        low, high = bounds(name, number if pair else (number, number), **limits)
        return cls(name, low, high, pair, logarithmic)

    def draw(self, key: jax.Array) -> dict[str, jax.Array]:
        """What is drawn for an image: nothing where it is known."""
        if not self.varies:
            return {}
        share = jax.random.uniform(key, (), jnp.float32)
        if self.logarithmic:
            low, high = (jnp.log(jnp.asarray(bound, jnp.float32)) for bound in (self.low, self.high))
            return {self.name: jnp.exp(low + (high - low) * share)}
        return {self.name: jnp.asarray(self.low, jnp.float32) + jnp.asarray(self.high - self.low, jnp.float32) * share}

    def among(self, params: dict[str, jax.Array]) -> Scalar:
        """The number of an image, among the parameters that were drawn or as it is known."""
        return params[self.name] if self.varies else self.low
