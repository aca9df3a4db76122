"""The diagonal of the Fisher information: how much each weight matters to what a classifier says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core import arrays, checks
from gradxform.core.numbers import abs_sq, widen
from gradxform.core.slots import Slot
from gradxform.core.trees import refuse_integers
from gradxform.core.types import Params, PyTree
from gradxform.transfer import fisher_dense

KINDS = ("true", "sampled", "empirical")


def fisher_diagonal(apply: Callable[[Params, Any], jax.Array], params: Params, data: Iterable[Any], *,
                    kind: str = "true", key: jax.Array | None = None, num_samples: int = 1, chunk: int = 16,
                    progress: Callable[[int, int], Any] | None = None) -> PyTree:
    """The diagonal of the Fisher information of a classifier, for ``ewc_penalty``.

    ``F = E_x E_{y ~ p(y|x)} [(d log p(y|x) / d w)**2]`` (Kirkpatrick et al., PNAS 2017; Kunstner, Balles and Hennig,
    NeurIPS 2019, equation 5), squared for each example and then averaged, in float32 at least. The data is streamed.
    The kernels and biases of dense layers over (batch, features) are found in the program of ``apply`` and cost one
    backward pass for the whole batch and each label; the gradients of the other leaves are taken example by example.

    Args:
      apply: ``apply(params, inputs)`` returns logits of shape (batch, classes). Each row may depend on its own example
        alone: BatchNorm has to use its running statistics, and dropout has to be off.
      params: the params, of floating-point numbers.
      data: an iterable of batches: inputs (an array or a tree of arrays with the examples along the first axis), or a
        tuple ``(inputs, labels)`` with integer labels of shape (batch,). A batch smaller than the one before is filled
        up, so that nothing is compiled again for the last.
      kind: ``"true"`` adds up all labels by their probabilities, one backward pass each; ``"sampled"`` draws labels
        from the model, without bias; ``"empirical"`` takes those of the data, which is another quantity.
      key: a random key, for ``"sampled"``.
      num_samples: the labels drawn for each example, >= 1, for ``"sampled"``.
      chunk: how many examples have their gradients in memory at once, >= 1, for what is not a dense layer.
      progress: ``progress(batches, examples)``, called after each batch has been handed to the device.

    Returns:
      A tree like ``params``, each leaf in float32 at least.

    Raises:
      TypeError: an argument of the wrong kind, or a leaf of integers, with its path.
      ValueError: an unknown kind, ``"sampled"`` without a key, ``"empirical"`` without labels, no batches, an empty
        batch, logits of another shape, or rows of logits that depend on other examples.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> apply = lambda params, x: x @ params["kernel"] + params["bias"]
      >>> params = {"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(2)}
      >>> fisher = gx.transfer.fisher_diagonal(apply, params, [jnp.array([[1.0], [3.0]])])
      >>> {name: leaf.round(4).tolist() for name, leaf in fisher.items()}
      {'bias': [0.25, 0.25], 'kernel': [[1.25, 1.25]]}
    """
    checks.function("apply", apply)
    refuse_integers(params, "params")
    checks.choice("kind", kind, KINDS)
    num_samples, chunk = arrays.size("num_samples", num_samples), arrays.size("chunk", chunk)
    if kind == "sampled" and key is None:
        raise ValueError("key: expected a random key for kind='sampled', got None")
    if progress is not None:
        checks.function("progress", progress)
    params = jax.tree.map(jnp.asarray, params)
    total = jax.tree.leaves(Slot(real=True).new(params))
    step, rows, done = None, 0, 0
    for number, batch in enumerate(data):
        inputs, labels, size = _take(batch, kind, number)
        if size > rows:
            if step is None:
                _check_rows(apply, params, inputs, size)
            rows, step = size, _step(apply, params, inputs, size, kind, num_samples, chunk)
        own = None if key is None else jax.random.fold_in(key, number)
        inputs, labels = jax.tree.map(lambda x: _fill(jnp.asarray(x), rows), (inputs, labels))
        assert step is not None
        total = step(total, params, inputs, labels, jnp.arange(rows) < size, own)
        done += size
        if progress is not None:
            progress(number + 1, done)
    if not done:
        raise ValueError("data: expected at least one batch, got none")
    return jax.tree.unflatten(jax.tree.structure(params), [leaf / done for leaf in total])


def _step(apply: Callable[..., jax.Array], params: Params, inputs: PyTree, rows: int, kind: str, num_samples: int,
          chunk: int) -> Callable[..., list[jax.Array]]:
    """The compiled function that adds the squares of a batch to the total."""
    dense = fisher_dense.find(apply, params, inputs, rows)

    def step(total: list[jax.Array], params: Params, inputs: PyTree, labels: jax.Array | None, real: jax.Array,
             key: jax.Array | None) -> list[jax.Array]:
        logits = widen(apply(params, inputs))
        labels, weights = _targets(kind, logits, labels, key, num_samples)
        # The gradients are linear in what they start from: a root there is a weight on their squares.
        roots = jnp.sqrt(jnp.where(real, weights, 0))
        added = dict.fromkeys(range(len(total)), jnp.zeros([]))
        if dense.taps:
            added |= _dense(dense, params, inputs, labels, roots)
        slow = [leaf for leaf in added if leaf not in dense.taps]
        if slow:
            added |= _slow(apply, params, inputs, labels, roots, slow, min(chunk, rows))
        return [sums + added[leaf] for leaf, sums in enumerate(total)]

    return jax.jit(step, donate_argnums=0)


def _targets(kind: str, logits: jax.Array, labels: jax.Array | None, key: jax.Array | None,
             num_samples: int) -> tuple[jax.Array, jax.Array]:
    """The labels to take gradients of and their weights, both of shape (number, batch)."""
    batch, classes = logits.shape
    if kind == "true":
        return (jnp.broadcast_to(jnp.arange(classes)[:, None], (classes, batch)), jax.nn.softmax(logits).T)
    if kind == "sampled":
        assert key is not None
        drawn = jax.random.categorical(key, logits, shape=(num_samples, batch))
        return drawn, jnp.full(drawn.shape, 1 / num_samples, logits.dtype)
    assert labels is not None
    inside = (labels >= 0) & (labels < classes)
    return labels[None], jnp.where(inside, 1, jnp.nan).astype(logits.dtype)[None]


def _dense(dense: fisher_dense.Dense, params: Params, inputs: PyTree, labels: jax.Array,
           roots: jax.Array) -> dict[int, jax.Array]:
    (log_p, pullback, xs) = jax.vjp(lambda added: dense.log_probabilities(params, inputs, added), dense.zeros(),
                                    has_aux=True)

    def add(total: dict[int, jax.Array], target: tuple[jax.Array, jax.Array]) -> tuple[dict[int, jax.Array], None]:
        slopes, = pullback(_one_hot(log_p, *target))
        return {leaf: total[leaf] + fisher_dense.squares(xs.get(leaf), dy) for leaf, dy in slopes.items()}, None

    leaves = jax.tree.leaves(params)
    zeros = {leaf: Slot(real=True).new(leaves[leaf]) for leaf in dense.taps}
    return lax.scan(add, zeros, (labels, roots))[0]


def _slow(apply: Callable[..., jax.Array], params: Params, inputs: PyTree, labels: jax.Array, roots: jax.Array,
          which: list[int], chunk: int) -> dict[int, jax.Array]:
    leaves, treedef = jax.tree.flatten(params)
    chosen = {leaf: leaves[leaf] for leaf in which}

    def example(inputs: PyTree, labels: jax.Array, roots: jax.Array) -> dict[int, jax.Array]:
        def log_probabilities(chosen: dict[int, jax.Array]) -> jax.Array:
            own = jax.tree.unflatten(treedef, [chosen.get(i, leaf) for i, leaf in enumerate(leaves)])
            return jax.nn.log_softmax(widen(apply(own, jax.tree.map(lambda x: x[None], inputs))))[0]

        log_p, pullback = jax.vjp(log_probabilities, chosen)

        def add(total: dict[int, jax.Array], target: tuple[jax.Array, jax.Array]) -> tuple[dict[int, jax.Array], None]:
            slopes, = pullback(_one_hot(log_p, *target))
            return jax.tree.map(lambda a, g: a + abs_sq(widen(g)), total, slopes), None

        return lax.scan(add, Slot(real=True).new(chosen), (labels, roots))[0]

    def chunks(x: jax.Array) -> jax.Array:
        x = _fill(x, -(-x.shape[0] // chunk) * chunk)
        return x.reshape(-1, chunk, *x.shape[1:])

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(lambda a, s: a + jnp.sum(s, 0), total, jax.vmap(example)(*part)), None

    # What fills up the last chunk has no weight.
    rest = -roots.shape[1] % chunk
    parts = jax.tree.map(chunks, (inputs, labels.T, jnp.pad(roots, ((0, 0), (0, rest))).T))
    return lax.scan(add, Slot(real=True).new(chosen), parts)[0]


def _one_hot(like: jax.Array, labels: jax.Array, roots: jax.Array) -> jax.Array:
    hot = lax.broadcasted_iota(labels.dtype, like.shape, like.ndim - 1) == labels[..., None]
    # The NaN of a label out of range, which has no place of its own, stands everywhere.
    roots = roots[..., None]
    return jnp.where(hot | jnp.isnan(roots), roots, 0).astype(like.dtype)


def _fill(x: jax.Array, rows: int) -> jax.Array:
    """``x`` with its first row repeated at the end: an example as good as any, where zeros might give NaN."""
    missing = rows - x.shape[0]
    return x if missing == 0 else jnp.concatenate([x, jnp.broadcast_to(x[:1], (missing, *x.shape[1:]))])


def _take(batch: Any, kind: str, number: int) -> tuple[PyTree, Any, int]:
    """The inputs, labels and size of a batch."""
    inputs, labels = batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(f"data: expected arrays with the examples along the first axis in batch {number}, got shapes "
                         f"{[jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]}")
    (size,), = sizes
    if kind != "empirical":
        return inputs, None, size
    if labels is None:
        raise ValueError(f"data: expected pairs (inputs, labels) for kind='empirical', got {type(batch).__name__} as "
                         f"batch {number}")
    labels = arrays.integers("labels", labels)
    arrays.same_shape("labels", labels, (size,), "one for each example")
    return inputs, labels, size


def _check_rows(apply: Callable[..., jax.Array], params: Params, inputs: PyTree, size: int) -> None:
    """Refuses an ``apply`` whose logits have another shape, or whose rows depend on other examples."""
    shape = jax.eval_shape(apply, params, inputs).shape
    if len(shape) != 2 or shape[0] != size:
        raise ValueError(f"apply: expected logits of shape ({size}, classes), got {shape}")

    @jax.jit
    def difference(params: Params, inputs: PyTree) -> tuple[jax.Array, jax.Array]:
        together = widen(apply(params, inputs))
        alone = widen(apply(params, jax.tree.map(lambda x: x[:1], inputs)))
        return jnp.max(jnp.abs(alone[0] - together[0])), jnp.max(jnp.abs(together))

    found, scale = difference(params, inputs) if size > 1 else (0, 0)
    # Room for the rounding of narrow dtypes, which is far from what statistics of one example do.
    if found > 0.05 * scale:
        raise ValueError("apply: expected each row of logits to depend on its own example alone, got another row for "
                         "an example by itself than in its batch; BatchNorm has to use its running statistics")
