"""A linear function with a transpose of its own: what JAX would make of it, in every mode."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core.linear import linear

X, Y, G = np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32)
PULLS: list[str] = []
"""When the written transpose was asked for."""


@jax.custom_jvp
def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """``sin(x) * y``."""
    return jnp.sin(x) * y


@product.defjvp
def _product_jvp(primals: Any, tangents: Any) -> Any:
    return product(*primals), linear(pushed, pulled, primals, tangents)


def pushed(around: Any, tangents: Any) -> jax.Array:
    (x, y), (d_x, d_y) = around, tangents
    return y * jnp.cos(x) * d_x + jnp.sin(x) * d_y


def pulled(around: Any, gradient: jax.Array) -> Any:
    PULLS.append("pulled")
    x, y = around
    return y * jnp.cos(x) * gradient, jnp.sin(x) * gradient


def plain(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sin(x) * y


def alike(make: Any, *args: Any) -> None:
    """That what is made of both functions is the same."""
    for got, want in zip(
        *(jax.tree.leaves(jax.jit(make(function))(*args)) for function in (product, plain)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_reverse_mode_is_the_written_transpose() -> None:
    PULLS.clear()
    jax.jvp(product, (X, Y), (G, G))
    assert not PULLS
    alike(lambda f: jax.grad(lambda x, y: jnp.sum(f(x, y) * G), (0, 1)), X, Y)
    assert PULLS == ["pulled"]
    alike(lambda f: jax.grad(lambda y: jnp.sum(f(X, y) * G)), Y)  # with a tangent of 0


def test_forward_mode_and_second_derivatives() -> None:
    def slope(f: Any) -> Any:
        return jax.grad(lambda x, y: jnp.sum(f(x, y) * G), (0, 1))

    alike(lambda f: lambda x, y: jax.jvp(f, (x, y), (G, Y)), X, Y)
    alike(lambda f: lambda x, y: jax.jvp(lambda x: jax.jvp(f, (x, y), (x, G))[1], (x,), (G,)), X, Y)
    alike(lambda f: lambda x, y: jax.jvp(slope(f), (x, y), (Y, G)), X, Y)
    alike(lambda f: jax.grad(lambda x, y: jnp.sum(slope(f)(x, y)[0] * Y), (0, 1)), X, Y)


def test_a_batch_with_what_its_elements_share() -> None:
    for axes in ((0, None), (None, 0), (0, 0)):
        args = [
            one if axis is None else jnp.stack([one, 2 * one, one - 1]) for one, axis in zip((X, Y), axes, strict=True)
        ]
        alike(lambda f, axes=axes: jax.vmap(jax.grad(lambda x, y: jnp.sum(f(x, y) * G), (0, 1)), axes), *args)
        alike(lambda f, axes=axes: jax.grad(lambda x, y: jnp.sum(jax.vmap(f, axes)(x, y) * G), (0, 1)), *args)
