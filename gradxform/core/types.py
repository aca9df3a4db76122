"""The types in the signatures, and what a factory does with an argument of each kind.

``Scalar``, ``ScalarOrSchedule`` and ``DType`` carry a mark that stays in ``X | None`` and inside of containers. By it,
and not by the name of a parameter, a factory knows what an argument is; to a type checker they are the plain types.

A checker cannot look into a tree: to it every tree is ``Any``. The tests can: under jaxtyping and beartype what is
annotated ``Arrays``, ``Flags`` or ``Float[Array, "n d"]`` has to be it (``tests/typechecked.py``).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Mapping
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
"""A tree: any nesting of containers that jax knows, of whatever leaves."""

Arrays: TypeAlias = Any
"""A tree whose leaves are arrays or numbers."""

Flags: TypeAlias = Any
"""A tree whose leaves are bools."""

Params: TypeAlias = PyTree
"""The parameters of a model: arrays, variables and boxes of Flax, shapes and what stands for what a mask hides."""

Updates: TypeAlias = PyTree
"""The gradients, or what transformations made of them: a tree of the structure of the params."""

State: TypeAlias = PyTree
"""What a transformation keeps between steps."""

Treedef: TypeAlias = jax.tree_util.PyTreeDef
"""The structure of a tree."""

KeyPath: TypeAlias = tuple[Hashable, ...]
"""The keys from the root of a tree to one of its nodes."""

IsLeaf: TypeAlias = Callable[[object], bool]
"""Whether a node of a tree is taken for a leaf."""

Shape: TypeAlias = tuple[int, ...]
"""The shape of an array."""

Size: TypeAlias = int | jax.Array
"""How many there are of something: known when a program is made, or traced."""

Axes: TypeAlias = tuple[int, ...] | None
"""Some of the axes of an array, None for those of another thing."""

Arguments: TypeAlias = dict[str, Any]
"""The arguments of a call by name. Each is of the type that the signature of its factory gives it."""

Extra: TypeAlias = Mapping[str, object]
"""What the caller of ``update`` passed beyond updates, state and params: a loss, a function of the params."""

Json: TypeAlias = "dict[str, Json] | list[Json] | str | float | bool | None"
"""What JSON can hold."""

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
