"""One update: all consecutive bricks of a stage as one expression a leaf.

A chain then costs what one fused expression costs: a clip is a factor inside it, not a pass of its own. The expression
is traced once for each shape and dtype, not once for each leaf.

Bricks get and return wide numbers: every leaf is widened to float32 at least before the first of them sees it, what is
kept is stored as it was, and the update is cast once, at the end; not at all where a stage was ``final``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from gradxform.core.bricks import Each, Leafwise, is_empty
from gradxform.core.guard import hold, keep, none_is_nan
from gradxform.core.manual import AxisName, everywhere, refuse_pieces
from gradxform.core.numbers import as_stored, as_wide, cast, wide_dtype
from gradxform.core.stages import Around, Later, Stage, line_up, nest
from gradxform.core.trees import flatten, is_inexact, is_tracing, mismatch, paths, structure, subtrees, widened
from gradxform.core.types import Extra, Params, PyTree, State, Treedef, Updates
from gradxform.core.which import Selection, Selections

Leaving: TypeAlias = Callable[[DTypeLike, DTypeLike | None], DTypeLike]
"""The dtype that an update leaves in, from that of the gradient and that of the param (None without params)."""

Kept: TypeAlias = list[jax.Array]
"""What is kept of a leaf by each slot of a brick, or by one slot of each leaf; an empty node where nothing is."""


def run(
    stage: Stage,
    updates: Updates,
    state: State,
    params: Params | None,
    extra: Extra,
    name: str = "update",
    out: Leaving = as_wide,
) -> tuple[Updates, State]:
    """Carries out a stage: see the module's text.

    Args:
      stage: what to carry out.
      updates: the gradients, or what an earlier transformation made of them.
      state: the state of ``stage``.
      params: the params, or None.
      extra: what the caller passed beyond them.
      name: what messages call the transformation.
      out: ``out(gradient, param)``, the dtype that an update leaves in, from those of the gradient and of the param
        (or None); by default the one it is computed in.

    Returns:
      The updates and the new state.
    """
    return _run(stage, updates, state, params, extra, name, out)[:2]


def guarded(
    stage: Stage,
    updates: Updates,
    state: State,
    params: Params | None,
    extra: Extra,
    name: str,
    fine: jax.Array,
    axis_name: AxisName,
) -> tuple[Updates, State, jax.Array]:
    """Carries out a stage if ``fine``; if not, the updates are none and the state stays as it is, bit for bit.

    Nor is a step made one of whose numbers, the factor of a clip or a rate, is NaN. In one that is made, an element
    whose update or whatever is kept of it would become not finite gets none and stays as it is.

    Args:
      stage, updates, state, params, extra, name: as in ``run``.
      fine: a bool scalar.
      axis_name: the named axes along which devices make a step or do not make it together.

    Returns:
      The updates in the dtype they are computed in, the new state, and whether the step was made.
    """
    updates, state, made = _run(stage, updates, state, params, extra, name, as_wide, fine, axis_name)
    return updates, state, fine if made is None else made


def _run(
    stage: Stage,
    updates: Updates,
    state: State,
    params: Params | None,
    extra: Extra,
    name: str,
    out: Leaving,
    fine: jax.Array | None = None,
    axis_name: AxisName = None,
) -> tuple[Updates, State, jax.Array | None]:
    steps = line_up(stage, state, name)
    leaves, treedef = flatten(updates)
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    which = Selections(updates, params)
    waiting: list[_Step] = []  # bricks that are run with their neighbours
    finished: list[_Step | State | Later] = []
    final: set[int] = set()  # the places of updates that leave as they are

    def flush(*, last: bool = False) -> None:
        nonlocal fine
        stored = [None if param is None else jnp.result_type(param) for param in which.param_leaves]
        leave = [
            jnp.result_type(leaves[place]) if place in final else out(*pair)
            for place, pair in enumerate(zip(dtypes, stored, strict=True))
        ]
        wide = [
            wide_dtype(jnp.promote_types(own, dtype)) if jnp.issubdtype(own, jnp.inexact) else own
            for own, dtype in zip(dtypes, leave, strict=True)
        ]
        finite_in = None
        if fine is not None:
            if numbers := [x for step in waiting for x in step.numbers() if is_inexact(x)]:
                fine &= everywhere(none_is_nan(numbers), axis_name)
            for step in waiting:
                step.rest = keep(fine, step.rest, step.before)
            # An update that is not the last one may go through NaN: a later part may mend it.
            finite_in = [as_stored(*pair) for pair in zip(dtypes, stored, strict=True)] if last else None
        leaves[:] = _apply(waiting, leaves, which.param_leaves, wide, leave if last else wide, fine, finite_in)
        waiting.clear()

    for part, own in steps:
        here = which[part.where]
        if isinstance(part, Leafwise):
            if part.needs_params and params is None:
                raise ValueError(
                    f"{name}: expected params, got None; {part.name} needs them: call update(updates, state, params)"
                )
            if part.whole and waiting:
                flush()
            waiting.append(_Step(part, own, here, widened(here.take(leaves)) if part.whole else None))
            finished.append(waiting[-1])
            continue
        if waiting:
            flush()
        seen = here.take(leaves)
        guard = {"fine": fine} if fine is not None and part.guarded else {}
        new, own = part.update(seen, own, here.params, **which.extra(part.where, extra), **guard)
        if structure(new) != here.treedef:
            mismatch(seen, new, "the updates that came in", "the updates that went out")
        for place, leaf in zip(here.order, jax.tree.leaves(new), strict=True):
            leaves[place] = leaf
        final.update(here.order if part.final else ())
        finished.append(own)
    flush(last=True)
    states = [own.state() if isinstance(own, _Step) else own for own in finished]
    for i, (part, old) in enumerate(steps):
        if isinstance(states[i], Later):
            states[i] = states[i].complete(which[part.where].take(leaves))
        if fine is not None and isinstance(part, Around) and not part.guarded:
            states[i] = keep(fine, states[i], old)
    return jax.tree.unflatten(treedef, leaves), nest(stage, iter(states)), fine


class _Step:
    """A brick on one step: the numbers of this update, and what is kept of each of its leaves."""

    def __init__(self, brick: Leafwise, state: State, which: Selection, updates: Updates | None):
        if not brick.any_dtype:
            _ = which.checked  # or it raises
        refuse_pieces(brick.name, brick.axis_name, which.tree, which.params if brick.needs_params else None)
        self.brick, self.which = brick, which
        self.treedefs: dict[str, Treedef] = {}
        self.now, rest = brick.begin(state, updates)
        self.rest, self.before = (x._replace(**dict.fromkeys(brick.slots)) if brick.slots else x for x in (rest, state))
        self.slots = {name: self._of_leaves(name, getattr(state, name)) for name in brick.slots}
        self.varying = any(isinstance(x, Each) for x in jax.tree.leaves(self.now))

    def _of_leaves(self, name: str, tree: PyTree) -> Kept:
        which, slot = self.which, self.brick.slots[name]
        if slot.axes is not None and structure(tree) != which.treedef and paths(tree) == paths(which.tree):
            self.treedefs[name] = structure(tree)  # boxes around what has fewer axes name fewer
            kept = jax.tree.leaves(tree)
        else:
            kept = subtrees(which.treedef, which.tree, tree, "state", "updates")
        for i, (x, g) in enumerate(zip(kept, jax.tree.leaves(which.tree), strict=True)):
            if is_empty(x):
                if slot.start is None or x is None or jax.tree.leaves(x):
                    mismatch(which.tree, tree, "updates", "state")
            elif jnp.shape(x) != slot.shape(jnp.shape(g)):
                raise ValueError(
                    f"state and updates do not fit at '{paths(which.tree)[i]}': updates: shape "
                    f"{jnp.shape(g)}; state: shape {jnp.shape(x)} of {self.brick.name}'s {name}"
                )
        return kept

    def kept(self, place: int) -> Kept:
        return [values[self.which.order[place]] for values in self.slots.values()]

    def told(self, shape: tuple[int, ...], kept: Kept) -> list[int]:
        """Which of these are something that is kept of a leaf of this shape."""
        return [
            i
            for i, (x, slot) in enumerate(zip(kept, self.brick.slots.values(), strict=True))
            if not is_empty(x) and (slot.axes is None or slot.axes(shape) is not None)
        ]

    def keep(self, place: int, new: Kept) -> None:
        for values, x in zip(self.slots.values(), new, strict=True):
            values[self.which.order[place]] = x

    def numbers(self) -> list[jax.Array]:
        """What ``at`` made."""
        return [x for one in jax.tree.leaves(self.now) for x in (one if isinstance(one, Each) else [one])]

    def each(self, place: int) -> list[jax.Array]:
        """What ``at`` made for this leaf alone."""
        own = [x for x in jax.tree.leaves(self.now) if isinstance(x, Each)] if self.varying else []
        return [x[self.which.order[place]] for x in own]

    def leaf(
        self, each: list[jax.Array], update: jax.Array, param: jax.Array | None, kept: Kept
    ) -> tuple[jax.Array, list[jax.Array]]:
        now, values = self.now, iter(each)
        if self.varying:
            now = jax.tree.map(lambda x: next(values) if isinstance(x, Each) else x, now)
        return self.brick.step(now, update, param, kept)

    def state(self) -> State:
        new = {
            name: self.treedefs.get(name, self.which.treedef).unflatten(values) for name, values in self.slots.items()
        }
        return self.rest._replace(**new) if new else self.rest


def _apply(
    steps: list[_Step],
    leaves: list[ArrayLike],
    params: list[ArrayLike | None],
    wides: list[np.dtype],
    dtypes: Sequence[DTypeLike],
    fine: jax.Array | None = None,
    finite_in: list[DTypeLike] | None = None,
) -> list[ArrayLike]:
    """The leaves after some bricks in a row, computed in one dtype and left in another.

    Each step is given what is kept of its leaves: in a guarded run as ``hold`` says, by what the update is stored in;
    a leaf where that is None goes on as it is.
    """

    def expression(
        fine: jax.Array | None,
        update: jax.Array,
        param: ArrayLike | None,
        kept: list[Kept],
        each: list[list[jax.Array]],
        members: tuple[int, ...],
        wide: np.dtype,
        dtype: DTypeLike,
        narrow: DTypeLike | None,
    ) -> tuple[jax.Array, list[Kept]]:
        update, param = cast(update, wide), None if param is None else widened(param)
        new = []
        for i, own, value in zip(members, kept, each, strict=True):
            update, stored = steps[i].leaf(value, update, param, own)
            update = cast(update, wide)
            new.append(stored)
        if fine is not None:
            told = [(n, m) for n, i in enumerate(members) for m in steps[i].told(update.shape, kept[n])]
            held, stored = hold(
                fine, update, wide if narrow is None else narrow, *([of[n][m] for n, m in told] for of in (new, kept))
            )
            update = update if narrow is None else held
            for (n, m), x in zip(told, stored, strict=True):
                new[n][m] = x
        return cast(update, dtype), new

    # Under a trace, jit records the expression once for each shape and dtype and calls it for the other leaves.
    jitted = jax.jit(expression, static_argnums=(5, 6, 7, 8)) if is_tracing([*leaves, fine]) else expression
    made: list[ArrayLike] = []
    for place, (leaf, param, wide, dtype) in enumerate(zip(leaves, params, wides, dtypes, strict=True)):
        members = tuple(i for i, step in enumerate(steps) if place in step.which.order)
        if not members and (finite_in is None or dtype == jax.dtypes.float0):
            made.append(leaf if dtype == jax.dtypes.float0 else cast(leaf, dtype))
            continue
        own = [steps[i].kept(place) for i in members]
        each = [steps[i].each(place) for i in members]
        call = jitted if is_inexact(leaf) else expression  # jit takes no array of jax's float0
        narrow = None if finite_in is None else finite_in[place]
        update, new = call(fine, jnp.asarray(leaf), param, own, each, members, wide, dtype, narrow)
        made.append(update)
        for i, stored in zip(members, new, strict=True):
            steps[i].keep(place, stored)
    return made
