"""The three kinds of work inside a transformation, and how a run of them is carried out.

Almost every rule of optimization is *leafwise*: the new update of a leaf depends on that leaf of the gradient, the
parameters and the state, and on a few scalars. Consecutive leafwise stages are composed and run as one expression
a leaf, so a chain costs what one fused expression costs: a clip is a factor inside it, not a pass of its own. The
expression is traced once for each shape and dtype, not once for each leaf.

Numbers are handled here and nowhere else: every leaf is widened to float32 at least before the first rule sees it,
new state is stored in the dtype of the old, and the update is cast once, at the end, to the dtype it came in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradxform.core.numbers import cast, wide_dtype, widen
from gradxform.core.trees import align, check_shapes, is_tracing, mismatch, refuse_integers, structure
from gradxform.core.types import Params, PyTree, State, Updates


class Rule(NamedTuple):
    """A leafwise stage on one step, its scalars worked out.

    Attributes:
      leaf: ``leaf(update, param, *states, *inputs)`` with every array in float32 at least; it returns the new update,
        or with ``states`` the tuple ``(update, *new_states)``. ``param`` is None where no params were given.
      states: the trees of the state that have a leaf for every leaf of the params.
      finish: makes the new state from the new trees.
      inputs: further trees that are read but not kept.
      same_shape: whether the leaves of ``states`` have the shapes of the params.

    Example:
      >>> import gradxform as gx
      >>> gx.Rule(lambda update, param: -update).states
      ()
    """

    leaf: Callable[..., Any]
    states: tuple[PyTree, ...] = ()
    finish: Callable[..., State] | None = None
    inputs: tuple[PyTree, ...] = ()
    same_shape: bool = True


@dataclasses.dataclass(frozen=True)
class Leafwise:
    """A stage that works leaf by leaf.

    Attributes:
      rule: ``rule(state)`` for one step; with ``reads_updates`` it is ``rule(state, updates, params)`` and sees the
        whole tree, as a global norm must.
      init: the state for params.
      needs_params: whether ``update`` has to be given the params.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> @gx.transformation
      ... def scale_by_sign(weight: float = 1.0):
      ...   return gx.Leafwise(lambda state: gx.Rule(lambda g, p: weight * jnp.sign(g)))
      >>> tx = gx.chain(scale_by_sign(), gx.scale(-0.5))
      >>> tx.update({"w": 3.0}, tx.init({"w": 1.0}))[0]
      {'w': Array(-0.5, dtype=float32)}
    """

    rule: Callable[..., Rule]
    init: Callable[[Params], State] = lambda params: optax.EmptyState()
    reads_updates: bool = False
    needs_params: bool = False


@dataclasses.dataclass(frozen=True)
class Sequential:
    """Stages one after another.

    Attributes:
      transformations: the values, by key.
      pack: makes the state from the states of the parts.
      unpack: the states of the parts.
    """

    transformations: Mapping[str, Any]
    pack: Callable[[list[State]], State]
    unpack: Callable[[State], Sequence[State]]


@dataclasses.dataclass(frozen=True)
class General:
    """Any other pair.

    Attributes:
      init: the state for params.
      update: ``update(updates, state, params, **extra)``; updates come in float32 at least and may leave so.
      inner: the transformations inside, each with its own part of the state, by key.
      observe: ``observe(state, updates)``: the state once the final updates are known.
      foreign: whether it is another library's, which expects the dtype of the params and may change that of its state.
      widens: whether updates come in float32 at least; a guard wants to see them as they go out.
    """

    init: Callable[[Params], State]
    update: Callable[..., tuple[Updates, State]]
    inner: Callable[[State], Mapping[str, tuple[Any, State]]] | None = None
    observe: Callable[[State, Updates], State] | None = None
    foreign: bool = False
    widens: bool = True


Stage = Leafwise | Sequential | General


def stage_of(transformation: Any) -> Stage:
    """The stage of any transformation, ours or another library's."""
    stage = getattr(transformation, "stage", None)
    if isinstance(stage, Stage):
        return stage
    tx = optax.with_extra_args_support(transformation)
    return General(tx.init, tx.update, foreign=True)


def init(stage: Stage, params: Params) -> State:
    """The state of a stage for params."""
    if isinstance(stage, Sequential):
        return stage.pack([init(stage_of(tx), params) for tx in stage.transformations.values()])
    if isinstance(stage, Leafwise):
        refuse_integers(params, "params")
    return stage.init(params)


def run(stage: Stage, updates: Updates, state: State, params: Params | None, extra: Mapping[str, Any],
        name: str = "update") -> tuple[Updates, State]:
    """Carries out a stage: see the module's text.

    Args:
      stage: what to carry out.
      updates: the gradients, or what an earlier transformation made of them.
      state: the state of ``stage``.
      params: the params, or None.
      extra: what the caller passed beyond them.
      name: what messages call the transformation.

    Returns:
      The updates, each leaf in the dtype it came in, and the new state.
    """
    steps, rebuild = _line_up(stage, state, name)
    leaves, treedef = jax.tree.flatten(updates)
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    finished: list[State] = []
    pending: list[tuple[Rule, int]] = []

    def flush(out: list[Any] | None) -> None:
        nonlocal updates
        if pending:
            updates = _apply([rule for rule, _ in pending], updates, params, out, finished, [i for _, i in pending])
            pending.clear()

    for i, (step, part) in enumerate(steps):
        finished.append(part)
        if isinstance(step, Leafwise):
            if step.needs_params and params is None:
                raise ValueError(f"{name}: expected params, got None; call update(updates, state, params)")
            if step.reads_updates:
                flush(None)
                pending.append((step.rule(part, updates, params), i))
            else:
                pending.append((step.rule(part), i))
            continue
        flush(None)
        if step.foreign:
            updates, finished[i] = _run_foreign(step, updates, part, params, extra)
        else:
            updates, finished[i] = step.update(_widen(updates) if step.widens else updates, part, params, **extra)
    flush(dtypes)
    updates = _narrow(updates, treedef, dtypes)
    for i, (step, _) in enumerate(steps):
        if isinstance(step, General) and step.observe is not None:
            finished[i] = step.observe(finished[i], updates)
    return updates, rebuild(iter(finished))


