"""Training on several devices is training on one: the same params, laid out as they were, compiled once."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from devices import eight_devices

import gradxform as gx

PROGRAM = pathlib.Path(__file__).with_name("training_program.py")


def test_one_layout_each_of_some_transformations(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert json.loads(eight_devices(tmp_path_factory, PROGRAM)) == []


@pytest.mark.exhaustive
def test_all_transformations_layouts_meshes_and_numbers_of_devices() -> None:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(gx.__file__).parents[1]),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "all"], check=False, capture_output=True, text=True, env=environment
    )
    assert json.loads(done.stdout) == [], done.stderr[-4000:]
