"""What is measured on the device, most important first."""

from __future__ import annotations

from benchmarks.accelerator.cases import Case
from benchmarks.accelerator.rows import augment, ceilings, losses, norms, optimizers, pretraining
from benchmarks.accelerator.sizes import Sizes


def cases(sizes: Sizes) -> list[Case]:
    """All rows: the ceilings, then each room's first ones, then the rest."""
    steps, pairs = optimizers.cases(sizes), losses.cases(sizes)
    few_steps, few_pairs = len(optimizers.RULES), 2 * len(sizes.features) * len(sizes.dtypes)
    return [
        *ceilings.cases(),
        *steps[:few_steps],
        *augment.cases(augment.POLICIES),
        *pairs[:few_pairs],
        *norms.cases(),
        *pretraining.cases(sizes),
        *augment.cases(augment.OPERATIONS),
        *steps[few_steps:],
        *pairs[few_pairs:],
    ]
