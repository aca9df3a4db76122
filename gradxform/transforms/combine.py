"""Transformations one after another."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradxform.core.bricks import Leafwise
from gradxform.core.foreign import stage_of
from gradxform.core.numbers import cast, no_update, widen
from gradxform.core.stages import Around, Chain, Stage, is_final
from gradxform.core.transformation import transformation
from gradxform.core.trees import is_inexact, mismatch, paths, subtrees, widened
from gradxform.core.types import AnyTransformation, Params, Updates


@transformation
def chain(*transformations: AnyTransformation) -> Chain:
    """Applies transformations one after another, each to what the last one returned.

    Consecutive leafwise transformations run as one expression a leaf, nested chains included.

    Args:
      *transformations: gradxform's or optax's, in the order they see the gradient.

    Returns:
      A transformation whose state is the tuple of their states.

    Raises:
      TypeError: an argument is not a transformation.
      ValueError: something follows a transformation whose updates nothing may change, such as
        ``precision.master_weights``.

    Example:
      >>> import gradxform as gx
      >>> gx.chain(gx.clip_by_global_norm(1.0), gx.scale(-0.1))
      chain(clip_by_global_norm(max_norm=1.0), scale(step_size=-0.1))
    """
    return Chain(in_order("chain", {f"chain: argument {i}": tx for i, tx in enumerate(transformations)}))


@transformation
def named_chain(*transformations: tuple[str, AnyTransformation]) -> Chain:
    """Applies transformations one after another, each under a name.

    Args:
      *transformations: pairs ``(name, transformation)``; names are unique.

    Returns:
      A transformation whose state is a dict of their states by name.

    Raises:
      TypeError: an argument is not a pair of a string and a transformation.
      ValueError: a name comes twice, or something follows a transformation whose updates nothing may change.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.named_chain(("clip", gx.clip(1.0)), ("rate", gx.scale(-0.1)))
      >>> list(tx.init({"w": 0.0}))
      ['clip', 'rate']
    """
    for i, pair in enumerate(transformations):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"named_chain: argument {i}: expected a pair (name, transformation), got {pair!r}")
    names = [name for name, _ in transformations]
    twice = [name for name, n in collections.Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f"named_chain: expected unique names, got {twice[0]!r} more than once")
    return Chain(
        in_order("named_chain", {f"named_chain: {name!r}": tx for name, tx in transformations}),
        pack=lambda states: collections.OrderedDict(zip(names, states, strict=True)),
        unpack=lambda state: [state[name] for name in names] if len(state) == len(names) else tuple(state),
        state=dict,
    )


@transformation
def identity() -> Chain:
    """Returns the updates as they are.

    Returns:
      A transformation without state.

    Example:
      >>> import gradxform as gx
      >>> gx.identity().update({"w": 2.0}, gx.identity().init({"w": 1.0}))[0]
      {'w': Array(2., dtype=float32)}
    """
    return Chain((), pack=lambda states: optax.EmptyState(), unpack=lambda state: (), state=object)


@transformation
def set_to_zero() -> Leafwise:
    """Returns updates of zero, so that the params stay as they are.

    Returns:
      A transformation without state.

    Example:
      >>> import gradxform as gx
      >>> gx.set_to_zero().update({"w": 2.0}, gx.set_to_zero().init({"w": 1.0}))[0]
      {'w': Array(-0., dtype=float32)}
    """
    return Leafwise(lambda now, g, p: no_update(g), elementwise=True, any_dtype=True)


@transformation
def stateless(f: Callable[[Updates, Params | None], Updates]) -> Around:
    """Makes a transformation of a function without state.

    Args:
      f: ``f(updates, params)`` returns the new updates; it sees them in float32 at least.

    Returns:
      A transformation without state.

    Raises:
      TypeError: ``f`` is not a function.

    Example:
      >>> import gradxform as gx, jax
      >>> tx = gx.stateless(lambda updates, params: jax.tree.map(lambda u: -u, updates))
      >>> tx.update({"w": 2.0}, tx.init({"w": 1.0}))[0]
      {'w': Array(-2., dtype=float32)}
    """
    if not callable(f):
        raise TypeError(f"f: expected a function of (updates, params), got {f!r}")
    return Around(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None, **extra: (f(widened(updates), params), state),
    )


def apply_updates(params: Params, updates: Updates) -> Params:
    """Adds updates to params, in float32 at least, rounding once to the dtype of the params.

    Args:
      params: a tree of arrays.
      updates: a tree that fits ``params``; None leaves a leaf as it is.

    Returns:
      The new params, in their own dtypes.

    Raises:
      ValueError: the trees do not fit, with the first path that differs.
      TypeError: an update of floating-point numbers for a leaf of integers, with its path.

    Example:
      >>> import gradxform as gx
      >>> gx.apply_updates({"w": 1.0}, {"w": -0.25})
      {'w': Array(0.75, dtype=float32)}
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=lambda x: x is None)
    deltas = subtrees(treedef, params, updates, "updates", "params")
    for i, (param, update) in enumerate(zip(leaves, deltas, strict=True)):
        if param is None or update is None:
            continue
        if not jax.tree_util.all_leaves([update]):
            mismatch(params, updates, "params", "updates")
        if jnp.shape(param) != jnp.shape(update):
            raise ValueError(
                f"updates: expected shape {jnp.shape(param)} at '{paths(params, none=True)[i]}', "
                f"got {jnp.shape(update)}"
            )
        if is_inexact(update) and not is_inexact(param):
            raise TypeError(
                f"params: expected a leaf of floating-point or complex numbers at "
                f"'{paths(params, none=True)[i]}' to add an update to, got {jnp.result_type(param)}"
            )
    return jax.tree.unflatten(
        treedef, [p if p is None or u is None else _add(p, u) for p, u in zip(leaves, deltas, strict=True)]
    )


@jax.jit
def _add(param: ArrayLike, update: ArrayLike) -> jax.Array:
    param, update = jnp.asarray(param), jnp.asarray(update)
    # A frozen leaf of integers has an update of integers, or of no type at all: jax's float0.
    if not is_inexact(update):
        return param if update.dtype == jax.dtypes.float0 else param + update
    return cast(widen(param) + widen(update), param.dtype)


def in_order(name: str, transformations: Mapping[str, AnyTransformation]) -> tuple[Stage, ...]:
    """The stages of transformations that run one after another, each by what messages call it.

    Raises:
      TypeError: one is no transformation.
      ValueError: something follows one that is ``final``.
    """
    parts = tuple(stage_of(tx, what) for what, tx in transformations.items())
    given = list(transformations.values())
    for part, tx, after in zip(parts, given, given[1:], strict=False):
        if is_final(part):
            found, then = (getattr(one, "name", None) or repr(one) for one in (tx, after))
            raise ValueError(
                f"{name}: expected nothing after {found}, whose updates take the params exactly where "
                f"they are to be, got {then}; put that before it or inside of it"
            )
    return parts
