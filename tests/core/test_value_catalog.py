"""The table of factories is complete: the tests that loop over it leave nothing out."""

import inspect

import pytest
from pieces import BRICKS
from value_catalog import CASES, VALUES, VARIADIC, factories, public_factories

import gradxform as gx


def test_every_public_factory_is_in_the_table() -> None:
    public = public_factories()
    assert len(public) > 50
    assert set(public) == set(CASES) | set(VARIADIC), "tests/core/value_catalog.py: a case of each factory, no other"
    assert all(CASES[name].factory is public[name] for name in CASES)


@pytest.mark.parametrize("name", CASES)
def test_every_argument_is_in_the_table(name: str) -> None:
    signature = inspect.signature(CASES[name].factory)
    assert set(signature.parameters) == set(CASES[name].arguments), "an Argument in its case for each of them"


def test_every_entry_is_a_value() -> None:
    kinds = gx.Transformation | gx.Schedule | gx.Selector | gx.augment.Augmentation | gx.precision.Codec
    assert [name for name, value in VALUES.items() if not isinstance(value, kinds)] == []


def test_a_value_knows_its_name() -> None:
    assert {name: CASES[name]().name for name in CASES} == {name: name for name in CASES}


def test_what_takes_an_axis_name_is_among_the_bricks_on_pieces() -> None:
    takes = {name for name, case in CASES.items() if "axis_name" in case.arguments}
    found = set[str]().union(*(factories(brick("x")) for brick in BRICKS.values()))
    assert takes - found == {"add_noise"}  # which has a check of its own
