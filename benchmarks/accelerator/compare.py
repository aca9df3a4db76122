"""Values of the device against those of the CPU, from the same arguments in the same process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.accelerator.budget import TimeUp
from benchmarks.accelerator.build import Program, build
from benchmarks.accelerator.cases import Session
from benchmarks.accelerator.record import FAILED, PASSED

DEVICE, CPU = "device", "CPU"


class Difference(NamedTuple):
    """How far two trees of arrays are apart.

    Attributes:
      largest: of whole numbers in levels; of others over the largest number of its array, infinite where one of the two
        is not finite and the other is not the same.
      share: the share of numbers that differ at all.
      leaf: the path of the array where it is largest.
    """

    largest: float
    share: float
    leaf: str


def difference(ours: Any, theirs: Any) -> Difference:
    """How far two trees of arrays are apart.

    Raises:
      ValueError: they have not the same structure, shapes and dtypes.
    """
    (paths, structure), other = jax.tree_util.tree_flatten_with_path(ours), jax.tree.structure(theirs)
    if structure != other:
        raise ValueError(f"expected trees of one structure, got {structure} and {other}")
    found, unlike, size = Difference(0.0, 0.0, ""), 0, 0
    for (path, a), b in zip(paths, jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(f"{name}: expected {b.shape} {b.dtype}, got {a.shape} {a.dtype}")
        whole = a.dtype.kind in "iub"
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        unlike, size = unlike + int(np.sum(~same)), size + a.size
        apart = np.where(same, 0.0, np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)))
        largest = float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))
        scale = float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b)))
        if not whole and largest:
            largest = largest / scale if scale else np.inf
        if largest > found.largest:
            found = found._replace(largest=largest, leaf=name)
    return found._replace(share=unlike / size if size else 0.0)


def compared(session: Session, function: Callable[..., Any], args: tuple[Any, ...], tolerance: float) -> dict[str, Any]:
    """Runs a function on the device and on the CPU.

    Args:
      session: of the case.
      function: of arrays; the key of what it draws is one of them.
      args: the arrays, of any device.
      tolerance: the largest difference allowed, see ``Difference``; 0 for the same bits.

    Returns:
      The entry of the record.

    Raises:
      TimeUp: it could not be compiled in time.
      RuntimeError: it could not be compiled.
    """
    device, cpu = session.device, jax.devices("cpu")[0]
    placed = {DEVICE: jax.device_put(args, device)}
    if device != cpu:
        placed[CPU] = jax.device_put(args, cpu)
    built, missing = build({name: Program(function, own) for name, own in placed.items()}, session.lap)
    for name, why in missing.items():
        if why.startswith("time: "):
            raise TimeUp(f"{name}: {why.removeprefix('time: ')}")
        raise RuntimeError(f"{name}: {why}")
    values = {name: jax.block_until_ready(built[name].call(*own)) for name, own in placed.items()}
    # On a CPU alone, to try the whole out, there is but itself.
    found = difference(values[DEVICE], values.get(CPU, values[DEVICE]))
    return {
        "status": PASSED if found.largest <= tolerance else FAILED,
        "largest": found.largest,
        "share_unlike": found.share,
        "leaf": found.leaf,
        "tolerance": tolerance,
        "against": CPU if device != cpu else "itself",
        "build_s": {name: one.seconds for name, one in built.items()},
    }
