"""The rules of optimization in float64 NumPy, each written from its paper's formula.

A rule is a function ``rule(t, g, w, memory) -> u`` of one step: ``t`` counts from 1, ``g`` is what comes in, ``w``
the params, ``u`` the new update and ``memory`` a dict that the rule keeps between steps. Trees are flat dicts from
a path to an array. ``updates_of`` runs a rule over a sequence of gradients at fixed params; ``trajectory_of`` adds
the updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Memory = dict[str, Any]
Rule = Callable[[int, Arrays, Arrays, Memory], Arrays]
LeafRule = Callable[[int, np.ndarray, np.ndarray, Memory], np.ndarray]


# ---- running ----


def updates_of(rule: Rule, gradients: Sequence[Arrays], params: Arrays) -> list[Arrays]:
    """The update of every step, the params held fixed."""
    memory: Memory = {}
    return [rule(t, dict(g), params, memory) for t, g in enumerate(gradients, start=1)]


def trajectory_of(rule: Rule, gradient: Callable[[int, Arrays], Arrays], params: Arrays, steps: int) -> Arrays:
    """The params after ``steps`` steps, with ``gradient(t, w)`` the gradient of step t."""
    memory: Memory = {}
    w = dict(params)
    for t in range(1, steps + 1):
        u = rule(t, gradient(t, w), w, memory)
        w = {name: w[name] + u[name] for name in w}
    return w


def each(leaf: LeafRule) -> Rule:
    """A rule that treats every leaf by itself."""

    def rule(t: int, g: Arrays, w: Arrays, memory: Memory) -> Arrays:
        return {name: leaf(t, g[name], w[name], memory.setdefault(name, {})) for name in g}

    return rule


def sequence(*rules: Rule) -> Rule:
    """One rule after another."""

    def rule(t: int, g: Arrays, w: Arrays, memory: Memory) -> Arrays:
        for i, part in enumerate(rules):
            g = part(t, g, w, memory.setdefault(i, {}))
        return g

    return rule


def square(g: np.ndarray) -> np.ndarray:
    """``|g|**2``, real also for complex g."""
    return (g * np.conj(g)).real


def norm(g: np.ndarray) -> float:
    return float(np.sqrt(np.sum(square(g))))


def rms(g: np.ndarray) -> float:
    return float(np.sqrt(np.mean(square(g)))) if g.size else 0.0


# ---- without a memory ----


def scale(factor: Any) -> Rule:
    """``factor`` is a number or a function of the step counted from 0."""
    return each(lambda t, g, w, memory: (factor(t - 1) if callable(factor) else factor) * g)


def add_decayed_weights(decay: Any, names: set[str] | None = None) -> Rule:
    """``g + lambda w`` on the leaves in ``names``."""

    def rule(t: int, g: Arrays, w: Arrays, memory: Memory) -> Arrays:
        now = decay(t - 1) if callable(decay) else decay
        return {name: g[name] + (now * w[name] if names is None or name in names else 0) for name in g}

    return rule


def clip(limit: float) -> Rule:
    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        if np.iscomplexobj(g):
            size = np.abs(g)
            return np.where(size > limit, limit * g / np.where(size > 0, size, 1), g)
        return np.minimum(np.maximum(g, -limit), limit)

    return each(leaf)


def clip_by_global_norm(limit: float, eps: float = 0.0) -> Rule:
    """Pascanu et al. (2013), algorithm 1; torch adds ``eps`` to the norm."""

    def rule(t: int, g: Arrays, w: Arrays, memory: Memory) -> Arrays:
        total = math.sqrt(sum(norm(x) ** 2 for x in g.values())) + eps
        return {name: x * (limit / total if total > limit else 1.0) for name, x in g.items()}

    return rule


def clip_by_block_rms(threshold: float) -> Rule:
    """Shazeer and Stern (2018), section 6: ``g / max(1, RMS(g) / d)``."""
    return each(lambda t, g, w, memory: g / max(1.0, rms(g) / threshold))


def adaptive_grad_clip(clipping: float, eps: float, axes: dict[str, tuple[int, ...] | None]) -> Rule:
    """Brock et al. (2021), equation 3; ``axes`` says for each leaf what a unit's norm runs over."""

    def rule(t: int, g: Arrays, w: Arrays, memory: Memory) -> Arrays:
        new = {}
        for name in g:
            g_norm = np.sqrt(np.sum(square(g[name]), axis=axes[name], keepdims=True))
            w_norm = np.maximum(np.sqrt(np.sum(square(w[name]), axis=axes[name], keepdims=True)), eps)
            over = g_norm / w_norm > clipping
            new[name] = np.where(over, clipping * w_norm / np.where(over, g_norm, 1) * g[name], g[name])
        return new

    return rule


def centralize(output_axis: int) -> Rule:
    """Yong et al. (2020), equation 1."""

    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        if g.ndim < 2 or g.size == 0:
            return g
        units = np.moveaxis(g, output_axis, 0)
        centered = np.stack([unit - unit.mean() for unit in units])
        return np.moveaxis(centered, 0, output_axis)

    return each(leaf)


