"""Gradual unfreezing: parts of a network that start to train one after another."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.core import checks, stages
from gradxform.core.control import branch
from gradxform.core.numbers import increment, no_update
from gradxform.core.run import run
from gradxform.core.selectors import compile_pattern
from gradxform.core.stages import Around, is_final
from gradxform.core.transformation import transformation
from gradxform.core.trees import align, named_leaves, structure
from gradxform.core.types import AnyTransformation, Params, PyTree, State, Updates
from gradxform.core.which import is_partial, keep
from gradxform.transforms.combine import identity, in_order

Start = int | None
"""The number of the first update that trains something; None for never."""
Schedule = Sequence[tuple[str, Start] | tuple[tuple[str, int], Sequence[Start]]]


class UnfreezeState(NamedTuple):
    """The updates made, the state of what runs before, and that of each group by its start."""

    step: jax.Array
    before_state: State
    inner_states: dict[str, State]


@transformation
def gradual_unfreeze(
    optimizer: AnyTransformation, schedule: Schedule, *, before: AnyTransformation | None = None
) -> Around:
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
        takes all that is left. For leaves that hold a layer for each index along an axis, as those of a scan over
        layers do, ``((pattern, axis), steps)`` has a step for each index: ``(("^blocks/", 0), (20, 10, 0))``.
      before: a transformation of all gradients that comes first, such as ``clip_by_global_norm(1.0)``.

    Returns:
      A transformation that counts its updates; it needs params if one of the two does.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a negative step, no pair, or no regular expression; from ``init``, a leaf that belongs to no pair,
        with its path, a pair without a leaf, or a leaf that has not as many layers along its axis as there are steps.

    Example:
      >>> import gradxform as gx
      >>> import jax.numpy as jnp
      >>> schedule = (("^head", 0), ("^body", 1))
      >>> tx = gx.transfer.gradual_unfreeze(gx.sgd(1.0), schedule, before=gx.clip_by_global_norm(1.0))
      >>> params = {"body": 1.0, "head": 1.0}
      >>> first, state = tx.update({"body": 40.0, "head": 30.0}, tx.init(params))
      >>> second, state = tx.update({"body": 40.0, "head": 30.0}, state)
      >>> {name: round(float(u), 3) for name, u in first.items()}
      {'body': -0.0, 'head': -1.0}
      >>> {name: round(float(u), 3) for name, u in second.items()}
      {'body': -0.8, 'head': -0.6}
      >>> stacked = gx.transfer.gradual_unfreeze(gx.sgd(1.0), ((("^blocks", 0), (None, 1, 0)),))
      >>> params = {"blocks": jnp.ones(3)}
      >>> stacked.update(params, stacked.init(params))[0]["blocks"]
      Array([-0., -0., -1.], dtype=float32)
    """
    before = identity() if before is None else before
    first, stage = in_order("gradual_unfreeze", {"before": before, "optimizer": optimizer})
    pairs = _pairs(schedule)
    starts = sorted({start for _, own in pairs for start in own.steps if start is not None})

    def init(params: Params) -> UnfreezeState:
        own = _starts(params, pairs, complete=True)
        return UnfreezeState(
            jnp.zeros([], jnp.int32),
            stages.init(first, params),
            {str(start): stages.init(stage, _part(params, own, start)) for start in starts},
        )

    def update(
        updates: Updates, state: UnfreezeState, params: Params | None = None, **extra: object
    ) -> tuple[Updates, UnfreezeState]:
        own = _starts(updates, pairs)
        leaves, treedef = jax.tree.flatten(updates)
        live = {start: jnp.asarray(True) if start == 0 else state.step >= start for start in starts}
        # A choice and not a product, for a gradient that is not used may be NaN.
        thawed = [mine.thawed(g, live) for g, mine in zip(leaves, own, strict=True)]
        seen, before_state = run(
            first, jax.tree.unflatten(treedef, thawed), state.before_state, params, extra, "gradual_unfreeze"
        )
        if params is not None:
            align(treedef, updates, params, "params")
        new: list[dict[Start, Any]] = [
            {None: no_update(mine.part(g, None))} if None in mine.steps else {}
            for g, mine in zip(leaves, own, strict=True)
        ]
        inner_states: dict[str, State] = {}
        for start in starts:
            part = _part(seen, own, start)
            part_params = None if params is None else _part(params, own, start)
            old = state.inner_states[str(start)]

            def train(
                part: Updates = part, part_params: Params | None = part_params, old: State = old
            ) -> tuple[Updates, State]:
                return run(stage, part, old, part_params, extra, "gradual_unfreeze")

            def wait(part: Updates = part, old: State = old) -> tuple[Updates, State]:
                return jax.tree.map(no_update, part), old

            moved, inner_states[str(start)] = train() if start == 0 else branch(live[start], train, wait)
            trained = [parts for parts, mine in zip(new, own, strict=True) if start in mine.steps]
            for parts, u in zip(trained, jax.tree.leaves(moved), strict=True):
                parts[start] = u
        joined = [mine.joined(parts) for parts, mine in zip(new, own, strict=True)]
        return jax.tree.unflatten(treedef, joined), UnfreezeState(increment(state.step), before_state, inner_states)

    return Around(
        init,
        update,
        lambda state: (
            {"before": (before, state.before_state)}
            | {f"optimizer/{start}": (optimizer, part) for start, part in state.inner_states.items()}
        ),
        UnfreezeState,
        final=is_final(stage),
    )


