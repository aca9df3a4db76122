"""The kernel for norms of rows on a TPU, interpreted: what the formula gives, in every mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import norm_oracles as oracles
import numpy as np
import pytest

import gradxform as gx
from gradxform.core.platform import by_platform
from gradxform.norm import normalize, rows, rows_tpu

SHAPE = (3, 48, 256)
"""Of 144 rows, in blocks of 32: the last one ends beyond them."""


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The form of TPUs is taken here, interpreted; the kernels that were called."""
    made: list[str] = []

    def interpreted(name: str) -> Any:
        kernel = getattr(rows_tpu, name)

        def call(*args: Any) -> Any:
            made.append(name)
            return kernel(*args, interpret=True)

        return call

    for name in ("normalized", "pulled_back"):
        monkeypatch.setattr(rows_tpu, name, interpreted(name))
    monkeypatch.setattr(rows_tpu, "MOST_ROWS", 32)
    monkeypatch.setattr(rows, "by_platform", lambda *args, tpu: by_platform(*args, cpu=tpu))
    normalize.standardize.clear_cache()
    yield made
    normalize.standardize.clear_cache()


def drawn(dtype: str, offset: float = 3e3) -> tuple[jax.Array, ...]:
    x, g, scale, bias = oracles.draws(SHAPE, (2,))
    x = x + offset
    x[0, 0, 0] += 1e5  # an outlier
    return jnp.asarray(x, dtype), jnp.asarray(g, dtype), jnp.asarray(scale, "float32"), jnp.asarray(bias, "float32")


def norm(centered: bool, scaled: bool) -> Any:
    def call(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        if centered:
            return gx.norm.layer_norm(x, *(scale, bias) if scaled else ())
        return gx.norm.rms_norm(x, *(scale,) if scaled else ())

    return call


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("centered, scaled", [(True, True), (True, False), (False, True), (False, False)])
def test_values_and_gradients(centered: bool, scaled: bool, dtype: str, calls: list[str]) -> None:
    x, g, scale, bias = drawn(dtype, 3e3 if dtype == "float32" else 3)
    y, pull = jax.vjp(norm(centered, scaled), x, scale, bias)
    got = (y, *pull(g))
    assert calls == ["normalized", "pulled_back"]
    given = [np.float64(one) for one in (x, g, scale, bias)][: 2 + scaled * (1 + centered)]
    wanted = (oracles.layer_norm if centered else oracles.rms_norm)(*given)
    assert got[0].dtype == got[1].dtype == dtype
    for name, one, want, used in zip(
        ("y", "dx", "dscale", "dbias"), got, wanted, (1, 1, scaled, scaled and centered), strict=True
    ):
        half = float(jnp.finfo(one.dtype).eps) / 2
        np.testing.assert_allclose(
            np.float64(one),
            want if used else 0 * np.float64(one),
            rtol=half * 1.01,
            atol=1e-5 * np.abs(want).max(),
            err_msg=name,
        )


def test_other_modes_are_those_of_the_portable_form(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """Forward mode, vmap of the gradient, second derivatives, and a traced epsilon."""
    x, g, scale, bias = (one[:2] if one.ndim > 1 else one for one in drawn("float32", 1.0))
    args = (x[:, :16], scale, bias, jnp.float32(0.1))
    g = g[:, :16]

    def everything(x: Any, scale: Any, bias: Any, epsilon: Any) -> Any:
        def loss(x: Any, scale: Any, bias: Any, epsilon: Any) -> Any:
            return jnp.sum(gx.norm.layer_norm(x, scale, bias, epsilon=epsilon) * g)

        every = (x, scale, bias, epsilon)
        slope = jax.grad(loss, (0, 1, 2, 3))
        return (
            jax.jvp(loss, every, every),
            slope(*every),
            jax.jvp(slope, every, every),
            jax.grad(lambda *every: jnp.sum(jnp.sin(slope(*every)[0])), (0, 1, 3))(*every),
            jax.vmap(jax.grad(lambda x, s: jnp.sum(gx.norm.layer_norm(x, s) ** 3), (0, 1)), (0, None))(x, scale),
        )

    got = jax.jit(everything)(*args)
    assert calls
    normalize.standardize.clear_cache()
    monkeypatch.setattr(rows, "_has_kernel", lambda x: False)
    for one, want in zip(*map(jax.tree.leaves, (got, jax.jit(lambda *a: everything(*a))(*args))), strict=True):
        np.testing.assert_allclose(one, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize(
    "shape, dtype, takes",
    [
        ((8, 128), "float32", True),
        ((5, 128), "float32", True),
        ((2, 16, 128), "bfloat16", True),
        ((8, 192), "float32", False),
        ((2, 197, 128), "float32", False),
        ((2, 8, 128), "bfloat16", False),
        ((128,), "float32", False),
        ((8, 128), "float16", False),
        ((0, 128), "float32", False),
        ((8, 2**14), "float32", True),
        ((8, 2**20), "float32", False),
    ],
)
def test_what_the_kernel_takes(shape: Any, dtype: str, takes: bool) -> None:
    assert rows_tpu.fits(jax.ShapeDtypeStruct(shape, dtype)) == takes
