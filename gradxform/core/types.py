"""The types in the signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax

PyTree: TypeAlias = Any
Params: TypeAlias = PyTree
Updates: TypeAlias = PyTree
State: TypeAlias = PyTree

Step: TypeAlias = int | jax.Array
"""A step count: an int, a traced integer or an array of integers."""

Scalar: TypeAlias = float | jax.Array
"""A real hyperparameter: a Python number (an exact constant) or an array (traced, batched, differentiated)."""

ScalarOrSchedule: TypeAlias = float | jax.Array | Callable[[Any], Any]
"""A real hyperparameter, or a schedule of it: any function from the step to the value."""

DType: TypeAlias = Any
"""A dtype in any spelling; None for the default."""

Mask: TypeAlias = PyTree | Callable[[Params], PyTree]
"""Which leaves: a tree of bools (or a prefix of one), a function from params to one, or a selector."""

AnyTransformation: TypeAlias = optax.GradientTransformation
"""Any pair (init, update): ours or optax's."""
