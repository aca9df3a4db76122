"""The steps from the arrays of a file to a param: cut, join, transpose, reshape, convert, cast.

Each says what form an array has after it, carries it out, and names itself in a report; ``Route`` walks them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import jax.numpy as jnp
import numpy as np

from gradxform.transfer.cast import cast, why_not
from gradxform.transfer.rules import Convert, Joiner, Shape, hint

Array: TypeAlias = np.ndarray


class Misfit(ValueError):
    """Why an array cannot become a param."""


class Form(NamedTuple):
    """What is known of an array before it is read."""

    shape: Shape
    dtype: np.dtype


Known: TypeAlias = Form | Array


class Step(Protocol):
    """One step; ``x`` is a form, an array, which has one, or for ``Joined`` a list of them."""

    def form(self, x: Any) -> Form | None:
        """The form after the step; None where only the array can tell.

        Raises:
          Misfit: ``x`` cannot take the step.
        """

    def array(self, x: Any) -> Array:
        """The array after the step."""

    def text(self, x: Any) -> str:
        """What the step does to ``x``; '' for nothing."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """One of several equal parts along the first axis."""

    part: int
    parts: int

    def form(self, x: Known) -> Form:
        """A part of the first axis."""
        if not x.shape or x.shape[0] % self.parts:
            raise Misfit(f"which cannot be cut into {self.parts} equal parts")
        return Form((x.shape[0] // self.parts, *x.shape[1:]), x.dtype)

    def array(self, x: Array) -> Array:
        """The part."""
        return np.split(x, self.parts)[self.part]

    def text(self, x: Known) -> str:
        """Which part of how many."""
        return f"part {self.part + 1} of {self.parts}"


@dataclasses.dataclass(frozen=True)
class Joined:
    """Several arrays made one by a function of the list of them."""

    by: Joiner

    def form(self, x: Sequence[Known]) -> Form | None:
        """A new axis in front, if they are stacked."""
        if self.by is not np.stack:
            return None
        shapes = list(dict.fromkeys(one.shape for one in x))
        if len(shapes) > 1:
            raise Misfit(f"which cannot be stacked, for their shapes are {', '.join(map(str, shapes))}")
        return Form((len(x), *shapes[0]), functools.reduce(jnp.promote_types, [one.dtype for one in x]))

    def array(self, x: list[Array]) -> Array:
        """What the function makes of the list."""
        return _called(self.by, x)

    def text(self, x: Sequence[Known]) -> str:
        """Which function, of how many."""
        return f"{_name(self.by)} of {len(x)}"


@dataclasses.dataclass(frozen=True)
class Transposed:
    """The axes in another order."""

    axes: tuple[int, ...]

    def form(self, x: Known) -> Form:
        """The axes in the new order."""
        if len(x.shape) != len(self.axes):
            raise Misfit(f"which cannot be transposed by {self.axes}")
        return Form(tuple(x.shape[axis] for axis in self.axes), x.dtype)

    def array(self, x: Array) -> Array:
        """The same."""
        return x.transpose(self.axes)

    def text(self, x: Known) -> str:
        """The order."""
        return f"transpose {self.axes}"


@dataclasses.dataclass(frozen=True)
class Reshaped:
    """The same numbers in the shape of the param."""

    shape: Shape

    def form(self, x: Known) -> Form:
        """The shape of the param, if it has as many numbers."""
        if math.prod(x.shape) != math.prod(self.shape):
            raise Misfit(f"{self.shape} expected")
        return Form(self.shape, x.dtype)

    def array(self, x: Array) -> Array:
        """The same."""
        return x.reshape(self.shape)

    def text(self, x: Known) -> str:
        """The shape before, if it was another."""
        return "" if x.shape == self.shape else f"reshape {x.shape}"


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a function of the user makes of an array for the shape of its param."""

    function: Convert
    shape: Shape

    def form(self, x: Known) -> None:
        """Nobody knows."""
        return

    def array(self, x: Array) -> Array:
        """What the function makes of the array."""
        return _called(self.function, x, self.shape)

    def text(self, x: Known) -> str:
        """The shape before, and the function."""
        return f"{x.shape} by {_name(self.function)}"


