"""What is measured on: random, since a device may be faster on numbers that are all alike."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import trees


def tree(shapes: trees.Shapes, scale: float, seed: int) -> Any:
    """Arrays of these shapes on the device, float32; leaves of one shape are alike."""

    def is_shape(x: Any) -> bool:
        return isinstance(x, tuple)

    kinds = sorted(set(jax.tree.leaves(shapes, is_leaf=is_shape)))
    keys = jax.random.split(jax.random.key(seed), len(kinds))
    drawn = {shape: scale * jax.random.normal(key, shape) for shape, key in zip(kinds, keys, strict=True)}
    return jax.tree.map(lambda shape: jnp.array(drawn[shape], copy=True), shapes, is_leaf=is_shape)


def photographs(count: int, size: int) -> np.ndarray:
    """8-bit images (count, size, size, 3) with the spectrum of photographs, ``1 / f``, and their correlated colours.

    How long a histogram takes depends on the pixels.
    """
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = 1 / size
    noise = np.fft.rfft2(rng.standard_normal((min(count, 16), size, size, 4), np.float32), axes=(1, 2))
    planes = np.fft.irfft2(noise / frequency[None, :, :, None], s=(size, size), axes=(1, 2))
    planes = planes[..., :3] + 2 * planes[..., 3:]  # light is common to the colours
    planes = 128 + 50 * (planes - planes.mean((1, 2, 3), keepdims=True)) / planes.std((1, 2, 3), keepdims=True)
    images = np.uint8(np.clip(planes, 0, 255))
    # More images are the same ones, moved.
    return np.stack([np.roll(images[i % len(images)], 7 * i, (0, 1)) for i in range(count)])
