"""Which examples a step sees, as a function of the step: there is no position to lose."""

from __future__ import annotations

import numpy as np

from gradxform.core import checks


def order(seed: int, step: int, size: int, batch: int) -> np.ndarray:
    """The indices of the examples of a step: a new permutation in every epoch, and batches that go on over its end.

    Every process calls it alike and takes its slice, so that another number of processes sees the same batches.

    Args:
      seed: of the permutations, >= 0.
      step: the number of the step, from 0 on.
      size: how many examples there are, >= 1.
      batch: how many of them a step sees, >= 1.

    Returns:
      ``batch`` integers from 0 to ``size - 1``.

    Raises:
      TypeError: an argument is not an integer.
      ValueError: one is out of range.

    Example:
      >>> import gradxform as gx
      >>> [gx.resume.order(0, step, size=5, batch=2).tolist() for step in range(5)]
      [[2, 4], [3, 0], [1, 1], [4, 3], [0, 2]]
    """
    for name, value, least in (("seed", seed, 0), ("step", step, 0), ("size", size, 1), ("batch", batch, 1)):
        checks.integer(name, value, at_least=least, known=True)
    first, last = step * batch, (step + 1) * batch
    epochs = range(first // size, (last - 1) // size + 1)
    some = np.concatenate([np.random.default_rng((seed, epoch)).permutation(size) for epoch in epochs])
    return some[first - epochs.start * size :][:batch]
