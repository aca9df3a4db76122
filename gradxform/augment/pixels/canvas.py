"""The canvas: how an image is held while it is worked on.

An 8-bit image is packed, four channels to a word. A kernel that reads and writes whole pixels compiles to a single
vectorized loop; one that reads and writes (H, W, C) becomes loops over interleaved bytes that XLA does not vectorize.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Planes = list[jax.Array]
"""The channels of an image, each (H, W): int32 in 0..255 of an 8-bit image, float32 in [0, 1] of another."""
_FEW_CHANNELS = 4
"""Up to so many, channels are interleaved by a choice for each."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["words"], meta_fields=["channels", "dtype"])
@dataclasses.dataclass(frozen=True)
class Canvas:
    """An image (or a batch of images) while it is worked on.

    Attributes:
      words: arrays (H, W): of uint32, four channels each, where the image has 8 bits a channel, else of float32, one
        channel each.
      channels: how many channels there are.
      dtype: of the image that is made of it in the end.
    """

    words: tuple[jax.Array, ...]
    channels: int
    dtype: Any

    @classmethod
    def of(cls, image: jax.Array) -> Canvas:
        """The canvas of an image (..., H, W, C)."""
        channels = image.shape[-1]
        if image.dtype != jnp.uint8:
            return cls(tuple(image[..., i].astype(jnp.float32) for i in range(channels)), channels, image.dtype)
        words = tuple(_pack([image[..., i] for i in range(start, min(start + 4, channels))])
                      for start in range(0, channels, 4))
        return cls(words, channels, image.dtype)

    def image(self) -> jax.Array:
        """The image (..., H, W, C)."""
        if self.packed:
            # A word's bytes are the channels, the lowest first, on every platform of XLA's.
            parts = [lax.bitcast_convert_type(word, jnp.uint8) for word in self.words]
            return (parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1))[..., :self.channels]
        return _interleaved([word.astype(self.dtype) for word in self.words])

    @property
    def packed(self) -> bool:
        """Whether the words hold 8-bit channels."""
        return bool(self.words[0].dtype == jnp.uint32)

    @property
    def top(self) -> int:
        """White: 255 or 1."""
        return 255 if self.packed else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the image, or of each image of a batch."""
        height, width = self.words[0].shape[-2:]
        return height, width, self.channels

    def planes(self) -> Planes:
        """The channels."""
        if not self.packed:
            return list(self.words)
        return [((self.words[i // 4] >> (8 * (i % 4))) & 255).astype(jnp.int32) for i in range(self.channels)]

    def with_words(self, words: Iterable[jax.Array]) -> Canvas:
        """This canvas with other words."""
        return dataclasses.replace(self, words=tuple(words))

    def with_planes(self, planes: Planes) -> Canvas:
        """This canvas with other channels, 8-bit ones as integers in 0..255; floats make it one of float images."""
        if planes[0].dtype == jnp.int32:
            return Canvas(tuple(_pack(planes[i:i + 4]) for i in range(0, len(planes), 4)), len(planes), self.dtype)
        dtype = jnp.dtype(jnp.float32) if self.packed else self.dtype
        return Canvas(tuple(plane.astype(jnp.float32) for plane in planes), len(planes), dtype)


def _interleaved(planes: Planes) -> jax.Array:
    """The planes (..., H, W) as (..., H, W, C)."""
    spread = getattr(jax.typeof(planes[0]).sharding, "spec", ())
    if len(planes) > _FEW_CHANNELS or any(part is not None for part in spread):
        return jnp.stack(planes, -1)
    # Chosen by the channel it is one loop with what leads to the planes, and vectorized; stacked it is neither.
    shape = *planes[0].shape, len(planes)
    channel = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    image = jnp.broadcast_to(planes[-1][..., None], shape)
    for i in reversed(range(len(planes) - 1)):
        image = lax.select(channel == i, jnp.broadcast_to(planes[i][..., None], shape), image)
    return image


def _pack(planes: Planes) -> jax.Array:
    shifted = [plane.astype(jnp.uint32) << (8 * i) for i, plane in enumerate(planes)]
    # Not one byte after its neighbour: LLVM would make a load of 16 bits of the two, and then no vectors.
    return functools.reduce(operator.or_, shifted[::2] + shifted[1::2])
