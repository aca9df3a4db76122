"""Rules, the error that lists all that does not fit, casts, and the report."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import precision
from hypothesis import given, settings
from hypothesis import strategies as st

import gradxform as gx
from gradxform.transfer.load import load_pretrained
from gradxform.transfer.positions import resize_positions


def zeros(**shapes: Any) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Any:
    def write(**arrays: Any) -> pathlib.Path:
        np.savez(tmp_path / "model.npz", **{name.replace("__", "."): np.asarray(x) for name, x in arrays.items()})
        return tmp_path / "model.npz"

    return write


def counted(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def test_every_rule_at_once(write: Any) -> None:
    """A block of a vision transformer of torch: attention with heads, one array for three, positions, a new head."""
    rng = np.random.RandomState(0)
    arrays = {
        "blocks.0.attn.qkv.weight": rng.randn(18, 6),
        "blocks.0.attn.qkv.bias": rng.randn(18),
        "blocks.0.attn.proj.weight": rng.randn(6, 6),
        "patch.weight": rng.randn(6, 3, 2, 4),
        "pos_embed": rng.randn(1, 5, 6),
        "norm.weight": rng.randn(6),
        "head.weight": rng.randn(10, 6),
        "steps": np.array(3),
    }
    arrays = {name: x.astype(np.float32) if x.ndim else x for name, x in arrays.items()}
    params = {
        "block_0": {
            name: {"kernel": np.zeros((6, 2, 3), np.float32), "bias": np.zeros((2, 3), np.float32)}
            for name in ("query", "key", "value")
        }
        | {"out": {"kernel": np.zeros((2, 3, 6), np.float32)}},
        "patch": {"kernel": np.zeros((2, 4, 3, 6), np.float32)},
        "pos_embed": np.zeros((1, 10, 6), np.float32),
        "norm": {"scale": jnp.zeros(6, jnp.bfloat16)},
        "head": {"kernel": np.full((6, 4), 7, np.float32)},
    }
    loaded, report = load_pretrained(
        write(**arrays),
        params,
        rename=[
            (r"^blocks/(\d+)/attn", r"block_\1"),
            ("qkv", ["query", "key", "value"]),
            ("proj", "out"),
            ("norm/weight", "norm/scale"),
            (r"weight$", lambda match: "kernel"),
            ("never", "x"),
        ],
        skip=["^steps$", "nowhere"],
        new="^head/",
        transpose={gx.ndim_at_least(4): (2, 3, 1, 0), "kernel$": (1, 0), "nobody": (0,)},
        reshape="block_0/.*/(kernel|bias)$",
        convert={"pos_embed$": resize_positions},
    )

    for i, name in enumerate(("query", "key", "value")):
        part = slice(6 * i, 6 * i + 6)
        np.testing.assert_array_equal(
            loaded["block_0"][name]["kernel"], arrays["blocks.0.attn.qkv.weight"][part].T.reshape(6, 2, 3)
        )
        np.testing.assert_array_equal(
            loaded["block_0"][name]["bias"], arrays["blocks.0.attn.qkv.bias"][part].reshape(2, 3)
        )
    np.testing.assert_array_equal(
        loaded["block_0"]["out"]["kernel"], arrays["blocks.0.attn.proj.weight"].T.reshape(2, 3, 6)
    )
    np.testing.assert_array_equal(loaded["patch"]["kernel"], np.einsum("oihw->hwio", arrays["patch.weight"]))
    np.testing.assert_array_equal(loaded["pos_embed"][:, 0], arrays["pos_embed"][:, 0])
    np.testing.assert_array_equal(loaded["pos_embed"], resize_positions(arrays["pos_embed"], (1, 10, 6)))
    np.testing.assert_array_equal(loaded["norm"]["scale"], arrays["norm.weight"].astype(jnp.bfloat16))
    assert loaded["head"]["kernel"] is params["head"]["kernel"]
    assert params["pos_embed"].sum() == 0

    assert report.new == ("head/kernel",) and report.unused == ("head.weight",) and report.skipped == ("steps",)
    assert report.idle == ("rename 'never'", "skip 'nowhere'", "transpose 'nobody'")
    changes = {item.path: item.changes for item in report.loaded}
    assert changes["block_0/key/kernel"] == ("part 2 of 3", "transpose (1, 0)", "reshape (6, 6)")
    assert changes["pos_embed"] == ("(1, 5, 6) by resize_positions",)
    assert changes["norm/scale"] == ("from float32",)
    assert {item.path for item in report.transformed} == {item.path for item in report.loaded}
    text = str(report)
    assert text.startswith("model.npz: 10 of 11 params loaded, ")
    for line in (
        "  patch/kernel          (2, 4, 3, 6) float32  <- patch.weight, transpose (2, 3, 1, 0)",
        "left new\n  head/kernel",
        "skipped in the file\n  steps",
        "unused in the file, for a param left new\n  head.weight",
        "rules that matched nothing\n  rename 'never'\n  skip 'nowhere'\n  transpose 'nobody'",
    ):
        assert line in text, text


def test_all_that_does_not_fit_is_one_error(write: Any) -> None:
    path = write(
        conv=counted(64, 3, 7, 7),
        dense=counted(3, 2),
        flat=counted(6),
        far=counted(5),
        a=counted(2),
        b=counted(2),
        extra=counted(1),
        whole=counted(2, dtype=np.int64),
        odd=counted(3),
        ranks=counted(3),
        cut=counted(3),
        number=1 + 2j,
        pos=counted(1, 5, 2),
        l0=counted(2),
        l1=counted(3),
        s0=counted(2, 3),
        s1=counted(2, 3),
    )
    params = zeros(
        conv=(7, 7, 3, 64),
        dense=(2, 3),
        flat=(2, 3),
        far=4,
        a=2,
        c=1,
        whole=2,
        ranks=3,
        part1=1,
        part2=1,
        number=(),
        pos=(1, 7, 2),
        l=(2, 2),
        s=(2, 3, 3),
    ) | {
        "left": jax.ShapeDtypeStruct((1,), jnp.float32),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
        "p.q": np.zeros(1),
        "odd": np.zeros(3, np.int32),
    }
    with pytest.raises(ValueError) as caught:
        load_pretrained(
            path,
            params | {"p": {"q": np.zeros(1)}},
            new="^left$",
            convert={"^pos": resize_positions},
            transpose={"ranks": (1, 0), "^s$": (0, 2, 1)},
            rename={
                "^b$": "a",
                "^cut$": ["part1", "part2"],
                "^extra$": "extras",
                r"^(l|s)\d$": gx.transfer.Join(r"\1"),
            },
        )
    told, *lines = str(caught.value).splitlines()
    assert told.endswith("model.npz' does not fit params, nothing is loaded:")
    assert sorted(line.strip() for line in lines) == sorted(
        [
            "a: there are 2 arrays for it, a, b; a Join in rename makes them one",
            "c (1,) float32: there is no array for it in the file; rename one, or name it in new",
            "conv: (64, 3, 7, 7) float32 of conv, (7, 7, 3, 64) expected; transpose (2, 3, 1, 0) fits",
            "dense: (3, 2) float32 of dense, (2, 3) expected; transpose (1, 0) fits",
            "extra (1,) float32 in the file: there is no param extras; rename it, or name it in skip",
            "far: (5,) float32 of far, (4,) expected",
            "flat: (6,) float32 of flat, (2, 3) expected; it has as many numbers, so that it could be reshaped",
            "key () key<fry>: there is no array for it in the file; rename one, or name it in new",
            "l: (2,) float32 of l0 and 1 more, which cannot be stacked, for their shapes are (2,), (3,)",
            "left: it has a shape and no value that could be left new; give an array",
            "number: () complex128 of number, float32 expected; a cast from complex to real numbers would change "
            "what they mean",
            "odd: (3,) float32 of odd, int32 expected; a cast from real to integer numbers would change what they mean",
            "p/q and p.q: one name for 2 params",
            "p.q (1,) float64: there is no array for it in the file; rename one, or name it in new",
            "p/q (1,) float64: there is no array for it in the file; rename one, or name it in new",
            "part1: (3,) float32 of cut, which cannot be cut into 2 equal parts",
            "part2: (3,) float32 of cut, which cannot be cut into 2 equal parts",
            # An error in a function is one among the others, with its path.
            "pos: (1, 5, 2) float32 of pos, resize_positions raised ValueError: new_grid: expected (height, width) of "
            "6 patches, got (2, 2); the tokens of the prefix are counted by prefix_tokens",
            "ranks: (3,) float32 of ranks, which cannot be transposed by (1, 0)",
            "s: (2, 3) float32 of s0 and 1 more, stack of 2, transpose (0, 2, 1), makes (2, 3, 2) float32, (2, 3, 3) "
            "expected",
            "whole: (2,) int64 of whole, float32 expected; a cast from integer to real numbers would change what "
            "they mean",
        ]
    )


def test_numbers_that_would_change_are_refused_together(write: Any) -> None:
    path = write(
        big=np.array([1.0, 1e300]),
        small=np.array([1, 300]),
        minus=np.array([-1], np.int64),
        good=np.ones(1),
        shape=np.ones(2),
        kind=np.ones(2),
    )
    params = zeros(big=2, good=1, shape=3, kind=2) | {"small": np.zeros(2, np.int8), "minus": np.zeros(1, np.uint64)}

    def same(x: Any, shape: Any) -> Any:
        return x

    def positive(x: Any, shape: Any) -> Any:
        return x > 0

    with pytest.raises(ValueError) as caught:
        load_pretrained(path, params, convert={"shape": same, "kind": positive})
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "big: (2,) float64 of big, which has 1 numbers of float64 that float32 cannot hold",
        "kind: (2,) float64 of kind, (2,) by positive, makes (2,) bool, float32 expected; a cast from logical to real "
        "numbers would change what they mean",
        "minus: (1,) int64 of minus, which has 1 numbers of int64 that uint64 cannot hold",
        "shape: (2,) float64 of shape, (2,) by same, makes (2,) float64, (3,) expected",
        "small: (2,) int64 of small, which has 1 numbers of int64 that int8 cannot hold",
    ]
    assert all((leaf == 0).all() for leaf in params.values())


def test_casts_that_keep_the_meaning(write: Any) -> None:
    path = write(
        narrow=np.array([1 + 2**-12, np.inf, np.nan]),
        wide=counted(3, dtype=np.float16),
        imaginary=np.ones(1),
        counts=np.array([127]),
        same=np.array([True]),
    )
    params = {
        "narrow": np.zeros(3, jnp.bfloat16),
        "wide": np.zeros(3),
        "imaginary": np.zeros(1, np.complex64),
        "counts": np.zeros(1, np.int8),
        "same": np.zeros(1, bool),
    }
    loaded, report = load_pretrained(path, params)
    np.testing.assert_array_equal(loaded["narrow"].astype(np.float32), [1, np.inf, np.nan])
    np.testing.assert_array_equal(loaded["wide"], [0, 1, 2])
    assert {name: leaf.dtype for name, leaf in loaded.items()} == {name: leaf.dtype for name, leaf in params.items()}
    assert report.nonfinite == 2 and "9 numbers" in str(report) and "2 not finite" in str(report)
    assert {item.path: item.changes for item in report.transformed}["narrow"] == ("from float64",)


def test_sixty_four_bits_need_the_option(write: Any) -> None:
    path = write(a=np.array([1 + 2**-40]))
    with precision(64):
        params = {"a": jnp.zeros(1, jnp.float64)}
        assert load_pretrained(path, params)[0]["a"][0] == 1 + 2**-40
        shapes = jax.eval_shape(lambda: params)
    with pytest.raises(ValueError, match=r"a: \(1,\) float64 of a, float64 expected; jax has it only with jax_"):
        load_pretrained(path, shapes)


def test_arrays_are_our_own(write: Any) -> None:
    kept = np.ones(2, np.float32)
    loaded, _ = load_pretrained(write(a=kept), zeros(a=2), convert={"a": lambda x, shape: kept})
    kept[:] = 5
    np.testing.assert_array_equal(loaded["a"], [1, 1])


def test_regular_expressions_are_searched_for(write: Any) -> None:
    path = write(encoder__bias=counted(1), encoder__kernel=counted(2))
    loaded, _ = load_pretrained(
        path, {"encoder": {"bias": counted(1) + 3, "kernel": counted(2) + 3}}, skip="bias", new=gx.path_matches("bias")
    )
    np.testing.assert_array_equal(loaded["encoder"]["kernel"], [0, 1])
    np.testing.assert_array_equal(loaded["encoder"]["bias"], [3])
    with pytest.raises(ValueError, match=r"encoder.bias \(1,\) float32 in the file: there is no param encoder/x"):
        load_pretrained(path, {"encoder": {"kernel": counted(2)}}, rename={"bias": "x"}, skip="^bias")
    # A dot of a pattern is any character, as everywhere; the name it sees has slashes.
    assert load_pretrained(path, {"kernel": counted(2)}, rename={"^encoder.": ""}, skip="encoder/bias")[1].skipped == (
        "encoder.bias",
    )


@pytest.mark.parametrize(
    "rename",
    [
        {"backbone.0.weight": "backbone.kernel"},
        {r"backbone\.0\.weight": "backbone/kernel"},
        {re.escape("backbone.0.weight"): "backbone/kernel"},
        {"backbone/0/weight": "backbone/kernel"},
        {r"^([^.]+)\.(\d+)\.": r"\1.", r"[.]weight$": ".kernel"},
        {r"\.0[/.]": "/", "(?<=/)weight": "kernel"},
    ],
)
def test_rules_are_spelled_as_the_file_spells_its_names_or_as_paths(write: Any, rename: Any) -> None:
    params = {"backbone": {"kernel": counted(2) + 3}, "head": {"kernel": counted(2) + 3}}
    path = write(backbone__0__weight=counted(2), head__kernel=counted(2), unused__0__x=counted(1))
    loaded, report = load_pretrained(path, params, rename=rename, skip=r"^unused\.0", new=r"head\.kernel")
    np.testing.assert_array_equal(loaded["backbone"]["kernel"], [0, 1])
    assert not report.idle and report.new == ("head/kernel",)


def test_several_arrays_for_one_param(write: Any) -> None:
    """Stacked layers of torch whose dense layers are to be transposed, and the two biases of its LSTM."""
    layers = {f"layers__{i}__qkv__weight": counted(6, 3) + 100 * i for i in range(11)}
    path = write(
        **layers,
        rnn__bias_hh_l0=counted(4),
        rnn__bias_ih_l0=10 * counted(4),
        g=counted(2) + 1,
        v=counted(2, dtype=np.float16),
    )
    params = {"layers": zeros(query=(11, 3, 3), value=(11, 3, 3)), "rnn": zeros(bias=4), "w": np.zeros(2, np.float32)}
    joined = gx.transfer.Join("w", lambda pair: pair[0] * pair[1])
    loaded, report = load_pretrained(
        path,
        params,
        rename={
            r"qkv.weight$": ["query", "value"],
            r"layers\.\d+\.": gx.transfer.Join("layers."),
            r"bias_.._l0$": gx.transfer.Join("bias", sum),
            "^[gv]$": joined,
        },
        transpose={"layers": (0, 2, 1)},
    )
    whole = np.stack([layers[f"layers__{i}__qkv__weight"] for i in range(11)])
    np.testing.assert_array_equal(loaded["layers"]["query"], whole[:, :3].swapaxes(1, 2))
    np.testing.assert_array_equal(loaded["layers"]["value"], whole[:, 3:].swapaxes(1, 2))
    np.testing.assert_array_equal(loaded["rnn"]["bias"], 11 * counted(4))
    np.testing.assert_array_equal(loaded["w"], (counted(2) + 1) * counted(2))
    value = report.loaded[1]
    assert value.source == "layers.0.qkv.weight to layers.10.qkv.weight" and value.sources[2] == "layers.2.qkv.weight"
    assert value.changes == ("part 2 of 2", "stack of 11", "transpose (0, 2, 1)")
    assert report.loaded[2].changes == ("sum of 2",)
    with pytest.raises(ValueError, match=r"w: \(2,\) float32 of g and 1 more, <lambda> raised ZeroDivisionError"):
        load_pretrained(
            path, params, skip="layers|rnn", new="layers|rnn", rename={"g|v": gx.transfer.Join("w", lambda pair: 1 / 0)}
        )
    with pytest.raises(ValueError, match="w: there are 2 arrays for it, g, v; a Join in rename makes them one"):
        load_pretrained(path, params, skip="layers|rnn", new="layers|rnn", rename={"g": "w", "v": joined})


def test_one_array_for_several_params(write: Any) -> None:
    """An embedding that is tied to a head, which wants the transpose; a copy for what is left new is not used."""
    path, params = write(embed=counted(5, 4)), zeros(embed=(5, 4), head=(4, 5), other=1)
    loaded, report = load_pretrained(
        path,
        params,
        transpose={"head": (1, 0)},
        new="other",
        rename={"^embed$": gx.transfer.Copy("embed", "head", "other")},
    )
    np.testing.assert_array_equal(loaded["embed"], counted(5, 4))
    np.testing.assert_array_equal(loaded["head"], counted(5, 4).T)
    assert not np.shares_memory(loaded["embed"], loaded["head"]) and not report.unused
    assert repr(gx.transfer.Copy("a", "b")) == "Copy('a', 'b')"
    for wrong, error in (
        (lambda: gx.transfer.Copy(), ValueError),
        (lambda: gx.transfer.Copy("a", 3), TypeError),
        (lambda: gx.transfer.Join(3), TypeError),
        (lambda: gx.transfer.Join("a", 3), TypeError),
    ):
        with pytest.raises(error, match=r"names: expected|name: expected|by: expected a function"):
            wrong()


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"rename": {"(": "x"}}, ValueError, r"rename: expected a regular expression, got '\(' \("),
        ({"rename": {"a": r"\1"}}, ValueError, r"rename: '\\\\1' does not fit 'a' \(invalid group reference"),
        (
            {"rename": {"a": 3}},
            TypeError,
            "rename: expected a string, a function, a list of strings, Copy or Join for 'a'",
        ),
        ({"rename": {1: "x"}}, TypeError, "rename: expected a regular expression, got 1"),
        (
            {"rename": {"a": ["a", "b"], "b": ["c", "d"]}},
            ValueError,
            "rename: 'b' cuts 'a', which another rule has cut",
        ),
        ({"skip": "("}, ValueError, r"skip: expected a regular expression"),
        ({"new": "("}, ValueError, "new: expected a regular expression"),
        ({"new": "head"}, ValueError, "new: expected to find params to leave new, but 'head' selects none of a"),
        ({"new": {"a": 1}}, TypeError, "new: expected a bool at 'a', got 1"),
        ({"reshape": "("}, ValueError, "reshape: expected a regular expression"),
        (
            {"transpose": {"a": (0, 2)}},
            ValueError,
            r"transpose: expected a permutation of axes such as .*, got \(0, 2\)",
        ),
        (
            {"transpose": (0, 1)},
            TypeError,
            r"transpose: expected a dict by regular expressions of paths or by selectors",
        ),
        ({"transpose": {"(": (0,)}}, ValueError, r"expected a regular expression, got '\('"),
        ({"convert": {"a": 3}}, TypeError, "convert: expected functions of an array and a shape, got 3"),
    ],
)
def test_rules_of_the_wrong_kind(write: Any, rules: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_pretrained(write(a=counted(2)), zeros(a=2), **rules)


def test_tracers_are_refused(write: Any) -> None:
    path = write(a=counted(2))
    with pytest.raises(TypeError, match="load outside of jit"):
        jax.jit(lambda params: load_pretrained(path, params)[0])(zeros(a=2))


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(4)), st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_the_transpose_that_is_named_fits(tmp_path_factory: Any, axes: list[int], shape: list[int]) -> None:
    path = tmp_path_factory.getbasetemp() / "hint.npz"
    np.savez(path, a=counted(*shape))
    params = zeros(a=tuple(shape[axis] for axis in axes))
    try:
        load_pretrained(path, params)
    except ValueError as error:
        found = re.search(r"transpose \(([\d, ]+)\) fits", str(error))
        assert found is not None
        named = tuple(map(int, found[1].split(",")))
        loaded, _ = load_pretrained(path, params, transpose={"a": named})
        np.testing.assert_array_equal(loaded["a"], counted(*shape).transpose(named))
    else:
        assert params["a"].shape == tuple(shape)
