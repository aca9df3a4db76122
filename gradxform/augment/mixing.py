"""Mixing the images of a batch, and their labels with them: Mixup and CutMix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradxform.augment.augmentation import augmentation
from gradxform.augment.pixels.arithmetic import exact
from gradxform.augment.stage import Mix, Sampled, Targets
from gradxform.core import arrays, checks
from gradxform.core.numbers import scalar, widen
from gradxform.core.types import Scalar


@augmentation
def mixup(
    alpha: Scalar = 0.2, *, per_image: bool = False, label_smoothing: Scalar = 0.0, num_classes: int | None = None
) -> Mix:
    """Each image of a batch blended with another one, and their labels likewise.

    ``lam * x_i + (1 - lam) * x_j`` and ``lam * y_i + (1 - lam) * y_j`` with ``lam ~ Beta(alpha, alpha)`` and ``j`` from
    a random permutation of the batch (Zhang and others, 2018, section 2), which may leave an image where it is. 8-bit
    images are blended in float32 and rounded to the nearest. A batch of one image stays as it is.

    It takes a dict of ``image`` (B, H, W, C) and ``label``: integers (B,) or shares of classes (B, K), which come out
    as shares (B, K), or, without ``num_classes``, numbers to predict, floats (B,) or (B, K) of any size, which come out
    in their shape; in float32 at least. An integer outside of 0 to K - 1 is of no class: zeros stand for it. A ``mask``
    of floats, shares of classes (B, H, W, K), is blended like the images; one of integers is refused, for a blended
    pixel is of two classes. Fields that no augmentation knows stay those of the image in the same place.

    Args:
      alpha: of the Beta distribution, > 0; the smaller, the more images stay close to what they were.
      per_image: whether each image has a ``lam`` of its own; in the paper's code the batch has one.
      label_smoothing: the share of each label that is spread evenly over all classes before they are mixed, 0 to 1.
      num_classes: K; needed where labels are integers.

    Returns:
      The augmentation. Its parameters are ``partner`` (B,), the ``j`` of each image, and ``lam``, () or (B,).

    Raises:
      TypeError: an argument is of the wrong type, or (when called) there is a target that cannot be mixed.
      ValueError: a number is out of range, or (when called) there is a single image or neither labels nor masks.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> aug = gx.augment.mixup(0.2, num_classes=10)
      >>> mixed = aug(jax.random.key(0), {"image": jnp.zeros((8, 32, 32, 3)), "label": jnp.arange(8)})
      >>> mixed["image"].shape, mixed["label"].shape
      ((8, 32, 32, 3), (8, 10))
    """
    checks.real("alpha", alpha, above=0)

    def draw(key: jax.Array, lams: tuple[int, ...], height: int, width: int) -> Sampled:
        return {"lam": _beta(key, alpha, lams)}

    return Mixing(draw, _flag(per_image), *_label_options(label_smoothing, num_classes))


@augmentation
def cutmix(
    alpha: Scalar = 1.0, *, per_image: bool = False, label_smoothing: Scalar = 0.0, num_classes: int | None = None
) -> Mix:
    """A box of each image of a batch replaced by that of another one, and their labels mixed by area.

    ``lam ~ Beta(alpha, alpha)`` gives the sides of the box, ``sqrt(1 - lam)`` of those of the image, rounded down to
    even numbers of pixels; its centre is anywhere in the image, and what goes beyond the rim is cut off (Yun and
    others, 2019, section 3.1 and their code). Labels are mixed with ``lam`` set to the share of the image that is left.
    The other image is from a random permutation of the batch. A batch of one image stays as it is.

    It takes a dict of ``image`` (B, H, W, C) and ``label``: integers (B,) or shares of classes (B, K), which come out
    as shares (B, K), or, without ``num_classes``, numbers to predict, floats (B,) or (B, K) of any size, which come out
    in their shape; in float32 at least. An integer outside of 0 to K - 1 is of no class: zeros stand for it. A ``mask``
    of any dtype has its box replaced by that of the other one, and needs no labels beside it. Fields that no
    augmentation knows stay those of the image in the same place.

    Args:
      alpha: of the Beta distribution, > 0; at 1, all shares are equally likely.
      per_image: whether each image has a box of its own; in the paper's code the batch has one.
      label_smoothing: the share of each label that is spread evenly over all classes before they are mixed, 0 to 1.
      num_classes: K; needed where labels are integers.

    Returns:
      The augmentation. Its parameters are ``partner`` (B,), the other one of each image, ``lam``, () or (B,), and
      ``box``, (4,) or (B, 4), as x1, y1, x2, y2 in pixels.

    Raises:
      TypeError: an argument is of the wrong type, or (when called) there is a target that cannot be mixed.
      ValueError: a number is out of range, or (when called) there is a single image or neither labels nor masks.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> aug = gx.augment.cutmix(num_classes=10)
      >>> params = aug.sample(jax.random.key(0), (8, 32, 32, 3))
      >>> x1, y1, x2, y2 = params["box"]
      >>> bool(params["lam"] == 1 - (x2 - x1) * (y2 - y1) / 32**2)
      True
      >>> batch = {"image": jnp.zeros((8, 32, 32, 3)), "label": jnp.arange(8)}
      >>> aug.apply(params, batch)["label"].shape
      (8, 10)
    """
    checks.real("alpha", alpha, above=0)

    def draw(key: jax.Array, lams: tuple[int, ...], height: int, width: int) -> Sampled:
        lam_key, box_key = jax.random.split(key)
        return _random_box(box_key, _beta(lam_key, alpha, lams), height, width)

    return Mixing(draw, _flag(per_image), *_label_options(label_smoothing, num_classes))


@augmentation
def mixup_or_cutmix(
    mixup_alpha: Scalar = 0.2,
    cutmix_alpha: Scalar = 1.0,
    *,
    cutmix_probability: Scalar = 0.5,
    per_image: bool = False,
    label_smoothing: Scalar = 0.0,
    num_classes: int | None = None,
) -> Mix:
    """Either Mixup or CutMix, by chance.

    It takes a dict of ``image`` (B, H, W, C), ``label`` and ``mask``, as ``mixup`` does.

    Args:
      mixup_alpha: of the Beta distribution of Mixup, > 0.
      cutmix_alpha: of the Beta distribution of CutMix, > 0.
      cutmix_probability: how often it is CutMix, in [0, 1].
      per_image: whether each image has a choice and numbers of its own; otherwise the batch has one.
      label_smoothing: the share of each label that is spread evenly over all classes before they are mixed, 0 to 1.
      num_classes: the number of classes; needed where labels are integers.

    Returns:
      The augmentation. Its parameters are those of ``cutmix`` and ``cut``, () or (B,): whether it is CutMix; the box is
      empty where it is not.

    Raises:
      TypeError: an argument is of the wrong type, or (when called) there is a target that cannot be mixed.
      ValueError: a number is out of range, or (when called) there is a single image or neither labels nor masks.

    Example:
      >>> import gradxform as gx, jax, jax.numpy as jnp
      >>> aug = gx.augment.mixup_or_cutmix(0.8, 1.0, per_image=True, label_smoothing=0.1, num_classes=10)
      >>> batch = {"image": jnp.zeros((8, 32, 32, 3), jnp.uint8), "label": jnp.arange(8)}
      >>> mixed = aug(jax.random.key(0), batch)
      >>> mixed["image"].shape, mixed["label"].shape
      ((8, 32, 32, 3), (8, 10))
    """
    checks.real("mixup_alpha", mixup_alpha, above=0)
    checks.real("cutmix_alpha", cutmix_alpha, above=0)
    checks.real("cutmix_probability", cutmix_probability, at_least=0, at_most=1)

    def draw(key: jax.Array, lams: tuple[int, ...], height: int, width: int) -> Sampled:
        lam_key, box_key, coin_key = jax.random.split(key, 3)
        cut = jax.random.bernoulli(coin_key, cutmix_probability, lams)
        lam = _beta(lam_key, jnp.where(cut, cutmix_alpha, mixup_alpha), lams)
        box = _random_box(box_key, lam, height, width)
        return {"lam": jnp.where(cut, box["lam"], lam), "box": jnp.where(cut[..., None], box["box"], 0), "cut": cut}

    return Mixing(draw, _flag(per_image), *_label_options(label_smoothing, num_classes))


@dataclasses.dataclass(frozen=True)
class Mixing(Mix):
    """Mixes each image of a batch with another one.

    Attributes:
      draw: from a key, the shape of what there is one of, () or (B,), height and width: ``lam`` and, to replace a box
        and not to blend, ``box``, and, to do one of the two, ``cut``.
      per_image: whether each image has its own.
      label_smoothing: the share of labels that is spread evenly; None for nothing.
      num_classes: the number of classes, if known.
    """

    draw: Callable[[jax.Array, tuple[int, ...], int, int], Sampled]
    per_image: bool
    label_smoothing: Any
    num_classes: int | None

    def sample_batch(self, key: jax.Array, shape: tuple[int, ...]) -> Sampled:
        """The parameters of a batch."""
        check_batch(shape)
        size, height, width, _ = shape
        partner_key, draw_key = jax.random.split(key)
        partner = jax.random.permutation(partner_key, size).astype(jnp.int32)
        return {"partner": partner} | self.draw(draw_key, (size,) if self.per_image else (), height, width)

    def apply(self, params: Sampled, targets: Targets) -> Targets:
        """The images and labels of a batch."""
        for name in ("boxes", "keypoints"):
            if name in targets:
                raise TypeError(
                    f"{name}: expected none, since there is no telling which of two mixed images a thing "
                    f"at a place is of, got {name!r}"
                )
        image = targets["image"]
        shape = image.shape
        check_batch(shape)
        if "label" not in targets and "mask" not in targets:
            raise ValueError(
                "label: expected the labels (or masks) beside the images, as {'image': ..., 'label': "
                "...}, since a mixed image has those of two, got images alone"
            )
        if params["partner"].shape != shape[:1]:
            raise ValueError(f"params: expected those of a batch of {shape[0]}, got those of {params['partner'].size}")
        mixed = {"image": _mixed(params, image)}
        if "label" in targets:
            label = self._numbers(targets["label"], shape[0])
            mixed["label"] = _blend(params["lam"], label, of_partner(params["partner"], label))
        if "mask" in targets:
            mixed["mask"] = _mixed_mask(params, targets["mask"])
        return targets | mixed

    def _numbers(self, label: jax.Array, size: int) -> jax.Array:
        """The labels in a form that can be blended: numbers (B,) as they are, all others as shares."""
        if self.num_classes is not None or not jnp.issubdtype(label.dtype, jnp.floating) or label.ndim != 1:
            return self._shares(label, size)
        if self.label_smoothing is not None:
            raise ValueError(
                f"label_smoothing: expected 0 with floating-point labels ({size},), which are numbers and "
                f"no shares of classes, got {self.label_smoothing}"
            )
        return widen(label)

    def _shares(self, label: jax.Array, size: int) -> jax.Array:
        """The labels (B, K) as shares of classes, smoothed."""
        if jnp.issubdtype(label.dtype, jnp.integer):
            if self.num_classes is None:
                raise ValueError("num_classes: expected the number of classes, since labels are integers, got None")
            arrays.same_shape("label", label, (size,), "one integer an image")
            # Narrow integers could not count the classes.
            label = label if label.dtype.itemsize >= 4 else label.astype(jnp.int32)
            shares = jax.nn.one_hot(label, self.num_classes, dtype=jnp.float32)
        else:
            label = arrays.floating("label", label)
            if label.ndim != 2 or self.num_classes not in (None, label.shape[1]):
                raise ValueError(
                    f"label: expected shape ({size}, {self.num_classes or 'classes'}) of floating-point "
                    f"labels, got {label.shape}"
                )
            shares = widen(label)
        if self.label_smoothing is None:
            return shares
        return (1 - self.label_smoothing) * shares + self.label_smoothing / shares.shape[1]


def _mixed(params: Sampled, image: jax.Array) -> jax.Array:
    """A batch of images, mixed."""
    box, cut = params.get("box"), params.get("cut")
    others = of_partner(params["partner"], image)
    if box is None:
        return _blend(params["lam"], image, others)
    inside = _inside(box, image.shape[1], image.shape[2])
    pasted = jnp.where(_behind(inside, image), others, image)
    if cut is None:
        return pasted
    # One pass for both ways: XLA's CPU branches cost several, for they copy what goes into them.
    return jnp.where(_behind(cut, image), pasted, _blend(params["lam"], image, others))


def _mixed_mask(params: Sampled, mask: jax.Array) -> jax.Array:
    """The masks of a batch, mixed like the images."""
    blends = "box" not in params or "cut" in params
    if blends and not jnp.issubdtype(mask.dtype, jnp.floating):
        raise TypeError(
            f"mask: expected floats, shares of classes (B, H, W, K), since a blended pixel is of two "
            f"classes, got {mask.dtype}; jax.nn.one_hot makes them, and cutmix takes any"
        )
    return _mixed(params, mask)


def _blend(lam: jax.Array, mine: jax.Array, theirs: jax.Array) -> jax.Array:
    share = _behind(lam, mine)
    if jnp.issubdtype(mine.dtype, jnp.floating):
        a, b = widen(mine), widen(theirs)
        return (exact(share * a) + exact((1 - share) * b)).astype(mine.dtype)
    # The difference of two integers is exact: one product is rounded, and one sum.
    a, b = mine.astype(jnp.float32), theirs.astype(jnp.float32)
    return jnp.round(b + exact((a - b) * share)).astype(mine.dtype)


def of_partner(partner: jax.Array, x: jax.Array) -> jax.Array:
    """What the other image of each has, of an array with the batch in front, lying as it or the numbers do."""
    # JAX does not gather by itself what an Explicit mesh divides.
    divided = [one for one in (jax.typeof(x).sharding, jax.typeof(partner).sharding) if any(one.spec)]
    return x.at[partner].get(mode="clip", out_sharding=divided[0] if divided else None)


def _behind(x: jax.Array, like: jax.Array) -> jax.Array:
    """``x`` with as many axes as ``like`` has, new ones behind its own."""
    return x.reshape(x.shape + (1,) * (like.ndim - x.ndim)) if x.ndim else x


def _inside(box: jax.Array, height: int, width: int) -> jax.Array:
    """Which pixels are in a box, (1, H, W), or in each of several, (B, H, W)."""
    x1, y1, x2, y2 = (box[..., i].reshape(-1, 1, 1) for i in range(4))
    y = lax.broadcasted_iota(jnp.int32, (1, height, width), 1)
    x = lax.broadcasted_iota(jnp.int32, (1, height, width), 2)
    return (x >= x1) & (x < x2) & (y >= y1) & (y < y2)


def _random_box(key: jax.Array, lam: jax.Array, height: int, width: int) -> Sampled:
    """Boxes for shares of the image to leave, and the shares that they do leave."""
    x_key, y_key = jax.random.split(key)
    side = jnp.sqrt(1 - lam)
    bounds = []
    for one, size in ((x_key, width), (y_key, height)):
        center = jax.random.randint(one, lam.shape, 0, size, jnp.int32)
        half = (size * side).astype(jnp.int32) // 2
        bounds.append((jnp.maximum(center - half, 0), jnp.minimum(center + half, size)))
    (x1, x2), (y1, y2) = bounds
    # In this order it is exactly 1 where nothing is cut: XLA makes a division by a constant a product.
    lam = 1 - ((x2 - x1) * (y2 - y1)).astype(jnp.float32) / (height * width)
    return {"lam": lam, "box": jnp.stack([x1, y1, x2, y2], -1)}


def _beta(key: jax.Array, alpha: Scalar, shape: tuple[int, ...]) -> jax.Array:
    """Numbers of Beta(alpha, alpha): of two of Gamma(alpha) the share of the first, by their logarithms."""
    alpha = jnp.asarray(alpha, jnp.float32)
    # One draw for both: this takes long to compile.
    a, b = jax.random.loggamma(key, alpha, (2, *shape), jnp.float32)
    # Equal ones halve, even where both are too small for a logarithm.
    return jnp.where(a == b, 0.5, jax.nn.sigmoid(a - b))


def check_batch(shape: tuple[int, ...]) -> None:
    """Refuses a single image, and images of several sizes.

    Raises:
      ValueError: for the shape of one, or one that is not known before the program runs.
    """
    if len(shape) != 4:
        raise ValueError(f"image: expected a batch (B, H, W, C), since its images are mixed, got shape {shape}")
    if isinstance(shape[1], jax.Array):
        raise ValueError(
            "size: expected none where images are mixed, which takes images of one size; crop or resize "
            "them to one first"
        )


def _flag(per_image: bool) -> bool:
    if not isinstance(per_image, bool):
        raise TypeError(f"per_image: expected a bool, got {per_image!r}")
    return per_image


def _label_options(label_smoothing: Scalar, num_classes: int | None) -> tuple[Any, int | None]:
    checks.real("label_smoothing", label_smoothing, at_least=0, at_most=1)
    smooth = not (checks.is_concrete(label_smoothing) and label_smoothing == 0)
    return (
        scalar(label_smoothing) if smooth else None,
        num_classes if num_classes is None else arrays.size("num_classes", num_classes),
    )
