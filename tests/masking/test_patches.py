"""Patches: there and back exactly, and the targets of MAE."""

from __future__ import annotations

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from gradxform import masking

SIZES = st.tuples(*[st.integers(1, 3)] * 5)


@settings(max_examples=4, derandomize=True, database=None, deadline=None)
@given(SIZES, st.sampled_from(("float32", "bfloat16", "uint8", "bool")), st.booleans())
def test_patches_come_back_exactly(sizes: tuple[int, ...], dtype: str, batched: bool) -> None:
    down, across, rows, columns, channels = sizes
    shape = (2,) * batched + (down * rows, across * columns, channels)
    images = jnp.asarray(np.random.RandomState(0).randint(0, 255, shape)).astype(dtype)
    patches = masking.patchify(images, (rows, columns))
    assert patches.shape == (2,) * batched + (down * across, rows * columns * channels)
    assert patches.dtype == images.dtype
    back = masking.unpatchify(patches, (rows, columns), (down, across))
    assert back.dtype == images.dtype
    np.testing.assert_array_equal(back, images)
    # A patch is a window of the image, row by row.
    images, patches = np.asarray(images), np.asarray(patches)
    for i, j in ((0, 0), (down - 1, across - 1)):
        window = images[..., i * rows : (i + 1) * rows, j * columns : (j + 1) * columns, :]
        np.testing.assert_array_equal(patches[..., i * across + j, :], window.reshape(*shape[:-3], -1))


def test_patches_are_those_of_maes_code() -> None:
    """Which has the channels first: nchpwq -> nhwpqc."""
    images = np.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    want = np.einsum("nchpwq->nhwpqc", images.reshape(2, 3, 2, 4, 2, 4)).reshape(2, 4, 48)
    np.testing.assert_array_equal(masking.patchify(images.transpose(0, 2, 3, 1), 4), want)


def test_a_square_needs_no_grid() -> None:
    images = jnp.arange(2 * 36 * 3).reshape(2, 6, 6, 3)
    np.testing.assert_array_equal(masking.unpatchify(masking.patchify(images, 2), 2), images)
    np.testing.assert_array_equal(masking.unpatchify(masking.patchify(images, 2), 2, 3), images)


def test_patches_under_jit_vmap_and_grad() -> None:
    images = np.random.RandomState(0).standard_normal((3, 4, 6, 2)).astype(np.float32)
    cut = lambda x: masking.patchify(x, 2)  # noqa: E731
    np.testing.assert_array_equal(jax.jit(cut)(images), cut(images))
    np.testing.assert_array_equal(jax.vmap(cut)(images), cut(images))
    weights = np.random.RandomState(1).standard_normal((3, 6, 8)).astype(np.float32)
    gradient = jax.grad(lambda x: jnp.sum(cut(x) * weights))(images)
    np.testing.assert_array_equal(gradient, masking.unpatchify(weights, 2, (2, 3)))


@pytest.mark.parametrize("ddof", [0, 1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 8e-3), ("float16", 1e-3)])
def test_normalized_patches(dtype: str, tolerance: float, ddof: int) -> None:
    patches = jnp.asarray(np.random.RandomState(0).standard_normal((2, 5, 12)) * 3 + 100).astype(dtype)
    x = np.asarray(patches, np.float64)
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=ddof, keepdims=True) + 1e-6)
    got = masking.normalize_patches(patches, ddof=ddof)
    assert got.dtype == patches.dtype
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=tolerance, atol=tolerance)
    back = masking.denormalize_patches(got, patches, ddof=ddof)
    assert back.dtype == patches.dtype
    np.testing.assert_allclose(np.asarray(back, np.float64), x, rtol=tolerance, atol=tolerance)
    # Predictions have the statistics of the patches, not their own.
    guess = np.float32(np.random.RandomState(1).standard_normal(patches.shape))
    wanted = guess * np.sqrt(x.var(-1, ddof=ddof, keepdims=True) + 0.5) + x.mean(-1, keepdims=True)
    np.testing.assert_allclose(masking.denormalize_patches(guess, patches, epsilon=0.5, ddof=ddof), wanted, rtol=1e-5)


def test_the_default_is_maes() -> None:
    """torch.var is unbiased by default, and so are the published targets."""
    x = np.random.RandomState(1).standard_normal((4, 48)).astype(np.float32)
    mean, var = x.mean(-1, keepdims=True), x.var(-1, ddof=1, keepdims=True)
    np.testing.assert_allclose(masking.normalize_patches(x), (x - mean) / (var + 1e-6) ** 0.5, rtol=1e-4, atol=1e-6)


def test_a_constant_patch_is_zero_with_finite_gradients() -> None:
    flat = jnp.full((2, 12), 0.7)
    assert bool(jnp.all(jnp.abs(masking.normalize_patches(flat)) < 1e-3))
    gradient = jax.grad(lambda x: jnp.sum(masking.normalize_patches(x) ** 2))(flat)
    assert bool(jnp.all(jnp.isfinite(gradient)))
