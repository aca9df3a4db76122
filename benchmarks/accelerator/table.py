"""The record as tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks import contrastive, norms, optimizers
from benchmarks.accelerator.record import FAILED, MEASURED, PASSED
from benchmarks.accelerator.rows import pretraining
from benchmarks.accelerator.rows.augment import ONE_BY_ONE
from benchmarks.augment import OURS, OURS_FLOAT, PIX, SWITCH

Entry = Mapping[str, Any]
Cases = Mapping[str, Entry]


def markdown(content: Mapping[str, Any]) -> str:
    """All tables of a record; what was not measured is said, and has no number."""
    environment, cases = content["environment"], content["cases"]
    parts = [_head(environment, content["settings"]["sizes"]), _checks(cases)]
    for room, section in {
        "ceilings": _ceilings,
        "optimizers": _optimizers,
        "norm": _norms,
        "losses": _losses,
        "augment": _augment,
        "pretraining": _pretraining,
    }.items():
        found = {name: entry for name, entry in cases.items() if entry["room"] == room and entry["status"] == MEASURED}
        if found:
            parts.append(section(found))
    parts.append(_left_out(cases))
    return "\n\n".join(part for part in parts if part)


def _head(environment: Entry, sizes: str) -> str:
    versions = environment["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("jax", "optax", "flax") if versions.get(name))
    driver = f", driver {environment['driver']}" if environment.get("driver") else ""
    tiny = "" if sizes == "full" else f" **Shapes: {sizes}. These times say nothing.**"
    return f"{environment['device']}{driver}; {packages}; {environment['date'][:10]}.{tiny}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _checks(cases: Cases) -> str:
    rooms: dict[str, dict[str, Entry]] = {}
    for name, entry in cases.items():
        if entry["status"] in (PASSED, FAILED):
            rooms.setdefault(entry["room"], {})[name] = entry
    if not rooms:
        return ""
    rows = []
    for room, found in rooms.items():
        failed = [
            f"{name.removeprefix('check: ')} ({entry['largest']:.1e})"
            for name, entry in found.items()
            if entry["status"] == FAILED
        ]
        largest = max(entry["largest"] for entry in found.values())
        rows.append([room, f"{len(found) - len(failed)} of {len(found)}", f"{largest:.1e}", "; ".join(failed)])
    against = sorted({entry["against"] for found in rooms.values() for entry in found.values()})
    return _table([f"values against {' and '.join(against)}", "passed", "largest difference", "failed"], rows)


def _ceilings(cases: Cases) -> str:
    rows = []
    for name, entry in cases.items():
        if "bytes_per_s" in entry:
            rows.append([name, f"{entry['bytes_per_s'] / 1e9:,.0f} GB/s"])
        else:
            rows.append([name, f"{entry['flops_per_s'] / 1e12:,.1f} TFLOP/s"])
    return _table(["ceiling", ""], rows)


def _peer(entry: Entry, name: str, form: Callable[[Entry], str]) -> str:
    return form(entry["peers"][name]) if name in entry["peers"] else "-"


def _ms(figures: Entry) -> str:
    bound = "*" if figures["dispatch_s"] > 0.9 * figures["median_s"] else ""
    return f"{_digits(1e3 * figures['median_s'])} ms{bound}"


def _digits(x: float) -> str:
    """Three digits at least, and no powers of ten."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _share(figures: Entry) -> str:
    share = figures["share_of_copy"]
    return "-" if share is None else f"{share:.0%}"


def _optimizers(cases: Cases) -> str:
    rows = [
        [
            f"{name} ({entry['parameters'] / 1e6:,.1f}M in {entry['leaves']} leaves)",
            *(
                _peer(entry, peer, form)
                for form in (_ms, lambda x: f"{x['bytes_per_s'] / 1e9:,.0f}", _share)
                for peer in (optimizers.OURS, optimizers.OPTAX)
            ),
        ]
        for name, entry in cases.items()
    ]
    return _table(
        ["step, float32 (* the host's time)", "gradxform", "optax", "GB/s", "optax", "of the copy's", "optax"], rows
    )


def _norms(cases: Cases) -> str:
    rows = [
        [
            f"{name} {tuple(entry['shape'])}",
            *(
                _peer(entry, f"{peer}, {figure}", lambda x: f"{_ms(x)} ({_share(x)})")
                for figure in norms.ARRAYS
                for peer in (norms.OURS, norms.LINEN)
            ),
        ]
        for name, entry in cases.items()
    ]
    return _table(
        ["norm (in brackets: of the copy's bandwidth)", "forward", "flax.linen", "forward + backward", "flax.linen"],
        rows,
    )


def _losses(cases: Cases) -> str:
    def floor(figures: Entry) -> str:
        return "-" if figures["times_floor"] is None else f"{figures['times_floor']:.1f}"

    rows = [
        [
            name,
            _peer(entry, contrastive.OURS, _ms),
            _peer(entry, contrastive.DENSE, _ms),
            "-" if entry["floor_s"] is None else f"{_digits(1e3 * entry['floor_s'])} ms",
            _peer(entry, contrastive.OURS, floor),
            _peer(entry, contrastive.OURS, _mebibytes),
            _peer(entry, contrastive.DENSE, _mebibytes),
        ]
        for name, entry in cases.items()
    ]
    return _table(
        [
            "loss with its gradients",
            "gradxform",
            "dense JAX",
            "products alone",
            "times that",
            "temporary MiB",
            "dense JAX",
        ],
        rows,
    )


def _mebibytes(figures: Entry) -> str:
    return "-" if figures["temp_bytes"] is None else f"{figures['temp_bytes'] / 2**20:,.1f}"


def _augment(cases: Cases) -> str:
    peers = (OURS, OURS_FLOAT, ONE_BY_ONE, SWITCH, PIX)
    some = next(iter(cases.values()))
    rows = [
        [
            name,
            *(_peer(entry, peer, lambda x: f"{x['images_per_s']:,.0f}") for peer in peers),
            _peer(entry, OURS if OURS in entry["peers"] else OURS_FLOAT, _share),
        ]
        for name, entry in cases.items()
    ]
    return _table(
        [
            f"images/s, {some['images']} of {some['size']} x {some['size']} x 3",
            "gradxform",
            "float32",
            "one by one",
            "vmap(switch)",
            "dm-pix",
            "of the copy's bandwidth",
        ],
        rows,
    )


def _pretraining(cases: Cases) -> str:
    parts = (pretraining.AUGMENT, pretraining.MODEL, pretraining.LOSS, pretraining.UPDATE, pretraining.WHOLE)
    rows = [
        [f"{name}, {(entry['batch'], *entry['shape'])}", *(_peer(entry, part, _ms) for part in parts)]
        for name, entry in cases.items()
    ]
    return _table(["(* the host's time)", *parts], rows)


def _left_out(cases: Cases) -> str:
    reasons: dict[str, list[str]] = {}
    for name, entry in cases.items():
        if entry["status"] not in (PASSED, FAILED, MEASURED):
            reasons.setdefault(f"{entry['status']}: {entry.get('reason') or entry.get('error')}", []).append(name)
        for peer, reason in entry.get("missing", {}).items():
            reasons.setdefault(f"{peer}: {reason}", []).append(name)
    lines = [f"- {reason}: {'; '.join(names)}" for reason, names in reasons.items()]
    return "\n".join(["Without a figure:", "", *lines]) if lines else ""
