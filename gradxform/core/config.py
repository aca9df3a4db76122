"""Values as JSON: the call that made them, written down and made again."""

from __future__ import annotations

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core.value import Value, definition_of

VERSION = 1


def to_config(value: Value) -> dict[str, Any]:
    """A value as a dict that JSON can hold.

    Args:
      value: a transformation, schedule or selector.

    Returns:
      ``{"gradxform": version, "call": name, "arguments": {...}}``, for ``from_config``.

    Raises:
      TypeError: ``value`` was not made by a factory.
      ValueError: it holds what cannot be written down, such as a function or another library's transformation.

    Example:
      >>> import gradxform as gx
      >>> gx.to_config(gx.clip(1.0))
      {'gradxform': 1, 'call': 'clip', 'arguments': {'max_delta': 1.0}}
    """
    if not isinstance(value, Value):
        raise TypeError(f"value: expected a transformation, schedule or selector of gradxform, got {value!r}")
    return {"gradxform": VERSION} | _encode(value, value.name)


def from_config(config: dict[str, Any]) -> Any:
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
    return _decode({key: item for key, item in config.items() if key != "gradxform"}, "config")


def _encode(value: Any, where: str) -> Any:
    if isinstance(value, Value):
        parameters = value._definition.signature.parameters
        # *transformations are a tuple by nature; a plain JSON list says it best.
        arguments = {name: list(item) if parameters[name].kind == inspect.Parameter.VAR_POSITIONAL else item
                     for name, item in value.arguments.items()}
        return {"call": value._definition.key,
                "arguments": {name: _encode(item, f"{where}.{name}") for name, item in arguments.items()}}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, complex):
        return {"complex": [_encode(value.real, where), _encode(value.imag, where)]}
    if type(value) in (list, tuple):
        items = [_encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    if type(value) is dict:
        return {"dict": [[_encode(key, where), _encode(item, f"{where}[{key!r}]")] for key, item in value.items()]}
    if isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, jax.core.Tracer):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(value))
            return {"key": data.tolist(), "impl": str(jax.random.key_impl(value))}
        # JSON has no NaN: bytes say every value of every dtype exactly.
        return {"array": np.asarray(value).tobytes().hex(), "dtype": str(value.dtype), "shape": list(value.shape),
                "numpy": isinstance(value, np.ndarray)}
    raise ValueError(f"{where}: cannot be written to a config: {value!r}")


def _decode(item: Any, where: str) -> Any:
    if isinstance(item, list):
        return [_decode(part, f"{where}[{i}]") for i, part in enumerate(item)]
    if not isinstance(item, dict):
        return item
    if "call" in item:
        return _decode_call(item, where)
    if isinstance(item.get("tuple"), list):
        return tuple(_decode(item["tuple"], where))
    if isinstance(item.get("dict"), list):
        return dict(_decode_pair(pair, where) for pair in item["dict"])
    try:
        return _decode_number(item)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{where}: expected an encoded value, got {item!r} ({error})") from error


def _decode_pair(pair: Any, where: str) -> tuple[Any, Any]:
    if not (isinstance(pair, list) and len(pair) == 2):
        raise ValueError(f"{where}: expected a pair [key, value], got {pair!r}")
    return _decode(pair[0], where), _decode(pair[1], f"{where}[{pair[0]!r}]")


def _decode_number(item: dict[str, Any]) -> Any:
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


def _decode_call(item: dict[str, Any], where: str) -> Value:
    name, given = item["call"], item.get("arguments")
    definition = definition_of(name) if isinstance(name, str) else None
    if definition is None:
        raise ValueError(f"{where}: unknown name {name!r}; if it is your own factory, import its module first")
    if not isinstance(given, dict):
        raise ValueError(f"{where}: expected a dict of arguments for {name}, got {given!r}")
    unknown = sorted(set(given) - set(definition.signature.parameters))
    if unknown:
        raise ValueError(f"{where}: {name} has no argument {unknown[0]!r}")
    arguments = {key: _decode(part, f"{where}.{key}") for key, part in given.items()}
    for key, part in arguments.items():
        if definition.signature.parameters[key].kind == inspect.Parameter.VAR_POSITIONAL:
            arguments[key] = tuple(part)
    bound = inspect.BoundArguments(definition.signature, arguments)  # type: ignore[arg-type]
    try:
        return definition.call(bound.args, bound.kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {name}: {error}") from error
