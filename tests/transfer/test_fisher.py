"""The diagonal Fisher information against closed forms in float64 NumPy, and its fast path against its slow one."""

from __future__ import annotations

from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import gradxform as gx
from gradxform.transfer import fisher_dense, fisher_diagonal

pytestmark = pytest.mark.long

RANDOM = np.random.RandomState(0)
X = np.float32(RANDOM.standard_normal((10, 4)))
LABELS = np.int32(RANDOM.randint(0, 3, 10))
SOFTMAX = {"bias": np.float32([0.3, -0.2, 0.1]), "kernel": np.float32(RANDOM.standard_normal((4, 3)))}
MLP = {
    "first": {
        "bias": np.float32(0.3 * RANDOM.standard_normal(6)),
        "kernel": np.float32(RANDOM.standard_normal((4, 6))),
    },
    "last": SOFTMAX | {"kernel": np.float32(RANDOM.standard_normal((6, 3)))},
    "scale": np.ones(6, np.float32),
}


def softmax(params: Any, x: Any) -> Any:
    return x @ params["kernel"] + params["bias"]


def mlp(params: Any, x: Any) -> Any:
    h = jax.nn.relu(jnp.dot(x, params["first"]["kernel"]) + params["first"]["bias"]) * params["scale"]
    return jax.jit(softmax)(params["last"], h)


def hidden_softmax(params: Any, x: Any) -> Any:
    """The same numbers, from weights that are used twice."""
    return softmax(jax.tree.map(lambda p: p - 0 * p, params), x)


def probabilities(x: Any, params: Any = SOFTMAX) -> np.ndarray:
    z = np.float64(x) @ np.float64(params["kernel"]) + np.float64(params["bias"])
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def closed_form(kind: str) -> Any:
    """d log p_y / d z_c = [y = c] - p_c; its square under y ~ p is p_c (1 - p_c)."""
    p = probabilities(X)
    slope = p * (1 - p) if kind == "true" else (np.eye(3)[LABELS] - p) ** 2
    return {"bias": slope.mean(0), "kernel": np.mean(np.float64(X)[:, :, None] ** 2 * slope[:, None, :], 0)}


def batches(*cuts: int) -> list[Any]:
    return list(zip(np.split(X, cuts), np.split(LABELS, cuts), strict=True))


def close(got: Any, want: Any, rtol: float = 1e-5) -> None:
    got, want = harness.flat(got), harness.flat(want)
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=rtol, atol=rtol * np.abs(want[name]).max(), err_msg=name)


@pytest.mark.parametrize("apply", [softmax, hidden_softmax])
@pytest.mark.parametrize(("kind", "cuts"), [("true", (1, 8)), ("empirical", (7,))])
def test_a_softmax_model_has_its_closed_form(apply: Any, kind: str, cuts: tuple[int, ...]) -> None:
    """Whatever the batches and the chunks: 1, 7, 2 of 10 examples or 7, 3, three examples at a time."""
    close(fisher_diagonal(apply, SOFTMAX, batches(*cuts), kind=kind, chunk=3), closed_form(kind))


def test_in_float64() -> None:
    with jax.enable_x64(True):
        params = jax.tree.map(np.float64, SOFTMAX)
        for apply in (softmax, hidden_softmax):
            close(fisher_diagonal(apply, params, [np.float64(X)]), closed_form("true"), rtol=1e-13)


def test_both_paths_are_what_they_are_called() -> None:
    assert len(fisher_dense.find(softmax, SOFTMAX, X, 10).taps) == 2
    assert len(fisher_dense.find(hidden_softmax, SOFTMAX, X, 10).taps) == 0
    assert sorted(fisher_dense.find(mlp, MLP, X, 10).taps) == [0, 1, 2, 3]  # all but the scale


def jacobian_form(apply: Any, params: Any, x: Any) -> Any:
    """sum_y p(y) (d log p(y) / d w)^2 of every example by itself, from the whole Jacobian."""

    def one(x: Any) -> Any:
        log_p = lambda p: jax.nn.log_softmax(apply(p, x[None]))[0]  # noqa: E731
        return jax.tree.map(lambda j: jnp.tensordot(jnp.exp(log_p(params)), j**2, 1), jax.jacrev(log_p)(params))

    return jax.tree.map(lambda s: s.mean(0), jax.jit(jax.vmap(one))(x))


