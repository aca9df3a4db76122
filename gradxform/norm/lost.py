"""A check for the first steps of a run: what batch norms learn of a batch is there when the step is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradxform.core.types import PyTree


class LostUpdateError(RuntimeError):
    """Running statistics are, after a training step, what they were before it.

    Example:
      >>> from gradxform import norm
      >>> issubclass(norm.nnx.LostUpdateError, RuntimeError)
      True
    """


@contextlib.contextmanager
def expect_updates(holder: nnx.Module | Callable[[], PyTree]) -> Iterator[None]:
    """Checks that a training step changes running statistics.

    Write ``with expect_updates(model): step(model, batch)``. JAX hands a function under ``jax.jit`` or ``jax.grad`` a
    copy of each module among its arguments, and ``nnx.merge`` makes one. What a copy learns is lost unless the function
    returns it, and nobody says so: training looks well, and evaluation is wrong. To compare, the check waits for the
    step and copies statistics to the host, so it is for the first steps of a run.

    Args:
      holder: the model; or a function that returns what holds the statistics, as they are when it is called: a module,
        a state (``lambda: state``), or a tree of statistics alone. Of a module, batch norms that are frozen, in
        evaluation mode or keep no statistics are not looked at; a part of a model can be given where a step trains
        that part alone.

    Returns:
      A context manager.

    Raises:
      ValueError: there are no running statistics in training.
      LostUpdateError: after the block, all the statistics of a batch norm are what they were; it lists the paths.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from gradxform import norm
      >>> layer = norm.nnx.BatchNorm(4, rngs=nnx.Rngs(0))
      >>> step = lambda layer, x: layer(x).sum()
      >>> with norm.nnx.expect_updates(layer):
      ...   y = nnx.jit(step)(layer, jnp.ones((8, 4)))
      >>> with norm.nnx.expect_updates(layer):  # jax.jit makes a copy
      ...   y = jax.jit(step)(layer, jnp.ones((8, 4)))
      Traceback (most recent call last):
      gradxform.norm.lost.LostUpdateError: ...
    """

    def look() -> dict[str, list[np.ndarray]]:
        held = holder if isinstance(holder, nnx.Module) else holder()
        return _of_module(held) if isinstance(held, nnx.Module) else _of_tree(held)

    before = look()
    if not before:
        raise ValueError("holder: expected running statistics of a batch norm in training, got none")
    yield
    after = look()
    if lost := [
        path or "the root"
        for path, arrays in sorted(before.items())
        if path not in after or all(map(np.array_equal, arrays, after[path]))
    ]:
        raise LostUpdateError(
            f"running statistics: expected a step to change them, got the same as before at {', '.join(lost)}; they "
            "were updated on a copy, and are lost. Use nnx.jit and nnx.value_and_grad; or return "
            "nnx.state(model, nnx.BatchStat) from what jax.jit compiles, with has_aux=True from what jax.grad "
            "differentiates, and nnx.update the model with it"
        )


def _of_module(module: nnx.Module) -> dict[str, list[np.ndarray]]:
    """The statistics of the batch norms of a module that are to learn, by the path of each."""
    found = {}
    for path, norm in nnx.iter_modules(module):
        # Flax's own batch norms cannot be frozen.
        if isinstance(norm, nnx.BatchNorm) and not (norm.use_running_average or getattr(norm, "frozen", False)):
            found["/".join(map(str, path))] = [
                array for arrays in _of_tree(nnx.state(norm)).values() for array in arrays
            ]
    return {path: arrays for path, arrays in found.items() if arrays}


def _of_tree(tree: PyTree) -> dict[str, list[np.ndarray]]:
    """Copies of the statistics in a tree, those of a batch norm together, by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    # Where nothing says what it is, all are statistics.
    if any(isinstance(leaf, nnx.Variable) for _, leaf in leaves):
        leaves = [(path, leaf[...]) for path, leaf in leaves if isinstance(leaf, nnx.BatchStat)]
    found: dict[str, list[np.ndarray]] = {}
    for path, array in leaves:
        shards = jnp.asarray(array).addressable_shards
        found.setdefault(jax.tree_util.keystr(path[:-1], simple=True, separator="/"), []).extend(
            np.array(shard.data) for shard in shards
        )
    return found
