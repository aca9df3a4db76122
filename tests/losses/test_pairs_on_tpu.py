"""The kernels that go through all pairs on a TPU, interpreted: what the portable loop gives, and their gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradxform.core.platform import by_platform
from gradxform.losses import tiles, tiles_tpu, tiles_tpu_kernels, tiles_tpu_plan
from gradxform.losses.tiles import tiled_lse
from gradxform.losses.walks import Tiling

TRIANGLE, BOTH, ROWS = (True, True), (False, True), (False, False)
# Which pairs, whether bounded, group; rows of a device, devices (or columns), features; scale; dtype; VMEM.
CASES: dict[str, Any] = {
    "triangle": (TRIANGLE, True, 2, (200, 1, 20), 10.0, np.float32, 16),
    "triangle in parts": (TRIANGLE, False, 2, (800, 1, 20), 80.0, np.float32, 2.3),
    "triangle of three devices": (TRIANGLE, True, 1, (128, 3, 129), 10.0, np.float32, 16),
    "triangle of uneven devices": (TRIANGLE, False, 1, (60, 2, 20), 10.0, np.float32, 16),
    "triangle in 16 bits, in runs": (TRIANGLE, True, 2, (256, 1, 20), 2.0, jnp.bfloat16, 16),
    "both ways in parts": (BOTH, True, 1, (650, 1, 20), 10.0, np.float32, 2.6),
    "both ways": (BOTH, False, 1, (150, 1, 20), 80.0, np.float32, 16),
    "a queue": (ROWS, True, 0, (130, 300, 20), 10.0, np.float32, 16),
    "ids": (BOTH, False, 1, (130, 1, 20), 10.0, np.float32, 16),
}


@pytest.fixture
def on_tpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """From then on the kernels are taken here, with little tiles and some MiB of VMEM."""

    def clear() -> None:
        for one in (tiles._forward, tiles._backward):
            one.clear_cache()  # type: ignore[attr-defined]

    def taken(vmem: float) -> None:
        for name in ("forward", "backward"):
            monkeypatch.setattr(tiles_tpu, name, functools.partial(getattr(tiles_tpu, name), interpret=True))
        monkeypatch.setattr(tiles_tpu_plan, "BLOCKS", (128,))
        monkeypatch.setattr(tiles_tpu_plan, "_vmem", lambda: int(vmem * 2**20))
        monkeypatch.setattr(tiles, "by_platform", lambda *args, tpu, gpu: by_platform(*args, cpu=tpu))
        clear()

    yield taken
    clear()


def unit(seed: int, *shape: int) -> Any:
    x = np.random.RandomState(seed).randn(*shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def of_all_devices(tiling: Tiling, devices: int, rows: Any, columns: Any, scale: Any, ids: Any) -> tuple[Any, Any]:
    """The log-sum-exps of all rows and columns, added up as they are over devices."""
    size = len(rows) // devices
    found = [
        tiled_lse(tiling, rows[at : at + size], columns, scale, at, None if ids is None else ids[at : at + size], ids)
        for at in range(0, len(rows), size)
    ]
    by_row, by_column = jnp.concatenate([by_row for by_row, _ in found]), [by_column for _, by_column in found]
    over_devices = functools.partial(functools.reduce, jnp.logaddexp)
    if tiling.triangle:
        return over_devices([by_row, *by_column]), jnp.zeros(())
    return by_row, over_devices(by_column) if tiling.columns else jnp.zeros(())


@pytest.mark.parametrize("case", CASES)
def test_kernels(case: str, on_tpu: Callable[[float], None]) -> None:
    (triangle, columns), bounded, group, (size, devices, features), factor, dtype, vmem = CASES[case]
    tiling = Tiling(triangle, columns, bounded, group, run=16 if "runs" in case else 1)
    others, devices = (devices, 1) if case == "a queue" else (size * devices, devices)
    x = jnp.asarray(unit(0, size * devices, features), dtype)
    y = None if triangle else jnp.asarray(unit(1, others, features), dtype)
    ids = jnp.asarray(np.random.RandomState(2).randint(0, 9, len(x)), jnp.int32) if case == "ids" else None
    weights = np.random.RandomState(3).rand(max(len(x), others)).astype(np.float32)

    def value(x: Any, y: Any, scale: Any) -> Any:
        by_row, by_column = of_all_devices(tiling, devices, x, x if y is None else y, scale, ids)
        total = jnp.sum(weights[: len(x)] * by_row) + jnp.sum(weights[: by_column.size] * by_column)
        return total, (by_row, by_column)

    def made() -> Any:
        of = jax.jit(jax.value_and_grad(lambda *args: value(*args), (0, 1, 2), has_aux=True))
        return of(x, y, jnp.float32(factor))

    wanted = made()
    on_tpu(vmem)
    found = made()
    exact = dtype == np.float32

    def compare(a: Any, b: Any) -> None:
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=(4e-6 if exact else 2**-7) * np.abs(b).max())

    jax.tree.map(compare, found, wanted)


def test_what_the_kernels_take() -> None:
    def program(shape: tuple[int, int], dtype: Any, **how: Any) -> str:
        x, tiling = jax.ShapeDtypeStruct(shape, dtype), Tiling(True, True, True, 2, **how)
        slope = jax.grad(lambda x: tiled_lse(tiling, x, x, jnp.float32(1), 0, None, None)[0].sum())
        return str(jax.jit(slope).trace(x).lower(lowering_platforms=("tpu",)).as_text())

    for precision in lax.Precision:
        assert program((300, 20), jnp.float32, precision=precision).count("tpu_custom_call") == 2
    assert "tpu_custom_call" not in program((300, 20), jnp.float16)
    assert "tpu_custom_call" not in program((300, 5000), jnp.float32)


def test_products_of_a_kernel_are_as_exact_as_asked_for() -> None:
    x: Any = unit(0, 128, 64).astype(np.float32)
    errors = []
    for precision in (lax.Precision.HIGHEST, lax.Precision.HIGH, lax.Precision.DEFAULT):
        tiling = Tiling(True, True, True, 2, precision=precision)
        plan = tiles_tpu_plan.Plan(tiling, 128, 128, 128, 128, 1, 0)
        found = tiles_tpu_kernels._dot(plan, x, x, 1, 1)
        errors.append(np.abs(np.asarray(found, np.float64) - np.float64(x) @ np.float64(x).T).max())
    assert errors[0] < 5e-7 and 5e-7 < errors[1] < 2e-5 and 5e-4 < errors[2] < 1e-2, errors


@pytest.mark.parametrize(("dtype", "block", "parts"), [(jnp.float32, 256, 4), (jnp.bfloat16, 512, 4)])
def test_65536_pairs_need_few_passes_over_their_vectors(
    dtype: Any, block: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles_tpu_plan, "_vmem", lambda: 128 * 2**20)
    x: Any = jax.ShapeDtypeStruct((2 * 65536, 256), dtype)
    plan = tiles_tpu_plan.planned(Tiling(True, True, True, 2), x, x)
    assert plan is not None and (plan.block, plan.parts) == (block, parts)
    assert plan.parts * plan.together == 2 * 65536  # nothing to fill up
    assert plan.turns == 3 * plan.down // 4
