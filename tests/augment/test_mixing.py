"""Mixup and CutMix beside NumPy, and their random numbers beside the distributions of the papers."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import gradxform as gx
from gradxform.augment import mixing
from gradxform.augment.mixing import cutmix, mixup, mixup_or_cutmix

pytestmark = pytest.mark.long

B, H, W, C, K = 6, 9, 12, 3, 5
RANDOM = np.random.RandomState(0)
BYTES = RANDOM.randint(0, 256, (B, H, W, C)).astype(np.uint8)
LABELS = RANDOM.randint(0, K, B).astype(np.int32)
SOFT = RANDOM.dirichlet(np.ones(K), B).astype(np.float32)
DTYPES = ["uint8", "float32", "bfloat16", pytest.param("float16", marks=pytest.mark.exhaustive)]
FACTORIES: dict[str, Callable[..., Any]] = {"mixup": mixup, "cutmix": cutmix, "mixup_or_cutmix": mixup_or_cutmix}
KEYS = jax.random.split(jax.random.key(1), 4000)

# Equal augmentations are one program.
EACH = ["mixup", pytest.param("cutmix", marks=pytest.mark.exhaustive), "mixup_or_cutmix"]
"""The last does what both do."""
make = functools.cache(lambda name, **options: FACTORIES[name](**{"num_classes": K} | options))


@functools.cache
def sampled(name: str, per_image: bool = True, seed: int = 0) -> Any:
    """The parameters of a batch; drawing them takes long to compile."""
    return make(name, per_image=per_image).sample(jax.random.key(seed), (B, H, W, C))


def images(dtype: str, channels: int = C) -> Any:
    """A batch in a dtype; what is not 8-bit is in [0, 1]."""
    pixels = np.resize(BYTES, (B, H, W, channels))
    return jnp.asarray(pixels) if dtype == "uint8" else jnp.asarray(pixels / np.float32(255), dtype)


def batch(dtype: str = "float32", label: Any = LABELS, channels: int = C) -> dict[str, Any]:
    return {"image": images(dtype, channels), "label": label}


def same(got: Any, want: Any) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape
    assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


def draws(aug: Any, size: int = 2, height: int = H, width: int = W) -> dict[str, np.ndarray]:
    """The parameters of a batch by each of ``KEYS``."""
    return jax.tree.map(np.asarray, jax.vmap(lambda key: aug.sample(key, (size, height, width, C)))(KEYS))


def each(x: Any) -> np.ndarray:
    """Numbers of the batch or of each image, as those of each."""
    x = np.asarray(x)
    return np.broadcast_to(x, (B, *x.shape)) if x.ndim == 0 or (x.ndim == 1 and x.shape == (4,)) else x


def mixed_by_numpy(params: Any, x: np.ndarray) -> np.ndarray:
    """The images, one after another, in the arithmetic of float32: each product and each sum rounded once."""
    result = np.empty_like(x)
    one = np.float32(1)
    for i in range(len(x)):
        other = x[int(params["partner"][i])]
        if "box" in params and ("cut" not in params or each(params["cut"])[i]):
            x1, y1, x2, y2 = each(params["box"])[i]
            result[i] = x[i]
            result[i, y1:y2, x1:x2] = other[y1:y2, x1:x2]
            continue
        lam, a, b = np.float32(each(params["lam"])[i]), x[i].astype(np.float32), other.astype(np.float32)
        if x.dtype == np.uint8:
            result[i] = np.rint(b + (a - b) * lam)
        else:
            result[i] = (lam * a + (one - lam) * b).astype(x.dtype)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("name", EACH)
def test_images(name: str, per_image: bool, dtype: str) -> None:
    """Bit for bit."""
    aug, inputs = make(name, per_image=per_image), batch(dtype)
    seen = 0
    for seed in range(3):
        params = sampled(name, per_image, seed)
        got = aug.apply(params, inputs)["image"]
        same(got, mixed_by_numpy(params, np.asarray(inputs["image"])))
        seen += int(jnp.any(got != inputs["image"]))
    assert seen, "nothing was mixed"


def test_a_blend_is_that_of_real_numbers() -> None:
    params = sampled("mixup")
    lam, partner = np.asarray(params["lam"], np.float64).reshape(-1, 1, 1, 1), np.asarray(params["partner"])
    for dtype, bound in (("uint8", 0.5 + 1e-4), ("float32", 1e-7), ("float16", 2.0**-12), ("bfloat16", 2.0**-9)):
        x = np.asarray(images(dtype), np.float64)
        got = make("mixup", per_image=True).apply(params, batch(dtype))["image"]
        assert np.max(np.abs(np.asarray(got, np.float64) - (lam * x + (1 - lam) * x[partner]))) <= bound


@pytest.mark.parametrize("name", EACH)
def test_a_call_is_sample_and_apply(name: str) -> None:
    aug, inputs, key = make(name, per_image=True), batch("uint8"), jax.random.key(5)
    want = aug.apply(sampled(name, seed=5), inputs)
    for got in (aug(key, inputs, batching=way) for way in (["auto", "vmap"] if name == "mixup" else ["map"])):
        assert list(got) == ["image", "label"]
        jax.tree.map(same, got, want)


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 5), ("float32", 3)])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("name", EACH)
def test_behind_another_in_a_chain(name: str, per_image: bool, dtype: str, channels: int) -> None:
    """Where an image is a canvas, the result is what two calls give."""
    first, second = inverted(), make(name, per_image=per_image)
    chain, inputs = gx.augment.chain(first, second), batch(dtype, channels=channels)
    params = first.sample(KEYS[0], inputs["image"].shape), sampled(name, per_image)
    got = chain.apply(params, inputs)
    jax.tree.map(same, got, second.apply(params[1], first.apply(params[0], inputs)))


@gx.augment.augmentation
def inverted() -> Any:
    return gx.augment.Pixelwise(
        lambda key, shape: (),
        lambda params, planes: [(255 if plane.dtype == jnp.int32 else 1) - plane for plane in planes],
    )


def test_behind_a_flip() -> None:
    """Where an image stays an array."""
    flip, inputs = gx.augment.random_flip_left_right(), batch("uint8")
    chain = gx.augment.chain(flip, make("mixup_or_cutmix", per_image=True))
    params = chain.sample(jax.random.key(3), inputs["image"].shape)
    jax.tree.map(same, chain(jax.random.key(3), inputs), chain.apply(params, inputs))
    flipped = flip.apply(params[0], inputs)
    assert np.any(flipped["image"] != inputs["image"])
    jax.tree.map(same, chain.apply(params, inputs), make("mixup_or_cutmix", per_image=True).apply(params[1], flipped))


# Random numbers.


def off(sample: np.ndarray, distribution: Any) -> float:
    """How far a sample is from a distribution, in units of what one in 300 samples reaches (Kolmogorov and Smirnov)."""
    # Off the ends, where a small alpha puts numbers that float32 cannot tell from 0 and 1.
    grid = np.linspace(1e-4, 1 - 1e-4, 2001)
    share = np.searchsorted(np.sort(sample), grid, side="right") / len(sample)
    return float(np.max(np.abs(share - distribution.cdf(grid))) * np.sqrt(len(sample)) / 1.79)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_lam_of_mixup_is_from_beta(alpha: float) -> None:
    lam = draws(mixup(alpha))["lam"]
    assert lam.shape == (len(KEYS),) and lam.dtype == np.float32
    assert np.all((lam >= 0) & (lam <= 1))
    assert off(lam, scipy.stats.beta(alpha, alpha)) < 1
    assert off(lam, scipy.stats.beta(1.3 * alpha, 1.3 * alpha)) > 1


def test_each_image_has_a_lam_of_its_own() -> None:
    lam = draws(mixup(0.5, per_image=True), 3)["lam"]
    assert lam.shape == (len(KEYS), 3)
    for i in range(3):
        assert off(lam[:, i], scipy.stats.beta(0.5, 0.5)) < 1
    assert np.max(np.abs(np.corrcoef(lam.T) - np.eye(3))) < 3.5 / np.sqrt(len(KEYS))


@pytest.mark.parametrize("name", EACH)
def test_all_permutations_are_equally_likely(name: str) -> None:
    params = draws(make(name), 4)
    assert params["partner"].dtype == np.int32
    codes = params["partner"] @ 4 ** np.arange(4)
    orders = [np.dot(order, 4 ** np.arange(4)) for order in itertools.permutations(range(4))]
    counts = [int(np.sum(codes == code)) for code in orders]
    assert sum(counts) == len(KEYS)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # The same key serves neither twice.
    assert abs(np.corrcoef(params["partner"][:, 0], params["lam"])[0, 1]) < 3.5 / np.sqrt(len(KEYS))


def test_small_alphas_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    lam = draws(mixup(1e-30, per_image=True))["lam"]
    assert set(np.unique(lam)) == {0.0, 1.0}
    assert abs(lam.mean() - 0.5) < 0.02
    monkeypatch.setattr(jax.random, "loggamma", lambda key, a, shape, dtype: jnp.full(shape, -jnp.inf, dtype))
    assert np.all(np.asarray(mixing._beta(KEYS[0], 0.1, (2,))) == 0.5)


def paper_boxes(alpha: float, height: int, width: int, count: int) -> np.ndarray:
    """Boxes x1, y1, x2, y2 by the lines of the authors' code."""
    random = np.random.RandomState(1)
    cut = np.sqrt(1 - random.beta(alpha, alpha, count))
    x, y = random.randint(width, size=count), random.randint(height, size=count)
    w, h = np.int64(width * cut), np.int64(height * cut)
    return np.stack(
        [
            np.clip(x - w // 2, 0, width),
            np.clip(y - h // 2, 0, height),
            np.clip(x + w // 2, 0, width),
            np.clip(y + h // 2, 0, height),
        ],
        1,
    )


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_boxes_are_those_of_the_paper(alpha: float) -> None:
    height, width = 41, 64
    params = draws(cutmix(alpha), 2, height, width)
    box = params["box"]
    assert box.dtype == np.int32 and box.shape == (len(KEYS), 4)
    want = paper_boxes(alpha, height, width, 40_000)
    for measure in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2],
        lambda b: b[:, 3],
        lambda b: b[:, 2] - b[:, 0],
        lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]),
        lambda b: b[:, 0] + b[:, 2] - b[:, 1] - b[:, 3],
    ):
        assert scipy.stats.ks_2samp(measure(box), measure(want)).pvalue > 1e-3
    size = box[:, 2:] - box[:, :2]
    assert np.all(size >= 0) and np.all(box >= 0) and np.all(box[:, 2:] <= [width, height])
    free = np.all((box[:, :2] > 0) & (box[:, 2:] < [width, height]), 1)
    assert np.all(size[free] % 2 == 0)
    area = size.prod(1)
    np.testing.assert_allclose(params["lam"], 1 - area / (height * width), atol=2e-7)
    assert np.all((params["lam"] == 1) == (area == 0))


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("name", ["cutmix", "mixup_or_cutmix"])
def test_lam_is_the_share_that_is_left(name: str, per_image: bool) -> None:
    """Counted in images each painted with its own number."""
    always = {"cutmix_probability": 1.0} if name == "mixup_or_cutmix" else {}
    aug = make(name, per_image=per_image, **always)
    painted = np.broadcast_to(np.arange(B, dtype=np.uint8)[:, None, None, None], (B, H, W, C))
    some = 0
    for seed in range(8):
        params = aug.sample(jax.random.key(seed), painted.shape) if always else sampled(name, per_image, seed)
        got = aug.apply(params, {"image": jnp.asarray(painted), "label": np.arange(B) % K})
        image = np.asarray(got["image"])
        assert np.all(image == image[..., :1])
        for i, partner in enumerate(np.asarray(params["partner"])):
            count = int(np.sum(image[i, ..., 0] == i))
            assert count + int(np.sum(image[i, ..., 0] == partner)) == H * W * (1 + (i == partner))
            if partner != i:
                assert abs(each(params["lam"])[i] - count / (H * W)) < 2e-7
                rows, columns = np.nonzero(image[i, ..., 0] == partner)
                some += rows.size > 0
                if rows.size:
                    rim = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    np.testing.assert_array_equal(each(params["box"])[i], rim)
                want = np.zeros(K)
                want[i % K] += count / (H * W)
                want[partner % K] += 1 - count / (H * W)
                np.testing.assert_allclose(got["label"][i], want, atol=1e-6)
    assert some > 8


