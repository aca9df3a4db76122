"""What a value is: the call that made it, kept.

A transformation, a schedule and a selector are each made by calling a factory. Keeping that call gives all of them,
by one mechanism, four things that a closure cannot have: they print as the call, compare and hash by it, pickle and
copy by repeating it, and are pytrees of the numbers in it.

Which arguments are numbers is a matter of type alone: floats, complex numbers, arrays and other values are children
of the pytree; bools, ints, strings, dtypes, functions and None are part of its structure. A parameter annotated as a
real number takes an int and keeps it as a float, so that ``sgd(1)`` and ``sgd(0.5)`` have one structure.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradxform.core.arguments import dtype_name, floats, is_traced, kind, plain, takes_none
from gradxform.core.arguments import signature as signature_of
from gradxform.core.printing import WIDTH, format_call

_DEFINITIONS: dict[str, Definition] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Definition:
    """A factory: its public name, its name in a config, its function, and what its parameters take."""

    name: str
    key: str
    function: Callable[..., Any]
    signature: inspect.Signature
    reals: frozenset[str]
    schedules: frozenset[str]
    bools: frozenset[str]
    value_class: type[Value]
    public: Callable[..., Any]

    def __repr__(self) -> str:
        return self.name

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Makes the value of one call, and builds it at once so that bad arguments are refused here."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {name: self._normalize(name, value) for name, value in bound.arguments.items()}
        value = self.value_class.from_arguments(self, arguments)
        value.built  # noqa: B018  (building is the check)
        return value

    def build(self, arguments: Mapping[str, Any]) -> Any:
        """What the user's function returns for these arguments."""
        bound = inspect.BoundArguments(self.signature, dict(arguments))  # type: ignore[arg-type]
        return self.function(*bound.args, **bound.kwargs)

    def _normalize(self, name: str, value: Any) -> Any:
        if "dtype" in name.split("_"):
            return dtype_name(name, value)
        value = plain(value)
        if name in self.bools and not isinstance(value, bool):
            raise TypeError(f"{name}: expected a bool, got {value!r}")
        if name in self.reals and value is None and not takes_none(self.signature.parameters[name]):
            wanted = "a real number or a schedule" if name in self.schedules else "a real number"
            raise TypeError(f"{name}: expected {wanted}, got None")
        return floats(value) if name in self.reals else value


