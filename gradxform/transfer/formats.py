"""Which format a checkpoint has, by its name and what lies in its directory; never by trying to open it."""

from __future__ import annotations

import os
import pathlib

from gradxform.transfer import npz, orbax, safetensors
from gradxform.transfer.checkpoint import FORMATS, Checkpoint, inside, refuse, roots_of

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth", ".th")
"""The usual endings of files that torch and others write by pickle."""

MSGPACK = (
    "tree = flax.serialization.msgpack_restore(pathlib.Path('{name}').read_bytes()); safetensors.flax.save_file("
    "flax.traverse_util.flatten_dict(tree, sep='/'), 'model.safetensors')"
)


def open_checkpoint(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Looks at a checkpoint of any known format without reading its arrays.

    Args:
      path: the file or directory.
      root: the directory that all files have to lie in when links are followed; by default ``path`` itself if it is a
        directory, for the parts of a ``.safetensors.index.json`` the directory of that file, and with a snapshot in a
        cache of the Hugging Face hub its blobs.

    Raises:
      FileNotFoundError: there is nothing at ``path``.
      ImportError: the library of the format is not installed.
      ValueError: the format is unknown or not safe to read, or the checkpoint is damaged, incomplete or reaches outside
        of ``root``.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: no file or directory '{path}'")
    if root is not None:
        inside(path, [pathlib.Path(root)])
    roots = roots_of(path if path.is_dir() else path.parent) if root is None else [pathlib.Path(root)]
    if path.is_dir():
        if orbax.is_checkpoint(path):
            return orbax.open_directory(path, roots)
        if (found := _only(path, "*" + safetensors.INDEX)) is not None:
            return safetensors.open_index(inside(found, roots), roots)
        if (found := _only(path, "*.safetensors")) is not None:
            return safetensors.open_file(inside(found, roots))
        orbax.refuse_directory(path)
    if not path.is_file():
        refuse(path, f"expected {FORMATS}, got neither a file nor a directory")
    if path.name.endswith(safetensors.INDEX):
        return safetensors.open_index(path, roots)
    if path.suffix == ".safetensors":
        return safetensors.open_file(path)
    if path.suffix == ".npz":
        return npz.open_file(path)
    if path.suffix in PICKLES:
        refuse(
            path,
            "a pickle can execute anything when it is opened, so it is not; where you trust it, write it "
            "again with safetensors.torch.save_model(model, 'model.safetensors')",
        )
    if path.suffix == ".msgpack":
        refuse(
            path, "Flax's msgpack is not read; where you trust it, write it again: " + MSGPACK.format(name=path.name)
        )
    return refuse(path, f"expected {FORMATS}")


def _only(path: pathlib.Path, pattern: str) -> pathlib.Path | None:
    found = sorted(path.glob(pattern))
    if len(found) > 1:
        refuse(path, f"expected one checkpoint, found {', '.join(item.name for item in found)}; give the path of one")
    return found[0] if found else None
