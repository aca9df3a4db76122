"""What holds of every function that draws: its keys, jit, vmap, and errors that name the argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mask_checks import NO_KEYS, assert_same, keys

from gradxform import masking

IDS = jnp.arange(60).reshape(4, 15)
DRAWS: dict[str, Callable[[Any], Any]] = {
    "random_masking": lambda key: masking.random_masking(key, 4, 16, 5),
    "block_masking": lambda key: masking.block_masking(key, 4, (5, 6), 12),
    "grid_masking": lambda key: masking.grid_masking(key, 4, 8, 2, 0.4),
    "span_masking": lambda key: masking.span_masking(key, 4, 30, 9),
    "mlm_corrupt": lambda key: masking.mlm_corrupt(key, IDS, mask_id=3, vocab_size=70, ratio=0.5),
}


def first_mask(drawn: Any) -> jax.Array:
    return getattr(drawn, "mask", drawn)


@pytest.mark.parametrize("name", DRAWS)
def test_keys_of_every_style_draw_the_same(name: str) -> None:
    new, *others = (DRAWS[name](key) for key in keys(3))
    for other in others:
        assert_same(new, other)


@pytest.mark.parametrize("name", DRAWS)
def test_keys_decide(name: str) -> None:
    draw = DRAWS[name]
    assert_same(draw(jax.random.key(1)), draw(jax.random.key(1)))
    assert not jnp.array_equal(first_mask(draw(jax.random.key(1))), first_mask(draw(jax.random.key(2))))


@pytest.mark.parametrize("name", DRAWS)
def test_jit_equals_eager_and_traces_once(name: str) -> None:
    draw = DRAWS[name]
    jitted = jax.jit(draw)
    for seed in range(2):
        assert_same(jitted(jax.random.key(seed)), draw(jax.random.key(seed)))
    assert jitted._cache_size() == 1


def test_another_key_compiles_nothing() -> None:
    kernels = [
        masking.random._random_masking,
        masking.blocks._block_masking,
        masking.blocks._grid_masking,
        masking.blocks._span_masking,
        masking.tokens._mlm_corrupt,
    ]
    for draw in DRAWS.values():
        draw(jax.random.key(0))
    before = [kernel._cache_size() for kernel in kernels]
    assert all(before)
    for draw in DRAWS.values():
        draw(jax.random.key(1))
    assert [kernel._cache_size() for kernel in kernels] == before


@pytest.mark.parametrize("name", ["random_masking", "block_masking", "span_masking"])
def test_vmap_over_keys(name: str) -> None:
    draw = DRAWS[name]
    batch = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(draw)(batch)
    for i in range(3):
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), draw(batch[i]))


@pytest.mark.parametrize("name", DRAWS)
def test_each_example_has_a_mask_of_its_own(name: str) -> None:
    mask = np.asarray(first_mask(DRAWS[name](jax.random.key(0)))).reshape(4, -1)
    assert len({row.tobytes() for row in mask}) == 4


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("what", NO_KEYS)
def test_what_is_no_key(name: str, what: str) -> None:
    with pytest.raises(TypeError, match=r"^key: expected a key from jax\.random\.key"):
        DRAWS[name](NO_KEYS[what])


@pytest.mark.parametrize("name", DRAWS)
def test_several_keys(name: str) -> None:
    with pytest.raises(TypeError, match=r"^key: expected one key, got an array of keys"):
        DRAWS[name](jax.random.split(jax.random.key(0)))


KEY = jax.random.key(0)
block = functools.partial(masking.block_masking, KEY)
corrupt = functools.partial(masking.mlm_corrupt, KEY)
BAD: dict[str, tuple[str, type[Exception], Callable[[], Any]]] = {
    "ratio 0": ("ratio", ValueError, lambda: masking.num_kept(10, 0.0)),
    "ratio 1": ("ratio", ValueError, lambda: masking.num_kept(10, 1.0)),
    "ratio nan": ("ratio", ValueError, lambda: masking.num_kept(10, float("nan"))),
    "ratio text": ("ratio", TypeError, lambda: masking.num_kept(10, "0.5")),  # type: ignore[arg-type]
    "length 0": ("length", ValueError, lambda: masking.num_kept(0, 0.5)),
    "traced ratio": ("ratio", TypeError, lambda: jax.jit(lambda r: masking.num_kept(10, r))(0.5)),
    "batch 0": ("batch", ValueError, lambda: masking.random_masking(KEY, 0, 4, 2)),
    "batch of floats": ("batch", TypeError, lambda: masking.random_masking(KEY, 2.0, 4, 2)),  # type: ignore[arg-type]
    "too many kept": ("num_keep", ValueError, lambda: masking.random_masking(KEY, 1, 4, 5)),
    "fewer than none": ("num_keep", ValueError, lambda: masking.random_masking(KEY, 1, 4, -1)),
    "traced count": ("num_keep", TypeError, lambda: jax.jit(lambda n: masking.random_masking(KEY, 1, 4, n))(2)),
    "too many masked": ("num_masked", ValueError, lambda: block(1, 3, 10)),
    "grid of three": ("grid", TypeError, lambda: block(1, (3, 3, 3), 2)),  # type: ignore[arg-type]
    "grid 0": ("grid", ValueError, lambda: block(1, (3, 0), 0)),
    "min_block 0": ("min_block", ValueError, lambda: block(1, 3, 2, min_block=0)),
    "max_block": ("max_block", ValueError, lambda: block(1, 3, 2, min_block=4, max_block=3)),
    "aspect reversed": ("aspect", ValueError, lambda: block(1, 3, 2, aspect=(2.0, 1.0))),
    "aspect 0": ("aspect", ValueError, lambda: block(1, 3, 2, aspect=(0.0, 1.0))),
    "aspect infinite": ("aspect", ValueError, lambda: block(1, 3, 2, aspect=(1.0, float("inf")))),
    "aspect alone": ("aspect", TypeError, lambda: block(1, 3, 2, aspect=1.0)),  # type: ignore[arg-type]
    "unit": ("unit", ValueError, lambda: masking.grid_masking(KEY, 1, (4, 6), 4)),
    "unit ratio 0": ("ratio", ValueError, lambda: masking.grid_masking(KEY, 1, 4, 2, 0.0)),
    "unit ratio 1": ("ratio", ValueError, lambda: masking.grid_masking(KEY, 1, 4, 2, 1)),
    "span length": ("num_masked", ValueError, lambda: masking.span_masking(KEY, 1, 5, 6)),
    "mean span": ("mean_span", ValueError, lambda: masking.span_masking(KEY, 1, 5, 2, 0.5)),
    "infinite span": ("mean_span", ValueError, lambda: masking.span_masking(KEY, 1, 5, 2, float("inf"))),
    "span counts": ("num_masked", ValueError, lambda: masking.span_masking(KEY, 2, 5, jnp.ones(3, int))),
    "span lengths": ("lengths", ValueError, lambda: masking.span_masking(KEY, 2, 5, 2, lengths=jnp.ones((2, 1), int))),
    "lengths of floats": ("lengths", TypeError, lambda: masking.random_masking(KEY, 2, 5, 2, lengths=jnp.ones(2))),
    "other patches": ("normalized", ValueError, lambda: masking.denormalize_patches(jnp.ones(3), jnp.ones((2, 3)))),
    "span text": ("mean_span", TypeError, lambda: masking.span_masking(KEY, 1, 5, 2, "3")),  # type: ignore[arg-type]
    "ids": ("ids", TypeError, lambda: corrupt(jnp.ones(3), mask_id=1, vocab_size=5)),
    "ids of a list": ("ids", TypeError, lambda: corrupt([1, 2], mask_id=1, vocab_size=5)),  # type: ignore[arg-type]
    "mask_id": ("mask_id", ValueError, lambda: corrupt(IDS, mask_id=70, vocab_size=70)),
    "special_ids": ("special_ids", ValueError, lambda: corrupt(IDS, mask_id=1, vocab_size=70, special_ids=(-100,))),
    "special id of floats": (
        "special_ids",
        TypeError,
        lambda: corrupt(IDS, mask_id=1, vocab_size=70, special_ids=(0.5,)),
    ),  # type: ignore[arg-type]
    "nothing ordinary": ("special_ids", ValueError, lambda: corrupt(IDS, mask_id=1, vocab_size=2, special_ids=[0])),
    "narrow ids": ("vocab_size", ValueError, lambda: corrupt(IDS.astype(jnp.int8), mask_id=1, vocab_size=200)),
    "corrupt ratio": ("ratio", ValueError, lambda: corrupt(IDS, mask_id=1, vocab_size=70, ratio=1.0)),
    "mask_share": ("mask_share", ValueError, lambda: corrupt(IDS, mask_id=1, vocab_size=70, mask_share=1.5)),
    "random_share": (
        "random_share",
        ValueError,
        lambda: corrupt(IDS, mask_id=1, vocab_size=70, mask_share=0.8, random_share=0.3),
    ),
    "attention_mask": (
        "attention_mask",
        ValueError,
        lambda: corrupt(IDS, mask_id=1, vocab_size=70, attention_mask=jnp.ones(15)),
    ),
    "attention_mask of a list": (
        "attention_mask",
        TypeError,
        lambda: corrupt(IDS, mask_id=1, vocab_size=70, attention_mask=[1]),
    ),  # type: ignore[arg-type]
    "gather ids": ("ids", TypeError, lambda: masking.gather_tokens(jnp.ones((2, 3)), jnp.ones((2, 1)))),
    "gather batch": ("ids", ValueError, lambda: masking.gather_tokens(jnp.ones((2, 3)), jnp.ones((3, 1), int))),
    "gather scalar": ("ids", ValueError, lambda: masking.gather_tokens(jnp.ones((2, 3)), jnp.array(1))),
    "gather x": ("x", TypeError, lambda: masking.gather_tokens(3.0, jnp.ones((2, 1), int))),  # type: ignore[arg-type]
    "scatter ids": (
        "ids_restore",
        ValueError,
        lambda: masking.scatter_tokens(jnp.ones((2, 3, 1)), jnp.ones((3, 4), int), 0.0),
    ),
    "scatter x": ("x", ValueError, lambda: masking.scatter_tokens(jnp.ones((2, 5, 1)), jnp.ones((2, 4), int), 0.0)),
    "scatter fill": (
        "fill",
        ValueError,
        lambda: masking.scatter_tokens(jnp.ones((2, 3, 2)), jnp.ones((2, 4), int), jnp.ones(3)),
    ),
    "images": ("images", ValueError, lambda: masking.patchify(jnp.ones((4, 4)), 2)),
    "images of a list": ("images", TypeError, lambda: masking.patchify([[1.0]], 2)),  # type: ignore[arg-type]
    "image and patch": ("patch", ValueError, lambda: masking.patchify(jnp.ones((2, 4, 6, 3)), 4)),
    "patch 0": ("patch", ValueError, lambda: masking.patchify(jnp.ones((2, 4, 6, 3)), 0)),
    "patch of floats": ("patch", TypeError, lambda: masking.patchify(jnp.ones((4, 6, 3)), 2.0)),  # type: ignore[arg-type]
    "patches": ("patches", ValueError, lambda: masking.unpatchify(jnp.ones(4), 2)),
    "patches and patch": ("patch", ValueError, lambda: masking.unpatchify(jnp.ones((4, 6)), 2)),
    "no square": ("grid", ValueError, lambda: masking.unpatchify(jnp.ones((6, 4)), 2)),
    "grid and patches": ("grid", ValueError, lambda: masking.unpatchify(jnp.ones((6, 4)), 2, (2, 2))),
    "patches of integers": ("patches", TypeError, lambda: masking.normalize_patches(jnp.ones((2, 3), int))),
    "one feature": ("patches", ValueError, lambda: masking.normalize_patches(jnp.ones((2, 1)))),
    "epsilon": ("epsilon", ValueError, lambda: masking.normalize_patches(jnp.ones((2, 3)), epsilon=-1.0)),
    "ddof": ("ddof", ValueError, lambda: masking.normalize_patches(jnp.ones((2, 3)), ddof=-1)),
}


@pytest.mark.parametrize("what", BAD)
def test_errors_name_the_argument(what: str) -> None:
    name, kind, call = BAD[what]
    with pytest.raises(kind, match=rf"^{name}: expected .*got ") as caught:
        call()
    assert type(caught.value) is kind