def test_the_boxes_of_images_are_independent() -> None:
    box = draws(cutmix(per_image=True))["box"]
    assert box.shape == (len(KEYS), 2, 4)
    correlations = np.corrcoef(box.reshape(-1, 8).T)
    assert np.max(np.abs(correlations[:4, 4:])) < 4 / np.sqrt(len(KEYS))


@pytest.mark.parametrize("per_image", [False, True])
def test_the_coin(per_image: bool) -> None:
    params = draws(mixup_or_cutmix(0.7, 1.0, cutmix_probability=0.3, per_image=per_image))
    cut = params["cut"]
    assert cut.shape == params["lam"].shape == params["box"].shape[:-1] == (len(KEYS), 2)[: 1 + per_image]
    assert scipy.stats.binomtest(int(cut.sum()), cut.size, 0.3).pvalue > 1e-3
    assert off(params["lam"][~cut], scipy.stats.beta(0.7, 0.7)) < 1
    x1, y1, x2, y2 = np.moveaxis(params["box"], -1, 0)
    area = (x2 - x1) * (y2 - y1)
    assert np.all(area[~cut] == 0) and np.mean(area[cut] > 0) > 0.5
    np.testing.assert_allclose(params["lam"][cut], 1 - area[cut] / (H * W), atol=2e-7)
    if per_image:
        assert abs(np.corrcoef(cut.T)[0, 1]) < 3.5 / np.sqrt(len(KEYS))


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_coin_that_is_certain(chance: float) -> None:
    cut = draws(mixup_or_cutmix(cutmix_probability=chance, per_image=True))["cut"]
    assert np.all(cut == bool(chance))


