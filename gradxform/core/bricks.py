"""The brick: a rule of optimization written for one leaf, with what it keeps declared."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradxform.core.manual import AxisName, check_axis_name
from gradxform.core.numbers import float_dtype, increment
from gradxform.core.slots import Slot, stored_as
from gradxform.core.types import Params, PyTree, Scalar, State, Updates
from gradxform.core.which import Where


class LeafRule(Protocol):
    """``leaf(now, g, p, *kept)``: the new update of a leaf, or with slots the tuple ``(update, *kept)``.

    ``now`` is what ``at`` returned, ``g`` the update so far, ``p`` the param (None where no params were given), then
    the accumulators in the order of the slots. All arrays come in float32 at least.
    """

    def __call__(self, now: Any, g: jax.Array, p: Any, /, *kept: Any) -> ArrayLike | tuple[ArrayLike | None, ...]:
        """The new update, and what is kept."""


class Each(tuple):
    """In what ``at`` returns: a value of its own for each leaf, in the order of the leaves."""


@dataclasses.dataclass(frozen=True)
class Leafwise:
    """A transformation whose update of a leaf depends on that leaf and on a few numbers.

    It is fused with its neighbours in a chain, masked, stored and named by what it declares here.

    Attributes:
      leaf: the rule: see ``LeafRule``.
      slots: what it keeps for each leaf, by the names of the fields of ``state``.
      at: the numbers of one step, worked out once for all leaves. It is called with the count if ``state`` has a field
        of that name (the number of this update, from 1), then the scalars, then the updates if it is ``whole``; with
        scalars it returns ``(now, *scalars)``. A value of its own for each leaf goes in as an ``Each``.
      state: the class of the state, a NamedTuple with a field for each slot and scalar, and maybe ``count``.
      scalars: what it keeps beside the count and the slots: the number each starts from, stored in float32 at least, or
        a function that makes what it starts from.
      whole: whether ``at`` looks at all updates, as a global norm must.
      needs_params: whether ``update`` has to be given the params.
      elementwise: whether each element of a leaf is worked out from the same element of what is read, so that leaves
        may be joined or divided.
      axis_name: the named axes along which it takes pieces of leaves together; None where it needs whole leaves, and
        pieces of them, in ``shard_map``, are refused.
      any_dtype: whether leaves of integers and keys may come.
      check: ``check(params)`` refuses params that it cannot work on, when a run starts.
      where: which leaves it works on: all masks around it, from the outermost in; put there by ``masked`` and the like.
      name: what messages call it; by default its factory's.

    Raises:
      TypeError: ``state`` lacks a field for a slot or a scalar, or has one for neither; ``at`` is missing.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> @gx.transformation
      ... def scale_by_sign(weight: float = 1.0):
      ...   return gx.Leafwise(lambda now, g, p: weight * jnp.sign(g))
      >>> tx = gx.chain(scale_by_sign(), gx.scale(-0.5))
      >>> tx.update({"w": 3.0}, tx.init({"w": 1.0}))[0]
      {'w': Array(-0.5, dtype=float32)}
    """

    leaf: LeafRule
    slots: Mapping[str, Slot] = dataclasses.field(default_factory=dict)
    at: Callable[..., Any] | None = None
    state: type[PyTree] = optax.EmptyState
    _: dataclasses.KW_ONLY
    scalars: Mapping[str, Scalar | Callable[[], jax.Array]] = dataclasses.field(default_factory=dict)
    whole: bool = False
    needs_params: bool = False
    elementwise: bool = False
    axis_name: AxisName = ()
    any_dtype: bool = False
    check: Callable[[Params], object] | None = None
    where: tuple[Where, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        check_axis_name(self.axis_name)
        if not isinstance(self.slots, Mapping) or not all(isinstance(slot, Slot) for slot in self.slots.values()):
            raise TypeError(f"slots: expected a dict of Slots by name, got {self.slots!r}")
        if self.at is None and (self.whole or self.scalars):
            raise TypeError("at: expected a function of the scalars and of the whole updates, got None")
        fields = getattr(self.state, "_fields", None)
        declared = {*self.slots, *self.scalars}
        required = set(fields or ()) - {"count", *getattr(self.state, "_field_defaults", ())}
        if fields is None or not (required <= declared <= {*fields}):
            raise TypeError(
                f"state: expected a NamedTuple with the fields {sorted(declared)} and maybe 'count', "
                f"got {getattr(self.state, '__name__', self.state)!r} with {list(fields or ())}"
            )

    @property
    def counts(self) -> bool:
        """Whether the state counts the updates made."""
        return "count" in self.state._fields

    def init(self, params: Params) -> State:
        """The state that a run starts with; ``params`` has the leaves that the brick works on."""
        if self.check is not None:
            self.check(params)
        # Copies: what is in a state may be donated, and the user's key or number is not.
        scalars = {
            name: jnp.array(start()) if callable(start) else jnp.array(start, float_dtype())
            for name, start in self.scalars.items()
        }
        count = {"count": jnp.zeros([], jnp.int32)} if self.counts else {}
        return self.state(**count, **scalars, **{name: slot.new(params) for name, slot in self.slots.items()})

    def begin(self, state: State, updates: Updates | None) -> tuple[PyTree, State]:
        """What ``at`` makes of one step, and the state but for its slots."""
        given: list[PyTree] = []
        if self.counts:
            state = state._replace(count=increment(state.count))
            given.append(state.count)
        given += [getattr(state, name) for name in self.scalars]
        if self.at is None:
            return None, state
        names = ["count"] * self.counts + [*self.scalars] + ["updates"] * self.whole
        now = self._call("at", names, *given, *([updates] if self.whole else []))
        if not self.scalars:
            return now, state
        now, *new = self._parts("at", now, ["now", *self.scalars])
        for name, x in zip(self.scalars, new, strict=True):
            self._fits("at", name, x, getattr(state, name))
        return now, state._replace(
            **{name: stored_as(getattr(state, name), x) for name, x in zip(self.scalars, new, strict=True)}
        )

    def step(
        self, now: PyTree, g: jax.Array, p: jax.Array | None, kept: Sequence[jax.Array]
    ) -> tuple[jax.Array, list[jax.Array]]:
        """The new update of a leaf and what is kept of it, as they are stored."""
        result = self._call(
            "leaf",
            ["now", "g", "p", *self.slots],
            now,
            g,
            p,
            *(None if is_empty(x) else slot.read(x) for slot, x in zip(self.slots.values(), kept, strict=True)),
        )
        update, *new = self._parts("leaf", result, ["update", *self.slots]) if self.slots else (result,)
        self._fits("leaf", "update", update, g)
        stored = []
        for (name, slot), x, old in zip(self.slots.items(), new, kept, strict=True):
            if not is_empty(old):
                self._fits("leaf", name, x, old)
            stored.append(old if is_empty(old) else slot.write(x, old, g.shape))
        return jnp.asarray(update), stored

    def _call(self, function: str, names: list[str], *given: PyTree) -> object:
        try:
            return getattr(self, function)(*given)
        except TypeError:
            found = inspect.signature(getattr(self, function))
            try:
                found.bind(*given)
            except TypeError:
                raise TypeError(f"{self.name}: expected {function} to take ({', '.join(names)}), got {found}") from None
            raise

    def _parts(self, function: str, result: object, names: list[str]) -> Sequence[PyTree]:
        if isinstance(result, (tuple, list)) and len(result) == len(names):
            return result
        found = f"{len(result)} of them" if isinstance(result, (tuple, list)) else _kind(result)
        raise TypeError(f"{self.name}: expected {function} to return ({', '.join(names)}), got {found}")

    def _fits(self, function: str, name: str, x: object, like: jax.typing.ArrayLike) -> None:
        expected = f"{self.name}: expected {function} to return"
        if not isinstance(x, (int, float, complex)) and not _is_array(x):
            raise TypeError(f"{expected} an array as {name}, got {_kind(x)}")
        if jnp.shape(x) != jnp.shape(like):
            raise TypeError(f"{expected} {name} of shape {jnp.shape(like)}, got shape {jnp.shape(x)}")
        for kind, what in ((jnp.complexfloating, "real numbers"), (jax.dtypes.extended, "numbers")):
            if jnp.issubdtype(jnp.result_type(x), kind) and not jnp.issubdtype(jnp.result_type(like), kind):
                raise TypeError(f"{expected} {what} as {name}, got {jnp.result_type(x)}")


def is_empty(kept: object) -> bool:
    """Whether an empty node stands where something may be kept of a leaf."""
    return not jax.tree_util.all_leaves([kept])


def _is_array(x: object) -> TypeGuard[jax.Array]:
    return isinstance(x, jax.Array) or (hasattr(x, "dtype") and hasattr(x, "shape"))


def _kind(x: object) -> str:
    return "None" if x is None else "an array" if _is_array(x) else f"a {type(x).__name__}"
