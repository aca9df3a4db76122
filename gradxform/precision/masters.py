"""Exact float32 weights behind params of 16 bits: what the params lack of them is kept in the state."""

from __future__ import annotations

import contextvars
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from gradxform.core import stages
from gradxform.core.bricks import is_empty
from gradxform.core.foreign import stage_of
from gradxform.core.numbers import cast, increment, widen
from gradxform.core.run import run
from gradxform.core.slots import Slot
from gradxform.core.stages import Around
from gradxform.core.transformation import transformation
from gradxform.core.trees import align, check_shapes, flatten, is_inexact, named_leaves, paths, structure, subtrees
from gradxform.core.types import AnyTransformation, DType, Mask, Params, PyTree, State, Updates
from gradxform.core.which import flags
from gradxform.precision import words
from gradxform.precision.noise import noise

NAME = "precision.master_weights"
_EXACT: contextvars.ContextVar[dict[str, jax.Array] | None] = contextvars.ContextVar("exact", default=None)
"""The masters that a run starts from, by path, where they are more than its params say: see ``split``."""


class MasterWeightsState(NamedTuple):
    """What the params lack of their masters, the state of the transformation inside, and the updates made.

    ``remainder`` has the low bits of the masters of bfloat16 params, the whole masters of float16 params, and an empty
    node for params that are their own masters. ``step`` is None where all 32 bits are kept: nothing is random then.
    """

    remainder: PyTree
    inner_state: State
    step: jax.Array | None = None


@transformation
def master_weights(tx: AnyTransformation, bits: int = 32) -> Around:
    """Lets a transformation update float32 weights of which the params are the nearest in 16 bits.

    A bfloat16 param is the upper half of its master; the state holds the lower half, so that the two together take 4
    bytes and not 6. ``tx`` sees the masters: its decay, its trust ratios, its averages are those of float32. A float16
    param has another range, and a whole float32 master in the state; float32 and wider params are their own masters.

    The updates are float32, whatever the gradients are, and take a param to the nearest of the new master:
    ``optax.apply_updates`` and ``gx.apply_updates`` both land on it. Where that is out of reach for a sum, as for a
    weight that shrinks by 2**16 in one step, the new master is the param that the sum gives, at most an ulp of the old
    weight away. Nothing may change the updates after that: ``chain`` refuses what follows; ``skip_nonfinite``,
    ``accumulate``, masks and partitions go around it.

    With ``bits=24`` the state holds 8 bits a param. A master then has 16 significant bits, and each step rounds it up
    or down at random, right on average: rounded to the nearest, it would not move once a step is less than 1.5e-5 of
    it. The random bits are a hash of the step and the place of the element.

    Args:
      tx: the transformation of the masters.
      bits: of a master of a bfloat16 param, 24 or 32; with 32 nothing is lost.

    Returns:
      A transformation that needs params.

    Raises:
      TypeError: ``tx`` is not a transformation or ``bits`` not an integer; from ``init``, a param of float16 or
        float64 with ``bits=24``, with its path.
      ValueError: ``bits`` is another number; from ``update``, params are missing or of another dtype than at the start.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx, params = gx.precision.master_weights(gx.sgd(1.0)), {"w": jnp.ones(1, jnp.bfloat16)}
      >>> state = tx.init(params)
      >>> for _ in range(8):
      ...   updates, state = tx.update({"w": jnp.full(1, 0.001)}, state, params)
      ...   params = gx.apply_updates(params, updates)
      >>> float(params["w"][0]), round(float(gx.precision.masters(params, state)["w"][0]), 5)
      (0.9921875, 0.992)
    """
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"bits: expected 24 or 32, got {bits!r}")
    if bits not in (24, 32):
        raise ValueError(f"bits: expected 24 or 32, got {bits!r}")
    stage = stage_of(tx, "tx")

    def init(params: Params) -> MasterWeightsState:
        exact = _EXACT.get() or {}
        treedef = structure(params)
        masters, remainder = [], []
        for path, leaf in named_leaves(params):
            dtype = _lost(path, leaf, bits)
            masters.append(exact[path] if path in exact else words.widened(leaf))
            if dtype is None:
                remainder.append(optax.MaskedNode())
            elif dtype == jnp.float32:
                remainder.append(jnp.array(masters[-1]))  # a copy, for what is in a state may be donated
            elif path in exact:
                remainder.append(words.split(masters[-1], low=bits - 16)[1])
            else:
                remainder.append(cast(Slot().new(leaf), dtype))  # zeros, laid out as the leaf is
        return MasterWeightsState(
            treedef.unflatten(remainder),
            stages.init(stage, treedef.unflatten(masters)),
            jnp.zeros([], jnp.int32) if bits == 24 else None,
        )

    def update(
        updates: Updates, state: MasterWeightsState, params: Params | None = None, **extra: object
    ) -> tuple[Updates, MasterWeightsState]:
        if params is None:
            raise ValueError(f"{NAME}: expected params, got None: call update(updates, state, params)")
        leaves, treedef = flatten(updates)
        own = align(treedef, updates, params, "params")
        check_shapes(updates, leaves, own, "updates", "params")
        kept = subtrees(treedef, updates, state.remainder, "state", "updates")
        _check_kept(updates, own, kept)
        masters = [_master(p, rest) for p, rest in zip(own, kept, strict=True)]
        new, inner_state = run(stage, updates, state.inner_state, treedef.unflatten(masters), extra, NAME)
        step = None if state.step is None else increment(state.step)
        moved = [
            (u, rest) if is_empty(rest) else _move(p, master, u, rest, None if step is None else (step, i))
            for i, (p, master, u, rest) in enumerate(zip(own, masters, jax.tree.leaves(new), kept, strict=True))
        ]
        return (
            treedef.unflatten([u for u, _ in moved]),
            MasterWeightsState(treedef.unflatten([rest for _, rest in moved]), inner_state, step),
        )

    return Around(init, update, lambda state: {"tx": (tx, state.inner_state)}, MasterWeightsState, final=True)


