"""A linear function that says how it is transposed: reverse mode by a formula, and all else as of any function.

A rule of ``jax.custom_vjp`` ends forward mode, and one of ``jax.custom_jvp`` leaves it to JAX to transpose tangents
term by term. Put into the rule of a ``custom_jvp``, this is both: tangents as they are written, and, where they are
transposed, what is written for that, which may be a kernel. (``jax.custom_derivatives.linear_call`` has neither vmap
nor derivatives with respect to what the function is linear around.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.core import AbstractValue
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from gradxform.core.types import Treedef

Around = TypeVar("Around")
Tangents = TypeVar("Tangents")
Results = TypeVar("Results")

Pull: TypeAlias = Callable[..., list[jax.Array]]
"""Of the leaves of what a function is linear around and of the cotangents, to those of the tangents."""

Tangent: TypeAlias = jax.Array | ad.Zero
"""A tangent or cotangent; one that is known to be zero is no array."""


def linear(
    push: Callable[[Around, Tangents], Results],
    pull: Callable[[Around, Results], Tangents],
    around: Around,
    tangents: Tangents,
) -> Results:
    """``push(around, tangents)``, transposed by ``pull``.

    Args:
      push: a pure function of arrays, linear in the second argument. Neither it nor ``pull`` may refer to traced values
        but its arguments.
      pull: its transpose: of ``around`` and the cotangents of the results to the cotangents of ``tangents``.
      around: a tree of arrays that ``push`` need not be linear in.
      tangents: a tree of arrays.

    Returns:
      What ``push`` returns.
    """
    fixed, fixed_tree = jax.tree.flatten(around)
    moved, moved_tree = jax.tree.flatten(tangents)
    count = len(fixed)
    made: Treedef

    def flat_push(*leaves: jax.Array) -> list[jax.Array]:
        nonlocal made
        results, made = jax.tree.flatten(
            push(jax.tree.unflatten(fixed_tree, leaves[:count]), jax.tree.unflatten(moved_tree, leaves[count:]))
        )
        return results

    trace = jax.make_jaxpr(flat_push)(*fixed, *moved)

    def flat_pull(*leaves: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(
            pull(jax.tree.unflatten(fixed_tree, leaves[:count]), jax.tree.unflatten(made, leaves[count:]))
        )

    leaves = _linear.bind(*fixed, *moved, push=trace, pull=flat_pull, count=count)
    results: Results = jax.tree.unflatten(made, leaves)
    return results


_linear = Primitive("linear")
_linear.multiple_results = True


def _results(*args: jax.Array, push: ClosedJaxpr, pull: Pull, count: int) -> list[jax.Array]:
    return jaxpr_as_fun(push)(*args)


def _shapes(*_: AbstractValue, push: ClosedJaxpr, pull: Pull, count: int) -> Sequence[AbstractValue]:
    return push.out_avals


def _batched(
    args: Sequence[jax.Array], axes: Sequence[int | None], *, push: ClosedJaxpr, pull: Pull, count: int
) -> tuple[list[jax.Array], tuple[int, ...]]:
    trace = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(push), tuple(axes)))(*args)
    shared = [axis is None for axis in axes[count:]]

    def batched_pull(*leaves: jax.Array) -> list[jax.Array]:
        found = jax.vmap(pull, (*axes[:count], *[0] * (len(leaves) - count)))(*leaves)
        # What all elements share gets the sum of what each would give.
        return [
            jnp.sum(one, 0) if alike else jnp.moveaxis(one, 0, axis or 0)
            for one, alike, axis in zip(found, shared, axes[count:], strict=True)
        ]

    results = _linear.bind(*args, push=trace, pull=batched_pull, count=count)
    return results, (0,) * len(results)


def _pushed_forward(
    primals: Sequence[jax.Array], tangents: Sequence[Tangent], *, push: ClosedJaxpr, pull: Pull, count: int
) -> tuple[list[jax.Array], list[Tangent]]:
    results = _linear.bind(*primals, push=push, pull=pull, count=count)
    total: list[Tangent] = [ad.Zero(jax.typeof(result)) for result in results]
    if any(type(tangent) is not ad.Zero for tangent in tangents[count:]):
        moved = [ad.instantiate_zeros(tangent) for tangent in tangents[count:]]
        total = _linear.bind(*primals[:count], *moved, push=push, pull=pull, count=count)
    around = [i for i, tangent in enumerate(tangents[:count]) if type(tangent) is not ad.Zero]
    if around:

        def of_those(*some: jax.Array) -> list[jax.Array]:
            every = list(primals)
            for i, one in zip(around, some, strict=True):
                every[i] = one
            return jaxpr_as_fun(push)(*every)

        slopes = jax.jvp(of_those, [primals[i] for i in around], [tangents[i] for i in around])[1]
        total = [ad.add_tangents(one, slope) for one, slope in zip(total, slopes, strict=True)]
    return results, total


def _transposed(
    cotangents: Sequence[Tangent], *args: jax.Array | ad.UndefinedPrimal, push: ClosedJaxpr, pull: Pull, count: int
) -> list[jax.Array | None]:
    cotangents = [ad.instantiate_zeros(one) for one in cotangents]
    found = pull(*args[:count], *cotangents)
    return [None] * count + [
        one if ad.is_undefined_primal(arg) else None for arg, one in zip(args[count:], found, strict=True)
    ]


_linear.def_impl(_results)
_linear.def_abstract_eval(_shapes)
batching.primitive_batchers[_linear] = _batched
ad.primitive_jvps[_linear] = _pushed_forward
ad.primitive_transposes[_linear] = _transposed
mlir.register_lowering(_linear, mlir.lower_fun(_results, multiple_results=True))
