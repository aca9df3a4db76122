"""A policy: some operations one after another, chosen at random from a preset."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gradxform.augment.geometry.borders import Border
from gradxform.augment.policies.operations import operation
from gradxform.augment.policies.presets import Preset
from gradxform.augment.stage import Shape, Stage, Targets, canvas_of
from gradxform.core.types import Scalar

UNROLLED = 4
"""Up to so many operations of one image are spelled out."""
Steps = dict[str, jax.Array]
"""The parameters of operations, in order: ``op``, which of the preset, ``value``, its number, and ``place``."""


@dataclasses.dataclass(frozen=True)
class Policy(Stage):
    """Operations chosen with replacement, all with the same probability.

    Attributes:
      preset: what there is to choose from.
      num_ops: how many are done, one after another.
      magnitude: their strength, or None for a whole one from 0 to the preset's ``levels`` at random.
      probability: of each to be done at all.
      border: what comes in from outside.
      interpolation: of the moved pixels.
    """

    preset: Preset
    num_ops: int
    magnitude: Scalar | None
    probability: Scalar
    border: Border
    interpolation: str
    dear = chooses = True
    needs_unit = True

    def images(self, shape: Shape, dtype: DTypeLike) -> int | None:
        """One, which goes through its own operations."""
        return 1

    def sample(self, key: jax.Array, shape: Shape) -> Steps:
        """The operations of one image."""
        which, how_much, done = jax.random.split(key, 3)
        if self.magnitude is None:
            magnitude = jax.random.randint(how_much, (self.num_ops,), 0, round(self.preset.levels) + 1).astype(float)
        else:
            magnitude = jnp.full(self.num_ops, self.magnitude, jnp.float32)
            if self.preset.spread:
                magnitude += self.preset.spread * jax.random.normal(how_much, (self.num_ops,))
                magnitude = jnp.clip(magnitude, 0, self.preset.levels)
        keep = jax.random.uniform(done, (self.num_ops,)) < self.probability
        return drawn(which, self.preset, magnitude / self.preset.levels, keep, shape)

    def apply(self, params: Steps, targets: Targets) -> Targets:
        """The targets of one image after its operations."""
        return performed(self.operations(), params, targets | {"image": canvas_of(targets)})

    def operations(self) -> list[Any]:
        """The operations of the preset, and doing nothing."""
        return operations(self.preset, self.interpolation, self.border)


def operations(preset: Preset, interpolation: str, border: Border) -> list[Any]:
    """The operations of a preset, and behind them the one that changes nothing."""
    return [operation(entry.name, interpolation, border) for entry in preset.entries] + [
        operation("identity", interpolation, border)
    ]


def drawn(
    key: jax.Array, preset: Preset, levels: jax.Array, keep: jax.Array, shape: Shape, op: jax.Array | None = None
) -> Steps:
    """The parameters of as many operations as there are levels.

    Args:
      key: a key.
      preset: what there is to choose from.
      levels: (N,), the magnitude of each over that of level 1.
      keep: (N,) bools, whether it is done at all.
      shape: of the image.
      op: (N,), which of the preset each is; drawn by default.

    Returns:
      Arrays (N, ...).
    """
    which, signs, places = jax.random.split(key, 3)
    count, size = len(preset.entries), levels.shape
    if op is None:
        op = jax.random.randint(which, size, 0, count)
    sign = jnp.where(jax.random.bernoulli(signs, shape=size), 1.0, -1.0)
    values = jnp.stack([jnp.broadcast_to(entry.number(levels, sign, shape), size) for entry in preset.entries])
    value = jnp.take_along_axis(values, op[None], 0)[0]
    return {"op": jnp.where(keep, op, count), "value": value, "place": jax.random.uniform(places, (*size, 2))}


def performed(ops: list[Any], params: Steps, targets: Targets) -> Targets:
    """The targets of one image after operations of which it takes only its own branch."""

    def step(targets: Targets, one: Steps) -> tuple[Targets, None]:
        return lax.switch(one["op"], ops, one["value"], one["place"], targets), None

    # Each round of a loop copies the image once more, and each that is spelled out is compiled once more.
    count = params["op"].shape[0]
    return lax.scan(step, targets, params, unroll=count if count <= UNROLLED else 1)[0]