# Labels.


def mixed_labels(params: Any, shares: np.ndarray) -> np.ndarray:
    lam = each(params["lam"]).astype(np.float64)[:, None]
    return lam * shares + (1 - lam) * shares[np.asarray(params["partner"])]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("name", EACH)
def test_labels(name: str, smoothing: float) -> None:
    aug = make(name, per_image=True, label_smoothing=smoothing)
    params = sampled(name)
    for label, shares in ((LABELS, np.eye(K)[LABELS]), (SOFT, SOFT.astype(np.float64))):
        got = aug.apply(params, batch(label=label))["label"]
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, mixed_labels(params, (1 - smoothing) * shares + smoothing / K), atol=3e-7)
        np.testing.assert_allclose(got.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32"])
def test_integers_are_one_hot_labels(dtype: str) -> None:
    """Of any width, with more classes than it could count."""
    classes = 300
    aug = mixup(1.0, per_image=True, num_classes=classes)
    integers, params = np.array([0, 1, 44, 99, 127, 3], dtype), sampled("mixup")
    got = aug.apply(params, batch(label=integers))["label"]
    same(got, aug.apply(params, batch(label=np.eye(classes, dtype=np.float32)[integers]))["label"])


def test_a_label_outside_of_the_classes_is_of_none() -> None:
    aug = mixup(num_classes=K)
    params = {"partner": jnp.arange(B)[::-1], "lam": jnp.float32(1)}
    got = np.asarray(aug.apply(params, batch(label=np.array([-1, 0, K, K - 1, -100, 2])))["label"])
    np.testing.assert_array_equal(got.sum(1), [0, 1, 0, 1, 0, 1])


def test_soft_labels_are_widened() -> None:
    params, narrow = sampled("mixup"), jnp.asarray(SOFT, jnp.bfloat16)
    same(
        mixup().apply(params, batch(label=narrow))["label"],
        mixup().apply(params, batch(label=narrow.astype(jnp.float32)))["label"],
    )


@pytest.mark.exhaustive
def test_64_bit_types() -> None:
    """Parameters and images stay what they are; labels keep their digits."""
    with jax.enable_x64(True):
        aug = make("mixup_or_cutmix", per_image=True)
        params = aug.sample(jax.random.key(0), (B, H, W, C))
        assert {str(x.dtype) for x in jax.tree.leaves(params)} <= {"int32", "float32", "bool"}
        inputs = batch(label=SOFT.astype(np.float64))
        got = aug.apply(params, inputs)
        assert got["image"].dtype == jnp.float32 and got["label"].dtype == jnp.float64
        np.testing.assert_allclose(got["label"], mixed_labels(params, inputs["label"]), atol=1e-7)
        assert aug.apply(params, batch(label=LABELS.astype(np.int64)))["label"].dtype == jnp.float32


def test_numbers_to_predict() -> None:
    """Floats (B,) without a number of classes: of any size, mixed as they are, as floats (B, K) are."""
    params = sampled("mixup")
    lam, partner = np.asarray(params["lam"], np.float64), np.asarray(params["partner"])
    for label in (np.float32(RANDOM.normal(50, 40, B)), np.float32(RANDOM.normal(50, 40, (B, 2)))):
        got = mixup().apply(params, batch(label=label))["label"]
        share = lam.reshape(-1, *(1,) * (label.ndim - 1))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, share * label + (1 - share) * label[partner], rtol=1e-6, atol=1e-5)


