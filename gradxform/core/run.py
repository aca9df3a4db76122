"""One update: all consecutive bricks of a stage as one expression a leaf.

A chain then costs what one fused expression costs: a clip is a factor inside it, not a pass of its own. The expression
is traced once for each shape and dtype, not once for each leaf.

Bricks get and return wide numbers: every leaf is widened to float32 at least before the first of them sees it, what is
kept is stored as it was, and the update is cast once, at the end; not at all where a stage was ``final``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gradxform.core.bricks import Each, Leafwise, is_empty
from gradxform.core.numbers import as_wide, cast, wide_dtype
from gradxform.core.stages import Later, Stage, line_up, nest
from gradxform.core.trees import (
    flatten,
    is_inexact,
    is_tracing,
    mismatch,
    paths,
    structure,
    subtrees,
    widened,
)
from gradxform.core.types import Params, State, Updates
from gradxform.core.which import Selection, Selections, kept_extra


def run(stage: Stage, updates: Updates, state: State, params: Params | None, extra: Mapping[str, Any],
        name: str = "update", out: Callable[[Any, Any], Any] = as_wide) -> tuple[Updates, State]:
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
    steps = line_up(stage, state, name)
    leaves, treedef = flatten(updates)
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    which = Selections(updates, params)
    waiting: list[_Step] = []  # bricks that are run with their neighbours
    finished: list[Any] = []
    final: set[int] = set()  # the places of updates that leave as they are

    def flush(*, last: bool = False) -> None:
        leave = [jnp.result_type(leaves[place]) if place in final else
                 out(own, None if param is None else jnp.result_type(param))
                 for place, (own, param) in enumerate(zip(dtypes, which.param_leaves, strict=True))]
        wide = [wide_dtype(jnp.promote_types(own, dtype)) if jnp.issubdtype(own, jnp.inexact) else own
                for own, dtype in zip(dtypes, leave, strict=True)]
        leaves[:] = _apply(waiting, leaves, which.param_leaves, wide, leave if last else wide)
        waiting.clear()

    for part, own in steps:
        here = which[part.where]
        if isinstance(part, Leafwise):
            if part.needs_params and params is None:
                raise ValueError(f"{name}: expected params, got None; {part.name} needs them: "
                                 "call update(updates, state, params)")
            if part.whole and waiting:
                flush()
            waiting.append(_Step(part, own, here, widened(here.take(leaves)) if part.whole else None))
            finished.append(waiting[-1])
            continue
        if waiting:
            flush()
        seen = here.take(leaves)
        new, own = part.update(seen, own, here.params, **kept_extra(part.where, updates, extra))
        if structure(new) != here.treedef:
            mismatch(seen, new, "the updates that came in", "the updates that went out")
        for place, leaf in zip(here.places, jax.tree.leaves(new), strict=True):
            leaves[place] = leaf
        final.update(here.places if part.final else ())
        finished.append(own)
    flush(last=True)
    states = [own.state() if isinstance(own, _Step) else own for own in finished]
    for i, (part, _) in enumerate(steps):
        if isinstance(states[i], Later):
            states[i] = states[i].complete(which[part.where].take(leaves))
    return jax.tree.unflatten(treedef, leaves), nest(stage, iter(states))


class _Step:
    """A brick on one step: the numbers of this update, and what is kept of each of its leaves."""

    def __init__(self, brick: Leafwise, state: State, which: Selection, updates: Updates | None):
        if not brick.any_dtype:
            _ = which.checked  # or it raises
        self.brick, self.which = brick, which
        self.now, self.rest = brick.begin(state, updates)
        self.slots = {name: self._of_leaves(name, getattr(state, name)) for name in brick.slots}
        self.varying = any(isinstance(x, Each) for x in jax.tree.leaves(self.now))

    def _of_leaves(self, name: str, tree: Any) -> list[Any]:
        which, slot = self.which, self.brick.slots[name]
        kept = subtrees(which.treedef, which.tree, tree, "state", "updates")
        for i, (x, g) in enumerate(zip(kept, jax.tree.leaves(which.tree), strict=True)):
            if is_empty(x):
                if slot.start is None or x is None or jax.tree.leaves(x):
                    mismatch(which.tree, tree, "updates", "state")
            elif jnp.shape(x) != slot.shape(jnp.shape(g)):
                raise ValueError(f"state and updates do not fit at '{paths(which.tree)[i]}': updates: shape "
                                 f"{jnp.shape(g)}; state: shape {jnp.shape(x)} of {self.brick.name}'s {name}")
        return kept

    def kept(self, place: int) -> list[Any]:
        return [values[self.which.order[place]] for values in self.slots.values()]

    def keep(self, place: int, new: list[Any]) -> None:
        for values, x in zip(self.slots.values(), new, strict=True):
            values[self.which.order[place]] = x

    def each(self, place: int) -> list[Any]:
        """What ``at`` made for this leaf alone."""
        own = [x for x in jax.tree.leaves(self.now) if isinstance(x, Each)] if self.varying else []
        return [x[self.which.order[place]] for x in own]

    def leaf(self, each: list[Any], update: Any, param: Any, kept: list[Any]) -> tuple[Any, list[Any]]:
        now, values = self.now, iter(each)
        if self.varying:
            now = jax.tree.map(lambda x: next(values) if isinstance(x, Each) else x, now)
        return self.brick.step(now, update, param, kept)

    def state(self) -> State:
        new = {name: self.which.treedef.unflatten(values) for name, values in self.slots.items()}
        return self.rest._replace(**new) if new else self.rest


def _apply(steps: list[_Step], leaves: list[Any], params: list[Any], wides: list[Any], dtypes: list[Any]) -> list[Any]:
    """The leaves after some bricks in a row, computed in one dtype and left in another.

    Each step is given what is kept of its leaves.
    """
    def expression(update: Any, param: Any, kept: Any, each: Any, members: tuple[int, ...], wide: Any,
                   dtype: Any) -> Any:
        update, param = cast(update, wide), None if param is None else widened(param)
        new = []
        for i, own, value in zip(members, kept, each, strict=True):
            update, stored = steps[i].leaf(value, update, param, own)
            update = cast(update, wide)
            new.append(stored)
        return cast(update, dtype), new

    # Under a trace, jit records the expression once for each shape and dtype and calls it for the other leaves.
    jitted = jax.jit(expression, static_argnums=(4, 5, 6)) if is_tracing(leaves) else expression
    made: list[Any] = []
    for place, (leaf, param, wide, dtype) in enumerate(zip(leaves, params, wides, dtypes, strict=True)):
        members = tuple(i for i, step in enumerate(steps) if place in step.which.order)
        if not members:
            made.append(leaf if dtype == jax.dtypes.float0 else cast(leaf, dtype))
            continue
        own = [steps[i].kept(place) for i in members]
        each = [steps[i].each(place) for i in members]
        call = jitted if is_inexact(leaf) else expression  # jit takes no array of jax's float0
        update, new = call(jnp.asarray(leaf), param, own, each, members, wide, dtype)
        made.append(update)
        for i, stored in zip(members, new, strict=True):
            steps[i].keep(place, stored)
    return made

