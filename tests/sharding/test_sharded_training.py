"""Training on several devices is training on one: the same params, laid out as they were, compiled once."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest
from devices import QUICK, eight_devices
from sharded_transformations import transformations
from value_catalog import TRANSFORMATIONS, factories

import gradxform as gx

PROGRAM = pathlib.Path(__file__).with_name("training_program.py")


def test_every_public_transformation_is_among_them() -> None:
    found = factories(transformations({"w": jnp.ones(2)}))
    assert {*TRANSFORMATIONS, "chain", "named_chain"} - found == set()


def test_one_layout_each_of_some_transformations(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert json.loads(eight_devices(tmp_path_factory, PROGRAM)) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", ["1", "2", "4", "8", "float32", "flax"])
def test_all_transformations_layouts_and_meshes(part: str) -> None:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {QUICK}".strip(),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(gx.__file__).parents[1]),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM), "all", part],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout) == []
