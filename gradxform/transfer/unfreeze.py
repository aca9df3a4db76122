"""Gradual unfreezing: parts of a network that start to train one after another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core import checks, stages
from gradxform.core.control import branch
from gradxform.core.numbers import increment, no_update
from gradxform.core.run import run
from gradxform.core.selectors import compile_pattern
from gradxform.core.stages import Around, is_final
from gradxform.core.transformation import transformation
from gradxform.core.trees import align, paths, structure
from gradxform.core.types import AnyTransformation, Params, PyTree, State, Updates
from gradxform.core.which import is_partial, keep
from gradxform.transforms.combine import identity, in_order


class UnfreezeState(NamedTuple):
    """The updates made, the state of what runs before, and that of each group by its start."""

    step: jax.Array
    before_state: State
    inner_states: dict[str, State]


@transformation
def gradual_unfreeze(optimizer: AnyTransformation, schedule: Sequence[tuple[str, int | None]], *,
                     before: AnyTransformation | None = None) -> Around:
    """Applies an optimizer to each part of the tree from a step of its own on; until then that part does not move.

    Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification" (ACL 2018), section 3.3: the head
    first, then one more layer at a time. A part that is frozen gets updates of zero, whatever its gradient holds, and
    its state stays as it was: Adam's bias correction starts with the part. All steps are one compiled program.

    ``optimizer`` runs on each group of leaves with one start by itself, so a schedule in it counts from the start of
    the group, and a norm in it is that of the group. What is to see all parts goes into ``before``, to which frozen
    gradients come as zeros: a clip there measures what is being trained. A schedule of the whole run goes behind:
    ``chain(gradual_unfreeze(adam(1.0), ...), scale_by_schedule(rate))``.

    Args:
      optimizer: the transformation of each group.
      schedule: pairs ``(pattern, step)``. A leaf belongs to the first pair whose regular expression its path contains;
        it trains from the update of that number on, counted from 0, or never with None. ``("", 0)`` as the last pair
        takes all that is left.
      before: a transformation of all gradients that comes first, such as ``clip_by_global_norm(1.0)``.

    Returns:
      A transformation that counts its updates; it needs params if one of the two does.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a negative step, no pair, or no regular expression; from ``init``, a leaf that belongs to no pair,
        with its path, or a pair without a leaf.

    Example:
      >>> import gradxform as gx
      >>> schedule = (("^head", 0), ("^body", 1))
      >>> tx = gx.transfer.gradual_unfreeze(gx.sgd(1.0), schedule, before=gx.clip_by_global_norm(1.0))
      >>> params = {"body": 1.0, "head": 1.0}
      >>> first, state = tx.update({"body": 40.0, "head": 30.0}, tx.init(params))
      >>> second, state = tx.update({"body": 40.0, "head": 30.0}, state)
      >>> {name: round(float(u), 3) for name, u in first.items()}
      {'body': -0.0, 'head': -1.0}
      >>> {name: round(float(u), 3) for name, u in second.items()}
      {'body': -0.8, 'head': -0.6}
    """
    before = identity() if before is None else before
    first, stage = in_order("gradual_unfreeze", {"before": before, "optimizer": optimizer})
    pairs = _pairs(schedule)
    starts = sorted({start for _, start in pairs if start is not None})

    def init(params: Params) -> UnfreezeState:
        own = _starts(params, pairs, complete=True)
        return UnfreezeState(jnp.zeros([], jnp.int32), stages.init(first, params), {
            str(start): stages.init(stage, _part(params, own, start)) for start in starts})

    def update(updates: Updates, state: UnfreezeState, params: Params | None = None,
               **extra: object) -> tuple[Updates, UnfreezeState]:
        own = _starts(updates, pairs)
        leaves, treedef = jax.tree.flatten(updates)
        live = {start: jnp.asarray(True) if start == 0 else state.step >= start for start in starts}
        # A choice and not a product, for a gradient that is not used may be NaN.
        thawed = [no_update(g) if start is None else g if start == 0 else jnp.where(live[start], g, no_update(g))
                  for g, start in zip(leaves, own, strict=True)]
        seen, before_state = run(first, jax.tree.unflatten(treedef, thawed), state.before_state, params, extra,
                                        "gradual_unfreeze")
        if params is not None:
            align(treedef, updates, params, "params")
        new = [no_update(g) for g in leaves]
        inner_states: dict[str, State] = {}
        for start in starts:
            part = _part(seen, own, start)
            part_params = None if params is None else _part(params, own, start)
            old = state.inner_states[str(start)]

            def train(part: Updates = part, part_params: Params | None = part_params,
                      old: State = old) -> tuple[Updates, State]:
                return run(stage, part, old, part_params, extra, "gradual_unfreeze")

            def wait(part: Updates = part, old: State = old) -> tuple[Updates, State]:
                return jax.tree.map(no_update, part), old

            moved, inner_states[str(start)] = train() if start == 0 else branch(live[start], train, wait)
            for i, u in zip([i for i, s in enumerate(own) if s == start], jax.tree.leaves(moved), strict=True):
                new[i] = u
        return jax.tree.unflatten(treedef, new), UnfreezeState(increment(state.step), before_state, inner_states)

    return Around(init, update, lambda state: {"before": (before, state.before_state)} | {
        f"optimizer/{start}": (optimizer, part) for start, part in state.inner_states.items()}, UnfreezeState,
                  final=is_final(stage))


def _pairs(schedule: Sequence[tuple[str, int | None]]) -> list[tuple[re.Pattern[str], int | None]]:
    if not isinstance(schedule, (list, tuple)) or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in schedule):
        raise TypeError(f"schedule: expected pairs (regular expression, step), got {schedule!r}")
    if not schedule:
        raise ValueError(f"schedule: expected at least one pair, got {schedule!r}")
    pairs: list[tuple[re.Pattern[str], int | None]] = []
    for pattern, start in schedule:
        if start is not None:
            checks.integer(f"schedule: step of {pattern!r}", start, at_least=0)
        pairs.append((compile_pattern("schedule", pattern), start))
    return pairs


def _starts(tree: PyTree, pairs: list[tuple[re.Pattern[str], int | None]], *,
            complete: bool = False) -> list[int | None]:
    """The start of every leaf; with ``complete``, every pair has to have one."""
    found: list[int | None] = []
    used: set[int] = set()
    for path in paths(tree):
        i = next((i for i, (pattern, _) in enumerate(pairs) if pattern.search(path)), None)
        if i is None:
            raise ValueError(f"schedule: expected a pair that matches '{path}', got none; "
                             "('', 0) as the last pair takes all that is left")
        used.add(i)
        found.append(pairs[i][1])
    unused = sorted(set(range(len(pairs))) - used)
    # A mask may have taken the leaves of a pair out of the tree.
    if complete and found and unused and not is_partial(tree):
        raise ValueError(f"schedule: expected {pairs[unused[0]][0].pattern!r} to be the first that matches some path, "
                         "got no such leaf")
    return found


def _part(tree: PyTree, own: list[int | None], start: int | None) -> PyTree:
    """``tree`` with an empty node for what has another start."""
    return keep(jax.tree.unflatten(structure(tree), [mine == start for mine in own]), tree)
