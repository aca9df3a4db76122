"""Schedules: functions of the step that are values."""

from gradxform.schedules.basic import constant, cosine, exponential, linear, polynomial, step
from gradxform.schedules.compose import join, piecewise
from gradxform.schedules.cyclical import cosine_restarts, one_cycle, triangular
from gradxform.schedules.warmup import inverse_sqrt, warmup, warmup_stable_decay

__all__ = [
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "one_cycle",
    "piecewise",
    "polynomial",
    "step",
    "triangular",
    "warmup",
    "warmup_stable_decay",
]
