"""Ours inside another library's transformation: its ``init`` says where they stand.

A pair of functions hides what it is made of, but its ``init`` asks each part for a state and puts it in its place.
Called with optax's placeholder for params, as ``optax.tree_utils.tree_map_params`` calls it, and while we ask, ours
answer with themselves instead of a state.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import optax

from gradxform.core.trees import path_name
from gradxform.core.types import AnyTransformation, KeyPath, Params, PyTree, State, Treedef

_ASKED: contextvars.ContextVar[bool] = contextvars.ContextVar("asked", default=False)
_INJECTED = (optax.InjectStatefulHyperparamsState, optax.InjectHyperparamsState)


@dataclasses.dataclass(frozen=True)
class Place:
    """Stands where the state of ``tx`` would; ``anew``: ``tx`` was made by the ``init`` around it, for this call."""

    tx: Any
    anew: bool


# A node without leaves: what maps over a state passes it by.
jax.tree_util.register_pytree_node(Place, lambda place: ((), place), lambda place, _: place)


def asked() -> bool:
    """Whether ``init`` is called to find out where it is called."""
    return _ASKED.get()


def parts(tx: AnyTransformation, state: State) -> Iterator[tuple[str, AnyTransformation, State]]:
    """Ours in another library's transformation: for each the path of its state in ``state``, itself, and its state.

    One that a wrapper makes anew on each call may be another by now, and is left out. Only that of
    ``inject_hyperparams`` is known: it is made of the numbers in the state.

    Raises:
      ValueError: there are ours in ``tx``, and ``state`` is not its state.
    """
    flat: tuple[list[tuple[KeyPath, PyTree]], Treedef] = jax.tree_util.tree_flatten_with_path(
        _places(tx), is_leaf=lambda x: isinstance(x, (Place, *_INJECTED)) or not _any_place(x)
    )
    found, treedef = flat
    try:
        states = treedef.flatten_up_to(state)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"state: expected the state of tx, got a {type(state).__name__} that does not fit what "
            "tx.init returns; make it with init(params)"
        ) from error
    for (path, node), own in zip(found, states, strict=True):
        if isinstance(node, Place) and not node.anew:
            yield path_name(path) if path else "", node.tx, own
        elif isinstance(node, _INJECTED) and isinstance(node.inner_state, Place) and isinstance(own, type(node)):
            inner, numbers = node.inner_state.tx, node.hyperparams
            # The very arrays: a function in between may have made other numbers of them.
            if all(inner.arguments.get(name) is value for name, value in numbers.items()):
                yield path_name((*path, "inner_state")), inner.replace(own.hyperparams), own.inner_state


def _places(tx: AnyTransformation) -> PyTree:
    """What ``tx.init`` returns, with a ``Place`` for each of ours; None if it takes no placeholder for params."""
    made = []

    def init(placeholder: Params) -> tuple[()]:
        token = _ASKED.set(True)
        try:
            made.append(tx.init(placeholder))
        except Exception:  # another library's code, which may do anything to params
            made.append(None)
        finally:
            _ASKED.reset(token)
        return ()

    optax.tree_utils.tree_map_params(init, lambda x: x, ())  # optax hands out its placeholder in no other way
    return made[0]


def _any_place(tree: PyTree) -> bool:
    is_place = lambda x: isinstance(x, Place)  # noqa: E731
    return any(map(is_place, jax.tree.leaves(tree, is_leaf=is_place)))
