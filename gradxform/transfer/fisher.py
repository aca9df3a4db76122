"""The diagonal of the Fisher information: how much each weight matters to what a classifier says."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, TypeAlias

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
POSITIONS = ("sum", "mean")


Apply: TypeAlias = Callable[[Params, PyTree], jax.Array]
"""The logits of a batch of inputs."""


def fisher_diagonal(
    apply: Apply,
    params: Params,
    data: Iterable[PyTree],
    *,
    kind: str = "true",
    key: jax.Array | None = None,
    num_samples: int = 1,
    positions: str = "sum",
    mask: Callable[[PyTree], jax.Array] | None = None,
    chunk: int = 16,
    progress: Callable[[int, int], object] | None = None,
) -> PyTree:
    """The diagonal of the Fisher information of a classifier, for ``ewc_penalty``.

    ``F = E_x E_{y ~ p(y|x)} [(d log p(y|x) / d w)**2]`` (Kirkpatrick et al., PNAS 2017; Kunstner, Balles and Hennig,
    NeurIPS 2019, equation 5), squared for each example and then averaged, in float32 at least. The data is streamed.
    The kernels and biases of dense layers over (batch, features) are found in the program of ``apply`` and cost one
    backward pass for the whole batch and each label; the gradients of the other leaves are taken example by example.

    For sequences, logits of shape (batch, length, classes), and for images with a label at each pixel, it is the sum
    over the positions of an example, each squared by itself: the Fisher information of all its labels together, which
    are independent given the inputs. One logit alone is that of a sigmoid, with the labels 0 and 1.

    Args:
      apply: ``apply(params, inputs)`` returns logits of shape (batch, ..., classes). Those of an example may depend on
        it alone: BatchNorm has to use its running statistics, and dropout has to be off.
      params: the params, of floating-point numbers.
      data: an iterable of batches: inputs (an array or a tree of arrays with the examples along the first axis), or a
        tuple ``(inputs, labels)`` with integer labels of shape (batch, ...). A batch smaller than the one before is
        filled up, so that nothing is compiled again for the last.
      kind: ``"true"`` adds up all labels by their probabilities, one backward pass for each label at each position;
        ``"sampled"`` draws labels from the model, without bias, one pass for those of all positions; ``"empirical"``
        takes those of the data, one pass for each position, which is another quantity.
      key: a random key, for ``"sampled"``.
      num_samples: the labels drawn for each example, >= 1, for ``"sampled"``.
      positions: ``"sum"`` over the positions of an example, or their ``"mean"``; of one position both are the same.
      mask: ``mask(inputs)``, which positions count, of shape (batch, ...): bools, or weights >= 0; as
        ``lambda tokens: tokens != 0``. By default all do. Where none does, an example adds nothing.
      chunk: how many examples have their gradients in memory at once, >= 1, for what is not a dense layer.
      progress: ``progress(batches, examples)``, called after each batch has been handed to the device.

    Returns:
      A tree like ``params``, each leaf in float32 at least.

    Raises:
      TypeError: an argument of the wrong kind, or a leaf of integers, with its path.
      ValueError: an unknown kind, ``"sampled"`` without a key, ``"empirical"`` without labels, no batches, an empty
        batch, logits, labels or a mask of another shape, or logits that depend on other examples.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> apply = lambda params, x: x @ params["kernel"] + params["bias"]
      >>> params = {"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(2)}
      >>> fisher = gx.transfer.fisher_diagonal(apply, params, [jnp.array([[1.0], [3.0]])])
      >>> {name: leaf.round(4).tolist() for name, leaf in fisher.items()}
      {'bias': [0.25, 0.25], 'kernel': [[1.25, 1.25]]}
      >>> model = lambda params, tokens: params["embed"][tokens]  # logits of the next token, at two positions each
      >>> fisher = gx.transfer.fisher_diagonal(model, {"embed": jnp.zeros((3, 2))}, [jnp.array([[1, 2], [1, 0]])],
      ...                                      mask=lambda tokens: tokens != 0)
      >>> fisher["embed"].round(4).tolist()
      [[0.0, 0.0], [0.25, 0.25], [0.125, 0.125]]
    """
    checks.function("apply", apply)
    refuse_integers(params, "params")
    checks.choice("kind", kind, KINDS)
    checks.choice("positions", positions, POSITIONS)
    num_samples, chunk = arrays.size("num_samples", num_samples), arrays.size("chunk", chunk)
    if kind == "sampled" and key is None:
        raise ValueError("key: expected a random key for kind='sampled', got None")
    for name, function in (("progress", progress), ("mask", mask)):
        if function is not None:
            checks.function(name, function)
    params = jax.tree.map(jnp.asarray, params)
    total = jax.tree.leaves(Slot(real=True).new(params))
    seeds = Seeds(kind, num_samples, positions)
    steps: dict[Hashable, tuple[int, Callable[..., list[jax.Array]], tuple[int, ...]]] = {}
    done = 0
    for number, batch in enumerate(data):
        inputs, labels, size = _take(batch, kind, number)
        # Sequences of another length are another program.
        form = jax.tree.structure(inputs), *((jnp.shape(x)[1:], jnp.result_type(x)) for x in jax.tree.leaves(inputs))
        if form not in steps or size > steps[form][0]:
            shape = _shape(apply, mask, params, inputs, size)
            if not steps:
                _check_rows(apply, params, inputs, size)
            steps[form] = size, _step(apply, mask, params, inputs, size, seeds, chunk), shape[1:]
        rows, step, shape = steps[form]
        if labels is not None:
            arrays.same_shape("labels", labels, (size, *shape), "that of the logits without its last axis")
        own = None if key is None else jax.random.fold_in(key, number)
        inputs, labels = jax.tree.map(lambda x: _fill(jnp.asarray(x), rows), (inputs, labels))
        total = step(total, params, inputs, labels, jnp.arange(rows) < size, own)
        done += size
        if progress is not None:
            progress(number + 1, done)
    if not done:
        raise ValueError("data: expected at least one batch, got none")
    return jax.tree.unflatten(jax.tree.structure(params), [leaf / done for leaf in total])


class Seeds(NamedTuple):
    """What backward passes start from: for each label that is to be squared by itself, the root of its weight there.

    The gradients are linear in what they start from, so that a root there is a weight on their squares.

    Attributes:
      kind, num_samples, positions: as in ``fisher_diagonal``.
    """

    kind: str
    num_samples: int
    positions: str

    def new(self, log_p: jax.Array, labels: jax.Array | None, weights: jax.Array, key: jax.Array | None) -> jax.Array:
        """What ``of`` makes the seeds of, a row for each example.

        Args:
          log_p: log-probabilities of shape (batch, positions, classes).
          labels: those of the data, of shape (batch, positions), or None.
          weights: how much each position counts, of the same shape.
          key: a random key, or None.
        """
        if self.positions == "mean":
            weights = weights / jnp.maximum(jnp.sum(weights, 1, keepdims=True), jnp.finfo(weights.dtype).tiny)
        roots = jnp.sqrt(weights)[..., None]
        if self.kind == "true":
            return roots * jnp.exp(0.5 * log_p)
        places = jnp.arange(log_p.shape[-1])
        if self.kind == "sampled":
            assert key is not None
            drawn = jax.random.categorical(key, log_p[:, None], shape=(len(log_p), self.num_samples, log_p.shape[1]))
            return jnp.where(drawn[..., None] == places, roots[:, None] / self.num_samples**0.5, 0)
        assert labels is not None
        inside = (labels >= 0) & (labels < len(places))
        hot = jnp.where(labels[..., None] == places, roots, 0)
        # A label out of range has no place of its own: its NaN stands everywhere, unless its position does not count.
        return jnp.where(inside[..., None] | (roots == 0), hot, jnp.nan)

    def count(self, like: jax.Array) -> int:
        """How many seeds there are for log-probabilities like these, whose last two axes are positions and classes."""
        length, classes = like.shape[-2:]
        return {"true": length * classes, "sampled": self.num_samples, "empirical": length}[self.kind]

    def of(self, made: jax.Array, number: jax.Array) -> jax.Array:
        """One seed out of what ``new`` made for a batch or for one example, like the log-probabilities."""
        if self.kind == "sampled":
            return lax.dynamic_index_in_dim(made, number, made.ndim - 3, keepdims=False)
        length, classes = made.shape[-2:]
        position, place = (lax.broadcasted_iota(jnp.int32, (length, classes), axis) for axis in (0, 1))
        return jnp.where((position * classes + place if self.kind == "true" else position) == number, made, 0)


def _step(
    apply: Apply,
    mask: Callable[[PyTree], jax.Array] | None,
    params: Params,
    inputs: PyTree,
    rows: int,
    seeds: Seeds,
    chunk: int,
) -> Callable[..., list[jax.Array]]:
    """The compiled function that adds the squares of a batch to the total."""
    dense = fisher_dense.find(apply, params, inputs, rows)

    def step(
        total: list[jax.Array],
        params: Params,
        inputs: PyTree,
        labels: jax.Array | None,
        real: jax.Array,
        key: jax.Array | None,
    ) -> list[jax.Array]:
        log_p = log_probabilities(apply(params, inputs))
        counts = (
            jnp.ones(log_p.shape[:-1], log_p.dtype)
            if mask is None
            else mask(inputs).astype(log_p.dtype).reshape(log_p.shape[:-1])
        )
        weights = jnp.where(real[:, None], counts, 0)
        labels = None if labels is None else labels.reshape(log_p.shape[:-1])
        made = seeds.new(log_p, labels, weights, key)
        added = dict.fromkeys(range(len(total)), jnp.zeros([]))
        if dense.taps:
            added |= _dense(dense, params, inputs, seeds, made)
        slow = [leaf for leaf in added if leaf not in dense.taps]
        if slow:
            added |= _slow(apply, params, inputs, seeds, made, slow, min(chunk, rows))
        return [sums + added[leaf] for leaf, sums in enumerate(total)]

    return jax.jit(step, donate_argnums=0)


def _dense(
    dense: fisher_dense.Dense, params: Params, inputs: PyTree, seeds: Seeds, made: jax.Array
) -> dict[int, jax.Array]:
    def outputs(added: dict[int, jax.Array]) -> tuple[jax.Array, dict[int, jax.Array]]:
        logits, xs = dense.logits(params, inputs, added)
        return log_probabilities(logits), xs

    log_p, pullback, xs = jax.vjp(outputs, dense.zeros(), has_aux=True)

    def add(total: dict[int, jax.Array], number: jax.Array) -> tuple[dict[int, jax.Array], None]:
        (slopes,) = pullback(seeds.of(made, number).astype(log_p.dtype))
        return {leaf: total[leaf] + fisher_dense.squares(xs.get(leaf), dy) for leaf, dy in slopes.items()}, None

    leaves = jax.tree.leaves(params)
    zeros = {leaf: Slot(real=True).new(leaves[leaf]) for leaf in dense.taps}
    return lax.scan(add, zeros, jnp.arange(seeds.count(log_p)))[0]


def _slow(
    apply: Apply, params: Params, inputs: PyTree, seeds: Seeds, made: jax.Array, which: list[int], chunk: int
) -> dict[int, jax.Array]:
    leaves, treedef = jax.tree.flatten(params)
    chosen = {leaf: leaves[leaf] for leaf in which}

    def example(inputs: PyTree, made: jax.Array) -> dict[int, jax.Array]:
        def outputs(chosen: dict[int, jax.Array]) -> jax.Array:
            own = jax.tree.unflatten(treedef, [chosen.get(i, leaf) for i, leaf in enumerate(leaves)])
            return log_probabilities(apply(own, jax.tree.map(lambda x: x[None], inputs)))[0]

        log_p, pullback = jax.vjp(outputs, chosen)

        def add(total: dict[int, jax.Array], number: jax.Array) -> tuple[dict[int, jax.Array], None]:
            (slopes,) = pullback(seeds.of(made, number).astype(log_p.dtype))
            return jax.tree.map(lambda a, g: a + abs_sq(widen(g)), total, slopes), None

        return lax.scan(add, Slot(real=True).new(chosen), jnp.arange(seeds.count(log_p)))[0]

    def chunks(x: jax.Array, *, zeros: bool = False) -> jax.Array:
        rows = -(-x.shape[0] // chunk) * chunk
        x = jnp.pad(x, [(0, rows - x.shape[0]), *[(0, 0)] * (x.ndim - 1)]) if zeros else _fill(x, rows)
        return x.reshape(-1, chunk, *x.shape[1:])

    def add(total: dict[int, jax.Array], part: tuple[PyTree, jax.Array]) -> tuple[dict[int, jax.Array], None]:
        return jax.tree.map(lambda a, s: a + jnp.sum(s, 0), total, jax.vmap(example)(*part)), None

    # What fills up the last chunk has no weight.
    parts = jax.tree.map(chunks, inputs), chunks(made, zeros=True)
    return lax.scan(add, Slot(real=True).new(chosen), parts)[0]


def log_probabilities(logits: jax.Array) -> jax.Array:
    """Those of all labels, of shape (batch, positions, classes); one logit is against 0, as in a sigmoid."""
    logits = widen(logits).reshape(logits.shape[0], -1, logits.shape[-1])
    if logits.shape[-1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
    return jax.nn.log_softmax(logits)


def _fill(x: jax.Array, rows: int) -> jax.Array:
    """``x`` with its first row repeated at the end: an example as good as any, where zeros might give NaN."""
    missing = rows - x.shape[0]
    return x if missing == 0 else jnp.concatenate([x, jnp.broadcast_to(x[:1], (missing, *x.shape[1:]))])


def _take(batch: PyTree, kind: str, number: int) -> tuple[PyTree, jax.Array | None, int]:
    """The inputs, labels and size of a batch."""
    inputs, labels = batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(
            f"data: expected arrays with the examples along the first axis in batch {number}, got shapes "
            f"{[jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]}"
        )
    ((size,),) = sizes
    if kind != "empirical":
        return inputs, None, size
    if labels is None:
        raise ValueError(
            f"data: expected pairs (inputs, labels) for kind='empirical', got {type(batch).__name__} as batch {number}"
        )
    return inputs, arrays.integers("labels", labels), size


def _shape(
    apply: Apply, mask: Callable[[PyTree], jax.Array] | None, params: Params, inputs: PyTree, size: int
) -> tuple[int, ...]:
    """The shape of labels; refuses logits or a mask of another one."""
    shape = jax.eval_shape(apply, params, inputs).shape
    if len(shape) < 2 or shape[0] != size:
        raise ValueError(f"apply: expected logits of shape ({size}, ..., classes), got {shape}")
    if mask is not None:
        arrays.same_shape("mask", jax.eval_shape(mask, inputs), shape[:-1], "that of the logits without its last axis")
    return shape[:-1]


def _check_rows(apply: Apply, params: Params, inputs: PyTree, size: int) -> None:
    """Refuses an ``apply`` whose rows of logits depend on other examples."""

    @jax.jit
    def difference(params: Params, inputs: PyTree) -> tuple[jax.Array, jax.Array]:
        together = widen(apply(params, inputs))
        alone = widen(apply(params, jax.tree.map(lambda x: x[:1], inputs)))
        return jnp.max(jnp.abs(alone[0] - together[0])), jnp.max(jnp.abs(together))

    found, scale = difference(params, inputs) if size > 1 else (0, 0)
    # Room for the rounding of narrow dtypes, which is far from what statistics of one example do.
    if found > 0.05 * scale:
        raise ValueError(
            "apply: expected each row of logits to depend on its own example alone, got another row for "
            "an example by itself than in its batch; BatchNorm has to use its running statistics"
        )
