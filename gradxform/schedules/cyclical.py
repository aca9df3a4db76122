"""The schedules that rise again: warm restarts, triangles, one cycle."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gradxform.core import checks
from gradxform.core.numbers import MAX_STEP
from gradxform.core.schedule import schedule
from gradxform.core.types import Scalar
from gradxform.schedules.counting import between, check_steps, half_cosine, portion, raised, real, whole

MODES = ("triangular", "triangular2", "exp_range")
ANNEALS = ("cosine", "linear")


@schedule
def cosine_restarts(
    init_value: Scalar, steps: int | jax.Array, end_value: Scalar = 0.0, *, factor: int = 1, decay: Scalar = 1.0
) -> Callable[[jax.Array], Scalar]:
    """Falls along half a cosine, again and again.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (ICLR 2017), equation 5: in cycle i
    with peak ``p_i = init_value * decay ** i`` and ``T_i = steps * factor ** i`` steps, of which ``t_i`` are over,
    ``end_value + (p_i - end_value) * (1 + cos(pi t_i / T_i)) / 2``.

    Args:
      init_value: the value at step 0.
      steps: the steps of the first cycle, >= 1. At step ``steps`` the second begins, so ``end_value`` is approached
        but not reached.
      end_value: the value that every cycle falls to.
      factor: how many times longer each cycle is than the one before, >= 1: the paper's ``T_mult``.
      decay: how many times higher the peak of each cycle is than the one before, > 0.

    Returns:
      A schedule.

    Raises:
      TypeError: ``steps`` or ``factor`` is not an integer, or a value is not a real number.
      ValueError: a number out of its range.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.cosine_restarts(1.0, steps=2, factor=2)(jnp.array([0, 1, 2, 4, 6]))
      Array([1. , 0.5, 1. , 0.5, 1. ], dtype=float32)
    """
    checks.real("init_value", init_value)
    check_steps("steps", steps)
    checks.real("end_value", end_value)
    if isinstance(factor, jax.Array):
        raise TypeError(f"factor: expected an int, which fixes the cycles, got an array of dtype {factor.dtype}")
    check_steps("factor", factor)
    checks.real("decay", decay, above=0)
    starts, lasts = _cycles(factor)

    def value(t: jax.Array) -> jax.Array:
        first, t = whole(steps), whole(t)
        # Counted in first cycles, cycle i begins at 1 + factor + ... + factor ** (i-1), whatever ``steps`` is; its own
        # length in steps could pass 2**31 - 1 and is not needed.
        units, rest = t // first, t % first
        if factor == 1:
            cycle, gone, left = units, portion(rest, first), portion(first - rest, first)
        else:
            cycle = jnp.searchsorted(starts, units, side="right") - 1
            over = units - jnp.asarray(starts)[cycle].astype(units.dtype)
            last = jnp.asarray(lasts)[cycle]
            length = real(last) + 1
            gone = (real(over) + portion(rest, first)) / length
            left = (real(last - over.astype(jnp.uint32)) + portion(first - rest, first)) / length
        return between(init_value * raised(decay, cycle), end_value, *half_cosine(gone, left))

    return value


def _cycles(factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each cycle begins, and its length less one, in units of the first cycle, up to 2**31 - 1 of them."""
    starts, lengths = [0], [1]
    while factor > 1 and starts[-1] + lengths[-1] <= MAX_STEP:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(lengths[-1] * factor)
    # A cycle longer than 2**32 is not half over before the largest step, and only then is its end looked at.
    return np.array(starts, np.int32), np.array([min(n - 1, 2**32 - 1) for n in lengths], np.uint32)


