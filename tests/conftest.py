"""Shared fixtures; that this file is here also puts ``oracles`` and ``harness`` on the import path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import harness
import jax
import pytest

AS_IN_USE = ("bit", "exact", "memory", "pillow", "scipy", "strateg", "tile", "tests/examples/", "tests/benchmarks/",
             "tests/norm/test_norm_defects", "tests/norm/test_norm_export", "tests/norm/test_norm_kernels",
             "tests/plot/", "tests/precision/test_codec", "tests/precision/test_loss", "tests/test_docstrings")
"""Tests of the last digits and of what was compiled, by what is in their names, have the programs that users have."""
LONG = ("augment/test_arithmetic", "augment/test_aug_mix", "augment/test_augment_export",
        "augment/test_augment_sharding", "augment/test_lookup_tpu", "augment/test_mixing", "augment/test_mosaic",
        "augment/test_photometric", "augment/test_policies", "augment/test_products", "augment/test_reframing",
        "augment/test_simclr", "augment/test_sizes", "augment/test_targets", "augment/test_turns",
        "augment/test_view_recipes", "augment/test_warps", "benchmarks/", "core/test_value_hypergradients",
        "examples/test_examples", "examples/test_pretrain", "examples/test_train_images", "losses/test_contrastive",
        "norm/test_norm_training", "optimizers/test_recipe_bits", "plot/", "precision/test_averages",
        "precision/test_codecs", "precision/test_compressed_sharding", "precision/test_product",
        "resume/test_resume_kills", "sharding/test_processes", "test_properties", "transforms/test_inspect",
        "transforms/test_low_precision", "transforms/test_masking")
"""Files that take a minute each."""
EACH = ("norm/test_norm_modules", "test_docstrings.py::test_the_example_runs")
"""Tests that go through the library, or through flax, by a ``name``: each name is a kind of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as long what a second round on newer versions leaves out: long files, and a kind's cases but the first."""
    seen = set()
    for item in items:
        if item.get_closest_marker("exhaustive") or item.get_closest_marker("typing"):
            continue
        function, *_ = item.nodeid.partition("[")
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        kind = function, str(params.get("name")) if any(f"tests/{name}" in function for name in EACH) else ""
        if kind in seen or any(f"tests/{name}" in function for name in LONG):
            item.add_marker(pytest.mark.long)
        seen.add(kind)


@pytest.fixture(autouse=True)
def quick_to_compile(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles without the costly optimizations where a test is not about those: most of a test's time is compiling."""
    quick = not any(word in request.node.nodeid.lower() for word in AS_IN_USE)
    if quick:
        jax.config.update("jax_disable_most_optimizations", True)
    yield
    if quick:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def forgets() -> Iterator[None]:
    """Drops the programs of a file when its tests are done.

    A compiled program holds several maps of memory for as long as its function lives; Linux allows a process 65,530.
    """
    yield
    jax.clear_caches()


@pytest.fixture(params=[32, 64], ids=["f32", "f64"])
def bits(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs a test in float32 and again, with jax's 64-bit types on, in float64."""
    with harness.precision(request.param):
        yield request.param


@pytest.fixture
def problem() -> tuple[Any, Any]:
    """Params and the stacked gradients of ``harness.STEPS`` steps, float32."""
    return harness.problem()
