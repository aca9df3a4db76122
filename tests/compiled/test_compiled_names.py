"""Every public function compiles for a TPU; which those are is looked up, not listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import compiled_catalog as catalog
import pytest
from value_catalog import CASES, VARIADIC

PARTS = {
    "transformations": "names",
    "schedules": "names",
    "kernels": "names",
    "first": "augmentations",
    "second": "augmentations",
}


def test_every_public_name_is_compiled_or_is_no_program() -> None:
    compiled = {*CASES, *VARIADIC, *catalog.kernels()}
    excused = [name for names in catalog.NO_PROGRAM.values() for name in names]
    assert len(excused) == len(set(excused)) and not compiled & set(excused)
    missing = catalog.public() - compiled - set(excused)
    assert missing == set(), (
        "a factory wants a case in tests/core/value_catalog.py; another function a program in "
        "tests/compiled/compiled_catalog.py, or a place in its NO_PROGRAM"
    )
    assert compiled | set(excused) - catalog.public() == compiled


def test_every_factory_is_among_the_programs() -> None:
    selectors = {"path_matches", "ndim_at_least"}
    programs = catalog.transformations() | catalog.schedules() | catalog.augmentations() | catalog.codecs()
    assert {*CASES, *VARIADIC} - selectors - set(programs) == set()


@pytest.mark.compiled
@pytest.mark.parametrize("part", PARTS)
def test_compiles_and_fits(part: str, compiled: Callable[[str, str], Any]) -> None:
    found = compiled(PARTS[part], part)
    assert len(found["names"]) >= 14
    assert found["failed"] == {}
    assert found["fits"]
    assert found["collectives"] == {}
