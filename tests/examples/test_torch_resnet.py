"""The converter: logits of torch from a model of Flax."""

from __future__ import annotations

import importlib.util
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradxform.transfer import load_pretrained

pytestmark = pytest.mark.as_in_use

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
DEPTHS = {"basic": (4, (2, 1, 1, 1)), "bottleneck": (2, (2, 1, 2, 1))}


@pytest.fixture(scope="module")
def example() -> types.ModuleType:
    path = pathlib.Path(__file__).parents[2] / "examples" / "torch_resnet.py"
    spec = importlib.util.spec_from_file_location("torch_resnet", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def empty(example: types.ModuleType, kind: str, classes: int = 5) -> Any:
    block = {"basic": example.BasicBlock, "bottleneck": example.Bottleneck}[kind]
    width, depths = DEPTHS[kind]
    return nnx.eval_shape(lambda: example.ResNet(block, depths, width=width, classes=classes, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("kind", DEPTHS)
def test_logits_are_those_of_torch(example: types.ModuleType, kind: str) -> None:
    model, report = example.convert(GOLDEN / f"torch_resnet_{kind}.safetensors", empty(example, kind))
    golden = np.load(GOLDEN / "torch_resnet.npz")
    logits = nnx.jit(lambda model, x: nnx.view(model, use_running_average=True)(x))(model, golden["images"])
    np.testing.assert_allclose(logits, golden[kind], atol=1e-5)
    assert np.ptp(golden[kind]) > 0.1  # logits that tell something
    assert not report.new and not report.unused and not report.idle and report.nonfinite == 0
    assert len(report.skipped) == sum(item.source.endswith("running_var") for item in report.loaded)
    moved = {item.source for item in report.transformed}
    assert moved == {item.source for item in report.loaded if item.path.endswith("kernel")}
    assert str(report).splitlines()[0].startswith(f"torch_resnet_{kind}.safetensors: {len(report.loaded)} of ")


def test_command_line_writes_what_loads_without_rules(
    example: types.ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def tiny(network: str, classes: int, rngs: nnx.Rngs) -> Any:
        assert network == "resnet34"
        return example.ResNet(example.BasicBlock, (2, 1, 1, 1), width=4, classes=classes, rngs=rngs)

    monkeypatch.setattr(example.ResNet, "named", tiny)
    source = GOLDEN / "torch_resnet_basic.safetensors"
    arguments = [str(source), "--network", "resnet34", "--output", str(tmp_path / "new")]
    assert example.main([*arguments, "--classes", "5"]) == 0
    assert "transpose (2, 3, 1, 0)" in capsys.readouterr().out
    converted = nnx.state(example.convert(source, empty(example, "basic"))[0])
    again, report = load_pretrained(tmp_path / "new" / "torch_resnet_basic_flax.safetensors", converted)
    assert not report.transformed
    jax.tree.map(np.testing.assert_array_equal, again, converted)

    assert example.main([*arguments, "--classes", "6"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "fc/bias: (5,) float32 of fc.bias, (6,) expected" in captured.err
    assert (
        "fc/kernel: (5, 32) float32 of fc.weight, transpose (1, 0), makes (32, 5) float32, (32, 6) expected"
        in captured.err
    )


def test_a_head_for_other_classes_stays_new(example: types.ModuleType) -> None:
    graph, state = nnx.split(empty(example, "basic", classes=3))
    # Drawing the weights would compile a program for each shape.
    model = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5, leaf.dtype), state))
    loaded, report = example.convert(GOLDEN / "torch_resnet_basic.safetensors", model, new="^fc/")
    assert loaded.fc.kernel[...].shape == (32, 3) and (loaded.fc.kernel[...] == 0.5).all()
    assert report.new == ("fc/bias", "fc/kernel") and set(report.unused) == {"fc.bias", "fc.weight"}
    assert not (loaded.conv1.kernel[...] == 0.5).any() and (model.conv1.kernel[...] == 0.5).all()


@pytest.mark.parametrize(
    ("network", "numbers"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)]
)
def test_networks_have_as_many_weights_as_torchvision_says(
    example: types.ModuleType, network: str, numbers: int
) -> None:
    model = nnx.eval_shape(lambda: example.ResNet.named(network, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == numbers
