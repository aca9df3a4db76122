"""Losses over several devices: what they compute is what one device computes of the whole batch."""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any

import pytest
from devices import eight_devices

PROGRAM = pathlib.Path(__file__).parent / "losses_sharded_program.py"
LOSSES = ["nt_xent", "info_nce", "clip_loss", "sup_con", "siglip", "barlow_twins", "vicreg"]
MESHES = ["auto", "explicit"]
PLACES = [f"check_vma={check_vma}, gradients {where}" for check_vma in (True, False) for where in ("inside", "outside")]
WAYS = ["jit", "shard_map"]
OTHERS = ["two axes", "reductions", "equal ids", "few at once", "odd tiles"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with eight devices found."""
    return json.loads(eight_devices(tmp_path_factory, PROGRAM).splitlines()[-1])


def holds(found: dict[str, Any], check: str) -> None:
    assert found["devices"] == 8
    assert found["checks"][check] == [], "\n".join(found["checks"][check])


@pytest.mark.parametrize(("loss", "mesh"), list(itertools.product(LOSSES, MESHES)))
def test_a_sharded_batch_under_jit(found: dict[str, Any], loss: str, mesh: str) -> None:
    holds(found, f"{loss}, {mesh} mesh")


@pytest.mark.parametrize(("loss", "where"), list(itertools.product(LOSSES, PLACES)))
def test_across_devices_by_hand(found: dict[str, Any], loss: str, where: str) -> None:
    """``axis_name`` in ``shard_map``; inside and without types that vary, a gradient is that of all devices' losses."""
    holds(found, f"{loss}, {where}")


@pytest.mark.parametrize("loss", LOSSES)
def test_plain_autodiff_multiplies_too(found: dict[str, Any], loss: str) -> None:
    """Inside ``shard_map(check_vma=False)`` the gradient of a dense formula is as many times that of one device."""
    holds(found, f"{loss}, plain autodiff")


@pytest.mark.parametrize("where", PLACES)
def test_negatives_that_all_devices_have(found: dict[str, Any], where: str) -> None:
    holds(found, f"negatives, {where}")


@pytest.mark.parametrize("way", WAYS)
def test_no_device_holds_the_matrix(found: dict[str, Any], way: str) -> None:
    holds(found, f"no matrix under {way}")


@pytest.mark.parametrize("check", OTHERS)
def test_other_ways(found: dict[str, Any], check: str) -> None:
    holds(found, check)


def test_every_check_is_asked_for(found: dict[str, Any]) -> None:
    asked = {f"{loss}, {mesh} mesh" for loss in LOSSES for mesh in MESHES}
    asked |= {f"{loss}, {where}" for loss in [*LOSSES, "negatives"] for where in PLACES}
    asked |= {f"{loss}, plain autodiff" for loss in LOSSES} | {f"no matrix under {way}" for way in WAYS}
    assert set(found["checks"]) == asked | set(OTHERS)