@schedule
def triangular(
    base_value: Scalar, max_value: Scalar, half_cycle: int | jax.Array, mode: str = "triangular", gamma: Scalar = 1.0
) -> Callable[[jax.Array], Scalar]:
    """Rises and falls in straight lines between two values.

    Smith, "Cyclical Learning Rates for Training Neural Networks" (WACV 2017), section 3: with
    ``cycle = floor(t / (2 half_cycle))`` and ``x = |t / half_cycle - 2 cycle - 1|`` the value is
    ``base_value + (max_value - base_value) * (1 - x) * s``, where s is 1 ("triangular"), ``2 ** -cycle``
    ("triangular2") or ``gamma ** t`` ("exp_range").

    Args:
      base_value: the value at the ends of every cycle.
      max_value: the value in the middle of the first cycle (before the decay of "exp_range").
      half_cycle: the steps of a rise, and of a fall, >= 1: the paper's ``stepsize``.
      mode: "triangular", "triangular2" or "exp_range".
      gamma: the factor a step of "exp_range", > 0; the other modes do not use it.

    Returns:
      A schedule.

    Raises:
      TypeError: ``half_cycle`` is not an integer, or a value is not a real number.
      ValueError: a number out of its range, or an unknown ``mode``.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.triangular(0.0, 1.0, half_cycle=2, mode="triangular2")(jnp.arange(8))
      Array([0.  , 0.5 , 1.  , 0.5 , 0.  , 0.25, 0.5 , 0.25], dtype=float32)
    """
    checks.real("base_value", base_value)
    checks.real("max_value", max_value)
    check_steps("half_cycle", half_cycle)
    checks.choice("mode", mode, MODES)
    checks.real("gamma", gamma, above=0)

    def value(t: jax.Array) -> jax.Array:
        half, t = whole(half_cycle), whole(t)
        # Halves are counted, not whole cycles: 2 * half_cycle could pass 2**31 - 1.
        halves, near = t // half, t % half
        rising = halves % 2 == 0
        near, far = portion(near, half), portion(half - near, half)
        peak = max_value
        if mode != "triangular":
            height = raised(0.5, halves // 2) if mode == "triangular2" else raised(gamma, t)
            peak = between(base_value, max_value, height, 1 - height)
        return between(base_value, peak, jnp.where(rising, near, far), jnp.where(rising, far, near))

    return value


@schedule
def one_cycle(
    max_value: Scalar,
    steps: int | jax.Array,
    *,
    warmup_fraction: Scalar = 0.3,
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
    anneal: str = "cosine",
) -> Callable[[jax.Array], Scalar]:
    """Rises once to a large value, then falls to nearly nothing.

    Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates" (2017), in
    two phases: from ``max_value / div_factor`` to ``max_value`` at step ``warmup_fraction * steps``, then to
    ``max_value / (div_factor * final_div_factor)`` at step ``steps``, each along half a cosine or a straight line.

    The values at the start, the peak and the end are those of torch's ``OneCycleLR`` and optax's
    ``cosine_onecycle_schedule``. The end is reached at ``steps``, as in optax; torch reaches it one step earlier, so
    ``OneCycleLR(total_steps=n, pct_start=f)`` is ``one_cycle(steps=n - 1, warmup_fraction=(f * n - 1) / (n - 1))``.
    The peak may fall between two steps, as in torch; optax rounds it down to a whole one. ``anneal="linear"`` has
    torch's two phases; optax's ``linear_onecycle_schedule`` has three.

    Args:
      max_value: the value at the peak.
      steps: the steps to the final value, which then stays, >= 0; with 0 it is the final value throughout.
      warmup_fraction: the part of them spent rising, in [0, 1].
      div_factor: how many times smaller than the peak the start is, > 0.
      final_div_factor: how many times smaller than the start the end is, > 0.
      anneal: "cosine" or "linear".

    Returns:
      A schedule.

    Raises:
      TypeError: ``steps`` is not an integer, or a value is not a real number.
      ValueError: a number out of its range, or an unknown ``anneal``.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> gx.schedules.one_cycle(1.0, steps=10, div_factor=5.0, anneal="linear")(jnp.array([0, 3, 10])).round(3)
      Array([0.2, 1. , 0. ], dtype=float32)
    """
    checks.real("max_value", max_value)
    check_steps("steps", steps, at_least=0)
    checks.real("warmup_fraction", warmup_fraction, at_least=0, at_most=1)
    checks.real("div_factor", div_factor, above=0)
    checks.real("final_div_factor", final_div_factor, above=0)
    checks.choice("anneal", anneal, ANNEALS)

    def value(t: jax.Array) -> jax.Array:
        fraction, peak = warmup_fraction, max_value
        start = peak / div_factor
        end = start / final_div_factor
        total = whole(steps)
        t = jnp.minimum(whole(t), total)
        rise, fall = real(fraction * real(total)), real((1 - fraction) * real(total))
        # Counted from the start and from the end, where the values are small: near the peak a rounding is harmless.
        gone = jnp.minimum(real(t) / jnp.where(rise > 0, rise, 1), 1)
        left = jnp.minimum(real(total - t) / jnp.where(fall > 0, fall, 1), 1)
        shape = half_cosine if anneal == "cosine" else lambda gone, left: (gone, left)
        return jnp.where(
            real(t) < rise, between(start, peak, *shape(gone, 1 - gone)), between(peak, end, *shape(1 - left, left))
        )

    return value