@dataclasses.dataclass(frozen=True)
class Cast:
    """The last step: the shape and the dtype of the param, in memory of its own."""

    shape: Shape
    dtype: np.dtype
    on_host: bool

    def form(self, x: Known) -> Form:
        """That of the param."""
        if x.shape != self.shape:
            raise Misfit(f"{self.shape} expected{hint(x.shape, self.shape)}")
        if reason := why_not(x.dtype, self.dtype, on_host=self.on_host):
            raise Misfit(f"{self.dtype} expected; {reason}")
        return Form(self.shape, self.dtype)

    def array(self, x: Array) -> Array:
        """Its own numbers, or the error that they do not fit."""
        made = cast(x, np.dtype(self.dtype))
        if isinstance(made, str):
            raise Misfit(f"which {made}")
        return made

    def text(self, x: Known) -> str:
        """The dtype before, if it was another."""
        return "" if x.dtype == self.dtype else f"from {x.dtype}"


K = TypeVar("K", Form, Array)
M = TypeVar("M")


@dataclasses.dataclass(frozen=True)
class Route:
    """How arrays of a file become one param.

    Attributes:
      path: the path of the param.
      sources: the name in the file of each array, in order; one that is cut may be there more than once.
      cuts: what each is cut to, or None.
      steps: what follows; of several arrays a ``Joined`` makes one first.
    """

    path: str
    sources: tuple[str, ...]
    cuts: tuple[Cut | None, ...]
    steps: tuple[Step, ...]

    def check(self, forms: Mapping[str, Form]) -> Form | None:
        """Compares what the file says of its arrays with the param; None where only the arrays can tell.

        Raises:
          Misfit: they do not fit, whatever the numbers are.
        """
        return self._walk(forms, lambda step, x: step.form(x))[0]

    def array(self, arrays: Mapping[str, Array]) -> tuple[Array, tuple[str, ...]]:
        """The array for the param, and what was done, in order.

        Raises:
          Misfit: it does not fit, or a function raised an error.
        """

        def take(step: Step, x: Array | list[Array]) -> Array:
            step.form(x)
            return step.array(x)

        return self._walk(arrays, take)

    def _walk(self, starts: Mapping[str, K], take: Callable[[Step, Any], M]) -> tuple[M, tuple[str, ...]]:
        done: list[str] = []

        def walk(x: Any, steps: Sequence[Step]) -> Any:
            for step in steps:
                if x is None:
                    break
                text = step.text(x)
                try:
                    after = take(step, x)
                except Misfit as error:
                    several = f" and {len(self.sources) - 1} more" if len(self.sources) > 1 else ""
                    now: list[str] = [f"makes {_text(x)}"] if done and not isinstance(x, list) else []
                    raise Misfit(
                        ", ".join(
                            [f"{_text(starts[self.sources[0]])} of {self.sources[0]}{several}", *done, *now, str(error)]
                        )
                    ) from error
                if text and text not in done:
                    done.append(text)
                x = after
            return x

        parts = [
            walk(starts[source], [cut] if cut else []) for source, cut in zip(self.sources, self.cuts, strict=True)
        ]
        return walk(parts if isinstance(self.steps[0], Joined) else parts[0], self.steps), tuple(done)


def _called(function: Callable[..., object], *given: object) -> Array:
    try:
        return np.asarray(function(*given))
    except Exception as error:  # whatever it is: its path, and all other problems, are to be told with it
        raise Misfit(f"{_name(function)} raised {type(error).__name__}: {error}") from error


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__name__", str(function))


def _text(x: Known) -> str:
    return f"{tuple(x.shape)} {x.dtype}"
