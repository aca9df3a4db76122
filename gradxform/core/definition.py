"""A factory as it is defined: its names, its function, and what its parameters take."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from gradxform.core import arguments as given
from gradxform.core.suggest import unknown
from gradxform.core.types import Arguments, Kind

DEFINITIONS: dict[str, Definition] = {}
"""The factories whose modules have been imported, by their names in a config."""


@dataclasses.dataclass(frozen=True, eq=False)
class Definition:
    """A factory.

    Attributes:
      name: its public name, which is printed.
      key: its name in a config.
      function: the function that was decorated.
      signature: that of ``function``, with its annotations evaluated.
      kinds: what each parameter takes.
      public: what stands under its name, which makes the values.
    """

    name: str
    key: str
    function: Callable[..., Any]
    signature: inspect.Signature
    kinds: Mapping[str, Kind]
    public: Callable[..., Any]

    def __repr__(self) -> str:
        return self.name

    @property
    def schedules(self) -> frozenset[str]:
        """The parameters that take a schedule."""
        return frozenset(name for name, kind in self.kinds.items() if kind & Kind.SCHEDULE)

    def bind(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Arguments:
        """The arguments of one call by name, defaults included, as its value keeps them.

        Raises:
          TypeError: they do not fit the signature, or one is not of its kind.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(self._misfit(args, kwargs) or f"{self.name}(): {error}") from None
        bound.apply_defaults()
        parameters = self.signature.parameters
        return {
            name: given.kept(name, value, self.kinds[name], given.takes_none(parameters[name]))
            for name, value in bound.arguments.items()
        }

    def call(self, arguments: Mapping[str, object]) -> Any:
        """The value with these arguments, checked anew."""
        args, kwargs = self.spread(arguments)
        return self.public(*args, **kwargs)

    def spread(self, arguments: Mapping[str, object]) -> tuple[tuple[Any, ...], Arguments]:
        """Arguments by name as those of a call, by position and by keyword."""
        bound = inspect.BoundArguments(self.signature, dict(arguments))  # type: ignore[arg-type]
        return bound.args, bound.kwargs

    def build(self, arguments: Mapping[str, object]) -> Any:
        """What the user's function returns for these arguments, its numbers ready for arithmetic."""
        # What is built once is used in many traces: no number that is known now may become part of the first of them.
        with jax.ensure_compile_time_eval():
            args, kwargs = self.spread(
                {name: given.ready(value, self.kinds[name]) for name, value in arguments.items()}
            )
            return self.function(*args, **kwargs)

    def _misfit(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> str | None:
        """What is wrong with a call that does not fit, None where Python has to say it."""
        parameters = self.signature.parameters.values()
        kinds = {p.kind for p in parameters}
        by_keyword = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            for name in kwargs:
                if name not in by_keyword:
                    return unknown(f"{self.name}() has no argument", name, by_keyword)
        if inspect.Parameter.VAR_POSITIONAL not in kinds and len(args) > len(by_position):
            return (
                f"{self.name}() takes at most {len(by_position)} arguments by position "
                f"({', '.join(by_position) or 'none'}), got {len(args)}"
            )
        for name in by_position[: len(args)]:
            if name in kwargs:
                return f"{self.name}() got {name!r} twice, by position and by keyword"
        missing = [
            p.name
            for p in parameters
            if p.default is p.empty
            and p.name not in kwargs
            and p.name not in by_position[: len(args)]
            and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if missing:
            return f"{self.name}() needs {', '.join(map(repr, missing))}; it has {', '.join(self.signature.parameters)}"
        return None


def names(function: Callable[..., object]) -> tuple[str, str]:
    """How a factory is called behind ``gx.``, or with its module if it is a user's own; and how in a config."""
    module, name = function.__module__ or "__main__", function.__qualname__
    if module == "__main__":
        return name, f"__main__.{name}"  # a script's own clip prints as clip, but there that is the name of ours
    package, _, rest = module.partition(".")
    if package == "gradxform":
        # The transformations and selectors are named flat; the other rooms are modules.
        room = rest.split(".")[0]
        name = function.__name__ if room in ("core", "transforms", "optimizers") else f"{room}.{function.__name__}"
    else:
        name = f"{module}.{name}"
    return name, name