def scale_by_param_block_rms(least: float) -> Rule:
    return each(lambda t, g, w, memory: g * max(rms(w), least))


def scale_by_trust_ratio(
    coefficient: float = 1.0, eps: float = 0.0, least: float = 0.0, decay: float = 0.0, largest: float = math.inf
) -> Rule:
    """You et al. (2017), equation 6 (with ``decay`` as in algorithm 1), and You et al. (2020), algorithm 2."""

    def leaf(t: int, u: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        w_norm, u_norm = max(norm(w), least), max(norm(u), least)
        if w_norm == 0 or u_norm == 0:
            return u + decay * w
        return min(coefficient * w_norm / (u_norm + decay * w_norm + eps), largest) * (u + decay * w)

    return each(leaf)


# ---- momentum ----


def trace(decay: float, nesterov: bool = False) -> Rule:
    """Polyak (1964): ``t = g + mu t``; Nesterov: ``g + mu t``."""

    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        memory["total"] = g + decay * memory.get("total", 0)
        return g + decay * memory["total"] if nesterov else memory["total"]

    return each(leaf)


def ema(decay: float, debias: bool) -> Rule:
    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        memory["m"] = decay * memory.get("m", 0) + (1 - decay) * g
        return memory["m"] / (1 - decay**t) if debias else memory["m"]

    return each(leaf)


def scale_by_lion(b1: float, b2: float, squash: Callable[[np.ndarray], np.ndarray] = np.sign) -> Rule:
    """Chen et al. (2023), algorithm 2."""

    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        m = memory.get("m", np.zeros_like(g))
        memory["m"] = b2 * m + (1 - b2) * g
        return squash(b1 * m + (1 - b1) * g)

    return each(leaf)


# ---- a second moment alone ----


def scale_by_rms(
    decay: float,
    eps: float,
    initial: float = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    centered: bool = False,
) -> Rule:
    """Tieleman and Hinton (2012); centered: Graves (2013), equations 38 to 41."""

    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        memory["v"] = decay * memory.get("v", initial) + (1 - decay) * square(g)
        memory["m"] = decay * memory.get("m", 0) + (1 - decay) * g
        by = 1 - decay**t if bias_correction else 1
        v = memory["v"] / by
        if centered:
            v = np.maximum(v - square(memory["m"] / by), 0)
        return g / (np.sqrt(v + eps) if eps_in_sqrt else np.sqrt(v) + eps)

    return each(leaf)


def scale_by_rss(initial: float, eps: float, eps_in_sqrt: bool = True) -> Rule:
    """Duchi et al. (2011)."""

    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        s = memory["s"] = memory.get("s", initial) + square(g)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(s > 0, g / (np.sqrt(s + eps) if eps_in_sqrt else np.sqrt(s) + eps), 0)

    return each(leaf)


def scale_by_factored_rms(
    axes: dict[str, tuple[int, int] | None],
    decay_rate: float = 0.8,
    eps: float = 1e-30,
    offset: int = 0,
    clamp: bool = False,
) -> Rule:
    """Shazeer and Stern (2018), algorithm 4; ``axes`` names for each leaf the two axes of its matrices."""

    def rule(t: int, g: Arrays, w: Arrays, memory: Memory) -> Arrays:
        new = {}
        b = 1 - max(t - offset, 1) ** -decay_rate
        for name, x in g.items():
            kept = memory.setdefault(name, {})
            s = np.maximum(square(x), eps) if clamp else square(x) + eps
            if axes[name] is None:
                kept["v"] = b * kept.get("v", 0) + (1 - b) * s
                new[name] = x / np.sqrt(kept["v"])
                continue
            r, c = axes[name]
            kept["R"] = b * kept.get("R", 0) + (1 - b) * s.mean(axis=c, keepdims=True)
            kept["C"] = b * kept.get("C", 0) + (1 - b) * s.mean(axis=r, keepdims=True)
            new[name] = x / np.sqrt(kept["R"] * kept["C"] / kept["R"].mean(axis=r, keepdims=True))
        return new

    return rule


# ---- the Adam family ----


def _moments(memory: Memory, g: np.ndarray, b1: float, b2: float) -> tuple[Any, Any]:
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * square(g)
    return memory["m"], memory["v"]


def _first(m: Any, g: Any, b1: float, t: int, nesterov: bool) -> Any:
    """Kingma and Ba's corrected moment, or Dozat's (2016, algorithm 2) with a constant b1."""
    return b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t) if nesterov else m / (1 - b1**t)


def scale_by_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0, nesterov: bool = False
) -> Rule:
    """Kingma and Ba (2015), algorithm 1."""

    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        m, v = _moments(memory, g, b1, b2)
        return _first(m, g, b1, t, nesterov) / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)

    return each(leaf)


