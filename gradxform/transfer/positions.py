"""Position embeddings for another number of patches."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gradxform.core import arrays, checks
from gradxform.core.numbers import wide_dtype

METHODS = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}


def resize_positions(
    embedding: ArrayLike,
    shape: tuple[int, ...],
    *,
    prefix_tokens: int = 1,
    grid: tuple[int, int] | None = None,
    new_grid: tuple[int, int] | None = None,
    method: str = "bicubic",
    antialias: bool = True,
) -> jax.Array:
    """Resizes the position embeddings of an image's patches to another grid of patches.

    The embeddings of the prefix (a class token, registers) stay as they are; the others are an image of as many
    channels as there are features, and are resized as one: corners not aligned, and the kernel stretched where the
    grid becomes smaller. With ``antialias`` that is timm's and torch's ``interpolate(antialias=True)``, with the cubic
    kernel of Keys (1981), a = -0.5. Torch without ``antialias``, as in DeiT and MAE, has a cubic kernel of its own
    (a = -0.75), which is not offered here; bilinear it is the same.

    As a rule for loading: ``convert={"pos_embedding$": resize_positions}``.

    Args:
      embedding: of shape (..., prefix_tokens + height * width, features), row by row.
      shape: the wanted shape (..., prefix_tokens + new height * new width, features); only the tokens may differ.
      prefix_tokens: how many embeddings in front are of no patch, >= 0.
      grid: the (height, width) of the patches in ``embedding``; by default a square.
      new_grid: the (height, width) of the patches in ``shape``; by default a square.
      method: ``"bicubic"``, ``"bilinear"`` or ``"nearest"``.
      antialias: whether the kernel is stretched where the grid becomes smaller; no influence where it grows.

    Returns:
      An array of ``shape`` with the dtype of ``embedding``, computed in float32 at least.

    Raises:
      TypeError: an argument is of the wrong kind.
      ValueError: a method that is not known, shapes that do not fit, or tokens that are no grid.

    Example:
      >>> import numpy as np
      >>> from gradxform.transfer import resize_positions
      >>> embedding = np.array([[9.0], [0.0], [4.0], [0.0], [4.0]], np.float32)  # a class token and 2 x 2 patches
      >>> resize_positions(embedding, (5, 1), new_grid=(1, 4), method="bilinear")[:, 0]
      Array([9., 0., 1., 3., 4.], dtype=float32)
    """
    checks.integer("prefix_tokens", prefix_tokens, at_least=0)
    checks.choice("method", method, tuple(METHODS))
    embedding = arrays.floating("embedding", embedding)
    if (
        embedding.ndim < 2
        or len(shape) != embedding.ndim
        or ((*embedding.shape[:-2], embedding.shape[-1]) != (*shape[:-2], shape[-1]))
    ):
        raise ValueError(
            f"shape: expected that of embedding, {embedding.shape}, with another number of tokens, got {tuple(shape)}"
        )
    old = _grid("grid", grid, embedding.shape[-2] - prefix_tokens)
    new = _grid("new_grid", new_grid, shape[-2] - prefix_tokens)
    if old == new:
        return embedding
    prefix, patches = jnp.split(embedding, [prefix_tokens], axis=-2)
    image = patches.reshape(*embedding.shape[:-2], *old, embedding.shape[-1]).astype(wide_dtype(embedding.dtype))
    image = jax.image.resize(image, (*shape[:-2], *new, shape[-1]), METHODS[method], antialias=antialias)
    return jnp.concatenate([prefix, image.reshape(patches.shape[:-2] + (-1, shape[-1])).astype(prefix.dtype)], -2)


def _grid(name: str, grid: tuple[int, int] | None, tokens: int) -> tuple[int, int]:
    if grid is None:
        side = math.isqrt(max(tokens, 0))
        grid = (side, side)
    if tokens < 1 or len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != tokens:
        raise ValueError(
            f"{name}: expected (height, width) of {tokens} patches, got {tuple(grid)}; the tokens of the "
            "prefix are counted by prefix_tokens"
        )
    return grid