def _line_up(stage: Stage, state: State,
             name: str) -> tuple[list[tuple[Any, State]], Callable[[Iterator[State]], State]]:
    """The stages of nested chains as one list with their states, and how to nest the new states again."""
    if not isinstance(stage, Sequential):
        return [(stage, state)], next
    states = stage.unpack(state)
    if len(states) != len(stage.transformations):
        raise ValueError(f"{name}: expected the state of {len(stage.transformations)} transformations, "
                         f"got {len(states)}; make it with init(params)")
    lines = [_line_up(stage_of(tx), part, key)
             for (key, tx), part in zip(stage.transformations.items(), states, strict=True)]
    return ([step for steps, _ in lines for step in steps],
            lambda new: stage.pack([rebuild(new) for _, rebuild in lines]))


def _apply(rules: list[Rule], updates: Updates, params: Params | None, out: list[Any] | None,
           finished: list[State], places: list[int]) -> Updates:
    """Runs leafwise rules as one expression a leaf; ``out`` are the dtypes to leave in, None for wide."""
    refuse_integers(updates, "updates")
    leaves, treedef = jax.tree.flatten(updates)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    out = out or [wide_dtype(leaf.dtype) for leaf in leaves]
    param_leaves: list[Any] = [None] * len(leaves)
    if params is not None:
        param_leaves = align(treedef, updates, params, "params")
        check_shapes(updates, leaves, param_leaves, "updates", "params")
    read = [[align(treedef, updates, tree, "state") for tree in (*rule.states, *rule.inputs)] for rule in rules]
    for rule, trees in zip(rules, read, strict=True):
        for tree in trees[:len(rule.states)] if rule.same_shape else ():
            check_shapes(updates, leaves, tree, "updates", "state")

    def leafwise(update: Any, param: Any, arrays: Any, dtype: Any) -> tuple[Any, list[Any]]:
        new: list[Any] = []
        wide = wide_dtype(update.dtype)
        update = widen(update)
        param = None if param is None else widen(jnp.asarray(param))
        for rule, own in zip(rules, arrays, strict=True):
            result = rule.leaf(update, param, *(_widen_leaf(x) for x in own))
            update, *states = result if rule.states else (result,)
            update = cast(update, wide)
            new.append([cast(x, old.dtype) for x, old in zip(states, own, strict=False)])
        return cast(update, dtype), new

    # Under a trace, jit records the expression once for each shape and dtype and calls it for the other leaves.
    call = jax.jit(leafwise, static_argnums=3) if is_tracing(leaves) else leafwise
    results = [call(leaf, param, [[tree[i] for tree in trees] for trees in read], jnp.dtype(dtype))
               for i, (leaf, param, dtype) in enumerate(zip(leaves, param_leaves, out, strict=True))]
    for k, (rule, place) in enumerate(zip(rules, places, strict=True)):
        if rule.finish is not None:
            finished[place] = rule.finish(*(
                jax.tree.unflatten(treedef, [new[k][j] for _, new in results]) for j in range(len(rule.states))))
    return jax.tree.unflatten(treedef, [update for update, _ in results])


def _run_foreign(stage: General, updates: Updates, state: State, params: Params | None,
                 extra: Mapping[str, Any]) -> tuple[Updates, State]:
    """Another library's transformation: it sees the dtype of the params and keeps the dtypes of its state."""
    if params is not None:
        leaves, treedef = jax.tree.flatten(updates)
        like = align(treedef, updates, params, "params")
        updates = jax.tree.unflatten(treedef, [_cast_like(x, p) for x, p in zip(leaves, like, strict=True)])
    updates, new = stage.update(updates, state, params, **extra)
    if structure(new) == structure(state):
        new = jax.tree.map(lambda x, old: cast(x, old.dtype) if hasattr(old, "dtype") else x, new, state)
    return updates, new


def _cast_like(x: Any, like: Any) -> Any:
    return cast(x, jnp.result_type(like)) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x


def _widen_leaf(x: Any) -> Any:
    return widen(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def _widen(updates: Updates) -> Updates:
    return jax.tree.map(lambda x: _widen_leaf(jnp.asarray(x)), updates)


def _narrow(updates: Updates, treedef: Any, dtypes: list[Any]) -> Updates:
    leaves, found = jax.tree.flatten(updates)
    if found != treedef:
        mismatch(jax.tree.unflatten(treedef, [0.0] * len(dtypes)), updates, "the updates that came in",
                 "the updates that went out")
    return jax.tree.unflatten(treedef, [
        x if getattr(x, "dtype", None) == dtype else cast(x, dtype) for x, dtype in zip(leaves, dtypes, strict=True)])
