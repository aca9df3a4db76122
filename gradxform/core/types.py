"""The types in the signatures, and what a factory does with an argument of each kind.

``Scalar``, ``ScalarOrSchedule`` and ``DType`` carry a mark that stays in ``X | None`` and inside of containers. By it,
and not by the name of a parameter, a factory knows what an argument is; to a type checker they are the plain types.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias

import jax
import optax
from jax.typing import DTypeLike


class Kind(enum.Flag):
    """What a parameter of a factory takes; the rest is kept as it is."""

    BOOL = enum.auto()
    DTYPE = enum.auto()
    SCALAR = enum.auto()
    SCHEDULE = enum.auto()


PyTree: TypeAlias = Any
"""A tree of arrays: any nesting of containers that jax knows. Its type cannot be said, so checkers see ``Any``."""

Params: TypeAlias = PyTree
"""The parameters of a model."""

Updates: TypeAlias = PyTree
"""The gradients, or what transformations made of them: a tree of the structure of the params."""

State: TypeAlias = PyTree
"""What a transformation keeps between steps."""

Step: TypeAlias = int | jax.Array
"""A step count: an int, a traced integer or an array of integers."""

Scalar: TypeAlias = Annotated[float | jax.Array, Kind.SCALAR]
"""A real hyperparameter: a Python number (an exact constant) or an array (traced, batched, differentiated).

A factory keeps an int as a float, and its function receives an array in float32 at least.
"""

AnySchedule: TypeAlias = Annotated[Callable[[Any], Any], Kind.SCHEDULE]
"""Any function from the step to a value: ours, optax's or your own."""

ScalarOrSchedule: TypeAlias = Scalar | AnySchedule
"""A real hyperparameter, or a schedule of it."""

DType: TypeAlias = Annotated[DTypeLike | None, Kind.DTYPE]
"""A dtype, whichever way it is written (``"bfloat16"``, ``jnp.bfloat16``, ``np.dtype``), None for the one that is
natural there; a factory keeps its name."""

Mask: TypeAlias = PyTree | Callable[[Params], PyTree]
"""Which leaves: a tree of bools (or a prefix of one), a function from params to one, or a selector."""

if TYPE_CHECKING:
    # Not every checker looks into optax, and what it does not look into may be anything.
    class AnyTransformation(Protocol):
        """Any pair (init, update): ours or optax's."""

        @property
        def init(self) -> Callable[..., Any]:
            """The state for params."""

        @property
        def update(self) -> Callable[..., Any]:
            """The new updates and the new state."""
else:
    AnyTransformation: TypeAlias = optax.GradientTransformation
    """Any pair (init, update): ours or optax's."""
