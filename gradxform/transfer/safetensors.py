"""Safetensors files, alone or in parts with an index."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from gradxform.core.types import Json
from gradxform.transfer.checkpoint import (
    Checkpoint,
    Entry,
    Roots,
    inside,
    is_shape,
    parse_json,
    refuse,
    refusing,
    require,
)

INDEX = ".safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""In bytes; the library has the same limit."""

NUMPY = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
OTHERS = {"BF16": jnp.bfloat16, "F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2}
"""Dtypes that NumPy has no name for: their bytes are taken as they are."""
DTYPES: dict[str, np.dtype] = {stored: np.dtype(dtype) for stored, dtype in {**NUMPY, **OTHERS}.items()}


class _File(Protocol):
    """A file that the library has open."""

    def get_tensor(self, name: str) -> np.ndarray:
        """The array of a name."""


def open_file(path: pathlib.Path) -> Checkpoint:
    """A checkpoint of one file; its header is checked against its size here, and again by the library."""
    library = require("safetensors", path)
    entries, starts = _header(path)

    def read(names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        with refusing(path), library.safe_open(path, framework="np") as file:
            for name in names:
                yield name, _array(path, name, entries[name], starts[name], file)

    with refusing(path), library.safe_open(path, framework="np") as file:
        if set(file.keys()) != set(entries):
            refuse(path, "its header can be read in two ways")
    return Checkpoint(path, entries, read)


def open_index(path: pathlib.Path, roots: Roots) -> Checkpoint:
    """A checkpoint of several files: the index says which array is in which."""
    index = parse_json(path, path.read_bytes())
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        refuse(path, "expected a weight_map from the names of arrays to names of files")
    parts = {name: open_file(_part(path, name, roots)) for name in sorted(set(places.values()))}
    found = {(name, file) for file, part in parts.items() for name in part.entries}
    if found != set(places.items()):
        wrong = sorted(found.symmetric_difference(places.items()))
        refuse(
            path,
            "the index and its files do not agree: "
            + ", ".join(
                f"'{name}' is {'not in the index' if (name, file) in found else 'not there'} for {file}"
                for name, file in wrong
            ),
        )

    def read(names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        for file, part in parts.items():
            yield from part.read([name for name in names if places[name] == file])

    return Checkpoint(path, {name: parts[file].entries[name] for name, file in places.items()}, read)


def _part(path: pathlib.Path, name: str, roots: Roots) -> pathlib.Path:
    pure = pathlib.PurePosixPath(name)
    # A backslash separates directories elsewhere.
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or pure.suffix != ".safetensors":
        refuse(path, f"expected the names of .safetensors files below its directory in weight_map, got {name!r}")
    part = path.parent / name
    if not part.is_file():
        refuse(path, f"the file {name!r} of the index is missing")
    return inside(part, roots)


def _header(path: pathlib.Path) -> tuple[dict[str, Entry], dict[str, int]]:
    """The arrays that the header describes, and where in the file each starts."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            refuse(path, f"truncated or no safetensors file: {size} bytes, of which the header claims {length}")
        header = parse_json(path, file.read(length))
    if not isinstance(header, dict):
        refuse(path, "expected a header with an object of arrays")
    ranges, entries, end = {}, {}, size - 8 - length
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        entries[name], ranges[name] = _entry(path, name, fields)
    position = 0
    for name, (start, stop) in sorted(ranges.items(), key=lambda item: item[1]):
        if start != position:
            refuse(path, f"'{name}' starts at byte {start} of the data, expected {position}")
        position = stop
    if position != end:
        refuse(path, f"the header describes {position} bytes of data, the file has {end}")
    return entries, {name: 8 + length + start for name, (start, _) in ranges.items()}


def _entry(path: pathlib.Path, name: str, fields: Json) -> tuple[Entry, tuple[int, int]]:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        refuse(path, f"expected dtype, shape and data_offsets of '{name}', got {str(fields)[:200]}")
    stored, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not (
        isinstance(stored, str)
        and is_shape(shape)
        and is_shape(offsets)
        and len(offsets) == 2
        and offsets[0] <= offsets[1]
    ):
        refuse(path, f"expected a dtype, a shape and two offsets of '{name}', got {str(fields)[:200]}")
    entry = Entry(tuple(shape), DTYPES.get(stored), stored)
    if entry.dtype is not None and math.prod(shape) * entry.dtype.itemsize != offsets[1] - offsets[0]:
        refuse(path, f"'{name}' claims to be {entry} in {offsets[1] - offsets[0]} bytes")
    return entry, (offsets[0], offsets[1])


def _array(path: pathlib.Path, name: str, entry: Entry, start: int, file: _File) -> np.ndarray:
    if entry.stored in OTHERS:
        count = math.prod(entry.shape)
        return np.fromfile(path, entry.dtype, count, offset=start).reshape(entry.shape)
    array: np.ndarray = file.get_tensor(name)
    if entry.stored == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        refuse(path, f"'{name}' has truth values other than 0 and 1")
    return array
