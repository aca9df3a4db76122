"""The suite that measures low-bit state: its tasks learn, its rows say what they are of."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import gradxform as gx
from benchmarks.memory import codecs, peers, tasks, training

pytestmark = [pytest.mark.as_in_use, pytest.mark.long]


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


@pytest.mark.exhaustive
def test_a_row_for_each_kind_beside_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.RATES, "digits", (4e-3,))
    rows = training.measure(["digits"], 20, 1, ["bf16", "bf16 params, masters"])
    assert [row["kept"] for row in rows] == ["float32", "bf16", "bf16 params, masters"]
    assert rows[0]["difference"] == 0 and all(np.isfinite(row["loss"]) for row in rows)
    assert abs(rows[2]["difference"]) < 1e-2 and 0 < rows[0]["loss"] < 2.3


def test_an_average_that_does_not_follow_is_seen() -> None:
    """Rounded to the nearest, the mean of squares of gradients that fell to a hundredth stays far above."""
    exact = peers.averages(peers.PEERS["optax.adamw"], 400)
    assert exact == pytest.approx({"fallen": 1, "others": 1, "spread": 0, "fallen_mean": 1, "others_mean": 1}, abs=1e-4)
    right, wrong = (
        peers.averages(peers.ours(gx.precision.int8_blockwise(rounding=rounding)), 400)
        for rounding in ("stochastic", "nearest")
    )
    assert isinstance(right, dict) and abs(right["fallen"] - 1) < 0.15 and abs(right["others"] - 1) < 0.02
    assert isinstance(wrong, dict) and wrong["fallen"] > 1.5


def test_what_a_peer_lacks_is_said() -> None:
    def lacks(params: Any, b2: float) -> Any:
        raise ModuleNotFoundError("No module named 'nothing'", name="nothing")

    def fails(params: Any, b2: float) -> Any:
        raise NotImplementedError("It needs\n a GPU.")

    params = [np.zeros((64, 64), np.float32)]
    assert peers.start(lacks, params) == peers.averages(lacks, 8) == "not installed (nothing)"
    assert peers.start(fails, params) == "not run (NotImplementedError: It needs a GPU.)"
    started = peers.start(peers.PEERS["optax.adamw"], params)
    assert isinstance(started, peers.Peer) and started.size() == 8 * 4096 + 4
