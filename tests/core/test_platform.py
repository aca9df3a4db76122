"""What is done on one platform and not on others: the portable form is the oracle, the others give the same."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradxform.core.platform import by_platform

X = jnp.linspace(-1, 1, 6).reshape(2, 3)
TRACES: list[str] = []


def portable(a: Any, x: Any) -> dict[str, Any]:
    TRACES.append("portable")
    return {"y": a * jnp.sin(x), "n": jnp.int32(x.size)}


def marked(a: Any, x: Any) -> dict[str, Any]:
    """Tells itself apart by what no form may do: it gives something else."""
    TRACES.append("marked")
    return {"y": a * jnp.sin(x) + 100, "n": jnp.int32(x.size)}


def here(a: Any, x: Any) -> Any:
    return by_platform(portable, a, x, cpu=marked)["y"]


def elsewhere(a: Any, x: Any) -> Any:
    return by_platform(portable, a, x, tpu=marked, gpu=marked)["y"]


def test_each_platform_has_its_form() -> None:
    np.testing.assert_allclose(jax.jit(here)(2.0, X), 2 * np.sin(X) + 100, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(elsewhere)(2.0, X), 2 * np.sin(X), rtol=1e-6)
    exported = jax.export.export(jax.jit(elsewhere), platforms=["cpu", "tpu", "cuda"])(jnp.float32(2), X)
    np.testing.assert_allclose(exported.call(jnp.float32(2), X), 2 * np.sin(X), rtol=1e-6)
    assert "1.000000e+02" in exported.mlir_module()


def test_a_form_for_elsewhere_is_not_traced() -> None:
    TRACES.clear()
    jax.jit(lambda x: elsewhere(3.0, x))(X)
    assert TRACES == ["portable"]


def test_a_batch_has_the_form_too() -> None:
    got = jax.jit(jax.vmap(here, (0, None)))(jnp.float32([1, 2]), X)
    np.testing.assert_allclose(got, np.float32([1, 2])[:, None, None] * np.sin(X) + 100, rtol=1e-6)


@pytest.mark.parametrize("function", [here, elsewhere])
def test_derivatives_are_those_of_the_portable_form(function: Any) -> None:
    by_a, by_x = jax.jit(jax.grad(lambda a, x: jnp.sum(function(a, x) ** 1), (0, 1)))(2.0, X)
    np.testing.assert_allclose(by_a, np.sin(X).sum(), atol=1e-6)
    np.testing.assert_allclose(by_x, 2 * np.cos(X), rtol=1e-6)
    _, slope = jax.jvp(lambda x: function(2.0, x), (X,), (X,))
    np.testing.assert_allclose(slope, 2 * np.cos(X) * X, rtol=1e-6)
    twice = jax.grad(jax.grad(lambda x: function(2.0, x)))(0.3)
    np.testing.assert_allclose(twice, -2 * np.sin(0.3), rtol=1e-6)
    each = jax.grad(lambda x: jnp.sum(jax.vmap(function, (None, 0))(2.0, x)))(X)
    np.testing.assert_allclose(each, 2 * np.cos(X), rtol=1e-6)
