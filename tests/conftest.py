"""Shared fixtures; that this file is here also puts ``oracles`` and ``harness`` on the import path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import harness
import pytest


@pytest.fixture(params=[32, 64], ids=["f32", "f64"])
def bits(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs a test in float32 and again, with jax's 64-bit types on, in float64."""
    with harness.precision(request.param):
        yield request.param


@pytest.fixture
def problem() -> tuple[Any, Any]:
    """Params and the stacked gradients of ``harness.STEPS`` steps, float32."""
    return harness.problem()
