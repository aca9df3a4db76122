"""Counted in the programs of one v5e: passes over HBM, temporaries, look-ups. Nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.compiled
Compiled = Callable[[str, str], Any]
MIB = 2**20


def part(compiled: Compiled, name: str) -> Any:
    return compiled("one chip", name)


def test_adamw_reads_and_writes_each_array_once(compiled: Compiled) -> None:
    # gradient read; param and both moments read and written: 7 arrays of 4 bytes.
    step = part(compiled, "steps")["adamw"]
    assert step["per"] == pytest.approx(28.0, abs=0.01)
    assert step["temp_bytes"] == 0
    assert step["fusions"] <= 37


def test_a_clip_reads_the_gradient_once_more_and_keeps_no_copy(compiled: Compiled) -> None:
    step = part(compiled, "steps")["clip_adamw"]
    assert 28.0 < step["per"] <= 32.01
    assert step["temp_bytes"] < 4 * 2 * 22000 * 512  # less than twice the largest leaf
    assert step["fusions"] <= 2 * 37


@pytest.mark.parametrize("inner", ["adamw", "clip_adamw"])
@pytest.mark.parametrize("guard", ["skip_nonfinite", "precision.dynamic_loss_scale"])
def test_a_guard_costs_what_a_clip_costs(guard: str, inner: str, compiled: Compiled) -> None:
    clip, step = part(compiled, "steps")["clip_adamw"], part(compiled, "guarded")[f"{guard} of {inner}"]
    assert step["per"] <= 1.05 * clip["per"]
    assert step["temp_bytes"] <= 1.2 * clip["temp_bytes"]  # what is prefetched; a copy of the moments has 8 times more


@pytest.mark.parametrize(("name", "bytes_per_param"), [("masters", 26.0), ("stochastic rounding", 22.0)])
def test_params_of_16_bits_are_read_and_written_once(name: str, bytes_per_param: float, compiled: Compiled) -> None:
    # bfloat16 gradient read; param, what it lacks of its master, and both float32 moments read and written.
    step = part(compiled, "steps")[name]
    assert step["per"] == pytest.approx(bytes_per_param, abs=0.05)
    assert step["temp_bytes"] <= 0.1 * 20.8e6


@pytest.mark.parametrize(("norm", "passes"), [("LayerNorm", 5), ("RMSNorm", 5), ("BatchNorm", 7)])
def test_passes_of_a_norm_over_an_input_larger_than_vmem(norm: str, passes: int, compiled: Compiled) -> None:
    found = part(compiled, "passes")[norm]
    assert found["per"] <= passes + 0.05
    assert found["temp_bytes"] < 2 * MIB  # the input has 512 MiB


@pytest.mark.parametrize("loss", ["nt_xent", "clip_loss", "siglip"])
def test_a_contrastive_loss_holds_no_matrix_of_pairs(loss: str, compiled: Compiled) -> None:
    found = part(compiled, "losses")[loss]
    assert found["temp_bytes"] <= MIB  # the matrix has 64 MiB, that of nt_xent 256
    assert found["hbm_bytes"] <= 32 * MIB
    assert found["unknown"] == []


def test_all_pairs_are_gone_through_by_kernels(compiled: Compiled) -> None:
    for loss, most in (("nt_xent", 210), ("clip_loss", 300)):
        found = part(compiled, "losses")[loss]
        assert (found["kinds"]["custom-call tpu_custom_call"], found["loops"]) == (2, 0)
        assert found["cycles_us"] <= most  # beside the kernels: directions, and their gradients


def test_pointwise_augmentations_look_nothing_up(compiled: Compiled) -> None:
    found = part(compiled, "images")["pointwise"]
    assert found["failed"] == {}
    assert found["lookups"] <= 64 * len(found["names"])  # a parameter an image at most
    # Read, written, and for some of them packed before: four times at most.
    assert found["hbm_bytes"] <= 4 * 64 * 224 * 224 * 3 * len(found["names"])


def test_augmentations_that_move_whole_pixels_look_nothing_up(compiled: Compiled) -> None:
    found = part(compiled, "images")["moved"]
    assert found["failed"] == {}
    assert found["lookups"] <= 64 * len(found["names"])


@pytest.mark.parametrize("name", ["rotation", "affine", "elastic"])
def test_moved_pixels_are_looked_up_by_a_kernel(name: str, compiled: Compiled) -> None:
    found = part(compiled, "images")["looked up"][name]
    assert found["lookups"] <= 64
    assert found["temp_bytes"] <= 64 * 224 * 224 * 3
    assert found["hbm_bytes"] <= 2.01 * 64 * 224 * 224 * 3


@pytest.mark.parametrize("name", ["equalize", "autocontrast"])
def test_levels_are_products(name: str, compiled: Compiled) -> None:
    found = part(compiled, "images")["looked up"][name]
    assert found["lookups"] <= 64
    assert found["temp_bytes"] <= 3 * 64 * 224 * 224 * 3


def test_a_policy_looks_nothing_up_and_holds_little(compiled: Compiled) -> None:
    found = part(compiled, "images")["rand_augment"]
    batch = 64 * 64 * 64 * 3
    assert found["lookups"] <= 4 * 64  # parameters of an image
    assert found["temp_bytes"] <= 3 * batch
    # One image after another, each with the branch that it takes.
    assert found["loops"] >= 1 and found["unknown"] == []
    assert found["hbm_bytes"] <= 4 * batch  # read, packed, unpacked and written


def test_bytes_of_known_programs(compiled: Compiled) -> None:
    found = part(compiled, "walk")
    assert found["x + 1"]["hbm_bytes"] == 2 * 4 * 64 * 2**20
    assert found["x + 1"]["kinds"] == {"fusion": 1}
    assert found["gather"]["lookups"] == 4096
    # The rows of a chip are summed there; what is sent is one row.
    assert found["all-reduce"]["collectives"] == {"all-reduce": {"count": 1, "bytes": 4096}}


def test_a_loop_counts_as_often_as_it_runs(compiled: Compiled) -> None:
    found = part(compiled, "walk")["loop"]
    assert found["unknown"] == [] and found["loops"] == 1
    # Seven products of 512 x 512 at the peak of 197e12 take 9.5 us; once, they would take 1.4.
    assert found["cycles_us"] > 7 * 2 * 512**3 / 197e12 * 1e6