class Value:
    """The base of everything that is made by a factory: see the module's text."""

    has_numbers: ClassVar[bool] = True
    """Whether values of this class are pytrees; one that never has a number is a fixed argument of others."""

    _definition: Definition
    _arguments: dict[str, Any]

    @classmethod
    def from_arguments(cls, definition: Definition, arguments: dict[str, Any]) -> Value:
        """Makes a value without checking its arguments: they may be tracers or jax's placeholders."""
        value = cls._allocate(definition, arguments)
        value.__dict__.update(_definition=definition, _arguments=arguments)
        return value

    @classmethod
    def _allocate(cls, definition: Definition, arguments: dict[str, Any]) -> Value:
        return object.__new__(cls)

    @property
    def name(self) -> str:
        """The public name of the factory that made this value."""
        return self._definition.name

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the call that made this value, defaults included, by name."""
        return {name: plain(value) for name, value in self._arguments.items()}

    @property
    def built(self) -> Any:
        """What the factory's function returned."""
        if "_built" not in self.__dict__:
            self.__dict__["_built"] = self._definition.build(self._arguments)
        return self.__dict__["_built"]

    def replace(self, **changes: Any) -> typing.Self:
        """This value with other arguments.

        Args:
          **changes: the arguments to change, by name.

        Returns:
          The value that the same factory makes with them.

        Raises:
          TypeError: for a name that the factory does not have.

        Example:
          >>> import gradxform as gx
          >>> gx.sgd(0.1, momentum=0.9).replace(learning_rate=0.01)
          sgd(learning_rate=0.01, momentum=0.9, nesterov=False, accumulator_dtype=None, weight_decay=None, mask=None)
        """
        unknown = sorted(set(changes) - set(self._arguments))
        if unknown:
            raise TypeError(f"{self.name} has no argument {unknown[0]!r}; it has {', '.join(self._arguments)}")
        bound = inspect.BoundArguments(self._definition.signature, self._arguments | changes)  # type: ignore[arg-type]
        return typing.cast(typing.Self, self._definition.call(bound.args, bound.kwargs))

    __replace__ = replace  # for copy.replace

    def __repr__(self) -> str:
        return self.format_in(WIDTH)

    def format_in(self, room: int) -> str:
        """The call that makes this value, in lines of at most ``room`` columns."""
        return format_call(self.name, self._definition.signature, self._arguments, room)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self.name} is immutable; use .replace({name}=...) for a changed one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{self.name} is immutable")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value):
            return NotImplemented
        return self is other or _identity(self) == _identity(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(_identity(self))

    def __reduce__(self) -> tuple[Any, ...]:
        bound = inspect.BoundArguments(self._definition.signature, self._arguments)  # type: ignore[arg-type]
        return _call, (self._definition.public, bound.args, bound.kwargs)


def factory(value_class: type[Value], function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns ``function`` into a factory of values of ``value_class``, known by its public name."""
    signature = signature_of(function)
    kinds = {name: kind(parameter) for name, parameter in signature.parameters.items()}

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Value:
        return definition.call(args, kwargs)

    name = _public_name(function)
    definition = Definition(
        name=name,
        # A script's own clip prints as clip, but in a config that is the name of ours.
        key=name if _module(function) != "__main__" else f"__main__.{name}",
        function=function,
        signature=signature,
        reals=frozenset(name for name, what in kinds.items() if what in ("real", "schedule")),
        schedules=frozenset(name for name, what in kinds.items() if what == "schedule"),
        bools=frozenset(name for name, what in kinds.items() if what == "bool"),
        value_class=value_class,
        public=make,
    )
    _DEFINITIONS[definition.key] = definition
    return make


def definition_of(name: str) -> Definition | None:
    """The factory of this name in a config, if its module has been imported."""
    return _DEFINITIONS.get(name)


def is_foreign(value: Any) -> bool:
    """Whether ``value`` is another library's transformation: a pair of functions, which jax would take apart."""
    return isinstance(value, optax.GradientTransformation) and not isinstance(value, Value)


def is_number(leaf: Any) -> bool:
    """Whether an argument is one of the numbers of a value: see the module's text."""
    if isinstance(leaf, Value):
        return leaf.has_numbers
    return isinstance(leaf, (float, complex, jax.Array, np.ndarray))



def register(value_class: type[Value]) -> type[Value]:
    """Registers a class of values as a pytree of the numbers in their calls."""
    jax.tree_util.register_pytree_with_keys(value_class, _flatten_with_keys, _unflatten, _flatten)
    return value_class


@dataclasses.dataclass(frozen=True)
class _Structure:
    """What of a call is not a number."""

    definition: Definition
    treedef: Any
    fixed: tuple[Any, ...]
    keys: tuple[Any, ...] = dataclasses.field(compare=False)

    def __repr__(self) -> str:
        return repr(self.definition)


class _Fixed:
    """A fixed argument, compared by type as well as by value: ``True`` is not 1."""

    def __init__(self, value: Any):
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Fixed) and type(self.value) is type(other.value) and bool(self.value == other.value)

    def __hash__(self) -> int:
        try:
            return hash((type(self.value), self.value))
        except TypeError:
            return hash(type(self.value))


_NUMBER = _Fixed("number")


def _leaf(x: Any) -> bool:
    return isinstance(x, Value) or is_foreign(x)


def _take_apart(value: Value) -> tuple[tuple[Any, ...], _Structure]:
    """The numbers of a value and the rest, worked out once."""
    if "_parts" not in value.__dict__:
        pairs, treedef = jax.tree_util.tree_flatten_with_path(value._arguments, is_leaf=_leaf)
        variadic = [p.name for p in value._definition.signature.parameters.values() if p.kind == p.VAR_POSITIONAL]
        # The arguments of chain(a, b) have no names: their path is their position.
        paths = [path[1:] if path[0].key in variadic else path for path, _ in pairs]
        fixed = tuple(_NUMBER if is_number(leaf) else _Fixed(leaf) for _, leaf in pairs)
        keys = tuple(_Joined(path) for path, what in zip(paths, fixed, strict=True) if what is _NUMBER)
        numbers = tuple(leaf for _, leaf in pairs if is_number(leaf))
        value.__dict__["_parts"] = numbers, _Structure(value._definition, treedef, fixed, keys)
    return value.__dict__["_parts"]


def _flatten_with_keys(value: Value) -> tuple[list[Any], _Structure]:
    children, structure = _take_apart(value)
    return list(zip(structure.keys, children, strict=True)), structure


def _flatten(value: Value) -> tuple[tuple[Any, ...], _Structure]:
    return _take_apart(value)


def _unflatten(structure: _Structure, children: Any) -> Value:
    children = tuple(children)
    numbers = iter(children)
    leaves = [next(numbers) if fixed is _NUMBER else fixed.value for fixed in structure.fixed]
    arguments = jax.tree.unflatten(structure.treedef, leaves)
    # jax sorts the keys of a dict; a call has its parameters in order.
    arguments = {name: arguments[name] for name in structure.definition.signature.parameters}
    value = structure.definition.value_class.from_arguments(structure.definition, arguments)
    # What stands where a number stood may be anything (an axis, a None, a sharding): its place says what it is.
    value.__dict__["_parts"] = children, structure
    return value


class _Joined(tuple):
    """The keys from a value to one of its numbers, as a single key of jax's key path."""

    def __str__(self) -> str:
        return jax.tree_util.keystr(tuple(self), simple=True, separator="/")


def _identity(value: Value) -> tuple[Any, ...]:
    children, structure = _flatten(value)
    return structure, tuple(_number_identity(child) for child in children)


def _number_identity(x: Any) -> Any:
    if isinstance(x, Value):
        return _identity(x)
    if is_traced(x):
        return ("traced", id(x))
    if isinstance(x, (jax.Array, np.ndarray)):
        raw = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return ("array", str(x.dtype), x.shape, np.asarray(raw).tobytes())
    return (type(x).__name__, repr(x))


def _call(public: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return public(*args, **kwargs)








def _module(function: Callable[..., Any]) -> str:
    return function.__module__ or "__main__"


def _public_name(function: Callable[..., Any]) -> str:
    module = _module(function)
    package, _, rest = module.partition(".")
    if package != "gradxform":
        return function.__qualname__ if module == "__main__" else f"{module}.{function.__qualname__}"
    room = rest.split(".")[0]
    # The transformations and selectors are named flat; the other rooms are modules.
    return function.__name__ if room in ("core", "transforms", "optimizers") else f"{room}.{function.__name__}"