def masters(params: Params, state: State) -> Params:
    """The float32 weights behind params.

    Args:
      params: the params.
      state: the state of a transformation with ``master_weights`` in it, at any depth.

    Returns:
      A tree like ``params``; what has no master in the state is in it as it is.

    Raises:
      ValueError: there are no masters in ``state``, or they are those of other params, with the path.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx = gx.precision.master_weights(gx.sgd(0.1))
      >>> params, state = gx.precision.split({"w": jnp.array([0.1])}, tx)
      >>> params["w"], gx.precision.masters(params, state)["w"]
      (Array([0.100098], dtype=bfloat16), Array([0.1], dtype=float32))
    """
    kept = _kept(state)
    leaves, treedef = flatten(params)
    rests = [kept.pop(path, optax.MaskedNode()) for path in paths(params)]
    if kept:
        raise ValueError(f"state and params do not fit at '{min(kept)}': state: a master; params: no leaf")
    _check_kept(params, leaves, rests)
    return treedef.unflatten([p if is_empty(rest) else _master(p, rest) for p, rest in zip(leaves, rests, strict=True)])


def split(
    params: Params, tx: AnyTransformation, *, keep: Mask | str | None = None, dtype: DType = "bfloat16"
) -> tuple[Params, State]:
    """Starts a run with params of 16 bits from weights of 32, without losing a bit.

    Args:
      params: the weights, float32.
      tx: a transformation with ``master_weights`` in it, at any depth.
      keep: which leaves stay float32 params, such as the scales of norms: a mask, a selector, or a regular expression
        of paths.
      dtype: of the params to make, bfloat16 or float16.

    Returns:
      The params and the state of ``tx``. ``masters`` gives the weights back; with ``bits=24`` rounded to the nearest
      with 16 significant bits.

    Raises:
      TypeError: ``tx`` is not a transformation, or ``dtype`` not one of the two.
      ValueError: ``tx`` has no master for a leaf that would lose bits, with its path.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx = gx.precision.master_weights(gx.adamw(1e-3))
      >>> params, state = gx.precision.split({"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}, tx, keep="scale")
      >>> {name: str(leaf.dtype) for name, leaf in params.items()}
      {'kernel': 'bfloat16', 'scale': 'float32'}
    """
    stage_of(tx, "tx")  # or it raises
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.bfloat16, jnp.float16):
        raise TypeError(f"dtype: expected bfloat16 or float16, got {dtype}")
    exact = {
        path: jnp.asarray(leaf)
        for (path, leaf), stays in zip(named_leaves(params), flags("keep", keep, params), strict=True)
        if jnp.result_type(leaf) == jnp.float32 and not stays
    }
    leaves, treedef = flatten(params)
    narrow = [cast(leaf, dtype) if path in exact else leaf for path, leaf in zip(paths(params), leaves, strict=True)]
    token = _EXACT.set(exact)
    try:
        state = tx.init(treedef.unflatten(narrow))
    finally:
        _EXACT.reset(token)
    kept = _kept(state)
    for i, path in enumerate(paths(params)):
        if path in exact and path not in kept:
            raise ValueError(f"tx: expected a master for '{path}', got none; leave it float32 with keep=...")
        if path in exact and dtype == jnp.bfloat16:  # not the cast, which rounds ties to even
            narrow[i], _ = words.split(exact[path], low=jnp.iinfo(kept[path].dtype).bits)
    return treedef.unflatten(narrow), state


