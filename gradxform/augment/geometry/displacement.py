"""A displacement: every pixel moved by its own amount, and where the inverse of that leads."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.augment.geometry.placement import Addends
from gradxform.augment.pixels.arithmetic import whole, within

INVERSIONS = 64
"""Halved steps toward the inverse of a displacement."""
CLOSE = 0.01
"""Pixels: where a source is so near it has been found."""
EVERY, NEWTON, LONGEST, SINGULAR = 2, 16, 2.0, 0.05
"""Of the search where it has not: a look at every other pixel, so many steps of Newton's method, of so many pixels at
most, and determinants from which on a field counts as singular."""
Positions: TypeAlias = tuple[jax.Array, jax.Array]
"""Positions x and y, of one shape."""


class Displacement(NamedTuple):
    """The map ``source = position + field(position)``, with the field given at the centres of pixels.

    Attributes:
      dx: to the right, in pixels, (H, W).
      dy: down.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> still = gx.augment.Displacement(jnp.zeros((4, 6)), jnp.ones((4, 6)))
      >>> [float(part) for part in still(jnp.float32(2.0), jnp.float32(1.5))]
      [2.0, 2.5]
    """

    dx: jax.Array
    dy: jax.Array

    def __call__(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The source of positions."""
        dx, dy = _between(self, x, y)
        return x + dx, y + dy

    def addends(self, x: jax.Array, y: jax.Array) -> Addends:
        """What adds up to the source of the centres of pixels, for which the field is given."""
        return (x, self.dx), (y, self.dy)

    def inverse(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The positions whose source is given; one of them where the field is folded and several show it.

        By halved steps, which end there wherever nothing is folded: a whole step, ``x <- p - d(x)``, leads away where a
        slope of the field is above 1, as where the image is stretched to twice its size; half of it does where one is
        above 3. Where some have not come there, by Newton's method from the pixel whose source is nearest. The
        derivative is that of the inverse, whichever way led to it.
        """
        x, y = jnp.broadcast_arrays(x, y)
        still: Displacement = jax.tree.map(lax.stop_gradient, self)
        wanted = lax.stop_gradient((x, y))
        found = _halved_steps(still, wanted)

        def missed(found: tuple[jax.Array, jax.Array]) -> jax.Array:
            return _distance(still, found, wanted) > CLOSE**2

        def again(state: tuple[bool, tuple[jax.Array, jax.Array]]) -> tuple[bool, tuple[jax.Array, jax.Array]]:
            other = _newton_steps(still, _nearest_pixel(still, wanted), wanted)
            better = _distance(still, other, wanted) < _distance(still, state[1], wanted)
            return True, (jnp.where(better, other[0], state[1][0]), jnp.where(better, other[1], state[1][1]))

        # Once, if at all: in a batch, too, a loop that is not entered costs nothing.
        _, found = lax.while_loop(lambda state: ~state[0] & jnp.any(missed(state[1])), again, (False, found))
        dx, dy = _newton_step(still, self(*found), found, (x, y))
        return found[0] + (dx - lax.stop_gradient(dx)), found[1] + (dy - lax.stop_gradient(dy))


def _halved_steps(field: Displacement, wanted: Positions) -> Positions:
    def step(_: object, there: Positions) -> Positions:
        found = field(*there)
        return there[0] + 0.5 * (wanted[0] - found[0]), there[1] + 0.5 * (wanted[1] - found[1])

    return lax.fori_loop(0, INVERSIONS, step, wanted)


def _newton_steps(field: Displacement, start: Positions, wanted: Positions) -> Positions:
    """Steps that lead nearer, each of at most twice the length of the last; where one does not, shorter ones."""

    def step(_: object, state: tuple[Positions, jax.Array, jax.Array]) -> tuple[Positions, jax.Array, jax.Array]:
        there, far, most = state
        dx, dy = _newton_step(field, field(*there), there, wanted)
        short = jnp.minimum(1.0, most / jnp.maximum(jnp.hypot(dx, dy), 1e-6))
        further = there[0] + short * dx, there[1] + short * dy
        now = _distance(field, further, wanted)
        nearer = now < far
        there = jnp.where(nearer, further[0], there[0]), jnp.where(nearer, further[1], there[1])
        return there, jnp.where(nearer, now, far), jnp.where(nearer, jnp.minimum(2 * most, LONGEST), most / 4)

    far = _distance(field, start, wanted)
    return lax.fori_loop(0, NEWTON, step, (start, far, LONGEST + 0 * far))[0]


def _newton_step(field: Displacement, source: Positions, there: Positions, wanted: Positions) -> Positions:
    """What leads from positions, whose source is given, to where it is the wanted one, were the field linear."""
    ones, zeros = jnp.ones_like(there[0]), jnp.zeros_like(there[0])
    (xx, yx), (xy, yy) = (jax.jvp(field.__call__, there, slope)[1] for slope in ((ones, zeros), (zeros, ones)))
    a, b = wanted[0] - source[0], wanted[1] - source[1]
    determinant = xx * yy - xy * yx
    least = jnp.where(determinant < 0, -SINGULAR, SINGULAR)
    determinant = jnp.where(jnp.abs(determinant) < SINGULAR, least, determinant)
    return (yy * a - xy * b) / determinant, (xx * b - yx * a) / determinant


def _nearest_pixel(field: Displacement, wanted: Positions) -> Positions:
    """The centres of those pixels, of every other row and column, whose source is nearest."""
    height, width = field.dx.shape
    x = jnp.arange(0, width, EVERY, dtype=jnp.float32) + 0.5

    def nearest(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        dx, dy = (lax.dynamic_index_in_dim(part, row, 0, False)[::EVERY] for part in field)
        source = x + dx, row.astype(jnp.float32) + 0.5 + dy
        far = sum((mine - theirs[..., None]) ** 2 for mine, theirs in zip(source, wanted, strict=True))
        return jnp.min(far, -1), x[jnp.argmin(far, -1)]

    rows = jnp.arange(0, height, EVERY, dtype=jnp.int32)
    far, across = lax.map(nearest, rows)
    best = jnp.argmin(far, 0)
    return jnp.take_along_axis(across, best[None], 0)[0], rows[best].astype(jnp.float32) + 0.5


def _distance(field: Displacement, there: Positions, wanted: Positions) -> jax.Array:
    """Between sources and the wanted ones, squared."""
    found = field(*there)
    return (found[0] - wanted[0]) ** 2 + (found[1] - wanted[1]) ** 2


def _between(field: Displacement, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A field given at the centres of pixels, bilinearly at other positions; beyond its rim as on it."""
    height, width = field.dx.shape
    both = jnp.stack(field, -1).reshape(-1, 2)
    x, y = within(x - 0.5, 0, width - 1), within(y - 0.5, 0, height - 1)
    x0, y0 = jnp.floor(x), jnp.floor(y)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    left, top = whole(x0), whole(y0)
    right, bottom = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return both.at[row * width + column].get(mode="promise_in_bounds")

    upper = at(top, left) * (1 - fx) + at(top, right) * fx
    lower = at(bottom, left) * (1 - fx) + at(bottom, right) * fx
    found = upper * (1 - fy) + lower * fy
    return found[..., 0], found[..., 1]
