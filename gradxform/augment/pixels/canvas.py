"""The canvas: how an image is held while it is worked on.

An 8-bit image is packed, four channels to a word. A kernel that reads and writes whole pixels compiles to a single
vectorized loop; one that reads and writes (H, W, C) becomes loops over interleaved bytes that XLA does not vectorize.
A TPU has the channels of an image apart as it is, and a GPU takes bytes as it takes words: there nothing is packed
between the image and a kernel, nor between a kernel and the image.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from gradxform.augment.geometry.borders import blanked, is_real
from gradxform.augment.pixels.arithmetic import within
from gradxform.core.platform import by_platform
from gradxform.core.types import Size


def white_of(dtype: DTypeLike) -> int:
    """White in an image of a dtype."""
    return int(jnp.iinfo(dtype).max) if jnp.issubdtype(dtype, jnp.integer) else 1


Planes = list[jax.Array]
"""The channels of an image, each (H, W): int32 in 0..255 of an 8-bit image, float32 in [0, 1] of others. ``Padded``
where the image is in the corner of larger arrays."""
_FEW_CHANNELS = 4
"""Up to so many, channels are interleaved by a choice for each."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["words", "size"],
    meta_fields=["channels", "dtype"],
    drop_fields=["levels"],
)
@dataclasses.dataclass(frozen=True)
class Canvas:
    """An image (or a batch of images) while it is worked on.

    Attributes:
      words: arrays (H, W): of uint32, four channels each, where the image has 8 bits a channel, else of float32, one
        channel each.
      channels: how many channels there are.
      dtype: of the image that is made of it in the end; values of 16 bits are rounded then, and floats until then.
      size: the true height and width (2,) of the image in the corner of padded words; None where they are not.
      levels: the 8-bit channels, each (H, W) of int32, or all as one array (C, H, W), where they are at hand beside the
        words; no part of the tree.
    """

    words: tuple[jax.Array, ...]
    channels: int
    dtype: np.dtype
    size: jax.Array | None = None
    levels: jax.Array | tuple[jax.Array, ...] | None = None

    @classmethod
    def of(cls, image: jax.Array, size: jax.Array | None = None) -> Canvas:
        """The canvas of an image (..., H, W, C)."""
        channels = image.shape[-1]
        if image.dtype != jnp.uint8:
            white = white_of(image.dtype)
            planes = (image[..., i].astype(jnp.float32) for i in range(channels))
            return cls(tuple(plane if white == 1 else plane / white for plane in planes), channels, image.dtype, size)
        words = tuple(
            _pack([image[..., i] for i in range(start, min(start + 4, channels))]) for start in range(0, channels, 4)
        )
        return cls(words, channels, image.dtype, size)

    def image(self) -> jax.Array:
        """The image (..., H, W, C)."""
        if self.packed:
            if self.levels is None:
                return self._bytes(self.words)
            # On a GPU the choice of a channel is one loop with what leads to it; a TPU has all of them as they are.
            forms: dict[str, Any] = (
                {"gpu": lambda _, levels: _interleaved([level.astype(jnp.uint8) for level in levels])}
                if isinstance(self.levels, tuple)
                else {"tpu": lambda _, levels: jnp.moveaxis(levels.astype(jnp.uint8), 0, -1)}
            )
            image: jax.Array = by_platform(lambda words, _: self._bytes(words), self.words, self.levels, **forms)
            return image
        white = white_of(self.dtype)
        return _interleaved(
            [
                (word if white == 1 else jnp.round(within(word, 0.0, 1.0) * white)).astype(self.dtype)
                for word in self.words
            ]
        )

    def floating(self) -> Canvas:
        """This canvas, whose image is to be of floats."""
        return dataclasses.replace(self, dtype=jnp.dtype(jnp.float32)) if white_of(self.dtype) > 1 else self

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
        planes = self.unpacked() if self.packed else list(self.words)
        if self.packed and self.levels is not None:
            planes = by_platform(lambda planes, _: planes, planes, self.levels, gpu=lambda _, levels: list(levels))
        return planes if self.size is None else Padded(planes, self.size)

    def with_words(self, words: Iterable[jax.Array]) -> Canvas:
        """This canvas with other words."""
        return dataclasses.replace(self, words=tuple(words), levels=None)

    def with_levels(self, levels: jax.Array) -> Canvas:
        """This canvas with the channels of its words, (C, H, W), at hand."""
        return dataclasses.replace(self, levels=levels.astype(jnp.int32))

    def stacked(self) -> jax.Array:
        """The 8-bit channels as one array (C, H, W) of int32."""
        if self.levels is not None:
            return jnp.stack(self.levels) if isinstance(self.levels, tuple) else self.levels
        words = jnp.stack([self.words[i // 4] for i in range(self.channels)])
        # Not an array of constants: in a branch that is vmapped on a mesh, JAX refuses those.
        shifts = 8 * (jnp.arange(self.channels, dtype=jnp.uint32) % 4)
        return ((words >> shifts[:, None, None]) & 255).astype(jnp.int32)

    def with_planes(self, planes: Planes) -> Canvas:
        """This canvas with other channels, 8-bit ones as integers in 0..255; floats make it one of float images.

        Where the words are padded, they are 0 beyond the true size.
        """
        levels = None
        if planes[0].dtype == jnp.int32:
            words, dtype = [_pack(list(planes[i : i + 4])) for i in range(0, len(planes), 4)], self.dtype
            levels = tuple(planes) if self.size is None else None
        else:
            words = [plane.astype(jnp.float32) for plane in planes]
            dtype = jnp.dtype(jnp.float32) if self.packed else self.dtype
        if self.size is not None:
            words = [blanked(word, self.size) for word in words]
        return Canvas(tuple(words), len(planes), dtype, self.size, levels)

    def unpacked(self) -> Planes:
        """The 8-bit channels as the words have them."""
        return [((self.words[i // 4] >> (8 * (i % 4))) & 255).astype(jnp.int32) for i in range(self.channels)]

    def _bytes(self, words: tuple[jax.Array, ...]) -> jax.Array:
        # A word's bytes are the channels, the lowest first, on every platform of XLA's.
        parts = [lax.bitcast_convert_type(word, jnp.uint8) for word in words]
        return (parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1))[..., : self.channels]


@jax.tree_util.register_pytree_node_class
class Padded(list[jax.Array]):
    """The channels of an image in the corner of padded arrays.

    Attributes:
      size: its true height and width, (2,).
    """

    def __init__(self, planes: Iterable[jax.Array], size: jax.Array) -> None:
        super().__init__(planes)
        self.size = size

    def tree_flatten(self) -> tuple[tuple[Planes, jax.Array], None]:
        """The channels and the size."""
        return (list(self), self.size), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Planes, jax.Array]) -> Padded:
        """Of the channels and the size."""
        return cls(*children)


def true_size(planes: Planes) -> tuple[Size, Size]:
    """The height and the width of the image that channels are of, as numbers or, where they are padded, arrays ()."""
    if isinstance(planes, Padded):
        return planes.size[0], planes.size[1]
    height, width = planes[0].shape
    return height, width


def real(planes: Planes) -> jax.Array | None:
    """Which pixels (H, W) are of the image; None where all are."""
    return is_real(planes.size, *planes[0].shape) if isinstance(planes, Padded) else None


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
