"""On eight devices masters lie as their params do, and every bit is that of one device, random ones included."""

import json
import pathlib

import devices
import pytest

pytestmark = pytest.mark.long

PROGRAM = pathlib.Path(__file__).with_name("precision_sharded_program.py")


def test_masters_and_random_bits_on_a_mesh(tmp_path_factory: pytest.TempPathFactory) -> None:
    found = json.loads(devices.eight_devices(tmp_path_factory, PROGRAM))
    assert found == {"devices": 8, "auto": {}, "explicit": {}}
