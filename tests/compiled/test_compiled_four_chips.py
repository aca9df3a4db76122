"""Counted in the programs of four v5e: what is sent between chips. Nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.compiled
Compiled = Callable[[str, str], Any]


def part(compiled: Compiled, name: str) -> Any:
    return compiled("four chips", name)


def test_steps_of_replicated_params_send_nothing(compiled: Compiled) -> None:
    found = part(compiled, "replicated")
    assert len(found["names"]) == 16 and found["failed"] == {}
    assert found["collectives"] == {}


def test_a_data_parallel_step_sends_the_gradients_and_nothing_for_the_norm(compiled: Compiled) -> None:
    found = part(compiled, "data-parallel")
    assert found["collectives"] == {"all-reduce": {"count": 1, "bytes": found["params_bytes"]}}


def test_a_step_of_divided_state_scatters_the_sum_and_gathers_the_updates(compiled: Compiled) -> None:
    found, piece = part(compiled, "divided"), 3 / 4 * 4 * 512 * 512
    assert found == {
        "sent": [["all-gather", ["chips"], 1, piece], ["reduce-scatter", ["chips"], 1, piece]],
        "least": 2 * piece,
    }


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_images_on_a_mesh_stay_on_their_chips(kind: str, compiled: Compiled) -> None:
    found = part(compiled, "images")[kind]
    assert len(found["names"]) >= 3 and found["failed"] == {}
    assert found["collectives"] == {}


@pytest.mark.parametrize("loss", ["nt_xent, 4 chips", "clip_loss, 4 chips", "siglip, 16 chips"])
def test_a_loss_gathers_the_vectors_once_and_scatters_their_gradients_once(loss: str, compiled: Compiled) -> None:
    """Of the programs for more than eight chips the sum is scattered in steps, the first of them twice as large."""
    found = part(compiled, "losses")[loss]
    sent, least = found["collectives"], found["vectors"] * (1 + 1 / found["chips"])
    assert sent["all-gather"]["bytes"] <= 1.01 * found["vectors"]
    assert sum(kind["bytes"] for kind in sent.values()) <= 1.3 * least


def test_batch_norm_sends_the_sums_of_its_channels(compiled: Compiled) -> None:
    sent = part(compiled, "losses")["batch_norm"]["collectives"]
    assert set(sent) == {"all-reduce"}
    assert sent["all-reduce"]["count"] <= 3
    assert sent["all-reduce"]["bytes"] <= 5 * 4 * 64


def test_a_state_is_placed_like_its_params(compiled: Compiled) -> None:
    assert part(compiled, "init") == []
