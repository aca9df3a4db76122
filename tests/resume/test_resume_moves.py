"""A checkpoint moves to other numbers of devices and to other layouts, bit for bit."""

from __future__ import annotations

import json
import pathlib

import pytest
from devices import eight_devices


@pytest.mark.long
def test_other_devices_and_layouts(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert json.loads(eight_devices(tmp_path_factory, pathlib.Path(__file__).with_name("moves_program.py"))) == []
