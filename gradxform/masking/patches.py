"""Images as sequences of patches, and back."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from gradxform.core import arrays, checks
from gradxform.core.numbers import widen
from gradxform.core.types import Scalar

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped


def patchify(
    images: Shaped[Array, "*batch height width channels"], patch: int | tuple[int, int]
) -> Shaped[Array, "*batch patches features"]:
    """Cuts images into patches, from left to right and from top to bottom.

    A patch is flattened row by row with the channels innermost, as in MAE.

    Args:
      images: of shape (batch, height, width, channels), or one of shape (height, width, channels); any dtype.
      patch: the height and width of a patch, or one number for both; static.

    Returns:
      An array of shape (batch, patches, patch height * patch width * channels), or without the batch.

    Raises:
      TypeError: ``images`` is no array, or ``patch`` is of the wrong type or not static.
      ValueError: an array of another number of dimensions, or one that the patches do not divide.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> image = jnp.arange(16).reshape(4, 4, 1)
      >>> gx.masking.patchify(image, 2).tolist()
      [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    images = _array("images", images, (3, 4), "(batch, height, width, channels) or (height, width, channels)")
    rows, columns = arrays.pair("patch", patch)
    *batch, height, width, channels = images.shape
    if height % rows or width % columns:
        raise ValueError(
            f"patch: expected a divisor of the height and width of images of shape {images.shape}, got "
            f"{rows} x {columns}"
        )
    split = _reshaped(images, *batch, height // rows, rows, width // columns, columns, channels)
    return _reshaped(
        jnp.swapaxes(split, -4, -3), *batch, (height // rows) * (width // columns), rows * columns * channels
    )


def unpatchify(
    patches: Shaped[Array, "*batch patches features"],
    patch: int | tuple[int, int],
    grid: int | tuple[int, int] | None = None,
) -> Shaped[Array, "*batch height width channels"]:
    """Puts patches together to images: the inverse of ``patchify``.

    Args:
      patches: of shape (batch, patches, features), or (patches, features) of one image; any dtype. The number of
        channels follows from that of the features.
      patch: the height and width of a patch, or one number for both; static.
      grid: the rows and columns of patches, or one number for both; None for a square of them. Static.

    Returns:
      Images of shape (batch, height, width, channels), or one of shape (height, width, channels).

    Raises:
      TypeError: ``patches`` is no array, or a size is of the wrong type or not static.
      ValueError: shapes that do not fit.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> images = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
      >>> bool(jnp.all(gx.masking.unpatchify(gx.masking.patchify(images, 2), 2, grid=(2, 3)) == images))
      True
    """
    patches = _array("patches", patches, (2, 3), "(batch, patches, features) or (patches, features)")
    rows, columns = arrays.pair("patch", patch)
    *batch, count, features = patches.shape
    if features % (rows * columns):
        raise ValueError(f"patch: expected a divisor of the {features} features of patches, got {rows} x {columns}")
    if grid is None:
        side = math.isqrt(count)
        if side * side != count:
            raise ValueError(f"grid: expected the rows and columns of {count} patches, which are no square, got None")
        grid = side
    down, across = arrays.pair("grid", grid, at_least=0)
    if down * across != count:
        raise ValueError(
            f"grid: expected {count} patches as in patches of shape {patches.shape}, got {down} x {across}"
        )
    channels = features // (rows * columns)
    split = _reshaped(patches, *batch, down, across, rows, columns, channels)
    return _reshaped(jnp.swapaxes(split, -4, -3), *batch, down * rows, across * columns, channels)


def normalize_patches(
    patches: Float[Array, "*batch features"], *, epsilon: Scalar = 1e-6, ddof: int = 1
) -> Float[Array, "*batch features"]:
    """Normalizes every patch by its own mean and variance: the targets of MAE's ``norm_pix_loss``.

    ``(x - mean) / sqrt(var + epsilon)``, computed in float32 at least. MAE's published code takes the unbiased
    variance, ``ddof=1``; ``jnp.var`` and layer norms take ``ddof=0``.

    Args:
      patches: of shape (..., features) and a floating-point dtype.
      epsilon: added to the variance, >= 0.
      ddof: what is taken off the number of features to divide the sum of squares by, >= 0; static.

    Returns:
      An array of the shape and dtype of ``patches``.

    Raises:
      TypeError: ``patches`` is no floating-point array, or a number is of the wrong type.
      ValueError: a number out of its range, or no more than ``ddof`` features.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.masking.normalize_patches(jnp.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])).round(3).tolist()
      [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    return _normalize_patches(*_statistical(patches, epsilon, ddof))


def denormalize_patches(
    normalized: Float[Array, "*batch features"],
    patches: Float[Array, "*batch features"],
    *,
    epsilon: Scalar = 1e-6,
    ddof: int = 1,
) -> Float[Array, "*batch features"]:
    """Gives normalized patches the mean and variance of others: the way back from ``normalize_patches``.

    ``normalized * sqrt(var + epsilon) + mean`` with the statistics of ``patches``, computed in float32 at least. What a
    model predicts that was trained on normalized patches becomes, with the original ones for ``patches``, an image for
    ``unpatchify``, as in MAE's pictures.

    Args:
      normalized: of shape (..., features) and a floating-point dtype.
      patches: those whose mean and variance the result has, of the same shape.
      epsilon: as in ``normalize_patches``.
      ddof: as in ``normalize_patches``.

    Returns:
      An array of the shape and dtype of ``normalized``.

    Raises:
      TypeError: an argument is no floating-point array, or a number is of the wrong type.
      ValueError: a number out of its range, other shapes, or no more than ``ddof`` features.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> patches = jnp.array([[1.0, 2.0, 3.0], [5.0, 7.0, 9.0]])
      >>> again = gx.masking.denormalize_patches(gx.masking.normalize_patches(patches), patches)
      >>> bool(jnp.allclose(again, patches))
      True
    """
    normalized = arrays.floating("normalized", normalized)
    patches, epsilon, ddof = _statistical(patches, epsilon, ddof)
    arrays.same_shape("normalized", normalized, patches.shape, "that of patches")
    return _denormalize_patches(normalized, patches, epsilon, ddof)


@functools.partial(jax.jit, static_argnums=2)
def _normalize_patches(patches: jax.Array, epsilon: Scalar, ddof: int) -> jax.Array:
    mean, var = _mean_and_var(patches, ddof)
    return ((widen(patches) - mean) * lax.rsqrt(var + epsilon)).astype(patches.dtype)


@functools.partial(jax.jit, static_argnums=3)
def _denormalize_patches(normalized: jax.Array, patches: jax.Array, epsilon: Scalar, ddof: int) -> jax.Array:
    mean, var = _mean_and_var(patches, ddof)
    return (widen(normalized) * jnp.sqrt(var + epsilon) + mean).astype(normalized.dtype)


def _mean_and_var(patches: jax.Array, ddof: int) -> tuple[jax.Array, jax.Array]:
    x = widen(patches)
    mean = jnp.mean(x, -1, keepdims=True)
    return mean, jnp.sum(jnp.square(x - mean), -1, keepdims=True) / (x.shape[-1] - ddof)


def _statistical(patches: jax.Array, epsilon: Scalar, ddof: int) -> tuple[jax.Array, Scalar, int]:
    """The checked arguments of which a mean and a variance are made."""
    patches = arrays.floating("patches", patches)
    checks.real("epsilon", epsilon, at_least=0)
    ddof = arrays.size("ddof", ddof, at_least=0)
    if patches.ndim == 0 or patches.shape[-1] <= ddof:
        raise ValueError(f"patches: expected more features than ddof = {ddof}, got shape {patches.shape}")
    return patches, epsilon, ddof


def _reshaped(x: jax.Array, *shape: int) -> jax.Array:
    # Where the mesh has axes that programs name, JAX wants to be told that the batch stays where it is.
    first, *others = jax.typeof(x).sharding.spec or (None,)
    named = first is not None and not any(others) and shape[0] == x.shape[0]
    return jnp.reshape(x, shape, out_sharding=PartitionSpec(first) if named else None)


def _array(name: str, x: jax.Array, ndims: tuple[int, ...], of: str) -> jax.Array:
    if not hasattr(x, "dtype"):
        raise TypeError(f"{name}: expected an array, got {x!r}")
    if x.ndim not in ndims:
        raise ValueError(f"{name}: expected shape {of}, got {x.shape}")
    return jnp.asarray(x)
