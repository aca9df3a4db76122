"""The nearest right name for a wrong one, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What an argument is called elsewhere (optax, torch, Keras, papers), without case and underscores, and what here: the
# first of these that there is; with "+" one stands for two.
_ELSEWHERE = """
lr: learning_rate init_value peak_value max_value; rate eta: learning_rate; alpha: learning_rate end_value decay
stepsize: learning_rate half_cycle; maxlr: max_value learning_rate; baselr: base_value learning_rate
initiallearningrate: init_value; peaklr: peak_value max_value; peakvalue: init_value max_value; etamin minlr: end_value
beta: b1 decay momentum; betas: b1+b2 b1; beta1: b1; beta2: b2; rho: decay b2; epsilon: eps; momentum: b1 decay
wd l2 weightdecayrate: weight_decay; weightdecaymask: mask; decay: weight_decay gamma rate; gamma: decay rate
dampening: momentum; norm maxgradnorm: max_norm; dtype: mu_dtype accumulator_dtype dtype_momentum; n: steps every
tmax t0 totalsteps decaysteps transitionsteps numsteps: steps; warmup: warmup_steps steps; tmult: factor
everyk everykschedule: every; prob probability: p; regex: pattern; ndim: n
"""
SYNONYMS = {
    name: here.split()
    for line in _ELSEWHERE.replace(";", "\n").strip().splitlines()
    for names, here in [line.split(":")]
    for name in names.split()
}


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The one of ``options`` that was most likely meant by ``name``, or None; of a path the last part is looked at."""
    options = list(options)
    parent, _, last = name.rpartition("/")
    near = [option for option in options if option.rpartition("/")[0] == parent]
    by_last = {_bare(option.rpartition("/")[2]): option for option in near}
    for other in (last, *SYNONYMS.get(_bare(last), ())):
        if _bare(other) in by_last:
            return by_last[_bare(other)]
    longer = [option for bare, option in by_last.items() if len(last) > 2 and _bare(last) in bare]
    if len(longer) == 1:
        return longer[0]
    close = difflib.get_close_matches(name, options, n=1)
    return close[0] if close else None


def unknown(what: str, name: str, options: Iterable[str]) -> str:
    """An error for a name that is not among ``options``: the nearest one, or all that there are."""
    options = list(options)
    several = (other.split("+") for other in SYNONYMS.get(_bare(name), ()) if "+" in other)
    near = next((parts for parts in several if {*parts} <= {*options}), None)
    if near is None and (one := nearest(name, options)) is not None:
        near = [one]
    hint = f"did you mean {' and '.join(map(repr, near))}?" if near else f"it has {', '.join(options) or 'none'}"
    return f"{what} {name!r}; {hint}"


def _bare(name: str) -> str:
    return name.replace("_", "").lower()