class Starts(NamedTuple):
    """When a leaf starts to train, or, with an axis, each of the layers along it."""

    steps: tuple[Start, ...]
    axis: int | None = None

    def _runs(self) -> Iterator[tuple[Start, int, int]]:
        """Layers in a row that start together: when, the first of them, and how many."""
        first = 0
        for start, some in itertools.groupby(self.steps):
            count = len(list(some))
            yield start, first, count
            first += count

    def part(self, leaf: PyTree, start: Start) -> PyTree:
        """What of a leaf, an array or the shape of one, starts at ``start``."""
        if self.axis is None:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            shape = list(leaf.shape)
            shape[self.axis] = self.steps.count(start)
            return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype, sharding=leaf.sharding)
        return _in_a_row(
            [
                lax.slice_in_dim(leaf, first, first + count, axis=self.axis)
                for own, first, count in self._runs()
                if own == start
            ],
            self.axis,
        )

    def joined(self, parts: Mapping[Start, jax.Array]) -> jax.Array:
        """The leaf whose parts these are."""
        if self.axis is None:
            return parts[self.steps[0]]
        pieces, taken = [], dict.fromkeys(self.steps, 0)
        for start, _, count in self._runs():
            pieces.append(lax.slice_in_dim(parts[start], taken[start], taken[start] + count, axis=self.axis))
            taken[start] += count
        return _in_a_row(pieces, self.axis)

    def thawed(self, g: jax.Array, live: Mapping[int, jax.Array]) -> jax.Array:
        """A gradient, with no update for what does not train yet."""
        if not any(self.steps) and None not in self.steps:
            return g
        flags = [jnp.asarray(False) if start is None else live[start] for start in self.steps]
        if self.axis is None:
            return no_update(g) if self.steps == (None,) else jnp.where(flags[0], g, no_update(g))
        others = [axis for axis in range(jnp.ndim(g)) if axis != self.axis % jnp.ndim(g)]
        return jnp.where(jnp.expand_dims(jnp.stack(flags), others), g, no_update(g))


def _in_a_row(pieces: list[jax.Array], axis: int) -> jax.Array:
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)


def _pairs(schedule: object) -> list[tuple[re.Pattern[str], Starts]]:
    wrong = TypeError(
        f"schedule: expected pairs (regular expression, step) or ((regular expression, axis), steps), got {schedule!r}"
    )
    if not isinstance(schedule, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in schedule
    ):
        raise wrong
    if not schedule:
        raise ValueError(f"schedule: expected at least one pair, got {schedule!r}")
    pairs: list[tuple[re.Pattern[str], Starts]] = []
    for pattern, steps in schedule:
        axis = None
        if isinstance(pattern, (list, tuple)):
            if len(pattern) != 2 or not isinstance(steps, (list, tuple)) or not steps:
                raise wrong
            pattern, axis = pattern
            checks.integer(f"schedule: axis of {pattern!r}", axis)
        if not isinstance(pattern, str):
            raise wrong
        starts = Starts((steps,) if axis is None else tuple(steps), axis)
        for start in starts.steps:
            if start is not None:
                checks.integer(f"schedule: step of {pattern!r}", start, at_least=0)
        pairs.append((compile_pattern("schedule", pattern), starts))
    return pairs


def _starts(tree: PyTree, pairs: list[tuple[re.Pattern[str], Starts]], *, complete: bool = False) -> list[Starts]:
    """The start of every leaf; with ``complete``, every pair has to have one."""
    found: list[Starts] = []
    used: set[int] = set()
    for path, leaf in named_leaves(tree):
        i = next((i for i, (pattern, _) in enumerate(pairs) if pattern.search(path)), None)
        if i is None:
            raise ValueError(
                f"schedule: expected a pair that matches '{path}', got none; "
                "('', 0) as the last pair takes all that is left"
            )
        (pattern, starts), shape = pairs[i], jnp.shape(leaf)
        if (axis := starts.axis) is not None and not (
            -len(shape) <= axis < len(shape) and shape[axis] == len(starts.steps)
        ):
            raise ValueError(
                f"schedule: expected {len(starts.steps)} layers along axis {axis} at '{path}', as many as "
                f"{pattern.pattern!r} has steps, got shape {shape}"
            )
        used.add(i)
        found.append(starts)
    unused = sorted(set(range(len(pairs))) - used)
    # A mask may have taken the leaves of a pair out of the tree.
    if complete and found and unused and not is_partial(tree):
        raise ValueError(
            f"schedule: expected {pairs[unused[0]][0].pattern!r} to be the first that matches some path, "
            "got no such leaf"
        )
    return found


def _part(tree: PyTree, own: list[Starts], start: int) -> PyTree:
    """``tree`` with an empty node for what has another start."""
    kept = keep(jax.tree.unflatten(structure(tree), [start in mine.steps for mine in own]), tree)
    leaves, treedef = jax.tree.flatten(kept)
    mine = [starts for starts in own if start in starts.steps]
    return jax.tree.unflatten(treedef, [starts.part(leaf, start) for starts, leaf in zip(mine, leaves, strict=True)])
