"""NumPy's .npz files: a zip archive of arrays."""

from __future__ import annotations

import math
import pathlib
import zipfile
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from gradxform.transfer.checkpoint import Checkpoint, Entry, check_ratio, is_shape, refuse, refusing

DEFLATE = 1032
"""How many bytes deflate makes of one at most."""
NAMELESS = {"V2": np.dtype(jnp.bfloat16)}
"""NumPy writes a dtype that it has no name for as bytes; of two bytes there is one such in use."""
HINT = "; NumPy writes what it has no name for as bytes: save it as float32, or in a .safetensors file"


def open_file(path: pathlib.Path) -> Checkpoint:
    """A checkpoint of one archive; what the header of an array claims is checked against the archive."""
    entries: dict[str, Entry] = {}
    with refusing(path), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                refuse(path, f"expected arrays alone, found {member.filename!r}")
            if name in entries:
                refuse(path, f"'{name}' occurs twice")
            entries[name] = _entry(path, name, archive, member)

    def read(names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        with refusing(path), zipfile.ZipFile(path) as archive:
            for name in names:
                with archive.open(f"{name}.npy") as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
                    # At the end of the member its checksum is compared.
                    if stream.read(1) or array.shape != entries[name].shape:
                        refuse(path, f"'{name}' is not what its header claims")
                dtype = entries[name].dtype
                if array.dtype.kind == "V" and dtype is not None:
                    array = array.view(dtype)
                yield name, array.astype(array.dtype.newbyteorder("="), copy=False)

    return Checkpoint(path, entries, read)


def _entry(path: pathlib.Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Entry:
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        refuse(path, f"'{name}' is encrypted, or compressed by another method than deflate")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            refuse(path, f"'{name}' has a header of version {version}, expected (1, 0) or (2, 0)")
        shape, _, dtype = readers[version](stream)
        start = stream.tell()
    if dtype.hasobject:
        refuse(path, f"'{name}' holds pickled objects, which are not opened")
    if not is_shape(shape):
        refuse(path, f"'{name}' claims the shape {shape}")
    plain = dtype.kind == "V" and dtype.names is None and dtype.subdtype is None
    known = dtype.newbyteorder("=") if dtype.kind in "biufc" else NAMELESS.get(dtype.str[1:]) if plain else None
    entry = Entry(shape, known, dtype.str, HINT if plain and known is None else "")
    check_ratio(
        path,
        name,
        Entry(shape, dtype, dtype.str),
        member.compress_size,
        1 if member.compress_type == zipfile.ZIP_STORED else DEFLATE,
    )
    if start + math.prod(shape) * dtype.itemsize != member.file_size:
        refuse(path, f"'{name}' claims to be {entry}, which does not fit in its {member.file_size} bytes")
    return entry