def test_masks() -> None:
    """CutMix pastes those of any dtype, and wants no labels; blended are shares of classes, and nothing else."""
    classes = RANDOM.randint(0, K, (B, H, W)).astype(np.int32)
    shares = np.eye(K, dtype=np.float32)[classes]
    params = sampled("cutmix")
    for mask in (classes, classes.astype(np.uint8), shares):
        got = make("cutmix", per_image=True).apply(params, {"image": images("uint8"), "mask": mask})
        same(got["mask"], mixed_by_numpy(params, mask))
    for name in ("mixup", "mixup_or_cutmix"):
        params = sampled(name)
        got = make(name, per_image=True).apply(params, {"image": images("uint8"), "mask": shares})["mask"]
        np.testing.assert_allclose(got.sum(-1), 1, atol=1e-6)
        same(got, mixed_by_numpy(params, shares))
        with pytest.raises(TypeError, match=r"^mask: expected floats.*int32.*one_hot"):
            make(name, per_image=True).apply(params, batch() | {"mask": classes})


def test_a_batch_of_one_stays() -> None:
    """As the last of an epoch may be."""
    inputs = {"image": images("uint8")[:1], "label": LABELS[:1]}
    for name in ("mixup", "cutmix"):
        got = make(name)(KEYS[0], inputs)
        same(got["image"], inputs["image"])
        np.testing.assert_allclose(got["label"], np.eye(K)[LABELS[:1]], atol=1e-7)


