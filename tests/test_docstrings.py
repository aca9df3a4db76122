"""Every public name is documented in one form, and every example in the documentation runs."""

import doctest
import importlib
import inspect
import pathlib
import re
from typing import Any

import matplotlib
import pytest

import gradxform as gx

matplotlib.use("Agg")

MODULES = {
    "augment": gx.augment,
    "losses": gx.losses,
    "masking": gx.masking,
    "norm": gx.norm,
    "norm.linen": gx.norm.linen,
    "norm.nnx": gx.norm.nnx,
    "plot": gx.plot,
    "precision": gx.precision,
    "resume": gx.resume,
    "schedules": gx.schedules,
    "sharding": gx.sharding,
    "transfer": gx.transfer,
}
SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Example:")


def public() -> dict[str, Any]:
    """Every public name with what it names, the rooms' own included."""
    names = {name: getattr(gx, name) for name in gx.__all__}
    for room, module in MODULES.items():
        names |= {f"{room}.{name}": getattr(module, name) for name in module.__all__}
    return names


ALIASES = {"DType", "Scalar", "ScalarOrSchedule"}
"""Types for annotations, whose text stands below them in ``core/types.py``, where editors read it."""
PUBLIC = {name: item for name, item in public().items() if name not in ALIASES}
FUNCTIONS = {name: item for name, item in PUBLIC.items() if inspect.isfunction(item)}
CLASSES = {name: item for name, item in PUBLIC.items() if inspect.isclass(item)}
METHODS = {"Transformation.replace": gx.Transformation.replace}


def sections(item: Any) -> dict[str, str]:
    """The text under each heading of a docstring; what comes before the first is under ''."""
    found, heading = {"": ""}, ""
    for line in inspect.cleandoc(item.__doc__).splitlines():
        if line in SECTIONS:
            heading = line.removesuffix(":")
            found[heading] = ""
        else:
            found[heading] += line + "\n"
    return found


def entries(text: str) -> dict[str, str]:
    """The entries of a section by name."""
    parts = re.split(r"^  (\**\w+(?:, \**\w+)*): ", text, flags=re.MULTILINE)
    return {
        name: described for names, described in zip(parts[1::2], parts[2::2], strict=True) for name in names.split(", ")
    }


def run_doctest(item: Any, name: str) -> None:
    # A factory is a wrapped function of another module: take its own docstring and nothing below it.
    found = doctest.DocTestFinder(recurse=False).find(item, name, globs={})
    examples = [test for test in found if test.examples]
    assert examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for test in examples:
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_all_is_complete() -> None:
    """``__all__`` holds what the package names itself, in order, and nothing else."""
    named = {
        name
        for name, item in vars(gx).items()
        if not name.startswith("_") and (not inspect.ismodule(item) or name in MODULES)
    }
    assert named == set(gx.__all__)
    assert list(gx.__all__) == sorted(gx.__all__, key=str.lower)
    for module in MODULES.values():
        assert list(module.__all__) == sorted(module.__all__)
    assert len(FUNCTIONS) > 60
    assert re.fullmatch(r"\d+\.\d+\.\d+", gx.__version__)


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS])
def test_the_first_line_says_what_it_is(name: str) -> None:
    item = (PUBLIC | METHODS)[name]
    first, *rest = inspect.cleandoc(item.__doc__).splitlines()
    assert first.endswith((".", ":", ";")), first
    assert first[0].isupper() or first[0] == "`"
    assert not rest or rest[0] == ""


@pytest.mark.kinds_by("name")
@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES, *METHODS])
def test_the_example_runs(name: str) -> None:
    item = (PUBLIC | METHODS)[name]
    assert "Example" in sections(item), f"{name} has no Example"
    run_doctest(item, name)


@pytest.mark.parametrize("name", [*FUNCTIONS, *METHODS])
def test_every_parameter_is_described(name: str) -> None:
    item = (PUBLIC | METHODS)[name]
    parameters = [
        ("*" * (p.kind == p.VAR_POSITIONAL) + "**" * (p.kind == p.VAR_KEYWORD)) + p.name
        for p in inspect.signature(item).parameters.values()
        if p.name != "self"
    ]
    described = entries(sections(item).get("Args", ""))
    assert list(described) == parameters, "Args has each parameter, in the order of the signature"
    assert all(text.strip() for text in described.values())


@pytest.mark.parametrize("name", [*FUNCTIONS, *METHODS])
def test_what_is_returned_is_described(name: str) -> None:
    item = (PUBLIC | METHODS)[name]
    # What a factory returns is the value that it is a factory of; a word is only due where there is more to say.
    if inspect.signature(item).return_annotation not in (None, "None") and not hasattr(item, "__wrapped__"):
        assert sections(item).get("Returns", "").strip()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_described_elsewhere_is_there(name: str) -> None:
    """``as in x`` refers to a function that has the same arguments and describes them itself."""
    for parameter, text in entries(sections(FUNCTIONS[name]).get("Args", "")).items():
        for other in re.findall(r"^as in ``(\w+)``\.$", text, flags=re.MULTILINE):
            room = "".join(name.rpartition(".")[:2])
            found = entries(sections(PUBLIC.get(other) or PUBLIC[room + other]).get("Args", ""))
            assert parameter in found, (parameter, other)
            again = re.match(r"as in ``(\w+)``", found[parameter])
            assert again is None or again[1] != name.rpartition(".")[2]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_sections_come_in_order(name: str) -> None:
    headings = [heading + ":" for heading in sections(FUNCTIONS[name]) if heading]
    assert headings == [heading for heading in SECTIONS if heading in headings]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defaults_are_not_repeated_wrongly(name: str) -> None:
    """Where a description says "the default is x" of a plain number, x is the default."""
    signature = inspect.signature(FUNCTIONS[name])
    for parameter, text in entries(sections(FUNCTIONS[name]).get("Args", "")).items():
        for number in re.findall(r"default(?: is| of|:)? (-?\d[\d.e-]*)\b", text):
            assert float(number) == signature.parameters[parameter.lstrip("*")].default


def package_modules() -> list[str]:
    root = pathlib.Path(gx.__file__).parent
    return sorted(
        ".".join(("gradxform", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for path in root.rglob("*.py")
    )


@pytest.mark.parametrize("module", package_modules())
def test_every_module_says_what_it_holds(module: str) -> None:
    text = importlib.import_module(module).__doc__
    assert text and text.splitlines()[0].endswith((".", ":"))
