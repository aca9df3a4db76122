"""Starting from the weights of a checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradxform.core.trees import is_tracing, named_leaves
from gradxform.core.types import Mask, Params
from gradxform.transfer.checkpoint import Checkpoint, Entry
from gradxform.transfer.formats import open_checkpoint
from gradxform.transfer.report import Loaded, LoadReport
from gradxform.transfer.rules import (
    Convert,
    Piece,
    Rename,
    Shape,
    Where,
    first,
    function,
    name_rules,
    param_rules,
    permutation,
    renamed,
    selected,
    with_slashes,
)
from gradxform.transfer.steps import Cast, Converted, Cut, Form, Joined, Misfit, Reshaped, Route, Step, Transposed


def load_pretrained(
    path: str | os.PathLike[str],
    params: Params,
    *,
    rename: Rename = (),
    skip: str | Sequence[str] = (),
    new: Mask | str | None = None,
    transpose: Mapping[Where, Sequence[int]] | None = None,
    reshape: Mask | str | None = None,
    convert: Mapping[Where, Convert] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> tuple[Params, LoadReport]:
    """Loads params from a safetensors, npz or Orbax checkpoint, all of them or none.

    Every param has to come from the checkpoint or be named in ``new``, and every array of the checkpoint has to become
    a param or be named in ``skip``. What is left over, does not fit, cannot be cast or makes a function fail is one
    error that lists every path. Names, shapes and dtypes are compared before an array is read.

    An array goes to the param whose path is its name; in both a dot counts as a slash, so that torch's
    ``encoder.dense.bias`` is ``encoder/dense/bias``. Regular expressions are searched for, as in ``gx.path_matches``:
    ``^`` and ``$`` tie them to the ends. Those of ``rename`` and ``skip`` see the name in the file, the others see the
    path of a param; all may be spelled with dots or with slashes. The steps for an array are: cut in parts and join
    with others (by ``rename``), transpose, reshape, convert, cast. A square matrix fits in both orders: that it is to
    be transposed only a rule can say.

    The dtype is that of the param. Cast is from floating-point numbers to others, from real to complex ones, and from
    integers to others that hold every value; a number that would become infinite is refused.

    Checkpoints are data: no pickle is opened, and a file that is truncated, damaged or larger in its header than on the
    disk is refused. Nothing is written. NumPy has no name for bfloat16: two bytes without one are taken for it.

    Args:
      path: a ``.safetensors`` or ``.npz`` file; a ``.safetensors.index.json`` file or a directory with one, or with one
        ``.safetensors`` file; or the directory of an Orbax checkpoint of one tree. What ``snapshot_download`` of the
        Hugging Face hub returns is such a directory.
      params: a pytree of arrays or ``jax.ShapeDtypeStruct``: params or variables of Flax Linen, a ``nnx.State``.
      rename: regular expressions and what each match in a name is replaced by, in this order, as in ``re.sub``. In the
        place of one replacement a list of several cuts the array into as many equal parts along its first axis, as
        ``{"qkv.weight$": ["query/kernel", "key/kernel", "value/kernel"]}``; a ``Copy`` gives it to several params, and
        a ``Join`` makes one array of all that get the same name: scanned layers, or weight and scale.
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
        is, or that the index is in, and for a snapshot in a cache of the Hugging Face hub the ``blobs`` that belong to
        it.

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
      >>> import numpy as np, safetensors.numpy
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

      Here the files of a model as a cache of the hub holds them, links to ``blobs``:

      >>> with tempfile.TemporaryDirectory() as folder:
      ...     snapshot = pathlib.Path(folder) / "models--name" / "snapshots" / "1f3a"  # as snapshot_download returns it
      ...     blob = snapshot.parents[1] / "blobs" / "c0ffee"
      ...     for directory in (snapshot, blob.parent):
      ...         directory.mkdir(parents=True)
      ...     _ = blob.write_bytes(safetensors.numpy.save({"w": np.ones(2, np.float32)}))
      ...     (snapshot / "model.safetensors").symlink_to(blob)
      ...     load_pretrained(snapshot, {"w": np.zeros(2, np.float32)})[0]
      {'w': array([1., 1.], dtype=float32)}
    """
    leaves, treedef = jax.tree.flatten(params)
    if is_tracing(leaves):
        raise TypeError("params: expected arrays to load into, got tracers; load outside of jit")
    renames = name_rules("rename", rename)
    skips = name_rules("skip", [(pattern, None) for pattern in ([skip] if isinstance(skip, str) else skip)])
    news, reshapes = selected("new", new), selected("reshape", reshape)
    transposes = param_rules("transpose", transpose, permutation)
    converts = param_rules("convert", convert, function)
    targets = [
        _Target(path, leaf, *own)
        for (path, leaf), *own in zip(
            named_leaves(params),
            *(first(rules, params, len(leaves)) for rules in (news, transposes, reshapes, converts)),
            strict=True,
        )
    ]
    if any(not rule.hits for rule in news):
        raise ValueError(
            f"new: expected to find params to leave new, but {new!r} selects none of "
            f"{', '.join(target.path for target in targets)}"
        )
    checkpoint = open_checkpoint(path, root)

    skipped = {name for rule in skips for name in checkpoint.entries if rule.applies(with_slashes(name))}
    pieces = renamed([name for name in checkpoint.entries if name not in skipped], renames)
    sources, unused, problems = _match(pieces, targets, checkpoint)
    routes = [target.route(sources[target.path]) for target in targets if target.path in sources]
    fit, misfits = _compare(routes, checkpoint.entries)
    problems += misfits
    # Where something is wrong already, only what functions say of their arrays is still to be found out.
    values, loaded, misfits = _read(
        checkpoint,
        [route for route, known in fit if not (known and problems)],
        {target.path: target.leaf for target in targets},
    )
    problems += misfits
    if problems:
        raise ValueError(f"'{checkpoint.path}' does not fit params, nothing is loaded:\n  " + "\n  ".join(problems))

    made = [values.get(target.path, leaf) for target, leaf in zip(targets, leaves, strict=True)]
    return jax.tree.unflatten(treedef, made), LoadReport(
        checkpoint.path.name,
        tuple(loaded[target.path] for target in targets if target.path in loaded),
        tuple(target.path for target in targets if target.new),
        tuple(name for name in checkpoint.entries if name in skipped),
        tuple(unused),
        tuple(
            str(rule) for rules in (renames, skips, transposes, reshapes, converts) for rule in rules if not rule.hits
        ),
    )


Leaf: TypeAlias = ArrayLike | jax.ShapeDtypeStruct
"""What stands in params for an array that is loaded."""


@dataclasses.dataclass(frozen=True)
class _Target:
    """A leaf of params and its rules."""

    path: str
    leaf: Leaf
    new: bool | None
    axes: tuple[int, ...] | None
    reshape: bool | None
    convert: Convert | None

    @property
    def shape(self) -> Shape:
        return tuple(jnp.shape(self.leaf))

    @property
    def dtype(self) -> Any:
        return self.leaf.dtype if hasattr(self.leaf, "dtype") else jnp.result_type(self.leaf)

    def route(self, pieces: list[Piece]) -> Route:
        """The steps from these arrays to this leaf."""
        pieces = sorted(pieces, key=lambda piece: piece.place)
        steps: list[Step | None] = [
            Joined(pieces[0].join) if pieces[0].join else None,
            Transposed(self.axes) if self.axes is not None else None,
            Reshaped(self.shape) if self.reshape else None,
            Converted(self.convert, self.shape) if self.convert else None,
            Cast(self.shape, self.dtype, on_host=isinstance(self.leaf, (np.ndarray, np.generic))),
        ]
        return Route(
            self.path,
            tuple(piece.source for piece in pieces),
            tuple(Cut(*piece.cut) if piece.cut else None for piece in pieces),
            tuple(step for step in steps if step is not None),
        )


def _match(
    pieces: list[Piece], targets: list[_Target], checkpoint: Checkpoint
) -> tuple[dict[str, list[Piece]], list[str], list[str]]:
    """The pieces for each path, the names that are not needed, and what does not match."""
    by_name: dict[str, list[_Target]] = {}
    for target in targets:
        by_name.setdefault(with_slashes(target.path), []).append(target)
    sources: dict[str, list[Piece]] = {}
    unused: dict[str, None] = {}
    problems = [
        f"{' and '.join(target.path for target in same)}: one name for {len(same)} params"
        for same in by_name.values()
        if len(same) > 1
    ]
    for piece in pieces:
        found = by_name.get(piece.name)
        if found is None:
            problems.append(
                f"{piece.source} {checkpoint.entries[piece.source]} in the file: there is no param "
                f"{piece.name}; rename it, or name it in skip"
            )
        elif found[0].new:
            unused[piece.source] = None
        else:
            sources.setdefault(found[0].path, []).append(piece)
    for path, same in sources.items():
        joins = {piece.join for piece in same}
        if len(same) > 1 and (None in joins or len(joins) > 1):
            problems.append(
                f"{path}: there are {len(same)} arrays for it, "
                f"{', '.join(piece.source for piece in same)}; a Join in rename makes them one"
            )
    for target in targets:
        if not target.new and target.path not in sources:
            problems.append(
                f"{target.path} {target.shape} {target.dtype}: there is no array for it in the file; "
                "rename one, or name it in new"
            )
        elif target.new and isinstance(target.leaf, jax.ShapeDtypeStruct):
            problems.append(f"{target.path}: it has a shape and no value that could be left new; give an array")
    # Of an array that is cut or copied, some parts may be for params that are left new.
    needed = {piece.source for same in sources.values() for piece in same}
    return sources, [name for name in unused if name not in needed], problems


def _compare(routes: list[Route], entries: Mapping[str, Entry]) -> tuple[list[tuple[Route, bool]], list[str]]:
    """The routes that may lead to their params, and whether it is known that they do; why the others do not."""
    fit, misfits = list[tuple[Route, bool]](), list[str]()
    forms = {name: Form(entry.shape, entry.dtype) for name, entry in entries.items() if entry.dtype is not None}
    for route in routes:
        strange = [
            f"{name} is {entries[name]}, which is no dtype of an array here{entries[name].hint}"
            for name in route.sources
            if entries[name].dtype is None
        ]
        try:
            if strange:
                raise Misfit(strange[0])
            fit.append((route, route.check(forms) is not None))
        except Misfit as misfit:
            misfits.append(f"{route.path}: {misfit}")
    return fit, misfits


def _read(
    checkpoint: Checkpoint, routes: list[Route], leaves: Mapping[str, Leaf]
) -> tuple[dict[str, jax.Array | np.ndarray], dict[str, Loaded], list[str]]:
    """The value for each path, what was done to it, and what has turned out not to fit."""
    wanted: dict[str, list[Route]] = {}
    for route in routes:
        for name in dict.fromkeys(route.sources):
            wanted.setdefault(name, []).append(route)
    values, loaded, misfits = dict[str, jax.Array | np.ndarray](), dict[str, Loaded](), list[str]()
    waiting: dict[str, dict[str, np.ndarray]] = {route.path: {} for route in routes}
    for name, array in checkpoint.read(list(wanted)):
        for route in wanted[name]:
            waiting[route.path][name] = array
            if len(waiting[route.path]) < len({*route.sources}):
                continue
            try:
                made, done = route.array(waiting.pop(route.path))
            except Misfit as misfit:
                misfits.append(f"{route.path}: {misfit}")
                continue
            nonfinite = int(np.count_nonzero(~np.isfinite(made))) if jnp.issubdtype(made.dtype, jnp.inexact) else 0
            values[route.path] = _placed(made, leaves[route.path])
            loaded[route.path] = Loaded(route.path, route.sources, made.shape, str(made.dtype), done, nonfinite)
    return values, loaded, misfits


def _placed(array: np.ndarray, leaf: Leaf) -> jax.Array | np.ndarray:
    """The array where the leaf is: on the host, on its devices, or wherever jax puts what is not told."""
    if isinstance(leaf, (np.ndarray, np.generic)):
        return array
    sharding = getattr(leaf, "sharding", None)
    told = getattr(leaf, "committed", sharding is not None)
    return jax.device_put(array, sharding) if told else jnp.asarray(array)
