"""A pull toward an anchor, as a penalty and as a transformation: what L2-SP and EWC share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.numbers import abs_sq, increment, scalar, widen
from gradxform.core.stages import Leafwise, Rule
from gradxform.core.trees import paths, refuse_integers
from gradxform.core.types import Mask, Params, PyTree, Scalar, ScalarOrSchedule
from gradxform.transfer.selection import as_mask, by_path, flags


class New(NamedTuple):
    """What stands in a state for a leaf that has no anchor."""


class PullState(NamedTuple):
    """Where the params are pulled to, how much each of them counts, and how many updates were made."""

    anchor: Params
    weight: PyTree
    count: jax.Array  # type: ignore[assignment]


def check(strength: Any, head_strength: Any, head: Any, *, schedule: bool) -> None:
    """Refuses bad arguments; a strength for new leaves needs to be told which they are.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a number out of its range, or ``head_strength`` without ``head``.
    """
    checks.real("strength", strength, at_least=0, schedule=schedule)
    checks.real("head_strength", head_strength, at_least=0, schedule=schedule)
    if head is not None:
        as_mask("head", head)
    elif callable(head_strength) or (checks.is_concrete(head_strength) and head_strength != 0):
        raise ValueError(f"head: expected which leaves head_strength={head_strength!r} is for, got None")


def penalty(params: Params, anchor: Params, weight: PyTree | None, strength: Scalar, head_strength: Scalar,
            head: Mask | str | None) -> jax.Array:
    """``strength / 2 sum(weight |p - anchor|**2)`` of what has an anchor, ``head_strength / 2 sum(|p|**2)`` of the new.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a number out of its range, or a leaf without its match.
    """
    check(strength, head_strength, head, schedule=False)
    refuse_integers(params, "params")
    new = flags("head", head, params)
    anchors = matched(params, anchor, new, "pretrained")
    weights = [1.0] * len(new) if weight is None else matched(params, weight, new, "fisher")
    # A sum of squares: the slope of a norm is not defined at the start.
    old_sum = new_sum = jnp.zeros([], jnp.float32)
    for leaf, is_new, a, w in zip(jax.tree.leaves(params), new, anchors, weights, strict=True):
        leaf = widen(jnp.asarray(leaf))
        if is_new:
            new_sum += jnp.sum(abs_sq(leaf))
        else:
            old_sum += jnp.sum(widen(jnp.asarray(w)) * abs_sq(leaf - widen(jnp.asarray(a))))
    return 0.5 * (scalar(strength) * old_sum + scalar(head_strength) * new_sum)


def pull(anchor: Params | None, weight: PyTree | None, strength: ScalarOrSchedule, head_strength: ScalarOrSchedule,
         head: Mask | str | None) -> Leafwise:
    """A stage that adds the gradient of the penalty to the updates.

    The anchor lives in the state: there it is donated, sharded and saved with everything else, and a compiled step
    takes it as an argument instead of holding it as a constant.
    """
    check(strength, head_strength, head, schedule=True)

    def init(params: Params) -> PullState:
        new = flags("head", head, params)
        own = jax.tree.leaves(params) if anchor is None else matched(params, anchor, new, "pretrained")
        treedef: Any = jax.tree.structure(params)

        def copies(leaves: list[Any]) -> PyTree:
            # A buffer of their own, since the params of a step are often donated to it.
            return jax.tree.unflatten(treedef, [
                New() if is_new else jnp.array(leaf, copy=True) for leaf, is_new in zip(leaves, new, strict=True)])

        return PullState(copies(own), None if weight is None else copies(matched(params, weight, new, "fisher")),
                         jnp.zeros([], jnp.int32))

    def rule(state: PullState) -> Rule:
        now, now_head = _now(strength, state.count), _now(head_strength, state.count)

        def each(tree: PyTree, new: Any, old: Callable[[jax.Array], jax.Array]) -> PyTree:
            return jax.tree.map(lambda x: new if _is_new(x) else old(x), tree, is_leaf=_is_new)

        # A new leaf is pulled to 0, and all of it counts alike.
        inputs = [each(state.anchor, now_head, lambda x: now), each(state.anchor, jnp.zeros([]), lambda x: x)]
        if state.weight is not None:
            inputs.append(each(state.weight, jnp.ones([]), lambda x: x))
        return Rule(_leaf, inputs=tuple(inputs), finish=lambda: state._replace(count=increment(state.count)))

    return Leafwise(rule, init, needs_params=True)


def matched(params: Params, tree: PyTree, new: list[bool], what: str) -> list[Any]:
    """The leaf of ``tree`` at the path of each leaf of ``params``, None for the new ones.

    Raises:
      ValueError: a leaf is missing or has another shape, with its path.
    """
    there = by_path(tree)
    found: list[Any] = []
    for path, leaf, is_new in zip(paths(params), jax.tree.leaves(params), new, strict=True):
        if not is_new and path not in there:
            raise ValueError(f"{what}: expected an array of shape {jnp.shape(leaf)} at '{path}', got no leaf; name the "
                             "leaves that are new with head")
        if not is_new and jnp.shape(there[path]) != jnp.shape(leaf):
            raise ValueError(f"{what}: expected shape {jnp.shape(leaf)} at '{path}', got {jnp.shape(there[path])}")
        found.append(None if is_new else there[path])
    return found


def _leaf(g: jax.Array, p: jax.Array, rate: jax.Array, anchor: jax.Array, *weight: jax.Array) -> jax.Array:
    step = rate * (p - anchor)
    return g + (step * weight[0] if weight else step)


def _is_new(x: Any) -> bool:
    return isinstance(x, New)


def _now(strength: ScalarOrSchedule, count: jax.Array) -> jax.Array:
    value = strength(count) if callable(strength) else strength
    return jnp.asarray(value, jnp.result_type(float) if isinstance(value, float) else None)
