"""A selection of each room's tests on the device, most important first: its values against the CPU's."""

from __future__ import annotations

from benchmarks.accelerator.cases import Case
from benchmarks.accelerator.checks import augment, losses, masking, norms, optimizers


def cases() -> list[Case]:
    """All checks."""
    return [case for room in (optimizers, norms, losses, augment, masking) for case in room.cases()]
