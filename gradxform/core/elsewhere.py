"""Names that are not here: what another library calls so, by the page ``NAMES.md``, or the name that was meant."""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from gradxform.core.suggest import nearest


class Row(NamedTuple):
    """A row of the page: the cells under the library's name, ours, and what differs."""

    library: str
    theirs: str
    ours: str
    note: str

    @property
    def names(self) -> list[str]:
        """The names in the library's cell, without their arguments."""
        return re.findall(r"`([\w.]+)[^`]*`", self.theirs)

    def __str__(self) -> str:
        ours = self.ours.replace("`", "")
        return f"{self.library}'s {' and '.join(self.names)}: {': '.join(filter(None, (ours, self.note)))}"


@functools.cache
def page() -> list[Row]:
    """The rows of all tables of the page."""
    return list(_rows(importlib.resources.files("gradxform").joinpath("NAMES.md").read_text("utf-8")))


def _rows(text: str) -> Iterator[Row]:
    library = ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            library = ""
        elif not library:
            library = cells[0]
        elif not set(cells[0]) <= {"-"}:
            yield Row(library, *cells)


def missing(module: ModuleType, rooms: Mapping[str, ModuleType], name: str) -> NoReturn:
    """Raises the AttributeError of a name that a module has not, with what is likely meant.

    Args:
      module: the module that was asked.
      rooms: the modules that a name may be in, by how they are called.
      name: the name.

    Raises:
      AttributeError: always.
    """
    hints: list[str] = []
    if not name.startswith("_"):
        hints = [f"there is {room}.{name}" for room, other in rooms.items() if name in other.__all__]
        hints += [str(row) for row in page() if name in [full.rpartition(".")[2] for full in row.names]]
        near = None if hints else nearest(name, module.__all__)
        hints += [f"did you mean {near!r}?"] if near else []
    raise AttributeError(
        "; ".join([f"module {module.__name__!r} has no attribute {name!r}", *hints]), name=name, obj=module
    )


def answer(module: ModuleType, rooms: Mapping[str, ModuleType]) -> None:
    """Lets a module answer for the names that it has not; what it finds by itself, as what is imported late, stays."""
    own: Any = vars(module).get("__getattr__")

    def find(name: str) -> Any:
        try:
            return own(name)
        except AttributeError:
            missing(module, rooms, name)

    vars(module)["__getattr__"] = functools.partial(missing, module, rooms) if own is None else find
