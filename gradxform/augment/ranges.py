"""Which stages need values in [0, 1], and which leave it: what a chain may put behind what."""

from __future__ import annotations

from collections.abc import Iterable

from gradxform.augment.sequence import Built
from gradxform.core.types import PyTree


def check_order(augmentations: Iterable[PyTree]) -> None:
    """Refuses what needs values in [0, 1] behind what leaves it, in a chain of these augmentations.

    Raises:
      ValueError: for the first one that does.
    """
    leaver = None
    for i, one in enumerate(augmentations):
        stage = one.stage
        if leaver is not None and needs_unit(stage):
            raise ValueError(
                f"augmentations[{i}]: expected what takes any floats behind {leaver!r}, whose result is "
                f"not in [0, 1], got {one!r}, which needs [0, 1]; put it before"
            )
        if leaves_unit(stage):
            leaver = one


def needs_unit(stage: Built) -> bool:
    """Whether a stage, or one that it is made of, needs values in [0, 1]."""
    return getattr(stage, "needs_unit", False) or any(map(needs_unit, _parts(stage)))


def leaves_unit(stage: Built) -> bool:
    """Whether the result of a stage, or of one that it is made of, is not in [0, 1]."""
    return getattr(stage, "leaves_unit", False) or any(map(leaves_unit, _parts(stage)))


def _parts(stage: Built) -> tuple[Built, ...]:
    parts: tuple[Built, ...] = getattr(stage, "stages", getattr(stage, "parts", ()))
    return parts
