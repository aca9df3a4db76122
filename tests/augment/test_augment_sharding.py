"""Augmentation over several devices: every image is what one device makes of it, to the bit."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from devices import eight_devices

pytestmark = pytest.mark.long

PROGRAM = pathlib.Path(__file__).parent / "augment_sharded_program.py"
CHECKS = [
    f"{chain}, uint8, {place}"
    for chain in ("moves", "colours")
    for place in ("jit, auto mesh", "jit, explicit mesh", "shard_map, check_vma=True")
]
CHECKS += ["policy, uint8, jit, auto mesh"]
CHECKS += [
    "moves, uint8, shard_map, check_vma=False",
    "moves, float32, jit, auto mesh",
    "moves, float32, shard_map, check_vma=True",
    "mixing, uint8, jit, auto mesh",
    "mixing, uint8, jit, explicit mesh",
    "rows, float32, explicit mesh",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with eight devices found."""
    return json.loads(eight_devices(tmp_path_factory, PROGRAM).splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_a_batch_spread_over_devices(found: dict[str, Any], check: str) -> None:
    assert found["devices"] == 8
    assert found["checks"][check] == [], "\n".join(found["checks"][check])


def test_nothing_is_checked_in_vain(found: dict[str, Any]) -> None:
    assert sorted(found["checks"]) == sorted(CHECKS)
