"""For those who come from elsewhere: the page of names, what answers for a name that is not here, and the idioms."""

from __future__ import annotations

import functools
import inspect
import pathlib
import re
import runpy
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradxform as gx
from gradxform.core.elsewhere import page

CALL = re.compile(r"`(gx(?:\.\w+)+)(?:\(([^`]*)\))?`")
ROWS = {f"{row.library}: {row.names[0]}": row for row in page()}


def find(root: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), root)


def test_the_page_has_the_seven_libraries() -> None:
    libraries = {row.library for row in page()}
    assert libraries == {"optax", "torch", "timm", "torchvision.transforms.v2", "dm-pix", "albumentations", "lightly"}
    assert len(ROWS) == len(page()) > 100


@pytest.mark.parametrize("name", ROWS)
def test_what_the_page_names_is_there(name: str) -> None:
    row = ROWS[name]
    found = CALL.findall(row.ours + row.note)
    assert CALL.findall(row.ours) or row.note
    for path, arguments in found:
        item = find(gx, path.removeprefix("gx."))
        makers = [base.__init__ for base in item.__mro__] if inspect.isclass(item) else [item]
        known = {name for maker in makers for name in inspect.signature(maker).parameters}
        assert not arguments or (path, arguments) not in CALL.findall(row.ours) or {*arguments.split(", ")} <= known
    for theirs in row.names if row.library == "optax" else ():
        assert find(optax, theirs) is not None


def test_what_the_page_calls_torchs_is_there() -> None:
    torch = pytest.importorskip("torch")
    for theirs in [name for row in page() if row.library == "torch" for name in row.names]:
        assert find(torch, theirs if "." in theirs else f"nn.Module.{theirs}")


@pytest.mark.parametrize(
    ("module", "name", "hint"),
    [
        (
            gx,
            "linear_schedule",
            "optax's linear_schedule: gx.schedules.linear(init_value, end_value, steps): begins at",
        ),
        (
            gx.schedules,
            "cosine_decay_schedule",
            "gx.schedules.cosine(init_value, steps, end_value, exponent): `end_value`",
        ),
        (gx, "MultiSteps", "optax's MultiSteps: gx.accumulate(tx, every): the inner update runs"),
        (gx, "inject_hyperparams", "optax's inject_hyperparams: gx.adamw(learning_rate): not needed"),
        (gx, "softmax_cross_entropy", "optax's own: they take logits"),
        (gx, "CosineAnnealingLR", "torch's optim.lr_scheduler.CosineAnnealingLR: gx.schedules.cosine"),
        (gx.augment, "RandomHorizontalFlip", "gx.augment.random_flip_left_right(p)"),
        (gx, "cosine", "there is gx.schedules.cosine"),
        (gx.losses, "adam", "there is gx.adam"),
        (gx, "adamm", "did you mean 'adam'?"),
        (gx.norm, "LayerNorm", "torch's nn.LayerNorm: gx.norm.nnx.LayerNorm(epsilon)"),
    ],
)
def test_a_name_of_another_library_is_answered(module: types.ModuleType, name: str, hint: str) -> None:
    with pytest.raises(AttributeError) as error:
        getattr(module, name)
    assert str(error.value).startswith(f"module {module.__name__!r} has no attribute {name!r}; ")
    assert hint in str(error.value)


def test_a_name_that_nobody_has_is_an_error_as_any() -> None:
    for name in ("zzzzz", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"^module 'gradxform' has no attribute '{name}'$"):
            getattr(gx, name)
    assert gx.norm.nnx.BatchNorm and not hasattr(gx, "contrib")


EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
FROM_OPTAX, FROM_TORCH = (runpy.run_path(str(EXAMPLES / f"{name}.py")) for name in ("from_optax", "from_torch"))


@pytest.mark.parametrize("name", FROM_OPTAX["IDIOMS"])
def test_an_idiom_of_optax_has_its_counterpart(name: str) -> None:
    theirs, ours = map(list, FROM_OPTAX["IDIOMS"][name]())
    assert len(ours) == FROM_OPTAX["STEPS"]
    moved = [float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (ours[0], ours[-1])), strict=True)]
    assert max(moved) > 1e-2
    assert max(FROM_OPTAX["compare"]((iter(theirs), iter(ours)))) < FROM_OPTAX["WITHIN"] == 5e-6


@pytest.mark.parametrize("name", FROM_TORCH["IDIOMS"])
def test_an_idiom_of_torch_has_its_counterpart(name: str) -> None:
    golden = FROM_TORCH["golden"](name)
    assert all(
        len(value) == FROM_TORCH["STEPS"] and np.ptp(value, axis=0).max() > 1e-2
        for key, value in golden.items()
        if (name, key) != ("FrozenPart", "kernel")
    )
    assert FROM_TORCH["compare"](name, golden).max() < FROM_TORCH["WITHIN"] == 1e-10


@pytest.mark.parametrize("name", FROM_TORCH["IDIOMS"])
def test_torch_computes_what_was_kept(name: str) -> None:
    pytest.importorskip("torch")
    made = FROM_TORCH["stacked"](FROM_TORCH["IDIOMS"][name].torch())
    for key, value in FROM_TORCH["golden"](name).items():
        np.testing.assert_allclose(made[key], value, rtol=1e-12, atol=1e-12)
