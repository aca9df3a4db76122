"""What a program does on one platform and not on others, chosen when it is lowered.

``lax.platform_dependent`` chooses then too, but traces what it does not choose: a policy with two ways through a batch
twice, and each kernel in it four times. Here the portable form alone is traced, whoever runs it. It is the oracle: its
shapes are the shapes, its derivatives the derivatives, and every other form has to give what it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar, TypeVarTuple, Unpack

import jax
from jax.core import AbstractValue
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from gradxform.core.types import Treedef

PLATFORMS = {"cpu": "cpu", "tpu": "tpu", "cuda": "gpu", "rocm": "gpu"}
"""JAX's names of platforms, and what a form is given for."""

Args = TypeVarTuple("Args")
Results = TypeVar("Results")


class Undivided(NamedTuple):
    """A form that XLA cannot divide over devices, as a kernel: taken where the program is of one device, or by hand.

    A mesh that only the arrays handed in name is not known when a program is traced, but when it is lowered.
    """

    form: Callable[..., Any]


Flat: TypeAlias = Callable[..., list[jax.Array]]
"""A function of the leaves of its arguments to the leaves of its results."""

Forms: TypeAlias = tuple[tuple[str, Flat | Undivided], ...]
"""What is done on each platform that has a form of its own."""


def by_platform(
    portable: Callable[[Unpack[Args]], Results], *args: *Args, **forms: Callable[[Unpack[Args]], Results] | Undivided
) -> Results:
    """``portable(*args)``, in another form where a program is lowered for a platform that has one of its own.

    Args:
      portable: a pure function of arrays that works everywhere. Neither it nor a form may refer to traced values but
        its arguments.
      *args: trees of arrays.
      **forms: functions that give the same, for ``cpu``, ``tpu`` or ``gpu``; traced only when lowered. Those that are
        ``Undivided`` are taken where nothing has to be divided.

    Returns:
      What ``portable`` returns. Derivatives are those of ``portable``.
    """
    leaves, structure = jax.tree.flatten(args)
    shape: Treedef

    def flat(function: Callable[..., object]) -> Flat:
        def called(*leaves: jax.Array) -> list[jax.Array]:
            nonlocal shape
            made, shape = jax.tree.flatten(function(*jax.tree.unflatten(structure, leaves)))
            return made

        return called

    trace = jax.make_jaxpr(flat(portable))(*leaves)
    made = _bound(
        leaves,
        trace,
        tuple(
            (name, Undivided(flat(form.form)) if isinstance(form, Undivided) else flat(form))
            for name, form in forms.items()
        ),
    )
    results: Results = jax.tree.unflatten(shape, made)
    return results


_by_platform = Primitive("by_platform")
_by_platform.multiple_results = True


def _bound(args: Sequence[jax.Array], portable: ClosedJaxpr, forms: Forms) -> list[jax.Array]:
    found: list[jax.Array] = _by_platform.bind(*args, portable=portable, forms=forms)
    return found


def _eager(*args: jax.Array, portable: ClosedJaxpr, forms: Forms) -> list[jax.Array]:
    return jaxpr_as_fun(portable)(*args)


def _shapes(*_: AbstractValue, portable: ClosedJaxpr, forms: Forms) -> Sequence[AbstractValue]:
    return portable.out_avals


def _batched(
    args: Sequence[jax.Array], axes: Sequence[int | None], *, portable: ClosedJaxpr, forms: Forms
) -> tuple[list[jax.Array], tuple[int, ...]]:
    def over_batch(function: Flat) -> Flat:
        return jax.vmap(function, tuple(axes))

    trace = jax.make_jaxpr(over_batch(jaxpr_as_fun(portable)))(*args)
    results = _bound(
        args,
        trace,
        tuple(
            (name, Undivided(over_batch(form.form)) if isinstance(form, Undivided) else over_batch(form))
            for name, form in forms
        ),
    )
    return results, (0,) * len(results)


def _pushed_forward(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array | ad.Zero], *, portable: ClosedJaxpr, forms: Forms
) -> tuple[list[jax.Array], list[jax.Array | ad.Zero]]:
    moved = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def of_moved(*some: jax.Array) -> list[jax.Array]:
        every = list(primals)
        for i, one in zip(moved, some, strict=True):
            every[i] = one
        return jaxpr_as_fun(portable)(*every)

    results, slopes = jax.jvp(of_moved, [primals[i] for i in moved], [tangents[i] for i in moved])
    return results, [ad.Zero(jax.typeof(slope)) if slope.dtype == jax.dtypes.float0 else slope for slope in slopes]


def _lowered_for(platform: str) -> mlir.LoweringRule:
    def lowered(context: mlir.LoweringRuleContext, *args: object, portable: ClosedJaxpr, forms: Forms) -> Any:
        function = dict(forms).get(platform, jaxpr_as_fun(portable))
        if isinstance(function, Undivided):
            function = function.form if _of_one_device(context) else jaxpr_as_fun(portable)
        return mlir.lower_fun(function, multiple_results=True)(context, *args)

    return lowered


def _of_one_device(context: mlir.LoweringRuleContext) -> bool:
    around: Any = context.module_context.axis_context
    if hasattr(around, "manual_axes"):  # inside shard_map
        return around.manual_axes | set(around.mesh.manual_axes) == set(around.mesh.axis_names)
    return getattr(around, "num_devices", 1) == 1


_by_platform.def_impl(_eager)
_by_platform.def_abstract_eval(_shapes)
batching.primitive_batchers[_by_platform] = _batched
ad.primitive_jvps[_by_platform] = _pushed_forward
mlir.register_lowering(_by_platform, _lowered_for(""))
for _name, _kind in PLATFORMS.items():
    mlir.register_lowering(_by_platform, _lowered_for(_kind), platform=_name)
