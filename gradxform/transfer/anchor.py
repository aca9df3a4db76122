"""A pull toward an anchor, as a penalty and as a transformation: what L2-SP and EWC share."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.numbers import abs_sq, scalar, widen
from gradxform.core.schedule import at_step
from gradxform.core.slots import Slot, copy_like
from gradxform.core.trees import flatten, named_leaves, paths, refuse_integers
from gradxform.core.types import Mask, Params, PyTree, Scalar, ScalarOrSchedule
from gradxform.core.which import as_mask, flags


class New(NamedTuple):
    """What stands in a state for a leaf that has no anchor."""


class PullState(NamedTuple):
    """Where the params are pulled to, how much each of them counts (None: alike), and how many updates were made."""

    anchor: Params
    weight: PyTree = None
    count: jax.Array = None  # type: ignore[assignment]


def check(
    strength: ScalarOrSchedule, head_strength: ScalarOrSchedule, head: Mask | str | None, *, schedule: bool
) -> None:
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


def penalty(
    params: Params,
    anchor: Params,
    weight: PyTree | None,
    strength: Scalar,
    head_strength: Scalar,
    head: Mask | str | None,
) -> jax.Array:
    """``strength / 2 sum(weight |p - anchor|**2)`` of what has an anchor, ``head_strength / 2 sum(|p|**2)`` of the new.

    Raises:
      TypeError: an argument of the wrong kind.
      ValueError: a number out of its range, or a leaf without its match.
    """
    check(strength, head_strength, head, schedule=False)
    refuse_integers(params, "params")
    new = flags("head", head, params, every_pattern=True)
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


def pull(
    anchor: Params | None,
    weight: PyTree | None,
    strength: ScalarOrSchedule,
    head_strength: ScalarOrSchedule,
    head: Mask | str | None,
) -> Leafwise:
    """A stage that adds the gradient of the penalty to the updates.

    The anchor lives in the state: there it is donated, sharded and saved with everything else, and a compiled step
    takes it as an argument instead of holding it as a constant.
    """
    check(strength, head_strength, head, schedule=True)

    def start(tree: Params | None, what: str) -> Slot:
        return Slot(start=lambda params: _copies(params, tree, flags("head", head, params, every_pattern=True), what))

    def at(count: jax.Array) -> tuple[Scalar, Scalar]:
        return at_step(strength, count - 1), at_step(head_strength, count - 1)

    def leaf(
        now: tuple[Scalar, Scalar], g: jax.Array, p: jax.Array, a: jax.Array | None, *w: jax.Array
    ) -> tuple[jax.Array | None, ...]:
        old, new = now
        if a is None:  # a new leaf is pulled to 0, and all of it counts alike
            return g + new * p, a, *w
        step = old * (p - a)
        return g + (step * w[0] if w else step), a, *w

    slots = {"anchor": start(anchor, "pretrained")} | ({} if weight is None else {"weight": start(weight, "fisher")})
    return Leafwise(leaf, slots, at, PullState, needs_params=True, elementwise=True)


def _copies(params: Params, tree: Params | None, new: list[bool], what: str) -> PyTree:
    """The leaves of ``tree`` (of ``params`` for None) that have a match, laid out as the params.

    They are copies: the params of a step are often donated to it.

    Raises:
      TypeError: ``tree`` is None and a param has no value.
      ValueError: a leaf is missing or has another shape, with its path.
    """
    leaves, treedef = flatten(params)
    own = leaves if tree is None else matched(params, tree, new, what)
    for path, leaf, is_new in zip(paths(params), own, new, strict=True):
        if isinstance(leaf, jax.ShapeDtypeStruct) and not is_new:
            raise TypeError(
                f"{what}: expected a value to start from at '{path}', got a ShapeDtypeStruct; "
                "jax.eval_shape(tx.init, params) tells the shapes of the state"
            )
    return treedef.unflatten(
        [New() if is_new else copy_like(x, leaf) for x, leaf, is_new in zip(own, leaves, new, strict=True)]
    )


def matched(params: Params, tree: PyTree, new: list[bool], what: str) -> list[ArrayLike | None]:
    """The leaf of ``tree`` at the path of each leaf of ``params``, None for the new ones.

    Raises:
      ValueError: a leaf is missing or has another shape, with its path.
    """
    there = dict(named_leaves(tree))
    found: list[ArrayLike | None] = []
    for path, leaf, is_new in zip(paths(params), jax.tree.leaves(params), new, strict=True):
        if not is_new and path not in there:
            raise ValueError(
                f"{what}: expected an array of shape {jnp.shape(leaf)} at '{path}', got no leaf; name the "
                "leaves that are new with head"
            )
        if not is_new and jnp.shape(there[path]) != jnp.shape(leaf):
            raise ValueError(f"{what}: expected shape {jnp.shape(leaf)} at '{path}', got {jnp.shape(there[path])}")
        found.append(None if is_new else there[path])
    return found
