"""Shared fixtures; that this file is here also puts ``oracles`` and ``harness`` on the import path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import harness
import jax
import pytest
from jax._src import compiler


def quick_options(options: Callable[..., Any]) -> Callable[..., Any]:
    """Quick compilations do without XLA's newer way to compile a fusion too, which takes half of their time.

    It has no name among jax's options, and as a flag of XLA's it would hold for all tests of a process.
    """

    def made(*args: Any, env_options_overrides: dict[str, Any] | None = None, **others: Any) -> Any:
        if jax.config.read("jax_disable_most_optimizations"):
            env_options_overrides = {"xla_cpu_use_fusion_emitters": False} | (env_options_overrides or {})
        return options(*args, env_options_overrides=env_options_overrides, **others)

    return made


if jax.__version_info__ < (0, 11):  # later there is but the newer way
    compiler.get_compile_options = quick_options(compiler.get_compile_options)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as long what a second round on newer versions leaves out: a kind's cases but the first."""
    seen = set()
    for item in items:
        if item.get_closest_marker("exhaustive") or item.get_closest_marker("typing"):
            continue
        function, *_ = item.nodeid.partition("[")
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        by = item.get_closest_marker("kinds_by")
        kind = function, str(params.get(by.args[0])) if by else ""
        if kind in seen:
            item.add_marker(pytest.mark.long)
        seen.add(kind)


@pytest.fixture(autouse=True)
def quick_to_compile(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles without the costly optimizations where a test is not about those: most of a test's time is compiling."""
    quick = request.node.get_closest_marker("as_in_use") is None
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
