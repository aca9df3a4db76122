"""A value goes through pickle, into another process too, and through copy."""

import copy
import inspect
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from value_catalog import CASES, GRADS, PARAMS, VALUES, double, equal_trees

import gradxform as gx

HERE = pathlib.Path(__file__).parent


@gx.transformation
def scale_by_sign(power: float = 1.0, flag: bool = False):  # type: ignore[no-untyped-def]
    """A user's factory, in a module of the user's."""

    def update(updates, state, params=None):  # type: ignore[no-untyped-def]
        return jax.tree.map(lambda g: jnp.sign(g) * abs(g) ** power, updates), state

    return lambda params: (), update


@gx.schedule
def reciprocal(init_value: float):  # type: ignore[no-untyped-def]
    """A user's schedule."""
    return lambda step: init_value / (step + 1)


MORE = {
    "user's": scale_by_sign(2, True),
    "user's schedule": gx.sgd(reciprocal(0.5)),
    "function": gx.sgd(double),
    "nested": gx.chain(
        gx.chain(gx.clip(1.0)),
        gx.partition(
            {"a": gx.adamw(gx.schedules.cosine(0.1, 10), mask=gx.ndim_at_least(2)), "b": gx.freeze(True)},
            {"dense": "a", "scale": "b"},
        ),
    ),
    "array": gx.sgd(jnp.array([0.1, 0.2])),
    "bfloat16": gx.sgd(jnp.bfloat16(0.1)),
    "numpy": gx.clip(np.array([1.0, 2.0])),
    "key": gx.add_noise(0.1, 0.5, jax.random.key(3)),
    "old key": gx.add_noise(0.1, 0.5, jax.random.PRNGKey(3)),
    "inf": gx.clip(float("inf")),
    "list mask": gx.masked(gx.scale(0.5), [True, {"a": False}]),
}
ALL = VALUES | MORE


@pytest.mark.parametrize("name", ALL)
def test_pickle_with_every_protocol(name: str) -> None:
    value = ALL[name]
    # jax pickles a typed key from protocol 2 on.
    for protocol in range(2 if name == "key" else 0, pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(value, protocol))
        assert back == value
        assert hash(back) == hash(value)
        assert type(back) is type(value)
        assert repr(back) == repr(value)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_copy(name: str, make: object) -> None:
    assert callable(make)
    back = make(ALL[name])
    assert back == ALL[name]
    assert hash(back) == hash(ALL[name])
    assert type(back) is type(ALL[name])


def test_a_copy_works() -> None:
    tx = gx.chain(gx.clip(0.1), gx.adam(0.1), optax.trace(0.9))
    for back in (
        copy.copy(tx),
        copy.deepcopy(tx),
        pickle.loads(pickle.dumps(tx.replace(transformations=tx.arguments["transformations"][:2]))),
    ):
        equal_trees(back.update(GRADS, back.init(PARAMS))[0], back.update(GRADS, back.init(PARAMS))[0])
    equal_trees(copy.deepcopy(tx).update(GRADS, tx.init(PARAMS)), tx.update(GRADS, tx.init(PARAMS)))


def test_a_deep_copy_of_another_librarys_transformation_is_equal() -> None:
    tx = gx.chain(optax.adam(1e-3), gx.scale(0.5))
    assert copy.deepcopy(tx) == tx


def test_values_in_containers() -> None:
    tx = gx.adamw(0.1)
    back = copy.deepcopy({"tx": tx, "again": [tx]})
    assert back == {"tx": tx, "again": [tx]}
    assert pickle.loads(pickle.dumps({tx: 1})) == {tx: 1}


def test_what_cannot_be_pickled_says_so() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        pickle.dumps(gx.sgd(lambda step: 0.1))
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        pickle.dumps(gx.chain(optax.adam(1e-3)))


def test_in_another_process(tmp_path: pathlib.Path) -> None:
    """The values come back equal to those that the other process makes itself, and equal here on their return."""
    file, answer = tmp_path / "values.pickle", tmp_path / "answer.pickle"
    file.write_bytes(pickle.dumps(ALL))
    program = """if True:
        import pathlib, pickle, sys
        values = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
        import test_value_pickle
        own = test_value_pickle.ALL
        assert values == own, [name for name in own if values[name] != own[name]]
        assert {hash(values[name]) == hash(own[name]) for name in own} == {True}
        pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps((values, {n: repr(v) for n, v in values.items()})))
    """
    where = os.pathsep.join([str(HERE), str(pathlib.Path(inspect.getfile(gx)).parents[1])])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(file), str(answer)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": where},
    )
    assert done.returncode == 0, done.stderr
    values, texts = pickle.loads(answer.read_bytes())
    assert values == ALL
    assert {hash(values[name]) == hash(value) for name, value in ALL.items()} == {True}
    # Functions print with an address-free name, so the texts agree as well.
    assert texts == {name: repr(value) for name, value in ALL.items()}


def test_every_factory_is_pickled_by_its_name() -> None:
    assert [name for name, case in CASES.items() if pickle.loads(pickle.dumps(case.factory)) is not case.factory] == []
