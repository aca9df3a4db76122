"""Self-supervised losses in float64 NumPy, each written from its paper's definition.

The contrastive ones make the whole matrix of similarities, and come with their gradients in closed form; those of the
others are taken by finite differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Result(NamedTuple):
    """The losses of examples, and the gradients of ``sum(weights * losses)``.

    Attributes:
      losses: (M,).
      total: ``sum(weights * losses)``.
      gradients: with regard to each input, then to the factor of the cosines.
      sizes: the largest entry of each gradient before what points along the vector is taken out: the numbers whose
        rounding a gradient inherits.
    """

    losses: Array
    total: float
    gradients: tuple[Array, ...]
    sizes: tuple[float, ...]


def directions(z: Any) -> tuple[Array, Array]:
    """Vectors over their lengths, and the lengths; a vector of zeros stays one, and has length infinity."""
    z = np.asarray(z, np.float64)
    lengths = np.linalg.norm(z, axis=1, keepdims=True)
    lengths = np.where(lengths > 0, lengths, np.inf)
    return z / lengths, lengths


def onto(du: Array, u: Array, lengths: Array) -> tuple[Array, float]:
    """The gradient with regard to vectors from that of their directions, and its size."""
    return (du - u * np.sum(u * du, 1, keepdims=True)) / lengths, float(np.max(np.abs(du) / lengths))


class Matrix(NamedTuple):
    """Losses ``-sum_j y_ij log softmax(scale * s)_ij``, and the gradients of their weighted sum."""

    losses: Array
    ds: Array
    dscale: float
    scale_size: float


def log_softmax(logits: Array, among: Array) -> Array:
    """The logarithm of each row's softmax over the pairs that are ``among`` it."""
    logits = np.where(among, logits, -np.inf)
    top = logits.max(1, keepdims=True)
    return logits - top - np.log(np.sum(np.exp(logits - top), 1, keepdims=True))


def cross_entropies(s: Array, scale: float, among: Array, y: Array, weights: Array) -> Matrix:
    """Cross-entropies of rows whose targets are ``y``; a row without a target has loss 0.

    With one target a row, the losses are summed up from the others' odds, which keeps the digits of small ones.
    """
    log_p = log_softmax(scale * s, among)
    if np.all((y == 0) | (y == 1)) and np.all(y.sum(1) == 1):
        odds = np.where(among & (y == 0), scale * (s - np.sum(s * y, 1, keepdims=True)), -np.inf)
        losses = np.logaddexp.reduce(np.concatenate([np.zeros((len(s), 1)), odds], 1), axis=1)
        rest = np.exp(odds - losses[:, None])
        difference = rest - y * rest.sum(1, keepdims=True)
        small = np.sum(np.exp(odds), 1)
        losses = np.where(small < 1e-3, np.log1p(small), losses)
    else:
        losses = -np.sum(np.where(y > 0, y * np.where(y > 0, log_p, 0), 0), 1)
        difference = np.exp(log_p) * y.sum(1, keepdims=True) - y
    d_logits = weights[:, None] * difference
    return Matrix(losses, scale * d_logits, float(np.sum(d_logits * s)), float(np.sum(np.abs(d_logits * s))))


def shares(count: int, reduction: str = "mean") -> Array:
    """The weights of losses of which there are ``count``."""
    return np.full(count, 1 / count if reduction == "mean" else 1.0)


def among(y: Array, ids: Any) -> Array:
    """The pairs that count: the targets, and those whose ids differ."""
    ids = np.asarray(ids)
    return (ids[:, None] != ids[None]) | (y > 0)


