"""One run at a time in a folder, on POSIX and on Windows."""

from __future__ import annotations

import pathlib
import sys
from typing import IO


def taken(path: pathlib.Path) -> IO[bytes]:
    """Opens a file that nobody else can open in this way until it is closed, or until this process has ended.

    Raises:
      BlockingIOError: another process, or another part of this one, has it.
      OSError: it cannot be opened, or files cannot be locked there.
    """
    file = path.open("ab")
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            except PermissionError as error:  # there it says so of a file that is taken
                raise BlockingIOError(*error.args) from error
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def release(file: IO[bytes]) -> None:
    """Gives a file back, also where a child of this process has inherited it."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)
    file.close()
