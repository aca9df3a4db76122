"""What a value is: the call that made it, kept.

A transformation, a schedule, an augmentation and a selector are each made by calling a factory. Keeping that call gives
all of them, by one mechanism, four things that a closure cannot have: they print as the call, compare and hash by it,
pickle and copy by repeating it, and are pytrees of the numbers in it (``gradxform.core.pytree``).

A parameter annotated as a real number takes an int and keeps it as a float, so that ``sgd(1)`` and ``sgd(0.5)`` have
one structure; the factory's function receives its arrays in float32 at least (``gradxform.core.arguments``).
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from gradxform.core import places
from gradxform.core.arguments import kind, plain, signature
from gradxform.core.definition import DEFINITIONS, Definition, names
from gradxform.core.printing import WIDTH, format_call
from gradxform.core.pytree import Numbers
from gradxform.core.suggest import nearest
from gradxform.core.types import Arguments


class Value(Numbers):
    """The base of everything that is made by a factory: see the module's text."""

    @property
    def name(self) -> str:
        """The public name of the factory that made this value."""
        return self._definition.name

    @property
    def arguments(self) -> Arguments:
        """The arguments of the call that made this value, defaults included, by name."""
        return {name: plain(value) for name, value in self._arguments.items()}

    @functools.cached_property
    def built(self) -> Any:
        """What the factory's function returned."""
        return self._definition.build(self._arguments)

    def replace(self, changes: Mapping[str, object] | None = None, /, **named: object) -> typing.Self:
        """This value with other arguments, its own or those of values inside it.

        Args:
          changes: what to change, by path: an argument's name, or inside a chain ``1/learning_rate``, as
            ``hyperparams`` shows it.
          **named: the same by keyword.

        Returns:
          The value that the same factories make with them.

        Raises:
          TypeError: for a name or path that there is not.

        Example:
          >>> import gradxform as gx
          >>> gx.scale_by_belief().replace(b1=0.5)
          scale_by_belief(b1=0.5, b2=0.999, eps=1e-16, eps_root=1e-16)
          >>> gx.chain(gx.clip(1.0), gx.scale(0.1)).replace({"1/step_size": 0.2})
          chain(clip(max_delta=1.0), scale(step_size=0.2))
        """
        return typing.cast(typing.Self, places.replaced(self, {**(changes or {}), **named}))

    __replace__ = replace  # for copy.replace

    def __repr__(self) -> str:
        return self.format_in(WIDTH)

    def format_in(self, room: int) -> str:
        """The call that makes this value, in lines of at most ``room`` columns."""
        return format_call(self.name, self._definition.signature, self._arguments, room)

    if not typing.TYPE_CHECKING:  # a checker would take it that there is every attribute

        def __getattr__(self, name: str) -> object:
            # Only called for what there is not, and for a property that raises an AttributeError of its own.
            if name.startswith("_") or hasattr(type(self), name):
                return object.__getattribute__(self, name)
            near = nearest(name, self._arguments | dict(places.parts(self, deep=True)))
            where = "" if near is None else f"; what it was made with is in .arguments[{near!r}]"
            if near is not None and near not in self._arguments:
                where = f"; {near!r} is inside of it: gx.hyperparams shows that, .replace({{{near!r}: ...}}) changes it"
            raise AttributeError(f"{self.name} has no attribute {name!r}{where}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self.name} is immutable; use .replace({name}=...) for a changed one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{self.name} is immutable")

    def __reduce__(self) -> tuple[Callable[..., Value], tuple[object, ...]]:
        return _call, (self._definition.public, *self._definition.spread(self._arguments))


P = ParamSpec("P")
V = TypeVar("V", bound=Value)


def factory(value_class: type[V], function: Callable[P, object]) -> Callable[P, V]:
    """Turns ``function`` into a factory of values of ``value_class``, known by its public name.

    Raises:
      TypeError: an annotation of ``function`` cannot be evaluated.
    """

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> V:
        value = value_class.from_arguments(definition, definition.bind(args, kwargs))
        value.built  # noqa: B018  (building refuses bad arguments here and not where the value is used)
        return value

    name, key = names(function)
    found = signature(function, name)
    definition = DEFINITIONS[key] = Definition(
        name=name,
        key=key,
        function=function,
        signature=found,
        kinds={name: kind(parameter) for name, parameter in found.parameters.items()},
        public=make,
    )
    return make


def _call(public: Callable[..., Value], args: tuple[object, ...], kwargs: Arguments) -> Value:
    return public(*args, **kwargs)