def nt_xent(z1: Any, z2: Any, temperature: float = 0.5, weights: Array | None = None, ids: Any = None) -> Result:
    """Over the concatenated views (Chen and others, 2020, eq. 1); the last gradient is that of the temperature."""
    (u1, length1), (u2, length2) = directions(z1), directions(z2)
    u = np.concatenate([u1, u2])
    n = len(u1)
    weights = shares(2 * n) if weights is None else weights
    y = np.roll(np.eye(2 * n), n, axis=1)
    counted = among(y, np.arange(2 * n) if ids is None else np.tile(ids, 2))
    m = cross_entropies(u @ u.T, 1 / temperature, counted, y, weights)
    du = (m.ds + m.ds.T) @ u
    (d1, size1), (d2, size2) = onto(du[:n], u1, length1), onto(du[n:], u2, length2)
    return Result(
        m.losses,
        float(weights @ m.losses),
        (d1, d2, np.asarray(-m.dscale / temperature**2)),
        (size1, size2, m.scale_size / temperature**2),
    )


def info_nce(
    query: Any,
    keys: Any,
    temperature: float = 0.1,
    negatives: Any = None,
    weights: Array | None = None,
    ids: Any = None,
) -> Result:
    """Over all keys, or the own key and the negatives, which have a gradient between those of keys and temperature.

    (van den Oord and others, 2018, eq. 4; He and others, 2020, eq. 1.)
    """
    (q, q_length), (k, k_length) = directions(query), directions(keys)
    n = len(q)
    weights = shares(n) if weights is None else weights
    if negatives is None:
        counted = among(np.eye(n), np.arange(n) if ids is None else ids)
        m = cross_entropies(q @ k.T, 1 / temperature, counted, np.eye(n), weights)
        parts = [onto(m.ds @ k, q, q_length), onto(m.ds.T @ q, k, k_length)]
    else:
        others, other_length = directions(negatives)
        s = np.concatenate([np.sum(q * k, 1)[:, None], q @ others.T], 1)
        y = np.zeros(s.shape)
        y[:, 0] = 1
        m = cross_entropies(s, 1 / temperature, np.ones(s.shape, bool), y, weights)
        own, rest = m.ds[:, :1], m.ds[:, 1:]
        parts = [
            onto(own * k + rest @ others, q, q_length),
            onto(own * q, k, k_length),
            onto(rest.T @ q, others, other_length),
        ]
    gradients, sizes = zip(*parts, strict=True)
    return Result(
        m.losses,
        float(weights @ m.losses),
        (*gradients, np.asarray(-m.dscale / temperature**2)),
        (*sizes, m.scale_size / temperature**2),
    )


def clip(image: Any, text: Any, logit_scale: float, weights: Array | None = None, ids: Any = None) -> Result:
    """Both directions (Radford and others, 2021, figure 3); the last gradient is that of the scale."""
    (u, u_length), (v, v_length) = directions(image), directions(text)
    n = len(u)
    weights = shares(n) if weights is None else weights
    counted = among(np.eye(n), np.arange(n) if ids is None else ids)
    a = cross_entropies(u @ v.T, logit_scale, counted, np.eye(n), weights / 2)
    b = cross_entropies(v @ u.T, logit_scale, counted, np.eye(n), weights / 2)
    ds = a.ds + b.ds.T
    losses = (a.losses + b.losses) / 2
    (du, u_size), (dv, v_size) = onto(ds @ v, u, u_length), onto(ds.T @ u, v, v_length)
    return Result(
        losses,
        float(weights @ losses),
        (du, dv, np.asarray(a.dscale + b.dscale)),
        (u_size, v_size, a.scale_size + b.scale_size),
    )


def sup_con(z: Any, labels: Any, temperature: float = 0.1, weights: Array | None = None) -> Result:
    """L_out (Khosla and others, 2020, eq. 2), by default averaged over those that have a positive."""
    u, length = directions(z)
    n = len(u)
    labels = np.asarray(labels)
    same = (labels[:, None] == labels[None]) & ~np.eye(n, dtype=bool)
    count = same.sum(1)
    if weights is None:
        weights = (count > 0) / max(1, int(np.sum(count > 0)))
    y = same / np.maximum(count, 1)[:, None]
    m = cross_entropies(u @ u.T, 1 / temperature, ~np.eye(n, dtype=bool), y, weights)
    dz, size = onto((m.ds + m.ds.T) @ u, u, length)
    return Result(
        m.losses,
        float(weights @ m.losses),
        (dz, np.asarray(-m.dscale / temperature**2)),
        (size, m.scale_size / temperature**2),
    )