# As a value, in programs.


def test_new_keys_and_numbers_do_not_retrace() -> None:
    traces = []

    @jax.jit
    def run(aug: Any, key: Any) -> Any:
        traces.append(aug)
        return aug(key, batch())

    results = [
        run(mixup_or_cutmix(alpha, 1.0, per_image=True, num_classes=K), jax.random.key(seed))["label"]
        for seed, alpha in enumerate((0.5, 0.6, 0.7))
    ]
    assert len(traces) == 1
    assert np.any(results[0] != results[1]) and np.any(results[1] != results[2])


def test_numbers_may_be_traced() -> None:
    def label(alpha: Any, smoothing: Any) -> Any:
        aug = mixup(alpha, per_image=True, label_smoothing=smoothing, num_classes=K)
        return aug(jax.random.key(0), batch())["label"]

    want, (d_alpha, d_smoothing) = label(0.4, 0.2), jax.jit(jax.jacfwd(label, (0, 1)))(0.4, 0.2)
    # Smoothing moves each share from what it is toward 1 / K.
    np.testing.assert_allclose(d_smoothing, (1 / K - want) / 0.8, atol=1e-6)
    assert np.all(np.isfinite(d_alpha)) and np.any(d_alpha != 0)


@pytest.mark.parametrize("name", EACH)
def test_gradients_of_images(name: str) -> None:
    """Each image's flow back to the two that it is made of."""
    aug = make(name, per_image=True)
    params = sampled(name, seed=4)
    weights = np.float32(RANDOM.standard_normal((B, H, W, C)))
    got = jax.grad(lambda x: jnp.sum(weights * aug.apply(params, {"image": x, "label": LABELS})["image"]))(
        images("float32")
    )
    share = np.broadcast_to(np.asarray(each(params["lam"]), np.float64).reshape(-1, 1, 1, 1), weights.shape).copy()
    for i in range(B):
        if "box" in params and ("cut" not in params or params["cut"][i]):
            x1, y1, x2, y2 = params["box"][i]
            share[i] = 1
            share[i, y1:y2, x1:x2] = 0
    want = share * weights
    np.add.at(want, np.asarray(params["partner"]), (1 - share) * weights)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", pytest.param("float32", marks=pytest.mark.exhaustive), "bfloat16"])
@pytest.mark.parametrize("name", EACH)
def test_nothing_of_the_size_of_the_images_is_kept(name: str, dtype: str) -> None:
    """One pass over the images: there is no copy of the others in memory, and none in a wider dtype."""
    x = jax.ShapeDtypeStruct((8, 64, 64, 3), dtype)
    lowered = jax.jit(lambda key, x: make(name)(key, {"image": x, "label": jnp.arange(8)})).lower(KEYS[0], x)
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < x.size * x.dtype.itemsize / 8


