"""The Adam family: a first moment over the root of a second. Each of the others changes one line of Adam."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from gradxform.core import checks
from gradxform.core.bricks import Leafwise
from gradxform.core.numbers import abs_sq, debias, increment, lerp, sqrt
from gradxform.core.slots import Slot
from gradxform.core.transformation import transformation
from gradxform.core.types import DType, PyTree, Scalar, State

Corrections: TypeAlias = tuple[Scalar, Scalar | None, Scalar]
"""The factors on the first moment, on the gradient beside it and on the second moment; None for no gradient."""


@transformation
def scale_by_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DType = None,
    *,
    nesterov: bool = False,
) -> Leafwise:
    """Divides a moving average of the gradient by the root of a moving average of its square.

    Kingma and Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015), algorithm 1:
    ``m = b1 m + (1-b1) g``, ``v = b2 v + (1-b2) g**2``, ``update = m^ / (sqrt(v^ + eps_root) + eps)`` with
    ``m^ = m / (1-b1**t)`` and ``v^ = v / (1-b2**t)``.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, >= 0.
      eps_root: added under the root, >= 0.
      mu_dtype: dtype to store the first moment in; by default that of the leaf, float32 at least. The second moment
        is always stored in float32 at least: in bfloat16 a ``b2`` of 0.999 would be 1, and it could not decay.
      nesterov: look ahead: ``m^ = b1 m / (1-b1**(t+1)) + (1-b1) g / (1-b1**t)`` (Dozat, "Incorporating Nesterov
        Momentum into Adam", 2016, with a constant ``b1``).

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_adam()
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}))[0]
      {'w': Array(1., dtype=float32)}
    """
    return _adam(b1, b2, eps, eps_root, mu_dtype, at=_corrections(b1, b2, nesterov))


def _adam(
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    eps_root: Scalar,
    mu_dtype: DType = None,
    *,
    at: Callable[..., tuple[Any, ...]],
    second: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
    rule: Callable[..., tuple[jax.Array, ...]] | None = None,
    slots: Mapping[str, Slot] | None = None,
    scalars: Mapping[str, float] | None = None,
    state: type[State] = optax.ScaleByAdamState,
) -> Leafwise:
    """Adam, with other lines in place of some of its own.

    ``at`` returns ``(on_mu, on_g, on_nu, *more)``, for ``m^ = on_mu m + on_g g`` (without ``g`` where ``on_g`` is None)
    and ``v^ = on_nu v``. ``second(v, g, m)`` is the new ``v``, by the new ``m``. ``rule(m^, v^, *more, *kept)`` returns
    the update and what it keeps in ``slots`` beside the moments, as a tuple.
    """
    checks.real("b1", b1, at_least=0, below=1)
    checks.real("b2", b2, at_least=0, below=1)
    checks.real("eps", eps, at_least=0)
    checks.real("eps_root", eps_root, at_least=0)
    checks.inexact_dtype("mu_dtype", mu_dtype)
    second = second or (lambda nu, g, mu: lerp(nu, abs_sq(g), 1 - b2))
    rule = rule or (lambda mu, nu: (_over_root(mu, nu, eps, eps_root),))

    def leaf(
        now: tuple[Any, ...], g: jax.Array, p: object, mu: jax.Array, nu: jax.Array, *kept: jax.Array
    ) -> tuple[jax.Array, ...]:
        on_mu, on_g, on_nu, *more = now
        mu = lerp(mu, g, 1 - b1)
        nu = second(nu, g, mu)
        first = mu * on_mu if on_g is None else mu * on_mu + g * on_g
        update, *new = rule(first, nu * on_nu, *more, *kept)
        return update, mu, nu, *new

    moments = {"mu": Slot(mu_dtype), "nu": Slot(real=True, nonnegative=True)}
    return Leafwise(leaf, moments | dict(slots or {}), at, state, scalars=scalars or {}, elementwise=True)


def _corrections(
    b1: Scalar, b2: Scalar, nesterov: bool = False, *, mu: bool = True, nu: bool = True
) -> Callable[[jax.Array], Corrections]:
    """What makes up for the start at 0, as ``at`` returns it; ``mu``, ``nu``: whether to."""

    def at(count: jax.Array) -> Corrections:
        on_mu, on_nu = 1 / debias(b1, count) if mu else 1, 1 / debias(b2, count) if nu else 1
        return (b1 * (1 / debias(b1, increment(count))), (1 - b1) * on_mu, on_nu) if nesterov else (on_mu, None, on_nu)

    return at


def _over_root(mu: jax.Array, nu: jax.Array, eps: Scalar, eps_root: Scalar) -> jax.Array:
    """``mu / (sqrt(nu + eps_root) + eps)``, 0 where all of them are 0."""
    if not (isinstance(eps_root, float) and eps_root == 0):
        nu = nu + eps_root
    # A weight that never had a gradient has no slope to differentiate, and with eps = 0 nothing to divide by.
    moved = nu > 0
    least = eps if isinstance(eps, float) and eps > 0 else jnp.where(jnp.asarray(eps) > 0, eps, 1)
    return mu / jnp.where(moved, jnp.sqrt(jnp.where(moved, nu, 1)) + eps, least)


@transformation
def scale_by_nadam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DType = None,
    momentum_decay: Scalar = 4e-3,
) -> Leafwise:
    """Adam with Nesterov's look-ahead and a momentum that warms up, as in torch.

    Dozat, "Incorporating Nesterov Momentum into Adam" (2016), algorithm 2 with the schedule of Sutskever et al.
    (2013): ``b1_t = b1 (1 - 0.5 * 0.96**(t * momentum_decay))``. With a constant ``b1``, as in optax, it is
    ``scale_by_adam(nesterov=True)``.

    Args:
      b1: the momentum that is approached, in [0, 1).
      b2, eps, eps_root, mu_dtype: as in ``scale_by_adam``.
      momentum_decay: speed of the warm-up, >= 0.

    Returns:
      A transformation.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_nadam()
      >>> f"{float(tx.update({'w': 0.5}, tx.init({'w': 1.0}))[0]['w']):.3f}"
      '1.056'
    """
    checks.real("momentum_decay", momentum_decay, at_least=0)

    def momentum_at(count: jax.Array) -> jax.Array:
        steps = count.astype(jnp.result_type(float))
        return b1 * (1 - 0.5 * jnp.exp(math.log(0.96) * momentum_decay * steps))

    def at(count: jax.Array, momentum: jax.Array) -> tuple[Corrections, jax.Array]:
        now, ahead = momentum_at(count), momentum_at(increment(count))
        product = momentum * now
        return (ahead / (1 - product * ahead), (1 - now) / (1 - product), 1 / debias(b2, count)), product

    return _adam(b1, b2, eps, eps_root, mu_dtype, at=at, state=ScaleByNadamState, scalars={"momentum": 1.0})


class ScaleByNadamState(NamedTuple):
    """The state of ``scale_by_nadam``; ``momentum`` is the product of the momenta so far."""

    count: jax.Array  # type: ignore[assignment]  # optax names the step so, and tuple has a method of that name
    momentum: jax.Array
    mu: PyTree
    nu: PyTree


@transformation
def scale_by_amsgrad(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DType = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_of_corrected: bool = True,
) -> Leafwise:
    """Adam whose divisor never shrinks: it uses the largest second moment so far.

    Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond" (ICLR 2018), algorithm 2, which corrects no bias.

    Args:
      b1, b2, eps, eps_root, mu_dtype: as in ``scale_by_adam``.
      bias_correction_mu: whether to correct the first moment (the paper does not).
      bias_correction_nu: whether to correct the second moment (the paper does not).
      max_of_corrected: whether the largest is taken of the corrected moments, as in optax, or of the raw ones and then
        corrected, as in torch.

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_amsgrad()
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}))[0]
      {'w': Array(1., dtype=float32)}
    """
    correct = _corrections(b1, b2, mu=bias_correction_mu, nu=bias_correction_nu)

    def at(count: jax.Array) -> tuple[Scalar | None, ...]:
        on_mu, on_g, on_nu = correct(count)
        return (on_mu, on_g, on_nu, 1) if max_of_corrected else (on_mu, on_g, 1, on_nu)

    def rule(mu: jax.Array, nu: jax.Array, on_largest: Scalar, largest: jax.Array) -> tuple[jax.Array, ...]:
        largest = jnp.maximum(largest, nu)
        return _over_root(mu, largest * on_largest, eps, eps_root), largest

    return _adam(
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        at=at,
        rule=rule,
        state=optax.ScaleByAmsgradState,
        slots={"nu_max": Slot(real=True, nonnegative=True)},
    )


@transformation
def scale_by_belief(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-16, eps_root: Scalar = 1e-16, *, nesterov: bool = False
) -> Leafwise:
    """Adam with the variance of the gradient around its moving average in place of its second moment.

    Zhuang et al., "AdaBelief Optimizer" (NeurIPS 2020), algorithm 2: ``s = b2 s + (1-b2)(g - m)**2 + eps_root`` with
    the new, uncorrected ``m``; the update is ``m^ / (sqrt(s^) + eps)``. ``eps_root`` stays in ``s``, step by step.

    Args:
      b1, b2, eps: as in ``scale_by_adam``.
      eps_root: added to the variance in every step, >= 0.
      nesterov: as in ``scale_by_adam``.

    Returns:
      A transformation with the state of optax's.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_belief()
      >>> tx.update({"w": 0.5}, tx.init({"w": 1.0}))[0]["w"].round(4)
      Array(1.1111, dtype=float32)
    """
    checks.real("eps_root", eps_root, at_least=0)

    def variance(nu: jax.Array, g: jax.Array, mu: jax.Array) -> jax.Array:
        return lerp(nu, abs_sq(g - mu), 1 - b2) + eps_root

    return _adam(b1, b2, eps, 0.0, at=_corrections(b1, b2, nesterov), second=variance, state=optax.ScaleByBeliefState)


@transformation
def scale_by_yogi(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    eps_root: Scalar = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
    *,
    bias_correction: bool = True,
    initialize_mu: bool = True,
) -> Leafwise:
    """Adam whose second moment moves by at most the squared gradient, towards it.

    Zaheer et al., "Adaptive Methods for Nonconvex Optimization" (NeurIPS 2018), algorithm 2:
    ``v = v - (1-b2) sign(v - g**2) g**2``. The paper corrects no bias and starts from a mean squared gradient.

    Args:
      b1, b2, eps, eps_root: as in ``scale_by_adam``.
      initial_accumulator_value: what the moments start from, >= 0.
      bias_correction: whether to correct both moments, as optax does and the paper does not.
      initialize_mu: whether the first moment starts from ``initial_accumulator_value`` too, as in optax, so that it
        moves a weight without a gradient, or from 0, as in TensorFlow Addons.

    Returns:
      A transformation with the state of optax's Adam.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_yogi(bias_correction=False, initialize_mu=False)
      >>> tx.update({"w": 0.0}, tx.init({"w": 1.0}))[0]
      {'w': Array(0., dtype=float32)}
    """
    checks.real("initial_accumulator_value", initial_accumulator_value, at_least=0)

    def second(nu: jax.Array, g: jax.Array, mu: jax.Array) -> jax.Array:
        square = abs_sq(g)
        return nu - (1 - b2) * jnp.sign(nu - square) * square

    slots = {"nu": Slot(real=True, nonnegative=True, fill=initial_accumulator_value)}
    if initialize_mu:
        slots["mu"] = Slot(fill=initial_accumulator_value)
    return _adam(
        b1,
        b2,
        eps,
        eps_root,
        at=_corrections(b1, b2, mu=bias_correction, nu=bias_correction),
        second=second,
        slots=slots,
    )


@transformation
def scale_by_radam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
) -> Leafwise:
    """Adam whose adaptive rate is rectified while its variance is still large, and left out before that.

    Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond" (ICLR 2020), algorithm 2:
    ``rho = rho_inf - 2 t b2**t / (1 - b2**t)`` with ``rho_inf = 2 / (1 - b2) - 1``; from ``rho >= threshold`` on the
    update is Adam's times ``sqrt((rho-4)(rho-2)rho_inf / ((rho_inf-4)(rho_inf-2)rho))``, before that it is ``m^``.

    Args:
      b1: as in ``scale_by_adam``.
      b2: decay of the second moment, in (0, 1).
      eps, eps_root: as in ``scale_by_adam``.
      threshold: the least ``rho``, the effective length of the average, at which the rate adapts, >= 4 (torch: strictly
        above 5).
      nesterov: as in ``scale_by_adam``.

    Returns:
      A transformation with the state of optax's Adam.

    Raises:
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx
      >>> tx = gx.scale_by_radam()
      >>> f"{float(tx.update({'w': 0.5}, tx.init({'w': 1.0}))[0]['w']):.3f}"
      '0.500'
    """
    checks.real("b2", b2, above=0, below=1)
    checks.real("threshold", threshold, at_least=4)
    correct = _corrections(b1, b2, nesterov)

    def at(count: jax.Array) -> tuple[Scalar | None, ...]:
        rho, rho_inf = _effective_length(b2, count)
        adaptive = rho >= threshold
        safe = jnp.where(adaptive, rho, 5.0)  # the root of a negative number would poison gradients through where
        rectifier = sqrt((safe - 4) * (safe - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * safe))
        return *correct(count), adaptive, rectifier

    def rule(mu: jax.Array, nu: jax.Array, adaptive: jax.Array, rectifier: jax.Array) -> tuple[jax.Array, ...]:
        return (jnp.where(adaptive, rectifier * _over_root(mu, nu, eps, eps_root), mu),)

    return _adam(b1, b2, eps, eps_root, at=at, rule=rule)


def _effective_length(b2: Scalar, count: jax.Array) -> tuple[jax.Array, Scalar]:
    """RAdam's ``rho`` and ``rho_inf``.

    In the paper's form ``rho`` is a difference of numbers near 2000 that is wrong by 0.03 in float32 when it is 5.
    With ``x = -t log b2`` it is ``(2/(1-b2) - 1 - 2/L) + 2/L (1 - x/expm1(x))``, ``L = -log b2``: the bracket is a
    constant near ``(1-b2)/6``, and the rest has no cancellation left but in ``1 - x/expm1(x)`` for small x, which is
    ``x/2 - x**2/12 + x**4/720 - ...``, the series of the Bernoulli numbers.
    """
    known = isinstance(b2, (int, float))
    rate = -(math.log(b2) if known else jnp.log(b2))
    rho_inf = 2 / (1 - b2) - 1
    constant = rho_inf - 2 / rate if known else (1 - b2) / 6
    x = count.astype(jnp.result_type(float)) * rate
    small = x < 0.3
    series = jnp.where(small, x, 0.0)
    direct = jnp.where(small, 1.0, x)
    fraction = jnp.where(small, series / 2 - _bernoulli(series**2), 1 - direct / jnp.expm1(direct))
    return constant + 2 / rate * fraction, rho_inf


def _bernoulli(square: jax.Array) -> jax.Array:
    """The even terms of ``x / expm1(x)`` but the first: to 1e-14 for ``x**2`` below 0.09."""
    return square * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square * (1 / 1209600 - square / 47900160))))
