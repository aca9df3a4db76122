"""Codes on eight devices."""

from __future__ import annotations

import pathlib

import pytest
from devices import eight_devices

pytestmark = pytest.mark.long

PROGRAM = pathlib.Path(__file__).with_name("compressed_sharded_program.py")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return eight_devices(tmp_path_factory, PROGRAM).strip().splitlines()


def test_codes_are_those_of_one_device_and_lie_like_the_params(printed: list[str]) -> None:
    assert len(printed) == 9
    assert [line for line in printed if not line.endswith("same codes, spread")] == []
