"""Losses over several devices: what they compute is what one device computes of the whole batch."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from devices import asked, eight_devices

PROGRAM = pathlib.Path(__file__).parent / "losses_sharded_program.py"
LOSSES = ["nt_xent", "info_nce", "clip_loss", "sup_con", "siglip", "barlow_twins", "vicreg"]
MESHES = ["auto", "explicit"]
PLACES = [f"check_vma={check_vma}, gradients {where}" for check_vma in (True, False) for where in ("inside", "outside")]
OTHERS = ["two axes", "reductions", "equal ids", "few at once", "odd tiles"]


ON_MESHES = [(f"{loss}, {mesh} mesh", mesh) for loss in LOSSES for mesh in MESHES]
BY_HAND = [f"{loss}, {where}" for loss in LOSSES for where in PLACES]
PLAIN = [f"{loss}, plain autodiff" for loss in LOSSES]
NEGATIVES = [f"negatives, {where}" for where in PLACES]
MATRIX = ["no matrix under jit", "no matrix under shard_map"]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with eight devices found."""
    return json.loads(eight_devices(tmp_path_factory, PROGRAM, *asked(request)).splitlines()[-1])


def holds(found: dict[str, Any], check: str) -> None:
    assert found["devices"] == 8
    assert found["checks"][check] == [], "\n".join(found["checks"][check])


@pytest.mark.kinds_by("mesh")
@pytest.mark.parametrize(("check", "mesh"), ON_MESHES)
def test_a_sharded_batch_under_jit(found: dict[str, Any], check: str, mesh: str) -> None:
    holds(found, check)


@pytest.mark.parametrize("check", BY_HAND)
def test_across_devices_by_hand(found: dict[str, Any], check: str) -> None:
    """``axis_name`` in ``shard_map``; inside and without types that vary, a gradient is that of all devices' losses."""
    holds(found, check)


@pytest.mark.parametrize("check", PLAIN)
def test_plain_autodiff_multiplies_too(found: dict[str, Any], check: str) -> None:
    """Inside ``shard_map(check_vma=False)`` the gradient of a dense formula is as many times that of one device."""
    holds(found, check)


@pytest.mark.long
@pytest.mark.parametrize("check", NEGATIVES)
def test_negatives_that_all_devices_have(found: dict[str, Any], check: str) -> None:
    holds(found, check)


@pytest.mark.long
@pytest.mark.parametrize("check", MATRIX)
def test_no_device_holds_the_matrix(found: dict[str, Any], check: str) -> None:
    holds(found, check)


@pytest.mark.parametrize("check", OTHERS)
def test_other_ways(found: dict[str, Any], check: str) -> None:
    holds(found, check)


def test_every_check_is_asked_for(found: dict[str, Any]) -> None:
    wanted = {check for check, _ in ON_MESHES} | set(BY_HAND + PLAIN + NEGATIVES + MATRIX + OTHERS)
    assert set(found["names"]) == wanted
