"""Values as JSON: the call that made them, written down and made again."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core.definition import DEFINITIONS
from gradxform.core.places import is_named, join
from gradxform.core.pytree import is_foreign
from gradxform.core.suggest import nearest, unknown
from gradxform.core.types import Json, PyTree
from gradxform.core.value import Value

VERSION = 1


def to_config(value: Value) -> dict[str, Json]:
    """A value as a dict that JSON can hold.

    Args:
      value: a transformation, schedule or selector.

    Returns:
      ``{"gradxform": version, "call": name, "arguments": {...}}``, for ``from_config``.

    Raises:
      TypeError: ``value`` was not made by a factory.
      ValueError: it holds what cannot be written down, such as a function or another library's transformation; with
        its path.

    Example:
      >>> import gradxform as gx
      >>> gx.to_config(gx.clip(1.0))
      {'gradxform': 1, 'call': 'clip', 'arguments': {'max_delta': 1.0}}
    """
    if not isinstance(value, Value):
        raise TypeError(f"value: expected a transformation, schedule or selector of gradxform, got {value!r}")
    return {"gradxform": VERSION, **_call(value, "")}


def from_config(config: Mapping[str, Json]) -> Any:
    """The value that a config describes.

    The factories of your own modules are known once those modules are imported; nothing is imported or executed here
    but the factories named.

    Args:
      config: what ``to_config`` returned, possibly after a round trip through JSON.

    Returns:
      A value equal to the one written.

    Raises:
      ValueError: an unknown version, name or argument, or a config that is not one.

    Example:
      >>> import gradxform as gx
      >>> gx.from_config({"gradxform": 1, "call": "clip", "arguments": {"max_delta": 1.0}})
      clip(max_delta=1.0)
    """
    if not isinstance(config, dict) or "gradxform" not in config:
        raise ValueError(f"config: expected a dict with the key 'gradxform', got {config!r}")
    if config["gradxform"] != VERSION or isinstance(config["gradxform"], bool):
        raise ValueError(f"config: expected version {VERSION}, got {config['gradxform']!r}")
    return _decode({key: item for key, item in config.items() if key != "gradxform"}, "")


def _call(value: Value, path: str) -> dict[str, Json]:
    parameters = value._definition.signature.parameters
    return {
        "call": value._definition.key,
        "arguments": {
            # *transformations are a tuple by nature; a plain JSON list says it best.
            name: _encode(list(item), path)
            if parameters[name].kind == inspect.Parameter.VAR_POSITIONAL
            else _encode(item, join(path, name))
            for name, item in value.arguments.items()
        },
    }


def _encode(value: PyTree, path: str) -> Json:
    if isinstance(value, Value):
        return _call(value, path)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, complex):
        return {"complex": [_encode(value.real, path), _encode(value.imag, path)]}
    if type(value) in (list, tuple):
        items: list[Json] = [
            {"tuple": [item[0], _encode(item[1], join(path, item[0]))]}
            if is_named(item)
            else _encode(item, join(path, i))
            for i, item in enumerate(value)
        ]
        return items if type(value) is list else {"tuple": items}
    if type(value) is dict:
        return {"dict": [[_encode(key, path), _encode(item, join(path, key))] for key, item in value.items()]}
    if isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, jax.core.Tracer):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(value))
            return {"key": data.tolist(), "impl": str(jax.random.key_impl(value))}
        # JSON has no NaN: bytes say every value of every dtype exactly.
        return {
            "array": np.asarray(value).tobytes().hex(),
            "dtype": str(value.dtype),
            "shape": list(value.shape),
            "numpy": isinstance(value, np.ndarray),
        }
    instead = (
        "; decorate the factory that makes it with gx.transformation"
        if is_foreign(value)
        else "; a schedule can be written if it is one of gx.schedules or was made under gx.schedule, a mask if "
        "it is made of gx.path_matches and gx.ndim_at_least"
        if callable(value)
        else ""
    )
    raise ValueError(f"value: expected what a config can hold at '{path}', got {value!r}{instead}")


def _decode(item: Json, path: str) -> PyTree:
    if isinstance(item, list):
        return [_decode_item(part, path, i) for i, part in enumerate(item)]
    if not isinstance(item, dict):
        return item
    if "call" in item:
        return _decode_call(item, path)
    if isinstance(item.get("tuple"), list):
        return tuple(_decode(item["tuple"], path))
    if isinstance(pairs := item.get("dict"), list):
        return dict(_decode_pair(pair, path) for pair in pairs)
    try:
        return _decode_number(item)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{_at(path)}: expected an encoded value, got {item!r} ({error})") from error


def _at(path: str) -> str:
    return f"config at '{path}'" if path else "config"


def _decode_item(item: Json, path: str, i: int) -> PyTree:
    pair = item.get("tuple") if isinstance(item, dict) else None
    if isinstance(pair, list) and is_named(tuple(pair)):
        return pair[0], _decode(pair[1], join(path, pair[0]))
    return _decode(item, join(path, i))


def _decode_pair(pair: Json, path: str) -> tuple[object, object]:
    if not (isinstance(pair, list) and len(pair) == 2):
        raise ValueError(f"{_at(path)}: expected a pair [key, value], got {pair!r}")
    return _decode(pair[0], path), _decode(pair[1], join(path, pair[0]))


def _decode_number(item: Mapping[str, Any]) -> complex | jax.Array | np.ndarray:
    """A number or an array that JSON cannot hold as it is."""
    if "float" in item:
        return float(item["float"])
    if "complex" in item:
        return complex(*(_decode(part, "complex") for part in item["complex"]))
    if "key" in item:
        return jax.random.wrap_key_data(jnp.asarray(item["key"], jnp.uint32), impl=item["impl"])
    dtype = jnp.dtype(item["dtype"])
    if dtype.hasobject:
        raise ValueError(f"arrays of dtype {dtype} are not read")
    array = np.frombuffer(bytes.fromhex(item["array"]), dtype).reshape(item["shape"])
    return array if item["numpy"] else jnp.asarray(array)


def _decode_call(item: Mapping[str, Json], path: str) -> Value:
    name, given = item["call"], item.get("arguments")
    definition = DEFINITIONS.get(name) if isinstance(name, str) else None
    if definition is None:
        near = nearest(name, DEFINITIONS) if isinstance(name, str) else None
        hint = f"did you mean {near!r}? I" if near else "i"
        raise ValueError(f"{_at(path)}: unknown name {name!r}; {hint}f it is your own factory, import its module first")
    if not isinstance(given, dict):
        raise ValueError(f"{_at(path)}: expected a dict of arguments for {name}, got {given!r}")
    parameters, arguments = definition.signature.parameters, {}
    for key, part in given.items():
        if key not in parameters:
            raise ValueError(f"{_at(path)}: {unknown(f'{name}() has no argument', key, parameters)}")
        spread = parameters[key].kind == inspect.Parameter.VAR_POSITIONAL
        if spread and not isinstance(part, list):
            raise ValueError(f"{_at(path)}: expected a list, got {part!r}")
        arguments[key] = tuple(_decode(part, path)) if spread else _decode(part, join(path, key))
    try:
        made: Value = definition.call(arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_at(path)}: {name}: {error}") from error
    return made
