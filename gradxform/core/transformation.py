"""The transformation: an optax transformation that is also a value."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, Self

import optax

from gradxform.core import inside, stages
from gradxform.core.definition import Definition
from gradxform.core.foreign import stage_of
from gradxform.core.numbers import as_stored
from gradxform.core.pytree import register
from gradxform.core.run import run
from gradxform.core.stages import Around, Chain, Stage
from gradxform.core.trees import widened
from gradxform.core.types import AnyTransformation, Arguments, Params, State, Updates
from gradxform.core.value import Value, factory

P = ParamSpec("P")


@register
class Transformation(Value, optax.GradientTransformationExtraArgs):
    """A pure pair (init, update) that prints, compares, pickles and is a pytree of its hyperparameters.

    It is made by a factory (``adamw``, ``chain``, your own under ``transformation``), never by its class. As a
    subclass of ``optax.GradientTransformationExtraArgs`` it goes wherever optax's transformations go. ``init(params)``
    returns the state; ``update(updates, state, params=None, **extra)`` returns the new updates, each leaf in the
    dtype of its param (of its gradient where no params are given), and the new state.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(0.1))
      >>> tx == gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(0.1))
      True
    """

    if TYPE_CHECKING:
        # What the pair in the tuple is, for checkers that do not look into optax.
        def init(self, params: Params) -> State:
            """The state for params."""

        def update(
            self, updates: Updates, state: State, params: Params | None = None, **extra: object
        ) -> tuple[Updates, State]:
            """The new updates and the new state."""

    def __new__(cls, *args: object, **kwargs: object) -> Transformation:
        """Refuses: a bare pair has no call to print or pickle."""
        raise TypeError(
            "a Transformation is made by a factory: decorate the function that returns (init, update) "
            "with @gradxform.transformation, or keep optax.GradientTransformationExtraArgs"
        )

    @classmethod
    def _allocate(cls, definition: Definition, arguments: Arguments) -> Self:
        anew = inside.asked()

        def init(params: Params) -> State:
            if inside.asked():
                return inside.Place(tx, anew)
            return stages.init(tx.stage, params)

        def update(
            updates: Updates, state: State, params: Params | None = None, **extra: object
        ) -> tuple[Updates, State]:
            return run(tx.stage, updates, state, params, extra, tx.name, as_stored)

        tx = tuple.__new__(cls, (init, update))  # the pair knows the value that it is part of
        return tx

    @functools.cached_property
    def stage(self) -> Stage:
        """The work inside: what the factory returned, as one of the kinds in ``gradxform.core.stages``."""
        return _as_stage(self.built, self.name)

    @functools.cached_property
    def built(self) -> AnyTransformation | Stage:
        """What the factory's function returned, checked to be a transformation."""
        built = self._definition.build(self._arguments)
        _as_stage(built, self.name)
        return built

    def _replace(self, **pair: Callable[..., object]) -> optax.GradientTransformationExtraArgs:  # type: ignore[override]
        # With another init or update it is no longer what its call makes: a plain pair.
        return optax.GradientTransformationExtraArgs(**({"init": self.init, "update": self.update} | pair))


def transformation(function: Callable[P, object]) -> Callable[P, Transformation]:
    """Turns a factory into one of transformations that print, compare, pickle and differentiate.

    Args:
      function: a function of the hyperparameters that returns a ``Leafwise``, a transformation made of others, or a
        pair ``(init, update)``, as optax's factories do. ``update(updates, state, params)`` receives the updates in
        float32 at least; what it returns is cast to the dtype of the params. Parameters annotated ``float`` take ints
        as floats.

    Returns:
      The factory; its transformations are pytrees of their float and array arguments.

    Raises:
      TypeError: when called, if the function returns something else.

    Example:
      >>> import gradxform as gx, jax
      >>> @gx.transformation
      ... def scale_by_sign(power: float = 1.0):
      ...   def init(params):
      ...     return ()
      ...   def update(updates, state, params=None):
      ...     return jax.tree.map(lambda g: jax.numpy.sign(g) * abs(g) ** power, updates), state
      ...   return init, update
      >>> scale_by_sign(2).arguments
      {'power': 2.0}
    """
    return factory(Transformation, function)


def _as_stage(built: object, name: str) -> Stage:
    if isinstance(built, Stage):
        # A brick or control that has no name yet is called by that of its factory.
        return built if isinstance(built, Chain) or built.name else dataclasses.replace(built, name=name)
    if isinstance(built, optax.GradientTransformation):
        return stage_of(built, name)
    if isinstance(built, tuple) and len(built) == 2 and all(callable(part) for part in built):
        init, update = built
        return Around(init, _with_extra(update))
    raise TypeError(f"{name}: expected the factory to return a pair (init, update) or a transformation, got {built!r}")


def _with_extra(update: Callable[..., tuple[Updates, State]]) -> Callable[..., tuple[Updates, State]]:
    """A user's function, given updates in float32 at least and the extra arguments that it takes."""
    parameters = inspect.signature(update).parameters.values()
    anything = any(p.kind == p.VAR_KEYWORD for p in parameters)
    known = [p.name for p in list(parameters)[3:]]

    def with_extra(
        updates: Updates, state: State, params: Params | None = None, **extra: object
    ) -> tuple[Updates, State]:
        taken = extra if anything else {name: extra[name] for name in known if name in extra}
        return update(widened(updates), state, params, **taken)

    return with_extra
