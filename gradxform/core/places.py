"""Where the arguments of a value stand: one form of path for ``replace``, ``hyperparams`` and the errors of configs.

The path of an argument is its name; that of what stands inside it goes on behind a slash, with the name of an argument,
the key of a dict or the position in a list. What a factory takes by position alone has no name, so the rate of
``chain(clip(1.0), adamw(1e-3))`` is ``1/learning_rate``, and in a named chain it is ``adamw/learning_rate``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import TypeGuard, cast

from gradxform.core.pytree import Numbers
from gradxform.core.suggest import unknown
from gradxform.core.types import PyTree


def join(path: str, key: object) -> str:
    """The path of what stands under ``key`` at ``path``."""
    return f"{path}/{key}" if path else str(key)


def is_named(item: object) -> TypeGuard[tuple[str, object]]:
    """Whether ``item`` is a pair (name, value), as in a named chain: its path is its name."""
    return type(item) is tuple and len(item) == 2 and isinstance(item[0], str)


def replaced(value: Numbers, changes: Mapping[str, object]) -> Numbers:
    """``value`` with other arguments, by path.

    Raises:
      TypeError: for a path that there is not.
    """
    try:
        return cast(Numbers, _changed(value, changes, ""))
    except KeyError as error:
        what = f"{value._definition.name}() has no argument"
        raise TypeError(unknown(what, error.args[0], value._arguments | dict(parts(value, deep=True)))) from None


def _changed(item: PyTree, changes: Mapping[str, object], path: str) -> PyTree:
    new: dict[str, object] = {}
    deeper: dict[str, dict[str, object]] = {}
    inside = _inside(item)
    for name, part in changes.items():
        if name in inside or (isinstance(item, Numbers) and name in item._arguments):
            new[name] = part
            continue
        # A key may have slashes of its own: the longest that fits.
        key = max((key for key in inside if name.startswith(f"{key}/")), key=len, default=None)
        if key is None:
            raise KeyError(join(path, name))
        deeper.setdefault(key, {})[name[len(key) + 1 :]] = part
    for key, parts in deeper.items():
        new[key] = _changed(new.get(key, inside[key]), parts, join(path, key))
    if not isinstance(item, Numbers):
        return _put(item, new)
    arguments = {name: new.get(name, argument) for name, argument in item._arguments.items()}
    for name in _spread_over_calls(item):
        arguments[name] = _put(arguments[name], new)
    return item._definition.call(arguments)


def _inside(item: object) -> dict[str, object]:
    """What stands directly inside ``item``, by key."""
    if not isinstance(item, Numbers):
        return {key: part for key, part, _ in _entries(item)}
    spread = _spread_over_calls(item)
    return {
        key: part
        for name, argument in item._arguments.items()
        for key, part in (
            [(key, part) for key, part, _ in _entries(argument)] if name in spread else [(name, argument)]
        )
    }


def _entries(item: PyTree) -> Iterator[tuple[str, object, Hashable]]:
    """The items of a plain container: the key in a path, the item, and the key in the container."""
    if isinstance(item, Mapping):
        yield from ((str(key), part, key) for key, part in item.items())
    elif type(item) in (list, tuple):
        for i, part in enumerate(item):
            yield (part[0], part[1], i) if is_named(part) else (str(i), part, i)


def _put(item: PyTree, new: Mapping[str, object]) -> object:
    """A plain container with other items, by their keys in a path."""
    keys = {own: key for key, _, own in _entries(item) if key in new}
    if isinstance(item, Mapping):
        return type(item)({own: new[keys[own]] if own in keys else part for own, part in item.items()})  # type: ignore[call-arg]
    return type(item)(
        (part[0], new[keys[i]]) if i in keys and is_named(part) else new[keys[i]] if i in keys else part
        for i, part in enumerate(item)
    )


def _spread_over_calls(value: Numbers) -> list[str]:
    """The parameters that stand for any number of arguments and have no name in a call."""
    parameters = value._definition.signature.parameters.values()
    return [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def parts(item: object, *, deep: bool = False, path: str = "") -> Iterator[tuple[str, object]]:
    """What stands inside ``item`` by path; what stands inside other values there too if it is ``deep``."""
    for key, part in _inside(item).items():
        yield join(path, key), part
        if deep or not isinstance(part, Numbers):
            yield from parts(part, deep=deep, path=join(path, key))
