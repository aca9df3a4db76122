"""The keywords that give torch's form of a rule, against torch's own float64 runs.

``golden/make_torch_optimizers.py`` made torch's side: 50 steps at a learning rate that falls.
"""

from __future__ import annotations

import pathlib
import runpy
from collections.abc import Callable
from typing import Any

import harness
import jax
import numpy as np
import pytest

import gradxform as gx

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
MAKER = runpy.run_path(str(GOLDEN / "make_torch_optimizers.py"))

ADAFACTOR: dict[str, Any] = dict(
    min_dim_size_to_factor=1, relative_step=True, rate_on_decay=True, factored_axes="last", clamp_epsilon=True
)


def l2(tx: gx.Transformation) -> gx.Transformation:
    """Decay as torch's older optimizers have it: added to the gradient."""
    return gx.chain(gx.add_decayed_weights(0.1), tx)


# Each is given its learning rate as a schedule.
OURS: dict[str, Callable[[Any], gx.Transformation]] = {
    "sgd": lambda rate: gx.sgd(rate),
    "sgd_momentum": lambda rate: gx.chain(gx.trace(0.9), gx.scale_by_learning_rate(rate)),
    "sgd_nesterov_decay": lambda rate: gx.sgd(rate, 0.8, True, weight_decay=0.1),
    "rmsprop": lambda rate: gx.rmsprop(rate, 0.99, eps_in_sqrt=False, rate_in_momentum=False),
    "rmsprop_centered": lambda rate: gx.rmsprop(
        rate, 0.9, eps=1e-3, eps_in_sqrt=False, centered=True, rate_in_momentum=False
    ),
    "rmsprop_momentum_decay": lambda rate: l2(
        gx.rmsprop(rate, 0.99, eps_in_sqrt=False, momentum=0.9, rate_in_momentum=False)
    ),
    "adam": lambda rate: gx.adam(rate, 0.8, 0.95),
    "adam_decay": lambda rate: l2(gx.adam(rate)),
    "adam_amsgrad": lambda rate: gx.amsgrad(rate, b2=0.8, max_of_corrected=False),
    "adamw": lambda rate: gx.adamw(rate, weight_decay=0.1),
    "nadam": lambda rate: gx.nadam(rate, momentum_decay=4e-3),
    "nadam_decoupled": lambda rate: gx.nadamw(rate, weight_decay=0.1, momentum_decay=0.1),
    "radam": lambda rate: gx.radam(rate, eps=0.0),
    "radam_decoupled": lambda rate: gx.radam(rate, b2=0.95, eps=0.0, weight_decay=0.1),
    "adagrad": lambda rate: gx.adagrad(rate, 0.0, 1e-10, eps_in_sqrt=False),
    "adafactor": lambda rate: gx.adafactor(rate, **ADAFACTOR),
    "adafactor_decay": lambda rate: gx.adafactor(
        rate, decay_rate=0.6, clipping_threshold=1.5, weight_decay=0.1, **ADAFACTOR
    ),
    "adafactor_fast_decay": lambda rate: gx.adafactor(rate, weight_decay=0.1, **ADAFACTOR),
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "torch_optimizers.npz") as file:
        arrays = dict(file)
    for key, value in MAKER["problem"]()[1].items():  # torch saw these very gradients
        np.testing.assert_allclose(arrays[f"gradients/{key}"], np.sum(value**2), rtol=1e-12)
    return arrays


def test_every_torch_run_is_compared() -> None:
    assert OURS.keys() == MAKER["CASES"].keys()


@pytest.mark.parametrize("name", OURS)
def test_ends_where_torch_does(name: str, golden: dict[str, np.ndarray]) -> None:
    """In float64, as torch's runs are."""
    start, gradients = MAKER["problem"]()
    base = MAKER["CASES"][name][1]["lr"]
    tx = OURS[name](lambda step: base * MAKER["rate"](step))
    with harness.precision(64) as dtype:
        params, gradients = jax.tree.map(lambda x: jax.numpy.asarray(x, dtype), (start, gradients))
        end, _ = harness.trajectory_of(tx, gradients, params, pull=0.0)
    for key, value in end.items():
        wanted = golden[f"{name}/{key}"]
        moved = np.abs(wanted - start[key]).max()
        assert moved > 0.05  # it is not the start that agrees
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12 * max(moved, 1.0), err_msg=key)
