"""The numbers of a value as a pytree, and equality by them.

Which arguments are numbers is a matter of type alone: floats, complex numbers, arrays and other values are children
of the pytree; bools, ints, strings, dtypes, functions and None are part of its structure.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Hashable, Iterable
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradxform.core.definition import Definition
from gradxform.core.types import Arguments, KeyPath, Treedef


class Numbers:
    """A call kept, as far as jax looks at it; two are equal if their structures and their numbers are."""

    has_numbers: ClassVar[bool] = True
    """Whether values of this class are pytrees; one that never has a number is a fixed argument of others."""

    _definition: Definition
    _arguments: Arguments

    @classmethod
    def from_arguments(cls, definition: Definition, arguments: Arguments) -> typing.Self:
        """Makes a value without checking its arguments: they may be tracers or jax's placeholders."""
        value = cls._allocate(definition, arguments)
        value.__dict__.update(_definition=definition, _arguments=arguments)
        return value

    @classmethod
    def _allocate(cls, definition: Definition, arguments: Arguments) -> typing.Self:
        return object.__new__(cls)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Numbers):
            return NotImplemented
        return self is other or _identity(self) == _identity(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(_identity(self))


N = TypeVar("N", bound=Numbers)


def register(value_class: type[N]) -> type[N]:
    """Registers a class of values as a pytree of the numbers in their calls."""
    jax.tree_util.register_pytree_with_keys(value_class, _flatten_with_keys, _unflatten, _flatten)
    return value_class


def is_foreign(value: object) -> bool:
    """Whether ``value`` is another library's transformation: a pair of functions, which jax would take apart."""
    return isinstance(value, optax.GradientTransformation) and not isinstance(value, Numbers)


def is_number(leaf: object) -> bool:
    """Whether an argument is one of the numbers of a value: see the module's text."""
    if isinstance(leaf, Numbers):
        return leaf.has_numbers
    return isinstance(leaf, (float, complex, jax.Array, np.ndarray))


@dataclasses.dataclass(frozen=True)
class _Structure:
    """What of a call is not a number."""

    value_class: type[Numbers]
    definition: Definition
    treedef: Treedef
    fixed: tuple[_Fixed, ...]
    keys: tuple[_Joined, ...] = dataclasses.field(compare=False)

    def __repr__(self) -> str:
        return repr(self.definition)


class _Fixed:
    """A fixed argument, compared by type as well as by value: ``True`` is not 1."""

    def __init__(self, value: object):
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


class _Joined(tuple):
    """The keys from a value to one of its numbers, as a single key of jax's key path."""

    def __str__(self) -> str:
        return jax.tree_util.keystr(tuple(self), simple=True, separator="/")


def _leaf(x: object) -> bool:
    return isinstance(x, Numbers) or is_foreign(x)


def _flatten(value: Numbers) -> tuple[tuple[object, ...], _Structure]:
    """The numbers of a value and the rest, worked out once."""
    if "_parts" not in value.__dict__:
        pairs, treedef = jax.tree_util.tree_flatten_with_path(value._arguments, is_leaf=_leaf)
        variadic = [p.name for p in value._definition.signature.parameters.values() if p.kind == p.VAR_POSITIONAL]
        # The arguments of chain(a, b) have no names: their path is their position.
        paths: list[KeyPath] = [path[1:] if path[0].key in variadic else path for path, _ in pairs]
        fixed = tuple(_NUMBER if is_number(leaf) else _Fixed(leaf) for _, leaf in pairs)
        keys = tuple(_Joined(path) for path, what in zip(paths, fixed, strict=True) if what is _NUMBER)
        numbers = tuple(leaf for _, leaf in pairs if is_number(leaf))
        value.__dict__["_parts"] = numbers, _Structure(type(value), value._definition, treedef, fixed, keys)
    return value.__dict__["_parts"]


def _flatten_with_keys(value: Numbers) -> tuple[list[tuple[_Joined, object]], _Structure]:
    children, structure = _flatten(value)
    return list(zip(structure.keys, children, strict=True)), structure


def _unflatten(structure: _Structure, children: Iterable[object]) -> Any:
    children = tuple(children)
    numbers = iter(children)
    leaves = [next(numbers) if fixed is _NUMBER else fixed.value for fixed in structure.fixed]
    arguments = jax.tree.unflatten(structure.treedef, leaves)
    # jax sorts the keys of a dict; a call has its parameters in order.
    arguments = {name: arguments[name] for name in structure.definition.signature.parameters}
    value = structure.value_class.from_arguments(structure.definition, arguments)
    # What stands where a number stood may be anything (an axis, a None, a sharding): its place says what it is.
    value.__dict__["_parts"] = children, structure
    return value


def _identity(value: Numbers) -> tuple[Hashable, ...]:
    children, structure = _flatten(value)
    return structure, tuple(_number_identity(child) for child in children)


def _number_identity(x: object) -> Hashable:
    if isinstance(x, Numbers):
        return _identity(x)
    if isinstance(x, jax.core.Tracer):
        return ("traced", id(x))
    if isinstance(x, (jax.Array, np.ndarray)):
        raw = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return ("array", str(x.dtype), x.shape, np.asarray(raw).tobytes())
    return (type(x).__name__, repr(x))