def test_a_network_of_dense_and_other_leaves() -> None:
    close(fisher_diagonal(mlp, MLP, [X[:6], X[6:]], chunk=4), jacobian_form(mlp, MLP, X))


class Net(nn.Module):
    """Dense layers on tokens and on rows, and a norm on running statistics."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(3, name="tokens")(x.reshape(x.shape[0], 4, 1)).reshape(x.shape[0], -1)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(5, name="rows")(x)))
        return nn.Dense(3, name="head")(x)


def test_a_linen_model_has_its_dense_layers_found() -> None:
    net = Net()
    variables = net.init(jax.random.key(0), X)
    apply = lambda params, x: net.apply(variables | {"params": params}, x)  # noqa: E731
    params = variables["params"]
    found = fisher_dense.find(apply, params, X, 10).taps
    names = list(harness.flat(params))
    assert [names[i] for i in sorted(found)] == [
        "BatchNorm_0/bias",
        "head/bias",
        "head/kernel",
        "rows/bias",
        "rows/kernel",
    ]
    close(fisher_diagonal(apply, params, [X]), jacobian_form(apply, params, X))


def test_an_nnx_model_has_its_dense_layers_found() -> None:
    graph, params = nnx.split(
        nnx.Sequential(nnx.Linear(4, 5, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(5, 3, rngs=nnx.Rngs(1)))
    )
    params = nnx.to_pure_dict(params)

    def apply(params: Any, x: Any) -> Any:
        state = nnx.state(nnx.merge(graph, nnx.State(params)))
        return nnx.merge(graph, state)(x)

    assert len(fisher_dense.find(apply, params, X, 10).taps) == 4
    close(fisher_diagonal(apply, params, [X]), jacobian_form(apply, params, X))


def test_rows_that_are_no_examples_are_not_taken_for_them() -> None:
    """A table of as many rows as there are examples, a bias laid out along the examples."""
    params = {"kernel": SOFTMAX["kernel"], "table": np.float32(RANDOM.standard_normal((10, 4)))}
    apply = lambda p, x: x * p["table"].sum(0) @ jnp.ones((4, 3)) + (p["table"] @ p["kernel"]).sum(0)  # noqa: E731
    assert fisher_dense.find(apply, params, X, 10).taps == {}
    close(fisher_diagonal(apply, params, [X]), jacobian_form(apply, params, X))
    square = {"bias": np.float32(RANDOM.standard_normal(3)), "kernel": SOFTMAX["kernel"]}
    column = lambda p, x: x @ p["kernel"] + jnp.broadcast_to(p["bias"][:, None], (3, 3)).sum(0)  # noqa: E731
    assert 0 not in fisher_dense.find(column, square, X[:3], 3).taps


def test_a_kernel_that_is_used_twice_is_not_taken_for_one_used_once() -> None:
    square = {"bias": SOFTMAX["bias"], "kernel": np.float32(RANDOM.standard_normal((3, 3)))}
    twice = lambda p, x: softmax(p, jnp.tanh(x @ p["kernel"]))  # noqa: E731
    assert list(fisher_dense.find(twice, square, X[:, :3], 10).taps) == [0]
    close(fisher_diagonal(twice, square, [X[:, :3]]), jacobian_form(twice, square, X[:, :3]))


def test_it_is_not_the_square_of_the_mean() -> None:
    def loss(params: Any) -> Any:
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(softmax(params, X)), LABELS[:, None], 1))

    square_of_mean = jax.tree.map(lambda g: g**2, jax.grad(loss)(SOFTMAX))
    empirical = fisher_diagonal(softmax, SOFTMAX, [(X, LABELS)], kind="empirical")
    assert all(
        np.all(2 * b < a) for a, b in zip(jax.tree.leaves(empirical), jax.tree.leaves(square_of_mean), strict=True)
    )


@pytest.mark.parametrize("kind", ["true", "empirical"])
def test_one_logit_is_that_of_a_sigmoid(kind: str) -> None:
    """d log p_y / d z = y - p, and its square under y ~ p is p (1 - p)."""
    params = {"kernel": SOFTMAX["kernel"][:, :1]}
    p = 1 / (1 + np.exp(-np.float64(X) @ np.float64(params["kernel"])))
    slope = p * (1 - p) if kind == "true" else ((LABELS > 0)[:, None] - p) ** 2
    close(
        fisher_diagonal(lambda p, x: x @ p["kernel"], params, [(X, np.int32(LABELS > 0))], kind=kind),
        {"kernel": np.mean(np.float64(X) ** 2 * slope, 0)[:, None]},
    )


TOKENS = RANDOM.randint(0, 5, (6, 4))
NEXT = np.where(TOKENS > 0, RANDOM.randint(0, 3, (6, 4)), -100)
SEQUENCES = {
    "context": np.float32(RANDOM.standard_normal((2, 3))),
    "embed": np.float32(RANDOM.standard_normal((5, 2))),
    "head": np.float32(RANDOM.standard_normal((2, 3))),
}


def tagger(params: Any, tokens: Any) -> Any:
    """Logits at each position, which see the others, by a dense layer on examples and by one on tokens."""
    x = jnp.take(params["embed"], tokens, 0)
    return x @ params["head"] + (x.mean(1) @ params["context"])[:, None]


def by_position(weights: Any, labels: Any = None) -> Any:
    """The mean over examples of the sum over positions of weighted squares, from the whole Jacobian."""

    def one(tokens: Any, weights: Any, labels: Any) -> Any:
        log_p = lambda p: jax.nn.log_softmax(tagger(p, tokens[None]))[0]  # noqa: E731
        share = jnp.exp(log_p(SEQUENCES)) if labels is None else jax.nn.one_hot(labels, 3)
        return jax.tree.map(lambda j: jnp.tensordot(share * weights[:, None], j**2, 2), jax.jacrev(log_p)(SEQUENCES))

    return jax.tree.map(lambda s: s.mean(0), jax.jit(jax.vmap(one))(TOKENS, weights, labels))


@pytest.mark.parametrize(
    ("kind", "positions", "masked"), [("true", "sum", False), ("true", "mean", True), ("empirical", "sum", True)]
)
def test_sequences_add_up_their_positions(kind: str, positions: str, masked: bool) -> None:
    assert sorted(fisher_dense.find(tagger, SEQUENCES, TOKENS, 6).taps) == [0]
    weights = np.float32(TOKENS > 0) if masked else np.ones((6, 4), np.float32)
    weights = weights / weights.sum(1, keepdims=True) if positions == "mean" else weights
    got = fisher_diagonal(
        tagger,
        SEQUENCES,
        [(TOKENS[:4], NEXT[:4]), (TOKENS[4:], NEXT[4:])],
        kind=kind,
        chunk=3,
        positions=positions,
        mask=(lambda tokens: tokens > 0) if masked else None,
    )
    close(got, by_position(weights, NEXT if kind == "empirical" else None))


def test_sequences_of_other_lengths_have_programs_of_their_own() -> None:
    whole = fisher_diagonal(
        tagger, SEQUENCES, [TOKENS[:2, :2], TOKENS, TOKENS[:2, :2]], kind="sampled", key=jax.random.key(0)
    )
    assert np.isfinite(harness.flat(whole)["embed"]).all()


@pytest.mark.parametrize("apply", [softmax, tagger])
def test_samples_come_from_the_model_and_meet_the_true_one(apply: Any) -> None:
    params, inputs = (SOFTMAX, X) if apply is softmax else (SEQUENCES, TOKENS)

    def draw(key: int, n: int) -> Any:
        return fisher_diagonal(apply, params, [inputs], kind="sampled", key=jax.random.key(key), num_samples=n)

    close(
        draw(0, 1000), closed_form("true") if apply is softmax else by_position(np.ones((6, 4), np.float32)), rtol=0.08
    )
    if apply is softmax:
        assert harness.distance(one := draw(1, 2), draw(1, 2)) == 0
        assert harness.distance(one, draw(2, 2)) > 1e-3


def test_a_last_batch_that_is_smaller_compiles_nothing_and_progress_is_told() -> None:
    traced, seen = [], []

    def apply(params: Any, x: Any) -> Any:
        traced.append(x.shape)
        return softmax(params, x)

    def stream() -> Any:
        for batch in batches(4, 8):
            yield batch[0]
            seen.append(len(traced))

    told: list[tuple[int, int]] = []
    fisher_diagonal(apply, SOFTMAX, stream(), progress=lambda *done: told.append(done))
    assert told == [(1, 4), (2, 8), (3, 10)]
    assert seen[0] == seen[1] == seen[2]


def test_inputs_may_be_trees_and_params_narrow() -> None:
    apply = lambda p, x: softmax(p, x["a"] + x["b"])  # noqa: E731
    close(
        fisher_diagonal(apply, SOFTMAX, [{"a": X[:5], "b": 0 * X[:5]}, {"a": X[5:], "b": 0 * X[5:]}]),
        closed_form("true"),
    )
    narrow = fisher_diagonal(
        softmax, jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), SOFTMAX), [jnp.asarray(X, jnp.bfloat16)]
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.float32)}
    close(narrow, closed_form("true"), rtol=0.03)


def test_rows_that_see_their_batch_are_refused() -> None:
    net = nn.Sequential([nn.Dense(5), nn.BatchNorm(use_running_average=False), nn.Dense(3)])
    variables = net.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="apply: expected each row of logits to depend on its own example alone"):
        fisher_diagonal(
            lambda p, x: net.apply(variables | {"params": p}, x, mutable=["batch_stats"])[0], variables["params"], [X]
        )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fisher_diagonal(3, SOFTMAX, [X]), TypeError, "apply: expected a function, got 3"),
        (lambda: fisher_diagonal(softmax, SOFTMAX, [X], kind="exact"), ValueError, "kind: expected one of 'true'"),
        (lambda: fisher_diagonal(softmax, SOFTMAX, [X], kind="sampled"), ValueError, "key: expected a random key"),
        (
            lambda: fisher_diagonal(softmax, SOFTMAX, [X], kind="empirical"),
            ValueError,
            r"data: expected pairs \(inputs, labels\) for kind='empirical', got ndarray as batch 0",
        ),
        (
            lambda: fisher_diagonal(softmax, SOFTMAX, [(X, LABELS[:3])], kind="empirical"),
            ValueError,
            r"labels: expected shape \(10,\), that of the logits without its last axis, got \(3,\)",
        ),
        (
            lambda: fisher_diagonal(softmax, SOFTMAX, [X], positions="max"),
            ValueError,
            "positions: expected one of 'sum'",
        ),
        (lambda: fisher_diagonal(softmax, SOFTMAX, [X], mask=3), TypeError, "mask: expected a function, got 3"),
        (
            lambda: fisher_diagonal(softmax, SOFTMAX, [X], mask=lambda x: x),
            ValueError,
            r"mask: expected shape \(10,\), that of the logits without its last axis, got \(10, 4\)",
        ),
        (lambda: fisher_diagonal(softmax, SOFTMAX, [(X, X[:, 0])], kind="empirical"), TypeError, "labels: expected an"),
        (lambda: fisher_diagonal(softmax, SOFTMAX, []), ValueError, "data: expected at least one batch, got none"),
        (lambda: fisher_diagonal(softmax, SOFTMAX, [X[:0]]), ValueError, "data: expected arrays with the examples"),
        (
            lambda: fisher_diagonal(softmax, SOFTMAX, [{"a": X, "b": X[:3]}]),
            ValueError,
            "data: expected arrays with the",
        ),
        (lambda: fisher_diagonal(softmax, SOFTMAX, [X], chunk=0), ValueError, "chunk: expected an integer >= 1, got 0"),
        (
            lambda: fisher_diagonal(softmax, SOFTMAX, [X], num_samples=1.5),
            TypeError,
            "num_samples: expected an integer",
        ),
        (lambda: fisher_diagonal(softmax, SOFTMAX, [X], progress=1), TypeError, "progress: expected a function"),
        (lambda: fisher_diagonal(softmax, {"n": jnp.arange(3)}, [X]), TypeError, "at 'n'"),
        (
            lambda: fisher_diagonal(lambda p, x: x.sum(1), SOFTMAX, [X]),
            ValueError,
            r"apply: expected logits of shape \(10, ..., classes\), got \(10,\)",
        ),
    ],
)
def test_errors_name_what_is_wrong(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_label_out_of_range_is_not_passed_over() -> None:
    fisher = fisher_diagonal(softmax, SOFTMAX, [(X, np.where(LABELS[0] == LABELS, 3, LABELS))], kind="empirical")
    assert np.isnan(fisher["bias"]).all()


def test_the_room_is_where_it_is_used() -> None:
    assert gx.transfer.fisher_diagonal is fisher_diagonal
