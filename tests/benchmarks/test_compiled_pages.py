"""What pages say of compiled programs is what the records have."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MIB, IMAGES = 2**20, 64
ADAMW, CLIP, FACTORED = (
    f"{name}, 46.0M params in 145 leaves, float32" for name in ("AdamW + cosine", "clip + AdamW + cosine", "Adafactor")
)


@functools.cache
def programs(chips: str, room: str) -> dict[str, dict[str, Any]]:
    """By name and peer."""
    made: dict[str, dict[str, Any]] = json.loads((RESULTS / f"compiled-{chips}-{room}.json").read_text())["programs"]
    return {key.removeprefix(f"{room} | "): program for key, program in made.items()}


def of(chips: str, room: str, name: str, peer: str = "gradxform") -> dict[str, Any]:
    return programs(chips, room)[f"{name} | {peer}"]


def optimizers() -> Iterable[str]:
    for name, case in (("AdamW", ADAMW), ("clip + AdamW", CLIP), ("Adafactor", FACTORED)):
        bytes_ = (
            of(chips, "optimizers", case, peer)["unit_value"]
            for chips in ("v5e-1x1", "h100")
            for peer in ("gradxform", "optax")
        )
        yield f"| {name} | " + " | ".join(f"{value:.1f} B" for value in bytes_) + " |"


def norms() -> Iterable[str]:
    def passes(chips: str, name: str, peer: str = "gradxform") -> float:
        shape = (512, 56, 56, 64) if name == "BatchNorm" else (131072, 1024)
        return float(of(chips, "norms", f"{name} {shape} float32, forward + backward", peer)["unit_value"])

    for name in ("LayerNorm", "RMSNorm", "BatchNorm"):
        figures = (passes(chips, name, peer) for chips in ("v5e-1x1", "h100") for peer in ("gradxform", "flax.linen"))
        yield f"| {name} | " + " | ".join(f"{value:.1f}" for value in figures) + " |"


def losses() -> Iterable[str]:
    pairs = "nt_xent 4,096 pairs of 128, float32"
    ours, dense = (of("v5e-1x1", "losses", pairs, peer)["temp_bytes"] / MIB for peer in ("gradxform", "dense, HIGHEST"))
    yield f"| `nt_xent`, 4,096 pairs of 128, float32 | temporaries | {ours:.1f} MiB | {dense:.0f} MiB (dense) |"
    sent = {chips: _of_the_least(chips, side**2) for chips, side in (("v5e-2x2", 2), ("v5e-4x4", 4))}
    four, sixteen = (
        " to ".join(f"{end([of for peer, of in found if peer == 'gradxform']):.2f}" for end in (min, max))
        for found in sent.values()
    )
    (dense,) = (of for peer, of in sent["v5e-2x2"] if peer != "gradxform")
    yield f"| sent, of the least | {four}; {sixteen} | {dense:.1f} (dense, 4 chips) |"
    ours, dense = (of("h100", "losses", pairs, peer) for peer in ("gradxform", "dense, HIGHEST"))
    yield (
        f"For an H100 `nt_xent` of 4,096 pairs moves {ours['hbm_bytes'] / 1e9:.1f} GB in "
        f"{ours['temp_bytes'] / MIB:.0f} MiB of temporaries, where the dense form moves "
        f"{dense['hbm_bytes'] / 1e9:.1f} GB in {dense['temp_bytes'] / MIB:.0f} MiB"
    )


def _of_the_least(chips: str, count: int) -> list[tuple[str, float]]:
    """Of programs under plain ``jit`` whose they are, and what is sent over each vector and its gradient once."""
    found = []
    for name, made in programs(chips, "losses").items():
        if "Auto mesh" in name:
            vectors = 4 * 128 * 1024 * count * (2 if name.startswith(("nt_xent", "sup_con")) else 1)
            sent = sum(kind["bytes"] for kind in made["collectives"].values())
            found.append((made["peer"], sent / (vectors * (1 + 1 / count))))
    return found


def augment() -> Iterable[str]:
    names = [name for name in programs("v5e-1x1", "augment") if ", uint8 | " in name]
    for name in names:
        cells = [name.replace(", uint8 | gradxform", "").replace(", uint8 | ", " under ")]
        for chips in ("v5e-1x1", "h100"):
            made = programs(chips, "augment").get(name, {"not_compiled": ""})
            if "not_compiled" in made:
                cells += ["not compiled", "", "", ""][: 4 if chips == "v5e-1x1" else 3]
                continue
            cells += [f"{made['unit_value']:.1f}", f"{made['temp_bytes'] / MIB:.1f}", _lookups(made)]
            if chips == "v5e-1x1":
                rate = f"{_rounded(IMAGES * 1e6 / made.get('cycles_alike_us', made['cycles_us'])):,}"
                kernels = made["kinds"].get("custom-call tpu_custom_call", 0)
                # A kernel alone is all that it takes; a policy is more, even without it.
                cells.append({0: rate, 1: "*"}.get(kernels, f"{rate}*"))
        yield "| " + " | ".join(cells) + " |"
    sent = {
        name: made["collectives"] for name, made in programs("v5e-2x2", "augment").items() if made.get("collectives")
    }
    assert {name.partition(",")[0] for name in sent} == {"mixup", "cutmix"}
    assert all(set(kinds) == {"all-gather"} for kinds in sent.values())
    (bytes_,) = {kinds["all-gather"]["bytes"] for kinds in sent.values()}
    yield f"but Mixup and CutMix, whose partners are from the whole batch: they gather it ({bytes_ / 1e6:.1f} MB)"


def _lookups(made: dict[str, Any]) -> str:
    return f"{made['lookups'] / IMAGES:,.0f}" if made["lookups"] >= IMAGES else ""


def _rounded(rate: float) -> int:
    """To three digits."""
    return int(float(f"{rate:.3g}"))


PAGES = {"optimizers": optimizers, "norm": norms, "losses": losses, "augment": augment}


@pytest.mark.parametrize("room", PAGES)
def test_the_figures_of_a_page_are_those_of_the_records(room: str) -> None:
    page = " ".join((ROOT / "gradxform" / room / "README.md").read_text().split())
    assert [line for line in PAGES[room]() if " ".join(line.split()) not in page] == []
