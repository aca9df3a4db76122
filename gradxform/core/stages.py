"""The three kinds of work inside a transformation: a brick, a chain of stages, and control around a stage.

What changes a transformation without running it, as a mask does, is a rewrite of the bricks in it: see ``only``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import jax

from gradxform.core.bricks import Leafwise
from gradxform.core.trees import refuse_integers
from gradxform.core.types import AnyTransformation, Params, State, Updates
from gradxform.core.which import Selections, Where


@dataclasses.dataclass(frozen=True)
class Chain:
    """Stages one after another: those of the transformations in the call, in their order; one more may follow.

    Attributes:
      parts: the stages.
      pack: makes the state of the states of the parts.
      unpack: the states of the parts.
      state: the class of the state.
    """

    parts: tuple[Stage, ...]
    pack: Callable[[list[State]], State] = tuple
    unpack: Callable[[State], Sequence[State]] = tuple
    state: type = tuple

    def states(self, state: State, name: str) -> Sequence[State]:
        """The states of the parts.

        Raises:
          ValueError: it is not the state of this chain.
        """
        with contextlib.suppress(AttributeError, KeyError, TypeError):
            if isinstance(state, self.state) and len(parts := self.unpack(state)) == len(self.parts):
                return parts
        raise ValueError(
            f"{name}: expected the state of {len(self.parts)} transformations in a {self.state.__name__}, "
            f"got {_short(state)}; make it with init(params)"
        )


@dataclasses.dataclass(frozen=True)
class Around:
    """Any other pair: control around a stage, or a function of whole trees.

    Attributes:
      init: the state for params.
      update: ``update(updates, state, params, **extra)``. Updates come in the dtype of the gradients or in float32 at
        least, and may leave in either. In place of a state it may return one that is ``Later``.
      inner: ``inner(state)``, the transformations inside, each with its own part of the state, by key.
      state: the class of the state.
      name: what messages call it; by default its factory's.
      where: which leaves it works on: all masks around it, from the outermost in.
      final: whether its updates are meant for the params as they leave it: they are not rounded to the dtype of the
        params, and nothing may change them. What is around such a stage is ``final`` too: see ``is_final``.
      guarded: whether ``update`` takes ``fine``, a flag that says whether the step is made, and itself sees to what
        stays as it is where it is not; by default the whole state does.
    """

    init: Callable[[Params], State]
    update: Callable[..., tuple[Updates, State]]
    inner: Callable[[State], Mapping[str, tuple[AnyTransformation, State]]] | None = None
    state: type = object
    name: str = ""
    where: tuple[Where, ...] = ()
    final: bool = False
    guarded: bool = False


@dataclasses.dataclass(frozen=True)
class Later:
    """A state that is only known once the updates leave the run: ``complete(updates)`` makes it."""

    complete: Callable[[Updates], State]


Stage: TypeAlias = Leafwise | Chain | Around


def only(stage: Stage, where: Where) -> Stage:
    """The stage, each brick and control in it working on some of the leaves only; it sees no trace of the others."""
    if isinstance(stage, Chain):
        return dataclasses.replace(stage, parts=tuple(only(part, where) for part in stage.parts))
    return dataclasses.replace(stage, where=(where, *stage.where))


def is_final(stage: Stage) -> bool:
    """Whether nothing may change the updates that leave a stage, or some of them."""
    return any(map(is_final, stage.parts)) if isinstance(stage, Chain) else isinstance(stage, Around) and stage.final


def init(stage: Stage, params: Params, which: Selections | None = None) -> State:
    """The state of a stage for params; ``which`` are their selections, where some have been made."""
    which = Selections(params, starts=True) if which is None else which
    if isinstance(stage, Chain):
        return stage.pack([init(part, params, which) for part in stage.parts])
    params = which[stage.where].tree
    if isinstance(stage, Leafwise) and not stage.any_dtype:
        refuse_integers(params, "params")
    return stage.init(params)


def line_up(stage: Stage, state: State, name: str) -> list[tuple[Leafwise | Around, State]]:
    """The bricks and controls of nested chains as one list, each with its state.

    Raises:
      ValueError: ``state`` is not the state of ``stage``.
    """
    if isinstance(stage, Chain):
        parts = zip(stage.parts, stage.states(state, name), strict=True)
        return [pair for part, own in parts for pair in line_up(part, own, name)]
    # What keeps nothing takes any state of nothing: None is a habit there.
    nothing = isinstance(stage, Leafwise) and not stage.state._fields and not jax.tree.leaves(state)
    if not isinstance(state, stage.state) and not nothing:
        raise ValueError(
            f"{name}: expected the state of {stage.name}, {stage.state.__name__}, got {_short(state)}; "
            "make it with init(params)"
        )
    return [(stage, state)]


def nest(stage: Stage, states: Iterator[State]) -> State:
    """The state of a stage from those of its bricks and controls in a row: undoes ``line_up``."""
    return stage.pack([nest(part, states) for part in stage.parts]) if isinstance(stage, Chain) else next(states)


def count_of(stage: Stage, state: State, name: str) -> jax.Array | None:
    """The updates that the first part which counts them has seen; None where none does."""
    return next((own.count for _, own in line_up(stage, state, name) if "count" in getattr(own, "_fields", ())), None)


def _short(state: State) -> str:
    kind = type(state).__name__
    return f"a {kind} of {len(state)}" if type(state) in (list, tuple, dict) else kind
