"""Geometric augmentations export for CPU, CUDA and TPU as one program."""

from __future__ import annotations

from typing import Any

import geometry_oracles as oracles
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import gradxform as gx

pytestmark = pytest.mark.long

A = gx.augment
KEY = jax.random.PRNGKey(0)
PLATFORMS = ("cpu", "cuda", "tpu")
AUGMENTATIONS: dict[str, Any] = {
    "random_crop": A.random_crop(6, 1, border="reflect"),
    "center_crop": A.center_crop(5),
    "resize": A.resize((5, 9)),
    "resize, nearest": A.resize((5, 9), interpolation="nearest"),
    "random_resized_crop": A.random_resized_crop(6),
    "random_flip_left_right": A.random_flip_left_right(),
    "random_flip_up_down": A.random_flip_up_down(),
    "random_rotation": A.random_rotation(20),
    "random_rotation, nearest": A.random_rotation(20, interpolation="nearest"),
    "random_affine": A.random_affine(20, (0.1, 0.1), (0.8, 1.2), (5, 5), border="edge"),
    "elastic_deformation": A.elastic_deformation(5.0, 1.0),
    "chain": A.chain(
        A.random_crop(7),
        A.random_flip_left_right(),
        A.random_rotation(20),
        A.random_apply(A.invert()),
        A.two_views(A.one_of(A.chain(), A.random_flip_up_down())),
    ),
}


def exported(name: str, dtype: Any) -> tuple[Any, Any, Any]:
    images = jnp.stack([jnp.asarray(oracles.noise(8, 8, 3, dtype, i)) for i in range(3)])
    run = jax.jit(lambda key, images: jax.tree.leaves(AUGMENTATIONS[name](key, images)))
    program = jax.export.export(run, platforms=PLATFORMS)(KEY, images)
    assert program.platforms == PLATFORMS
    return program.serialize(), run, images


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_it_exports_for_every_platform(name: str) -> None:
    program, run, images = exported(name, jnp.uint8)
    got, wanted = jax.export.deserialize(program).call(KEY, images), run(KEY, images)
    assert len(got) == len(wanted) > 0
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == jnp.uint8
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_it_exports_for_floats(name: str) -> None:
    """To compile it, too, would tell little more."""
    program, _, _ = exported(name, jnp.float32)
    assert {out.dtype for out in jax.export.deserialize(program).out_avals} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", ["random_rotation", "random_flip_left_right"])
def test_it_exports_for_any_batch(name: str) -> None:
    """A size that is only known when the program is called."""
    (size,) = jax.export.symbolic_shape("b")
    run = jax.jit(lambda key, images: AUGMENTATIONS[name](key, images))
    program = jax.export.export(run, platforms=["cpu"])(KEY, jax.ShapeDtypeStruct((size, 8, 8, 3), jnp.float32))
    for count in (1, 3):
        images = jnp.stack([jnp.asarray(oracles.noise(8, 8, 3, jnp.float32, i)) for i in range(count)])
        np.testing.assert_allclose(program.call(KEY, images), run(KEY, images), atol=2e-6)


def test_a_change_of_colours_exports_for_any_size() -> None:
    height, width = jax.export.symbolic_shape("h, w")
    aug = gx.augment.color_jitter(0.4, 0.4, 0.4, 0.1)
    run = jax.jit(lambda key, images: aug(key, images))
    program = jax.export.export(run, platforms=["cpu"])(KEY, jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32))
    images = jnp.stack([jnp.asarray(oracles.noise(9, 7, 3, jnp.float32, i)) for i in range(2)])
    np.testing.assert_allclose(program.call(KEY, images), run(KEY, images), atol=2e-6)
