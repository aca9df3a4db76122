"""Starting from the weights of a checkpoint."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core.trees import is_tracing, named_leaves
from gradxform.core.types import Mask, Params
from gradxform.core.which import flags
from gradxform.transfer.cast import cast, why_not
from gradxform.transfer.checkpoint import Checkpoint, Entry
from gradxform.transfer.formats import open_checkpoint
from gradxform.transfer.report import Loaded, LoadReport
from gradxform.transfer.rules import (
    Convert,
    Piece,
    Rename,
    Shape,
    Where,
    chosen,
    expressions,
    hint,
    permutation,
    renamed,
    with_slashes,
)


def load_pretrained(path: str | os.PathLike[str], params: Params, *, rename: Rename = (),
                    skip: str | Sequence[str] = (), new: Mask | str | None = None,
                    transpose: Mapping[Where, Sequence[int]] | None = None, reshape: Mask | str | None = None,
                    convert: Mapping[Where, Convert] | None = None,
                    root: str | os.PathLike[str] | None = None) -> tuple[Params, LoadReport]:
    """Loads params from a safetensors, npz or Orbax checkpoint, all of them or none.

    Every param has to come from the checkpoint or be named in ``new``, and every array of the checkpoint has to become
    a param or be named in ``skip``. What is left over, does not fit or cannot be cast is one error that lists every
    path. Names, shapes and dtypes are compared before an array is read.

    An array goes to the param whose path is its name; in both a dot counts as a slash, so that torch's
    ``encoder.dense.bias`` is ``encoder/dense/bias``. Regular expressions are searched for, as in ``gx.path_matches``:
    ``^`` and ``$`` tie them to the ends. Those of ``rename`` and ``skip`` see the name in the file with slashes, the
    others see the path of a param. The steps for an array are: cut in parts (by ``rename``), transpose, reshape,
    convert, cast. A square matrix fits in both orders: that it is to be transposed only a rule can say.

    The dtype is that of the param. Cast is from floating-point numbers to others, from real to complex ones, and from
    integers to others that hold every value; a number that would become infinite is refused.

    Checkpoints are data: no pickle is opened, and a file that is truncated, damaged or larger in its header than on the
    disk is refused. Nothing is written.

    Args:
      path: a ``.safetensors`` or ``.npz`` file; a ``.safetensors.index.json`` file or a directory with one, or with one
        ``.safetensors`` file; or the directory of an Orbax checkpoint of one tree.
      params: a pytree of arrays or ``jax.ShapeDtypeStruct``: params or variables of Flax Linen, a ``nnx.State``.
      rename: regular expressions and what each match in a name is replaced by, in this order, as in ``re.sub``. In the
        place of one replacement several cut the array into as many equal parts along its first axis, as
        ``{"qkv/weight$": ["query/kernel", "key/kernel", "value/kernel"]}``.
      skip: regular expressions of names in the file that are not used.
      new: which params keep their value, such as a head for other classes: a regular expression of paths, a selector or
        a mask.
      transpose: permutations of axes by regular expressions of paths or selectors; the first that selects a param is
        its. Torch's convolutions and dense layers fit those of Flax with
        ``{gx.path_matches("kernel$") & gx.ndim_at_least(4): (2, 3, 1, 0), "kernel$": (1, 0)}``.
      reshape: which params get their array in their own shape when it has as many numbers: as ``new``.
      convert: functions of an array and the shape of its param that return what to put there, by regular expressions
        or selectors, as ``{"pos_embed$": resize_positions}``.
      root: the directory that all files have to lie in when links are followed; by default the directory that ``path``
        is, or that the index is in.

    Returns:
      A tree like ``params``, each leaf with the dtype and sharding that it has there (NumPy arrays stay such), and the
      report, which prints as a table.

    Raises:
      FileNotFoundError: there is nothing at ``path``.
      ImportError: the library for the format is not installed.
      TypeError: a rule is of the wrong kind.
      ValueError: the checkpoint is not safe to read, or it does not fit ``params``, with every path that does not.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> from gradxform.transfer import load_pretrained
      >>> params = {"dense": {"kernel": np.zeros((2, 3), np.float32)}, "head": np.ones(1, np.float32)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder) / "model.npz"
      ...     np.savez(file, **{"dense.weight": np.float32([[1, 2], [3, 4], [5, 6]])})
      ...     params, report = load_pretrained(file, params, rename={"weight$": "kernel"}, new="^head",
      ...                                      transpose={"kernel$": (1, 0)})
      >>> params["dense"]["kernel"]
      array([[1., 3., 5.],
             [2., 4., 6.]], dtype=float32)
      >>> print(report)
      model.npz: 1 of 2 params loaded, 6 numbers, 24 bytes
      loaded
        dense/kernel  (2, 3) float32  <- dense.weight, transpose (1, 0)
      left new
        head
    """
    leaves, treedef = jax.tree.flatten(params)
    if is_tracing(leaves):
        raise TypeError("params: expected arrays to load into, got tracers; load outside of jit")
    targets = _targets(params, new, transpose or {}, reshape, convert or {}, idle := list[str]())
    skips = expressions("skip", skip)
    checkpoint = open_checkpoint(path, root)

    skipped = {name for name in checkpoint.entries if any(p.search(with_slashes(name)) for p in skips)}
    used = [name for name in checkpoint.entries if name not in skipped]
    idle += [f"skip {p.pattern!r}" for p in skips if not any(map(p.search, map(with_slashes, skipped)))]
    sources, unused, problems = _match(renamed(used, rename, idle), targets, checkpoint)
    problems += [problem for target in targets if target.path in sources
                 for problem in _unfit(target, sources[target.path], checkpoint.entries)]
    _raise(checkpoint.path, problems)

    values, loaded = _read(checkpoint, [target for target in targets if target.path in sources], sources)
    made = [values.get(target.path, leaf) for target, leaf in zip(targets, leaves, strict=True)]
    return jax.tree.unflatten(treedef, made), LoadReport(
        checkpoint.path.name, tuple(loaded[target.path] for target in targets if target.path in loaded),
        tuple(target.path for target in targets if target.new),
        tuple(name for name in checkpoint.entries if name in skipped), tuple(unused), tuple(idle))


@dataclasses.dataclass(frozen=True)
class _Target:
    """A leaf of params and its rules."""

    path: str
    leaf: Any
    new: bool
    axes: tuple[int, ...] | None
    reshape: bool
    convert: Convert | None

    @property
    def shape(self) -> Shape:
        return tuple(jnp.shape(self.leaf))

    @property
    def dtype(self) -> Any:
        return self.leaf.dtype if hasattr(self.leaf, "dtype") else jnp.result_type(self.leaf)


def _targets(params: Params, new: Mask | str | None, transpose: Mapping[Where, Any], reshape: Mask | str | None,
             convert: Mapping[Where, Any], idle: list[str]) -> list[_Target]:
    leaves = named_leaves(params)
    news, reshapes = flags("new", new, params), flags("reshape", reshape, params)
    if new is not None and not any(news):
        raise ValueError(f"new: expected to find params to leave new, but {new!r} selects none of "
                         f"{', '.join(path for path, _ in leaves)}")
    if reshape is not None and not any(reshapes):
        idle.append(f"reshape {reshape!r}")
    axes = [permutation("transpose", value) for value in chosen("transpose", transpose, params, len(leaves), idle)]
    converts = chosen("convert", convert, params, len(leaves), idle)
    for function in converts:
        if function is not None and not callable(function):
            raise TypeError(f"convert: expected functions of an array and a shape, got {function!r}")
    return [_Target(path, leaf, *rules) for (path, leaf), *rules in zip(
        leaves, news, axes, reshapes, converts, strict=True)]


def _match(pieces: list[Piece], targets: list[_Target],
           checkpoint: Checkpoint) -> tuple[dict[str, Piece], list[str], list[str]]:
    """The piece for each path, the names that are not needed, and what does not match."""
    by_name: dict[str, list[_Target]] = {}
    for target in targets:
        by_name.setdefault(with_slashes(target.path), []).append(target)
    sources: dict[str, Piece] = {}
    unused: dict[str, None] = {}
    problems = [f"{' and '.join(target.path for target in same)}: one name for {len(same)} params"
                for same in by_name.values() if len(same) > 1]
    for piece in pieces:
        found = by_name.get(with_slashes(piece.name))
        if found is None:
            problems.append(f"{piece.source} {checkpoint.entries[piece.source]} in the file: there is no param "
                            f"{piece.name}; rename it, or name it in skip")
        elif found[0].new:
            unused[piece.source] = None
        elif found[0].path in sources:
            problems.append(f"{found[0].path}: there are two arrays for it, {sources[found[0].path].source} and "
                            f"{piece.source}")
        else:
            sources[found[0].path] = piece
    for target in targets:
        if not target.new and target.path not in sources:
            problems.append(f"{target.path} {target.shape} {target.dtype}: there is no array for it in the file; "
                            "rename one, or name it in new")
        elif target.new and isinstance(target.leaf, jax.ShapeDtypeStruct):
            problems.append(f"{target.path}: it has a shape and no value that could be left new; give an array")
    # Of an array that is cut, some parts may be for params that are left new.
    needed = {piece.source for piece in sources.values()}
    return sources, [name for name in unused if name not in needed], problems


def _unfit(target: _Target, piece: Piece, entries: Mapping[str, Entry]) -> list[str]:
    """What keeps an array from becoming a param, as far as it can be told without reading it."""
    entry = entries[piece.source]
    if entry.dtype is None:
        return [f"{target.path}: {piece.source} is {entry}, which is no dtype of an array here"]
    if reason := why_not(entry.dtype, target.dtype, on_host=isinstance(target.leaf, (np.ndarray, np.generic))):
        return [f"{target.path}: {entry.dtype} of {piece.source}, {target.dtype} expected; {reason}"]
    shape, told = entry.shape, f"{target.path}: {entry.shape} of {piece.source}"
    if piece.parts > 1:
        if not shape or shape[0] % piece.parts:
            return [f"{told}, which cannot be cut into {piece.parts} equal parts"]
        shape = (shape[0] // piece.parts, *shape[1:])
        told += f", {shape} when cut"
    if target.axes is not None:
        if len(target.axes) != len(shape):
            return [f"{told}, which cannot be transposed by {target.axes}"]
        shape = tuple(shape[axis] for axis in target.axes)
        told += f", {shape} when transposed"
    fits = math.prod(shape) == math.prod(target.shape) if target.reshape else shape == target.shape
    if fits or target.convert is not None:
        return []
    return [f"{told}, {target.shape} expected{hint(shape, target.shape)}"]


def _read(checkpoint: Checkpoint, targets: list[_Target],
          sources: Mapping[str, Piece]) -> tuple[dict[str, Any], dict[str, Loaded]]:
    """The values by path and what was done to each."""
    wanted: dict[str, list[_Target]] = {}
    for target in targets:
        wanted.setdefault(sources[target.path].source, []).append(target)
    values, loaded, problems = dict[str, Any](), dict[str, Loaded](), list[str]()
    for name, array in checkpoint.read(list(wanted)):
        for target in wanted[name]:
            try:
                values[target.path], loaded[target.path] = _value(target, sources[target.path], array)
            except _Unfit as error:
                problems.append(f"{target.path}: {name} {error}")
    _raise(checkpoint.path, problems)
    return values, loaded


class _Unfit(ValueError):
    """An array that has turned out not to fit."""


def _value(target: _Target, piece: Piece, array: np.ndarray[Any, Any]) -> tuple[Any, Loaded]:
    changes = []
    if piece.parts > 1:
        array = np.split(array, piece.parts)[piece.part]
        changes.append(f"part {piece.part + 1} of {piece.parts}")
    if target.axes is not None:
        array = array.transpose(target.axes)
        changes.append(f"transpose {target.axes}")
    if target.reshape and array.shape != target.shape:
        changes.append(f"reshape {array.shape}")
        array = array.reshape(target.shape)
    if target.convert is not None:
        before = array.shape
        array = np.asarray(target.convert(array, target.shape))
        changes.append(f"{before} by {getattr(target.convert, '__name__', target.convert)}")
        if array.shape != target.shape:
            raise _Unfit(f"became {array.shape} when converted, {target.shape} expected")
        if reason := why_not(array.dtype, target.dtype, on_host=isinstance(target.leaf, (np.ndarray, np.generic))):
            raise _Unfit(f"became {array.dtype} when converted, {target.dtype} expected; {reason}")
    if array.dtype != target.dtype:
        changes.append(f"from {array.dtype}")
    made = cast(array, np.dtype(target.dtype))
    if isinstance(made, str):
        raise _Unfit(made)
    nonfinite = int(np.count_nonzero(~np.isfinite(made))) if jnp.issubdtype(made.dtype, jnp.inexact) else 0
    return _placed(made, target.leaf), Loaded(
        target.path, piece.source, target.shape, str(target.dtype), tuple(changes), nonfinite)


def _placed(array: np.ndarray[Any, Any], leaf: Any) -> Any:
    """The array where the leaf is: on the host, on its devices, or wherever jax puts what is not told."""
    if isinstance(leaf, (np.ndarray, np.generic)):
        return array
    sharding = getattr(leaf, "sharding", None)
    told = getattr(leaf, "committed", sharding is not None)
    return jax.device_put(array, sharding) if told else jnp.asarray(array)


def _raise(path: pathlib.Path, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"'{path}' does not fit params, nothing is loaded:\n  " + "\n  ".join(problems))
