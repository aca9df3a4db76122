"""AugMix: several short chains of operations, mixed with the image."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gradxform.augment.augmentation import augmentation
from gradxform.augment.geometry.borders import INTERPOLATIONS, Border, Fill, border_of
from gradxform.augment.pixels.arithmetic import exact, whole, within
from gradxform.augment.pixels.canvas import Canvas
from gradxform.augment.policies.policy import drawn, operations, performed
from gradxform.augment.policies.presets import AUG_MIX, AUG_MIX_ALL, Preset
from gradxform.augment.stage import Sampled, Shape, Stage, Targets, canvas_of
from gradxform.core import arrays, checks
from gradxform.core.isolate import isolated
from gradxform.core.types import PyTree, Scalar


@augmentation
def aug_mix(
    severity: Scalar = 3.0,
    width: int = 3,
    depth: int | None = None,
    alpha: Scalar = 1.0,
    *,
    all_ops: bool = False,
    interpolation: str = "bilinear",
    fill: Fill = 0.0,
) -> Stage:
    """Mixes an image with several of it that went through chains of operations (Hendrycks and others, 2020).

    ``(1 - m) x + m sum_i w_i chain_i(x)`` with ``w`` from a Dirichlet and ``m`` from a Beta distribution; each chain
    has one to three operations, and each of those a level uniform in [0.1, ``severity``], of 10 (section 3 and the
    published code). Published values of ``severity`` are 3 for small images and 1 for ImageNet. With
    ``losses.jensen_shannon`` of the image and of two mixtures it is the whole method.

    Args:
      severity: the greatest level, in [0.1, 10].
      width: how many chains, >= 1.
      depth: the number of operations in a chain, >= 1; one to three at random by default.
      alpha: of the Dirichlet and the Beta distribution, > 0.
      all_ops: whether colour, contrast, brightness and sharpness are among the operations; they overlap with
        corruptions that robustness is measured on.
      interpolation: ``"nearest"`` or ``"bilinear"``.
      fill: what comes in from outside, from 0, black, to 1, or one for each channel.

    Returns:
      The augmentation; it takes images of 1 or 3 channels. Masks, boxes and points it refuses: there is no telling
      where a mixture of images that moved in different ways has them.

    Raises:
      TypeError: an argument is of the wrong type, or (when called) there is a mask, a box or a point.
      ValueError: a number is out of range.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> two = gx.augment.two_views(gx.augment.aug_mix())
      >>> one, other = two(jax.random.key(0), jnp.zeros((4, 32, 32, 3), jnp.uint8))
      >>> one.dtype
      dtype('uint8')
    """
    checks.real("severity", severity, at_least=0.1, at_most=10)
    width = arrays.size("width", width)
    depth = None if depth is None else arrays.size("depth", depth)
    checks.real("alpha", alpha, above=0)
    checks.choice("interpolation", interpolation, INTERPOLATIONS)
    return AugMix(
        AUG_MIX_ALL if all_ops else AUG_MIX,
        severity,
        width,
        depth,
        alpha,
        border_of("constant", fill, 0),
        interpolation,
    )


@dataclasses.dataclass(frozen=True)
class AugMix(Stage):
    """See ``aug_mix``."""

    preset: Preset
    severity: Scalar
    width: int
    depth: int | None
    alpha: Scalar
    border: Border
    interpolation: str
    dear = chooses = several = True
    needs_unit = True

    def images(self, shape: Shape, dtype: DTypeLike) -> int | None:
        """One, which goes through its own operations."""
        return 1

    def sample(self, key: jax.Array, shape: Shape) -> Sampled:
        """The weights of the chains, that of the mixture, and the operations (width, depth)."""
        shares, lengths, strengths, which = jax.random.split(key, 4)
        size = self.width, 3 if self.depth is None else self.depth
        length = (
            jax.random.randint(lengths, (self.width, 1), 1, 4)
            if self.depth is None
            else jnp.full((self.width, 1), self.depth)
        )
        levels = jax.random.uniform(strengths, size, minval=0.1, maxval=self.severity) / self.preset.levels
        keep = jnp.arange(size[1]) < length
        steps = drawn(which, self.preset, levels.reshape(-1), keep.reshape(-1), shape)
        # Gamma variables over their sum are a Dirichlet one, two of them a Beta one; logarithms, as small ones are 0.
        logs = _log_gamma(shares, self.alpha, self.width + 2)
        return {
            "weights": jax.nn.softmax(logs[:-2]),
            "mixture": jax.nn.sigmoid(logs[-2] - logs[-1]),
            "steps": jax.tree.map(lambda x: x.reshape(*size, *x.shape[1:]), steps),
        }

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The targets of one image, mixed."""
        for name in ("mask", "boxes", "keypoints"):
            if name in targets:
                raise TypeError(f"{name}: expected none, since aug_mix mixes images that moved in different ways")
        image, ops = canvas_of(targets), operations(self.preset, self.interpolation, self.border)

        def chained(_: None, steps: PyTree) -> tuple[None, tuple[jax.Array, ...]]:
            return None, performed(ops, steps, {"image": image})["image"].words

        # A loop, so that each operation is compiled once; all is added up behind it, in one pass over the pixels.
        _, results = lax.scan(chained, None, params["steps"])
        return targets | {"image": isolated(_sum, params["mixture"], params["weights"], image, results)}


def _log_gamma(key: jax.Array, alpha: Scalar, count: int) -> jax.Array:
    """Logarithms of gamma variables; of an ``alpha`` of 1 they are exponential ones, which need no rejection."""
    plain, other = jax.random.split(key)
    variables = jax.random.exponential(plain, (count,), jnp.float32)
    variables = jnp.maximum(variables, jnp.finfo(jnp.float32).tiny)
    exponential = jnp.log(variables)
    if checks.is_concrete(alpha) and alpha == 1:
        return exponential
    alpha = jnp.asarray(alpha, jnp.float32)
    # How a gamma variable grows with alpha, for gradients at 1.
    slope = lax.stop_gradient(lax.random_gamma_grad(jnp.ones(count, jnp.float32), variables) / variables)
    gamma = jax.random.loggamma(other, alpha, (count,))
    return jnp.where(alpha == 1, exponential + (alpha - 1) * slope, gamma)


def _sum(mixture: jax.Array, weights: jax.Array, image: Canvas, chained: tuple[jax.Array, ...]) -> Canvas:
    """The sum of an image and of its chains, words (width, H, W), each with its weight."""
    total = [exact((1 - mixture) * plane) for plane in image.planes()]
    for i in range(weights.shape[0]):
        planes = image.with_words(word[i] for word in chained).planes()
        factor = exact(mixture * weights[i])
        total = [old + exact(factor * new.astype(jnp.float32)) for old, new in zip(total, planes, strict=True)]
    return image.with_planes(
        [whole(within(jnp.round(plane), 0, 255)) if image.packed else within(plane, 0, 1) for plane in total]
    )
