"""What a program has found so far, on disk, each part under a name: after an interrupt it goes on from there."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np


class Checkpoints:
    """Trees of arrays by name, in a folder that belongs to one set of settings.

    Runs of other settings have folders of their own: nothing of theirs is read, and nothing is overwritten.

    Args:
      folder: where the folders are.
      settings: all that the results depend on, as JSON can hold it.
    """

    def __init__(self, folder: pathlib.Path, settings: dict[str, Any]):
        text = json.dumps(settings, sort_keys=True, indent=2)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / "settings.json", text.encode())

    def names(self) -> list[str]:
        """What is there."""
        return sorted(path.stem for path in self.folder.glob("*.npz"))

    def clear(self) -> None:
        """Forgets all that is there."""
        for path in self.folder.glob("*.npz"):
            path.unlink()

    def save(self, name: str, tree: Any, note: Any = None) -> None:
        """Writes a tree, with a note that JSON can hold, whole, or, where that is interrupted, not at all."""
        partial = self.folder / f"{name}.partial"
        with partial.open("wb") as file:
            notes = {} if note is None else {"note": np.array(json.dumps(note))}
            np.savez(file, *map(np.asarray, jax.tree.leaves(tree)), **notes)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path(name))

    def load(self, name: str, like: Any) -> Any:
        """Reads a tree.

        Args:
          name: its name.
          like: a tree of the same structure, of the same shapes and dtypes.

        Returns:
          The tree, or None where there is none of that name.

        Raises:
          ValueError: the file is no such tree.
        """
        arrays = self._read(name)
        if arrays is None:
            return None
        leaves, structure = jax.tree.flatten(like)
        found = [x for key, x in arrays.items() if key != "note"]
        if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in leaves]:
            raise ValueError(
                f"{self._path(name)} holds something else than expected; delete it to begin that part anew")
        return jax.tree.unflatten(structure, found)

    def note(self, name: str) -> Any:
        """The note that was saved with a tree, or None where there is none."""
        arrays = self._read(name) or {}
        return json.loads(arrays["note"].item()) if "note" in arrays else None

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / f"{name}.npz"

    def _read(self, name: str) -> dict[str, np.ndarray] | None:
        path = self._path(name)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read ({error}); delete it to begin that part anew") from None


def _replace(path: pathlib.Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)
