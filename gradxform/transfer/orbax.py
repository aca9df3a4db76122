"""Orbax checkpoints of a tree: directories, with arrays in TensorStore."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NoReturn

import jax
import numpy as np

from gradxform.core.trees import path_name
from gradxform.core.types import KeyPath
from gradxform.transfer.checkpoint import (
    FORMATS,
    Checkpoint,
    Entry,
    Roots,
    check_ratio,
    inside,
    parse_json,
    refuse,
    refusing,
    require,
)

METADATA = "_METADATA"
UNFINISHED = ".orbax-checkpoint-tmp"
ZSTD = 2**16
"""How many bytes zstd makes of one at most, and more: it writes 128 KiB of one value in four."""


def is_checkpoint(path: pathlib.Path) -> bool:
    """Whether a directory is meant to be a checkpoint of a tree."""
    return UNFINISHED in path.name or (path / METADATA).exists()


def refuse_directory(path: pathlib.Path) -> NoReturn:
    """Says which checkpoints there are further down, if there are."""
    found = [item.parent for depth in ("*", "*/*", "*/*/*") for item in sorted(path.glob(f"{depth}/{METADATA}"))]
    hint = f"; did you mean {' or '.join(repr(str(item)) for item in found[:10])}?" if found else ""
    refuse(path, f"expected {FORMATS}; an Orbax checkpoint has a file {METADATA}{hint}")


def open_directory(path: pathlib.Path, roots: Roots) -> Checkpoint:
    """A checkpoint of one tree, as ``StandardCheckpointer`` and ``PyTreeCheckpointer`` save it."""
    library = require("orbax.checkpoint", path)
    if UNFINISHED in path.name:
        refuse(path, "saving was not finished")
    stored = sum(
        inside(pathlib.Path(folder) / name, roots).stat().st_size
        for folder, folders, files in os.walk(path)
        for name in [*folders, *files]
    )
    recorded = _recorded(path)
    with refusing(path), library.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path.absolute())
        tree = getattr(metadata, "item_metadata", metadata)
        tree = getattr(tree, "tree", tree)
    if tree is None:
        refuse(path, f"its arrays were not found, or its {METADATA} describes no tree")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if len(leaves) != recorded:
        refuse(path, f"its {METADATA} has {recorded} arrays, of which {len(leaves)} were found")
    names = _names([key for key, _ in leaves])
    if len(set(names)) < len(names):
        refuse(path, "two of its arrays have one name")
    entries = {}
    for name, (_, leaf) in zip(names, leaves, strict=True):
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        entries[name] = Entry(
            tuple(shape or ()),
            None if shape is None or dtype is None else np.dtype(dtype),
            type(leaf).__name__ if dtype is None else str(dtype),
        )
        check_ratio(path, name, entries[name], stored, ZSTD)

    def read(wanted: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        # What is not wanted, such as the state of an optimizer, stays a placeholder and is not read.
        needed = set(wanted)
        item = jax.tree.unflatten(
            jax.tree.structure(tree), [0 if name in needed else library.PLACEHOLDER for name in names]
        )
        restore_args = jax.tree.map(lambda _: library.RestoreArgs(restore_type=np.ndarray), tree)
        with refusing(path), library.PyTreeCheckpointer() as checkpointer:
            restored = checkpointer.restore(
                path.absolute(), args=library.args.PyTreeRestore(item=item, restore_args=restore_args)
            )
        values = dict(zip(names, jax.tree.leaves(restored), strict=True))
        for name in wanted:
            array, entry = np.asarray(values.pop(name)), entries[name]
            if array.shape != entry.shape or array.dtype != entry.dtype:
                refuse(path, f"'{name}' is {array.shape} {array.dtype}, its metadata claims {entry}")
            yield name, array

    return Checkpoint(path, entries, read)


def _recorded(path: pathlib.Path) -> int:
    """The number of arrays in a tree, whose keys become names of files and have to stay in the directory."""
    metadata = parse_json(path / METADATA, (path / METADATA).read_bytes())
    with refusing(path):
        keys = [tuple(str(part["key"]) for part in item["key_metadata"]) for item in metadata["tree_metadata"].values()]
        full = [not item["value_metadata"].get("skip_deserialize") for item in metadata["tree_metadata"].values()]
        keeps_zeros = metadata.get("store_array_data_equal_to_fill_value")
    for key in keys:
        for part in key:
            pure = pathlib.PurePosixPath(part)
            if pure.is_absolute() or ".." in pure.parts or "\\" in part or "\0" in part:
                refuse(path, f"the key {part!r} leads out of the directory")
    if keeps_zeros is not True:
        refuse(
            path,
            "it was saved without its zeros, so that what is lost cannot be told from what is zero; restore "
            "it and save it again with a newer Orbax",
        )
    return sum(full)


def _names(keys: Sequence[KeyPath]) -> list[str]:
    """The paths of the leaves; those of a state of Flax NNX, which all end in ``value``, without that."""
    names = [path_name(key) for key in keys]
    if all(name.endswith("/value") for name in names):
        return [name.removesuffix("/value") for name in names]
    return names
