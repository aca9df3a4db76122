"""Norms over several devices: what they compute is what one device computes of the whole batch."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from devices import asked, eight_devices

PROGRAM = pathlib.Path(__file__).parent / "norm_sharded_program.py"
KERNELS = [
    "batch_norm",
    "batch_norm, evaluating",
    "batch_renorm",
    "layer_norm",
    "rms_norm",
    "group_norm",
    "instance_norm",
    "weight_standardize",
]
GROUPS = [f"group_norm {groups}" for groups in (1, 2, 4, 8)]
MESHES = ["auto", "explicit"]
PLACES = [f"check_vma={check_vma}, gradients {where}" for check_vma in (True, False) for where in ("inside", "outside")]
BY_HAND = [
    "layer_norm, axis 2",
    "rms_norm, axis 2",
    "group_norm 1, axis 2",
    "group_norm 4, axis 1",
    "instance_norm, axis 1",
    "layer_norm, axis 0",
    "rms_norm, axis 0",
    "group_norm 2, axis 0",
]
OTHERS = [
    "nothing counted, check_vma=True",
    "nothing counted, check_vma=False",
    "running statistics, check_vma=True",
    "running statistics, check_vma=False",
    "groups, gradients inside",
    "groups, gradients outside",
    "two axes",
    "partly by hand, auto mesh",
    "partly by hand, explicit mesh",
    "vmap",
    *(
        f"rows by a kernel, {where}"
        for where in (
            "explicit mesh",
            "auto mesh",
            "arrays alone",
            "by hand, check_vma=True",
            "by hand, check_vma=False",
        )
    ),
]
SPREAD = [
    "batch norm, {} mesh, sharded batch",
    "batch norm, {} mesh, sharded channels",
    "layer_norm, {} mesh, sharded channels",
    "rms_norm, {} mesh, sharded channels",
    "instance_norm, {} mesh, sharded channels",
    "instance_norm, {} mesh, sharded positions",
    "group_norm 2, {} mesh, sharded positions",
]


ON_MESHES = [(check.format(mesh), mesh) for check in SPREAD for mesh in MESHES]
CHANNELS = [f"{groups}, {mesh} mesh, sharded channels" for groups in GROUPS for mesh in MESHES]
AXES = [(f"{norm}, {where}", where) for norm in BY_HAND for where in PLACES]
ONE = [(f"{kernel}, {mesh} mesh, beside one device", mesh) for kernel in KERNELS for mesh in MESHES]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with eight devices found."""
    return json.loads(eight_devices(tmp_path_factory, PROGRAM, *asked(request)).splitlines()[-1])


def holds(found: dict[str, Any], check: str) -> None:
    assert found["devices"] == 8
    assert found["checks"][check] == [], "\n".join(found["checks"][check])


@pytest.mark.kinds_by("mesh")
@pytest.mark.parametrize(("check", "mesh"), ON_MESHES)
def test_a_sharded_array_under_jit(found: dict[str, Any], check: str, mesh: str) -> None:
    holds(found, check)


@pytest.mark.parametrize("check", CHANNELS)
def test_group_norm_on_an_explicit_mesh_with_sharded_channels(found: dict[str, Any], check: str) -> None:
    """Flax's asks for a sharding there and fails; groups may be as wide as a shard, wider, or narrower."""
    holds(found, check)


@pytest.mark.parametrize("check", [f"batch norm, {where}" for where in PLACES])
def test_batch_norm_across_devices_by_hand(found: dict[str, Any], check: str) -> None:
    holds(found, check)


@pytest.mark.kinds_by("where")
@pytest.mark.parametrize(("check", "where"), AXES)
def test_norms_across_devices_by_hand(found: dict[str, Any], check: str, where: str) -> None:
    """Spread over what they reduce, with a named axis, or over the batch, without."""
    holds(found, check)


@pytest.mark.parametrize("check", OTHERS)
def test_named_axes(found: dict[str, Any], check: str) -> None:
    holds(found, check)


@pytest.mark.kinds_by("mesh")
@pytest.mark.parametrize(("check", "mesh"), ONE)
def test_a_sharded_batch_gives_what_one_device_gives(found: dict[str, Any], check: str, mesh: str) -> None:
    holds(found, check)


def test_every_check_is_asked_for(found: dict[str, Any]) -> None:
    wanted = {check for check, _ in [*ON_MESHES, *AXES, *ONE]} | {f"batch norm, {where}" for where in PLACES}
    assert set(found["names"]) == wanted | set(CHANNELS + OTHERS), "a name above for each check of the program"