def _lost(path: str, leaf: ArrayLike | jax.ShapeDtypeStruct, bits: int) -> np.dtype | None:
    """The dtype of what a param lacks of its master, None where that is nothing."""
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating) or dtype == jnp.float32:
        return None
    if dtype == jnp.bfloat16:
        return jnp.dtype(f"uint{bits - 16}")
    if bits == 24:
        raise TypeError(
            f"{NAME}: expected params of bfloat16 or float32 with bits=24, got {dtype} at '{path}'; bits=32 takes it"
        )
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else None


def _master(p: ArrayLike, rest: jax.Array) -> jax.Array:
    """The master of a param and what that lacks of it."""
    if is_empty(rest):
        return words.widened(p)
    return widen(rest) if is_inexact(rest) else words.join(jnp.asarray(p), rest)


@jax.jit
def _move(
    p: jax.Array, master: jax.Array, update: jax.Array, rest: jax.Array, now: tuple[jax.Array, int] | None
) -> tuple[jax.Array, jax.Array]:
    """The update that takes a param to where its master goes, and what the new param lacks; see ``noise`` for now."""
    new = master + update
    if is_inexact(rest):
        return words.between(p, cast(new, p.dtype)), new
    low = jnp.iinfo(rest.dtype).bits
    return words.move(p, new, None if now is None else noise(0, *now, new.shape, 16 - low), low=low)


def _kept(state: State) -> dict[str, jax.Array]:
    """What the params lack, by path.

    Raises:
      ValueError: there are no masters in the state.
    """
    is_ours = lambda x: isinstance(x, MasterWeightsState)  # noqa: E731
    found = [part for part in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(part)]
    if not found:
        raise ValueError(
            f"state: expected the state of a transformation with {NAME} in it, got none in a {type(state).__name__}"
        )
    return {path: rest for part in found for path, rest in named_leaves(part.remainder)}


def _check_kept(tree: PyTree, params: list[ArrayLike], kept: list[jax.Array]) -> None:
    """Refuses params of another shape or dtype than those that the state is of, with the path."""
    for i, (p, rest) in enumerate(zip(params, kept, strict=True)):
        if is_empty(rest):
            continue
        whole, dtype = is_inexact(rest), jnp.result_type(p)
        fits = dtype != jnp.bfloat16 and _lost("", p, 32) == jnp.float32 if whole else dtype == jnp.bfloat16
        if not fits or jnp.shape(rest) != jnp.shape(p):
            expected = f"{'float16' if whole else 'bfloat16'}{list(jnp.shape(rest))}"
            raise ValueError(
                f"params: expected {expected} at '{paths(tree)[i]}', as at the start of the state, got "
                f"{dtype}{list(jnp.shape(p))}"
            )