def scale_by_amsgrad(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    correct_m: bool = True,
    correct_v: bool = True,
    max_of_corrected: bool = True,
) -> Rule:
    """Reddi et al. (2018), algorithm 2, and what optax and torch make of it."""

    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        m, v = _moments(memory, g, b1, b2)
        by = 1 - b2**t if correct_v else 1.0
        candidate = v / by if max_of_corrected else v
        memory["largest"] = np.maximum(memory.get("largest", 0), candidate)
        divisor = memory["largest"] if max_of_corrected else memory["largest"] / by
        return m / (1 - b1**t if correct_m else 1.0) / (np.sqrt(divisor) + eps)

    return each(leaf)


def scale_by_belief(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-16, eps_root: float = 1e-16, nesterov: bool = False
) -> Rule:
    """Zhuang et al. (2020), algorithm 2."""

    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        m = memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
        s = memory["s"] = b2 * memory.get("s", 0) + (1 - b2) * square(g - m) + eps_root
        return _first(m, g, b1, t, nesterov) / (np.sqrt(s / (1 - b2**t)) + eps)

    return each(leaf)


def scale_by_yogi(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-3,
    eps_root: float = 0.0,
    initial: float = 1e-6,
    bias_correction: bool = True,
    initial_m: float = 1e-6,
) -> Rule:
    """Zaheer et al. (2018), algorithm 2."""

    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        m = memory["m"] = b1 * memory.get("m", initial_m) + (1 - b1) * g
        old = memory.get("v", np.full(g.shape, initial))
        v = memory["v"] = old - (1 - b2) * np.sign(old - square(g)) * square(g)
        by_m, by_v = (1 - b1**t, 1 - b2**t) if bias_correction else (1, 1)
        return m / by_m / (np.sqrt(v / by_v + eps_root) + eps)

    return each(leaf)


def scale_by_nadam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, momentum_decay: float = 4e-3) -> Rule:
    """Dozat (2016), algorithm 2: ``m^ = mu_{t+1} m / (1 - prod_{1..t+1}) + (1 - mu_t) g / (1 - prod_{1..t})``."""

    def mu(t: int) -> float:
        return b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        m, v = _moments(memory, g, b1, b2)
        product = math.prod(mu(i) for i in range(1, t + 1))
        ahead = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
        return ahead / (np.sqrt(v / (1 - b2**t)) + eps)

    return each(leaf)


def scale_by_radam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, threshold: float = 5.0, nesterov: bool = False
) -> Rule:
    """Liu et al. (2020), algorithm 2."""
    rho_inf = 2 / (1 - b2) - 1

    def leaf(t: int, g: np.ndarray, w: np.ndarray, memory: Memory) -> np.ndarray:
        m, v = _moments(memory, g, b1, b2)
        rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
        first = _first(m, g, b1, t, nesterov)
        if rho < threshold:
            return first
        r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        return r * first / (np.sqrt(v / (1 - b2**t)) + eps)

    return each(leaf)


# ---- orthogonal momentum ----


def scale_by_muon(
    axes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    beta: float = 0.95,
    steps: int = 5,
    nesterov: bool = True,
    corrected: bool = True,
    rms_of: float | None = None,
    eps: float = 1e-8,
) -> Rule:
    """Jordan et al. (2024), on the leaves in ``axes`` (their inputs and outputs); what is left comes out as it is.

    The polynomial is taken of the singular values, where the iteration multiplies matrices.
    """

    def leaf(t: int, g: np.ndarray, memory: Memory, rows: tuple[int, ...], columns: tuple[int, ...]) -> np.ndarray:
        m = memory["m"] = beta * memory.get("m", 0) + (1 - beta) * g
        by_m, by_g = (1 - beta ** (t + nesterov), 1 - beta**t) if corrected else (1.0, 1.0)
        ahead = beta * m / by_m + (1 - beta) * g / by_g if nesterov else m / by_m
        others = [axis for axis in range(g.ndim) if axis not in rows + columns]
        moved = np.transpose(ahead, (*others, *rows, *columns))
        fan_in, fan_out = (math.prod(g.shape[axis] for axis in part) for part in (rows, columns))
        new = []
        for matrix in moved.reshape(-1, fan_in, fan_out):
            u, s, v = np.linalg.svd(matrix / (np.linalg.norm(matrix) + eps), full_matrices=False)
            for _ in range(steps):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            new.append((u * s) @ v)
        factor = math.sqrt(max(1, fan_out / fan_in)) if rms_of is None else rms_of * math.sqrt(max(fan_in, fan_out))
        order = np.argsort((*others, *rows, *columns))
        return factor * np.transpose(np.reshape(new, moved.shape), order)

    def rule(t: int, g: Arrays, w: Arrays, memory: Memory) -> Arrays:
        return {
            name: leaf(t, x, memory.setdefault(name, {}), *axes[name]) if name in axes else x for name, x in g.items()
        }

    return rule


def on(names: set[str], rule: Rule) -> Rule:
    """A rule on some of the leaves; the others stay as they are."""
    return lambda t, g, w, memory: g | rule(t, {k: x for k, x in g.items() if k in names}, w, memory)