@pytest.mark.parametrize("name", ["mixup_or_cutmix"])
def test_exports_for_every_platform(name: str) -> None:
    aug, platforms = gx.augment.chain(inverted(), make(name, per_image=True)), ("cpu", "cuda", "tpu")

    def run(data: Any, image: Any) -> Any:
        out = aug(jax.random.wrap_key_data(data), {"image": image, "label": LABELS})
        return [out["image"], out["label"]]

    args = jax.random.key_data(jax.random.key(0)), images("uint8")
    exported = jax.export.export(jax.jit(run), platforms=platforms)(*args)
    assert exported.platforms == platforms
    got = jax.export.deserialize(exported.serialize()).call(*args)
    same(got[0], run(*args)[0])
    np.testing.assert_allclose(got[1], run(*args)[1], atol=1e-6)


# What does not fit.

KEY = KEYS[0]
MISFITS: dict[str, tuple[type[Exception], str, Callable[[Any], Any]]] = {
    "zero alpha": (ValueError, "alpha", lambda f: f(0.0)),
    "negative alpha": (ValueError, "alpha", lambda f: f(-1.0)),
    "nan alpha": (ValueError, "alpha", lambda f: f(float("nan"))),
    "alpha of text": (TypeError, "alpha", lambda f: f("1")),
    "per_image": (TypeError, "per_image", lambda f: f(per_image=1)),
    "smoothing below 0": (ValueError, "label_smoothing", lambda f: f(label_smoothing=-0.1)),
    "smoothing above 1": (ValueError, "label_smoothing", lambda f: f(label_smoothing=1.1)),
    "no classes": (ValueError, "num_classes", lambda f: f(num_classes=0)),
    "classes of text": (TypeError, "num_classes", lambda f: f(num_classes="5")),
    "images alone": (ValueError, "label", lambda f: f(num_classes=K)(KEY, images("float32"))),
    "no labels": (ValueError, "label", lambda f: f(num_classes=K)(KEY, {"image": images("uint8")})),
    "no number of classes": (ValueError, "num_classes", lambda f: f()(KEY, batch())),
    "another number of classes": (ValueError, "label", lambda f: f(num_classes=K + 1)(KEY, batch(label=SOFT))),
    "integers (B, K)": (ValueError, "label", lambda f: f(num_classes=K)(KEY, batch(label=np.eye(B, dtype=np.int32)))),
    "floats (B,)": (ValueError, "label", lambda f: f(num_classes=K)(KEY, batch(label=LABELS.astype(np.float32)))),
    "smoothed numbers": (
        ValueError,
        "label_smoothing",
        lambda f: f(label_smoothing=0.1)(KEY, batch(label=LABELS.astype(np.float32))),
    ),
    "truth values": (TypeError, "label", lambda f: f(num_classes=K)(KEY, batch(label=LABELS > 2))),
    "a single image": (ValueError, "image", lambda f: f(num_classes=K)(KEY, images("uint8")[0])),
    "shape of a single image": (ValueError, "image", lambda f: f(num_classes=K).sample(KEY, (H, W, C))),
    "params for a single image": (
        ValueError,
        "image",
        lambda f: f(num_classes=K).apply(
            f().sample(KEY, (B, H, W, C)), {"image": images("uint8")[0], "label": np.int32(1)}
        ),
    ),
    "params of another batch": (
        ValueError,
        "params",
        lambda f: f(num_classes=K).apply(f().sample(KEY, (B + 1, H, W, C)), batch()),
    ),
    "boxes": (TypeError, "boxes", lambda f: f(num_classes=K)(KEY, batch() | {"boxes": np.zeros((B, 1, 4))})),
    "keypoints": (
        TypeError,
        "keypoints",
        lambda f: f(num_classes=K)(KEY, batch() | {"keypoints": np.zeros((B, 1, 2), np.float32)}),
    ),
}


@pytest.mark.parametrize("what", MISFITS)
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_misfits(name: str, what: str) -> None:
    kind, argument, call = MISFITS[what]
    with pytest.raises(kind, match=rf"^{re.escape(argument)}: \S") as caught:
        call(FACTORIES[name])
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("argument", "value"),
    [("mixup_alpha", 0.0), ("cutmix_alpha", -1.0), ("cutmix_probability", 1.5), ("cutmix_probability", -0.5)],
)
def test_misfits_of_both(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: "):
        mixup_or_cutmix(**{argument: value})
