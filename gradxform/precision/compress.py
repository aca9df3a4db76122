"""Any transformation with its state in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from gradxform.core import checks, stages
from gradxform.core.foreign import stage_of
from gradxform.core.numbers import increment
from gradxform.core.run import run
from gradxform.core.stages import Around, is_final
from gradxform.core.transformation import transformation
from gradxform.core.trees import flatten, named_leaves, subtrees
from gradxform.core.types import AnyTransformation, Mask, Params, PyTree, State, Updates
from gradxform.core.which import as_mask, flags
from gradxform.precision.codec import Codec, as_codec
from gradxform.precision.coded import VERSION, How, first_code, is_coded
from gradxform.precision.fields import nonnegative

Codecs: TypeAlias = Codec | str | Sequence[tuple[Mask | str, Codec | str | None]]
"""A codec, its name, or for some leaves each its own; None leaves them as they are."""


@transformation
def compress_state(
    tx: AnyTransformation,
    codec: Codecs = "bf16",
    *,
    where: Mask | str | None = None,
    min_size: int = 4096,
    seed: int = 0,
) -> Around:
    """Keeps the state of any transformation in fewer bits.

    ``tx`` sees its state as it knows it: what is stored is decoded before it runs and encoded after, in the pass that
    does its work. Rounding is stochastic (see the codecs), by noise that is a hash of the seed, the step, the leaf and
    the element: the same on any mesh, with no key to carry. Averages stay right that way: rounded to the nearest, a
    mean that moves by less than half a code in a step never moves at all.

    The state has the structure of that of ``tx``, with a ``Coded`` node for each leaf that is stored as a code, whose
    arrays have the shape of the leaf; the first of them counts the steps. Integers, complex numbers, keys and leaves of
    fewer than ``min_size`` elements stay as they are. ``decompress`` and ``compress`` move a state to ``tx`` and back.

    Put it inside of ``accumulate``, whose sum would else be stored as a code too.

    Args:
      tx: the transformation, ours, optax's or a chain.
      codec: a codec, its name, or pairs ``(selector, codec or None)`` of which the first whose selector takes a leaf of
        the state decides over it: a selector or a regular expression of paths in the state, such as ``0/mu/dense``.
      where: which leaves of the state, by their paths in it: a selector, a regular expression or a mask.
      min_size: elements from which on a leaf is stored as a code, >= 1.
      seed: of the noise.

    Returns:
      A transformation.

    Raises:
      TypeError: ``tx`` is not a transformation, or ``codec`` not a codec; from ``init``, what is selected is none of
        floating-point numbers.
      ValueError: an unknown name, with those that there are; ``min_size`` is below 1; from ``init``, a selector takes
        no leaf, with the paths; from ``update``, a state that was stored by another codec, seed or version.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx = gx.precision.compress_state(gx.adamw(1e-3), gx.precision.fp8())
      >>> state = tx.init({"w": jnp.ones((64, 64)), "b": jnp.ones(64)})
      >>> state[0].mu["w"].code.dtype, state[0].mu["b"].dtype
      (dtype(float8_e5m2), dtype('float32'))
    """
    checks.integer("min_size", min_size, at_least=1, known=True)
    checks.integer("seed", seed, known=True)
    stage, plan = stage_of(tx, "tx"), _Plan(codec, where, int(min_size), int(seed))

    def init(params: Params) -> State:
        state = stages.init(stage, params)
        leaves, treedef = flatten(state)
        above, counts = nonnegative(tx, state, params), True
        for i, by in enumerate(plan.codecs(state, new=True)):
            if by is not None:
                how = How(by, above[i], jnp.result_type(leaves[i]).name, i, plan.seed)
                leaves[i], counts = first_code(how, leaves[i], counts=counts), False
        return treedef.unflatten(leaves)

    def update(updates: Updates, state: State, params: Params | None = None, **extra: object) -> tuple[Updates, State]:
        plan.check(state)
        updates, new = run(stage, updates, decompress(state), params, extra, "compress_state")
        return updates, _coded_as(state, new, "the state that tx returned", count=increment)

    return Around(init, update, lambda state: {"tx": (tx, state)}, final=is_final(stage))


def decompress(state: State) -> State:
    """A state with numbers for codes, as the transformation inside keeps it.

    Args:
      state: a state of ``compress_state``, or any tree with such states in it.

    Returns:
      The same tree with arrays in place of ``Coded`` nodes.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx = gx.precision.compress_state(gx.lion(1e-3), "fp8")
      >>> gx.precision.decompress(tx.init({"w": jnp.ones((64, 64))}))[0].mu["w"].dtype
      dtype('float32')
    """
    return jax.tree.map(lambda x: x.decode() if is_coded(x) else x, state, is_leaf=is_coded)


def compress(state: State, like: State) -> State:
    """A state with codes for numbers, as another one has them: undoes ``decompress``.

    Args:
      state: a state of the transformation that ``compress_state`` was given, from a checkpoint for instance.
      like: a state of ``compress_state``, as its ``init`` makes it.

    Returns:
      ``state`` as codes; the steps that decide over the noise are counted on from those of ``like``.

    Raises:
      ValueError: the two do not fit, with the first path that differs.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> params = {"w": jnp.ones((64, 64))}
      >>> plain, tx = gx.lion(1e-3), gx.precision.compress_state(gx.lion(1e-3), "fp8")
      >>> gx.precision.compress(plain.init(params), tx.init(params))[0].mu["w"].code.dtype
      dtype(float8_e5m2)
    """
    return _coded_as(like, state, "state", count=lambda step: step)


def _coded_as(like: State, state: State, what: str, count: Callable[[jax.Array], jax.Array]) -> State:
    leaves, treedef = flatten(like, is_coded)
    new = subtrees(treedef, jax.tree.map(_shown, like, is_leaf=is_coded), state, what, "like")
    steps = [leaf.step for leaf in leaves if is_coded(leaf) and leaf.step is not None]
    step = count(steps[0]) if steps else jnp.zeros([], jnp.int32)
    for i, (old, x) in enumerate(zip(leaves, new, strict=True)):
        if is_coded(old):
            if jnp.shape(x) != old.aval.shape:
                path = named_leaves(like, is_coded)[i][0]
                raise ValueError(f"{what}: expected shape {old.aval.shape} at '{path}', got {jnp.shape(x)}")
            new[i] = old.again(x, step)
    return treedef.unflatten(new)


def _shown(x: PyTree) -> PyTree:
    return x.aval if is_coded(x) else x


class _Plan:
    """Which codec each leaf of a state is stored by."""

    def __init__(self, codec: Codecs, where: Mask | str | None, min_size: int, seed: int):
        self.rules = _rules(codec)
        self.where = None if where is None else as_mask("where", where)
        self.min_size, self.seed = min_size, seed

    def codecs(self, state: State, *, new: bool = False) -> list[Codec | None]:
        """The codec of each leaf or code; where the state is new, a selector that takes nothing is refused."""
        leaves, treedef = flatten(state, is_coded)
        shown = [_shown(leaf) for leaf in leaves]
        tree = treedef.unflatten(shown)
        chosen: list[Codec | None] = [None] * len(leaves)
        taken = [False] * len(leaves)
        within = [True] * len(leaves) if self.where is None else self._taken("where", self.where, tree, shown, new)
        for name, mask, codec in self.rules:
            here = within if mask is None else self._taken(name, mask, tree, shown, new and codec is not None)
            for i, leaf in enumerate(shown):
                if here[i] and within[i] and not taken[i]:
                    taken[i] = True
                    chosen[i] = codec if _is_floating(leaf) and leaf.size >= self.min_size else None
        return chosen

    def _taken(self, name: str, mask: Mask, tree: PyTree, leaves: list[PyTree], new: bool) -> list[bool]:
        taken = flags(name, mask, tree, "state")
        if not new or not leaves:
            return taken
        paths = [path for path, _ in named_leaves(tree)]
        if not any(taken):
            raise ValueError(
                f"{name}: expected it to select a leaf of the state, got none of the paths "
                f"{', '.join(paths[:8])}{', ...' * (len(paths) > 8)}"
            )
        if not any(on and _is_floating(leaf) for on, leaf in zip(taken, leaves, strict=True)):
            path, leaf = next((p, x) for p, x, on in zip(paths, leaves, taken, strict=True) if on)
            raise TypeError(
                f"{name}: expected it to select leaves of floating-point numbers, got {leaf.dtype} at "
                f"'{path}': a codec stores no others"
            )
        return taken

    def check(self, state: State) -> None:
        """Refuses a state whose codes are not those of this plan."""
        named = named_leaves(state, is_coded)
        for (path, leaf), codec in zip(named, self.codecs(state), strict=True):
            found = leaf.how.codec if is_coded(leaf) else None
            if found != codec:
                raise ValueError(
                    f"state: expected '{path}' to be stored by {_name(codec)}, got {_name(found)}; "
                    "decompress(state) and compress(state, tx.init(params)) move it"
                )
            if is_coded(leaf):
                for what, own in (("seed", self.seed), ("version", VERSION)):
                    if getattr(leaf.how, what) != own:
                        raise ValueError(
                            f"state: expected codes of {what} {own}, got {what} {getattr(leaf.how, what)} at '{path}'"
                        )


def _rules(codec: Codecs) -> list[tuple[str, Mask | None, Codec | None]]:
    if not isinstance(codec, list | tuple):
        return [("codec", None, as_codec("codec", codec))]
    rules: list[tuple[str, Mask | None, Codec | None]] = []
    for i, pair in enumerate(codec):
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise TypeError(f"codec[{i}]: expected a pair (selector, codec or None), got {pair!r}")
        selector, by = pair
        rules.append(
            (f"codec[{i}]", as_mask(f"codec[{i}]", selector), None if by is None else as_codec(f"codec[{i}]", by))
        )
    return rules


def _is_floating(leaf: object) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _name(codec: Codec | None) -> str:
    return "no codec" if codec is None else repr(codec)
