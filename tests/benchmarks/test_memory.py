"""The suite that measures low-bit state: its tasks learn, its rows say what they are of."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from benchmarks.memory import codecs, tasks, training


def test_bytes_are_those_of_the_codes() -> None:
    sizes = codecs.state_bytes(codecs.abstract({"w": (1024, 1024)}))
    wanted = {"float32": 8.0, "bf16": 4.0, "fp8": 2.0, "int8 row": 2.002, "int8 32": 2.0625, "int4 row": 1.002}
    assert {name: round(sizes["gx.adamw"][name], 4) for name in wanted} == pytest.approx(wanted, abs=1e-3)
    assert sizes["optax.adamw"] == pytest.approx(sizes["gx.adamw"], abs=1e-3)


def test_the_language_model_has_a_million_parameters() -> None:
    task = tasks.language()
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert 1.0e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 1.1e6
    assert task.batches(3, 0).shape == (3, 8, tasks.CONTEXT + 1)
    assert jax.eval_shape(task.loss, params, task.batches(1, 0)[0]).shape == ()


def test_a_row_for_each_kind_beside_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.RATES, "digits", (4e-3,))
    rows = training.measure(["digits"], 20, 1, ["bf16", "bf16 params, masters"])
    assert [row["kept"] for row in rows] == ["float32", "bf16", "bf16 params, masters"]
    assert rows[0]["difference"] == 0 and all(np.isfinite(row["loss"]) for row in rows)
    assert abs(rows[2]["difference"]) < 1e-2 and 0 < rows[0]["loss"] < 2.3
