"""Position embeddings resized: against sums over a kernel written out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradxform.transfer.positions import resize_positions


def linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys (1981), equation 4 with a = -1/2."""
    x = np.abs(x)
    return np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def weights(old: int, new: int, kernel: Any, antialias: bool) -> np.ndarray:
    """How much of each old place is in each new one; what falls outside is left out and the rest sums to 1."""
    centers, scale = (np.arange(new) + 0.5) * old / new - 0.5, max(old / new, 1) if antialias else 1
    made = kernel((np.arange(old) - centers[:, None]) / scale)
    return made / made.sum(1, keepdims=True)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("method", "kernel"), [("bilinear", linear), ("bicubic", cubic)])
@pytest.mark.parametrize(
    ("grid", "new_grid", "prefix"), [((3, 3), (5, 5), 1), ((6, 4), (3, 7), 0), ((4, 4), (2, 3), 2)]
)
def test_against_sums(
    grid: tuple[int, int], new_grid: tuple[int, int], prefix: int, method: str, kernel: Any, antialias: bool
) -> None:
    random = np.random.RandomState(3)
    embedding = random.standard_normal((2, prefix + grid[0] * grid[1], 5))
    made = resize_positions(
        embedding.astype(np.float32),
        (2, prefix + new_grid[0] * new_grid[1], 5),
        prefix_tokens=prefix,
        grid=grid,
        new_grid=new_grid,
        method=method,
        antialias=antialias,
    )
    rows, columns = (weights(old, new, kernel, antialias) for old, new in zip(grid, new_grid, strict=True))
    image = embedding[:, prefix:].reshape(2, *grid, 5)
    expected = np.einsum("hy,wx,byxc->bhwc", rows, columns, image).reshape(2, -1, 5)
    np.testing.assert_array_equal(made[:, :prefix], embedding[:, :prefix].astype(np.float32))
    np.testing.assert_allclose(made[:, prefix:], expected, atol=2e-6)


def test_dtypes_and_grids_that_stay() -> None:
    embedding = jnp.asarray(np.random.RandomState(4).standard_normal((17, 3)), jnp.bfloat16)
    made = resize_positions(embedding, (26, 3))
    wide = resize_positions(embedding.astype(jnp.float32), (26, 3))
    assert made.dtype == jnp.bfloat16
    np.testing.assert_array_equal(made, wide.astype(jnp.bfloat16))  # one cast, at the end
    assert resize_positions(embedding, (17, 3)) is embedding
    # As many patches in another grid are others.
    assert not (resize_positions(embedding, (17, 3), new_grid=(2, 8)) == embedding).all()
    nearest = resize_positions(embedding, (65, 3), method="nearest")
    np.testing.assert_array_equal(nearest[1:].reshape(8, 8, 3)[::2, ::2].reshape(16, 3), embedding[1:])


def test_jit_and_gradient() -> None:
    """Each column of weights sums to 1, so that a mean's gradient is spread over the old places."""
    embedding = jnp.ones((10, 2))
    gradient = jax.jit(jax.grad(lambda x: resize_positions(x, (26, 2)).sum()))(embedding)
    np.testing.assert_allclose(gradient.sum(0), [26, 26], rtol=1e-6)
    np.testing.assert_allclose(gradient[0], [1, 1])


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        (
            (27, 3),
            {},
            ValueError,
            r"new_grid: expected \(height, width\) of 26 patches, got \(5, 5\); the tokens of the",
        ),
        ((26, 3), {"prefix_tokens": 0}, ValueError, r"grid: expected \(height, width\) of 17 patches, got \(4, 4\)"),
        ((26, 3), {"grid": (3, 5)}, ValueError, r"grid: expected \(height, width\) of 16 patches, got \(3, 5\)"),
        ((26, 3), {"grid": (-4, -4)}, ValueError, r"grid: expected \(height, width\)"),
        ((1, 3), {}, ValueError, r"new_grid: expected \(height, width\) of 0 patches"),
        ((26, 4), {}, ValueError, r"shape: expected that of embedding, \(17, 3\), with another number of tokens, got"),
        ((1, 26, 3), {}, ValueError, "shape: expected that of embedding"),
        ((26, 3), {"method": "lanczos"}, ValueError, "method: expected one of 'bilinear', 'bicubic', 'nearest', got"),
        ((26, 3), {"prefix_tokens": -1}, ValueError, "prefix_tokens: expected an integer >= 0, got -1"),
        ((26, 3), {"prefix_tokens": 1.0}, TypeError, "prefix_tokens: expected an integer"),
    ],
)
def test_errors(shape: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resize_positions(jnp.zeros((17, 3)), shape, **options)
