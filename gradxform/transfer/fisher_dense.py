"""Squares of the gradients of single examples in dense layers, at the cost of one backward pass for the batch.

In ``y = x @ kernel + bias`` the gradient of one example is the outer product of its row of ``x`` and its row of the
gradient of ``y``, so that the sum of the squares over the examples is ``(x**2).T @ dy**2``. This holds where a weight
is used once an example; the program is searched for the leaves of which that can be told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

from gradxform.core.numbers import widen
from gradxform.core.types import Params, PyTree

Value: TypeAlias = Any
"""What a number of a program stands for, an array or what is not known."""


class Step(NamedTuple):
    """One operation, its operands and results by number."""

    eqn: Any
    operands: tuple[int, ...]
    results: tuple[int, ...]


class Tap(NamedTuple):
    """Where a leaf enters: the result of which step has its gradient, and the input that a kernel multiplies."""

    step: int
    result: int
    x: int | None


class Program:
    """A function of params and a batch as a list of operations, calls of compiled functions taken apart."""

    def __init__(self, fun: Callable[..., jax.Array], params: Params, inputs: PyTree) -> None:
        closed = jax.make_jaxpr(fun)(params, inputs)
        self.empty = closed.jaxpr.replace(constvars=[], invars=[], outvars=[], eqns=[])
        self.steps: list[Step] = []
        self.known: dict[int, Value] = {}
        self.size = len(closed.jaxpr.invars)
        self.outputs = self._inline(closed, list(range(self.size)))
        self.users: dict[int, list[int]] = {}
        for i, step in enumerate(self.steps):
            for operand in step.operands:
                self.users.setdefault(operand, []).append(i)
        for output in self.outputs:
            self.users.setdefault(output, []).append(-1)

    def _new(self, value: Value | None = None) -> int:
        self.size += 1
        if value is not None:
            self.known[self.size - 1] = value
        return self.size - 1

    def _inline(self, closed: jex.ClosedJaxpr, operands: list[int]) -> list[int]:
        numbers = dict(zip(closed.jaxpr.invars, operands, strict=True))
        numbers |= {var: self._new(value) for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True)}
        read = lambda atom: self._new(atom.val) if isinstance(atom, jex.Literal) else numbers[atom]  # noqa: E731
        for eqn in closed.jaxpr.eqns:
            given = [read(atom) for atom in eqn.invars]
            if eqn.primitive.name in ("jit", "pjit"):
                results = self._inline(eqn.params["jaxpr"], given)
            else:
                results = [self._new() for _ in eqn.outvars]
                self.steps.append(Step(eqn, tuple(given), tuple(results)))
            numbers |= dict(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def run(self, inputs: list[Value], added: dict[int, jax.Array]) -> list[Value]:
        """The value of every number, ``added`` being added to the results of those steps."""
        values: dict[int, Value] = self.known | dict(enumerate(inputs))
        for i, step in enumerate(self.steps):
            given = {
                var: values[k]
                for var, k in zip(step.eqn.invars, step.operands, strict=True)
                if not isinstance(var, jex.Literal)
            }
            wanted = {var: k for var, k in zip(step.eqn.outvars, step.results, strict=True) if k in self.users}
            alone = self.empty.replace(
                invars=list(given), outvars=list(wanted), eqns=[step.eqn], effects=step.eqn.effects
            )
            results = jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, []))(*given.values())
            results = [results[0] + added[i]] if i in added else results
            values |= dict(zip(wanted.values(), results, strict=True))
        return [values.get(k) for k in range(self.size)]

    def tap(self, leaf: int, batch: int) -> Tap | None:
        """How a leaf enters, if once and as the kernel or the bias of a dense layer over ``batch`` rows."""
        bias = False
        number = leaf
        while len(self.users.get(number, [])) == 1 and (i := self.users[number][0]) >= 0:
            step = self.steps[i]
            name, shape = step.eqn.primitive.name, step.eqn.outvars[0].aval.shape
            operand = step.eqn.invars[step.operands.index(number)].aval.shape
            if name == "dot_general" and not bias:
                x = step.eqn.invars[0].aval.shape
                plain = step.eqn.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
                fits = plain and step.operands[1] == number and len(operand) == len(x) == 2 and x[0] == batch
                return Tap(i, step.results[0], step.operands[0]) if fits else None
            if name == "add" and bias:
                return Tap(i, step.results[0], None) if shape[0] == batch else None
            if name in ("reshape", "broadcast_in_dim"):
                # From (features,) to (1, features) to (batch, features), the features last all the way.
                if len(shape) != 2 or operand not in (shape[1:], (1, *shape[1:])):
                    return None
                if name == "reshape" and shape[0] != 1:
                    return None
                if name == "broadcast_in_dim" and step.eqn.params["broadcast_dimensions"][-1] != 1:
                    return None
                bias = True
            elif name != "convert_element_type":
                return None
            number = step.results[0]
        return None


class Dense(NamedTuple):
    """The dense leaves of a program, by their place among the leaves of the params."""

    program: Program
    taps: dict[int, Tap]

    def logits(
        self, params: Params, inputs: PyTree, added: dict[int, jax.Array]
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """The logits, and the input of each kernel."""
        values = self.program.run(
            jax.tree.leaves((params, inputs)), {self.taps[leaf].step: extra for leaf, extra in added.items()}
        )
        return values[self.program.outputs[0]], {
            leaf: values[tap.x] for leaf, tap in self.taps.items() if tap.x is not None
        }

    def zeros(self) -> dict[int, jax.Array]:
        """What is added to the layers' outputs, to differentiate by."""
        made = {leaf: self.program.steps[tap.step].eqn.outvars[0].aval for leaf, tap in self.taps.items()}
        return {leaf: jnp.zeros(aval.shape, aval.dtype) for leaf, aval in made.items()}


def find(fun: Callable[..., jax.Array], params: Params, inputs: PyTree, batch: int) -> Dense:
    """The dense leaves of ``fun(params, inputs)``.

    A row counts as that of an example only if there is one more of it where the batch has one more example.
    """

    def shaped(n: int) -> PyTree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *jnp.shape(x)[1:]), jnp.result_type(x)), inputs)

    program, larger = (Program(fun, params, shaped(n)) for n in (batch, batch + 1))
    taps: dict[int, Tap] = {}
    if [step.eqn.primitive for step in program.steps] == [step.eqn.primitive for step in larger.steps]:
        for leaf in range(len(jax.tree.leaves(params))):
            tap = program.tap(leaf, batch)
            if tap is not None and larger.tap(leaf, batch + 1) == tap:
                taps[leaf] = tap
    return Dense(program, taps)


def squares(x: jax.Array | None, dy: jax.Array) -> jax.Array:
    """The sum over the rows of the squared gradient of a kernel, or without ``x`` of a bias."""
    slope = jnp.square(widen(dy))
    if x is None:
        return jnp.sum(slope, 0)
    return jnp.matmul(jnp.square(widen(x)).T, slope, precision=lax.Precision.HIGHEST)