def simclr(z1: Any, z2: Any, temperature: float) -> float:
    """The published objective: four blocks of logits, self masked by -1e9, the sum of two means over N."""
    a, b = directions(z1)[0], directions(z2)[0]
    n = len(a)
    masks = np.eye(n) * 1e9
    aa, bb = a @ a.T / temperature - masks, b @ b.T / temperature - masks
    ab, ba = a @ b.T / temperature, b @ a.T / temperature
    every = np.ones((n, 2 * n), bool)
    return float(
        sum(-np.mean(np.diagonal(log_softmax(np.concatenate(blocks, 1), every))) for blocks in ((ab, aa), (ba, bb)))
    )


def siglip(image: Any, text: Any, logit_scale: float, logit_bias: float, ids: Any = None) -> float:
    """Zhai and others, 2023, algorithm 1."""
    u, v = directions(image)[0], directions(text)[0]
    labels = 2 * np.eye(len(u)) - 1
    counted = among(np.eye(len(u)), np.arange(len(u)) if ids is None else ids)
    return float(np.sum(counted * np.logaddexp(0, -labels * (logit_scale * u @ v.T + logit_bias))) / len(u))


def barlow_twins(z1: Any, z2: Any, off_diagonal: float = 5e-3, epsilon: float = 1e-5) -> float:
    """Zbontar and others, 2021, eq. 1 and 2, the features normalized as by a batch norm."""
    a, b = (
        (z - z.mean(0)) / np.sqrt(z.var(0) + epsilon) for z in (np.asarray(z1, np.float64), np.asarray(z2, np.float64))
    )
    c = a.T @ b / len(a)
    loss = 0.0
    for i in range(len(c)):
        for j in range(len(c)):
            loss += (1 - c[i, j]) ** 2 if i == j else off_diagonal * c[i, j] ** 2
    return float(loss)


def vicreg(
    z1: Any,
    z2: Any,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    target_std: float = 1.0,
    epsilon: float = 1e-4,
) -> float:
    """Bardes, Ponce and LeCun, 2022, eq. 1 to 6, with the half and the means of the authors' code."""
    a, b = np.asarray(z1, np.float64), np.asarray(z2, np.float64)
    loss = invariance * np.mean((a - b) ** 2)
    for z in (a, b):
        loss += variance / 2 * np.mean(np.maximum(0, target_std - np.sqrt(z.var(0, ddof=1) + epsilon)))
        products = np.cov(z, rowvar=False).reshape(z.shape[1], z.shape[1])
        loss += covariance * (np.sum(products**2) - np.sum(np.diagonal(products) ** 2)) / z.shape[1]
    return float(loss)


def byol(prediction: Any, target: Any) -> Array:
    """The squared distance of directions (Grill and others, 2020, eq. 2), by example."""
    return np.asarray(np.sum((directions(prediction)[0] - directions(target)[0]) ** 2, 1))


def simsiam(p1: Any, p2: Any, z1: Any, z2: Any) -> Array:
    """Half of each negative cosine (Chen and He, 2021, eq. 4), by example."""
    cosine = lambda p, z: np.sum(directions(p)[0] * directions(z)[0], 1)  # noqa: E731
    return np.asarray(-cosine(p1, z2) / 2 - cosine(p2, z1) / 2)


def differences(loss: Callable[..., float], args: Sequence[Any], step: float = 1e-5) -> tuple[Array, ...]:
    """The gradients of a function of float64 arrays by central differences of fourth order."""
    arrays = [np.array(arg, np.float64) for arg in args]
    gradients = []
    for array in arrays:
        gradient = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            kept, seen = array[place], []
            for move in (1, -1, 2, -2):
                array[place] = kept + move * step
                seen.append(loss(*arrays))
            array[place] = kept
            gradient[place] = (8 * (seen[0] - seen[1]) - (seen[2] - seen[3])) / (12 * step)
        gradients.append(gradient)
    return tuple(gradients)
