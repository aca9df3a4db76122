"""Whether the files of a checkpoint are those that were written: a checksum of each, beside them.

Orbax sees a file that is too short; a flipped bit in an array comes back as another number, in silence. A
checksum is written before a checkpoint counts, by the process that makes it count.
"""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

NAME = "checksums.json"
PART = 1 << 20
"""Bytes that are read at a time: so many stay in a core's cache until they are summed."""


def write(folder: pathlib.Path, items: Iterable[str]) -> None:
    """Writes the lengths and checksums of all files of some of a checkpoint's parts."""
    files = sorted(path for item in items for path in (folder / item).rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    with ThreadPoolExecutor() as pool:  # most of the time is spent outside of Python
        found = dict(zip(names, pool.map(_sum_of, files), strict=True))
    (folder / NAME).write_text(json.dumps(found))


def wrong(folder: pathlib.Path, item: str, part: int = 0, parts: int = 1) -> str | None:
    """The first file of a part of a checkpoint that is not as it was written, with what was expected; None for none.

    Args:
      folder: of the checkpoint.
      item: the part.
      part: which share of the files is looked at, where several processes do that.
      parts: how many shares there are.
    """
    if item == "manifest" and not (folder / NAME).exists():
        return None  # one of before there were checksums: its version says so
    try:
        listed = json.loads((folder / NAME).read_text())
        mine = sorted(name for name in listed if name.startswith(f"{item}/"))[part::parts]
        with ThreadPoolExecutor() as pool:
            for name, found in zip(mine, pool.map(_sum_if_there, (folder / name for name in mine)), strict=True):
                if found != listed[name]:
                    return f"{folder / name}: expected {_told(listed[name])}, got {_told(found)}"
    except (OSError, ValueError, AttributeError) as error:
        return f"{folder / NAME}: cannot be read: {error}"
    return None


def _sum_of(path: pathlib.Path) -> list[int]:
    """How long a file is and the CRC-32 of what it holds."""
    length, checksum, buffer = 0, 0, memoryview(bytearray(PART))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            length, checksum = length + count, zlib.crc32(buffer[:count], checksum)
    return [length, checksum]


def _sum_if_there(path: pathlib.Path) -> list[int] | None:
    return _sum_of(path) if path.exists() else None


def _told(found: list[int] | None) -> str:
    return "no file" if found is None else f"{found[0]:,} bytes of checksum {found[1]:08x}"
