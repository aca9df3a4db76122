"""Muon."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from gradxform.core import checks
from gradxform.core.manual import AxisName
from gradxform.core.transformation import Transformation, transformation
from gradxform.core.trees import structure
from gradxform.core.types import AnyTransformation, DType, Mask, Params, PyTree, Scalar, ScalarOrSchedule
from gradxform.core.which import as_mask, flags
from gradxform.optimizers.recipe import decayed
from gradxform.transforms.adam import scale_by_adam
from gradxform.transforms.combine import chain
from gradxform.transforms.masking import partition
from gradxform.transforms.muon import QUINTIC, Axes, scale_by_muon
from gradxform.transforms.scale import scale_by_learning_rate

Matrices: TypeAlias = Mask | str | Sequence[tuple[Mask | str, tuple[Axes, Axes]]]


@transformation
def muon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: Sequence[Any] = QUINTIC,
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    mu_dtype: DType = None,
    *,
    nesterov: bool = True,
    bias_correction: bool = True,
    consistent_rms: Scalar | None = None,
    matrices: Matrices | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.999,
    adam_eps_root: Scalar = 0.0,
    axis_name: AxisName = None,
) -> Transformation:
    """Momentum made orthogonal, for the matrices of hidden layers; Adam for the rest.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), who leave embeddings and the layer
    of logits to Adam too: say so with ``matrices``. torch's Muon has ``bias_correction=False``, ``eps=1e-7`` and
    ``weight_decay=0.1``; its ``"match_rms_adamw"`` is ``consistent_rms=0.2``.

    Args:
      learning_rate: a number, or a schedule of it.
      ns_coeffs, ns_steps, beta: as in ``scale_by_muon``.
      eps: added to the norm of a matrix and to Adam's root, >= 0.
      weight_decay: factor of the decoupled decay of all leaves, or a schedule of it; None for none.
      mask: which leaves decay; None for all.
      mu_dtype, nesterov, bias_correction, consistent_rms: as in ``scale_by_muon``; the first two are for Adam too.
      matrices: which leaves are matrices: a mask, a selector or a regular expression of paths, whose last two axes are
        taken; or a sequence of pairs ``(which, (reduction_axis, output_axis))``, as in ``("conv", ((0, 1, 2), 3))`` or
        ``("query", (0, (1, 2)))``, of which the first that has a leaf counts. None for all leaves of two axes.
      adam_learning_rate: that of the other leaves; None for ``learning_rate``.
      adam_b1, adam_b2, adam_eps_root: as ``b1``, ``b2`` and ``eps_root`` in ``scale_by_adam``.
      axis_name: as in ``scale_by_muon``.

    Raises:
      ValueError: a number out of its range; when a run starts, a pattern that no path matches.

    Example:
      >>> import gradxform as gx, jax.numpy as jnp
      >>> tx = gx.muon(0.02, matrices=gx.path_matches("kernel"))
      >>> params = {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(4)}
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> f"{float(jnp.linalg.norm(updates['kernel'])):.3f}"
      '0.014'
    """
    rules = _rules(matrices)
    checks.real("adam_b1", adam_b1, at_least=0, below=1)
    checks.real("adam_b2", adam_b2, at_least=0, below=1)
    checks.real("adam_eps_root", adam_eps_root, at_least=0)
    if adam_learning_rate is not None:
        checks.real("adam_learning_rate", adam_learning_rate, schedule=True)

    def labels(params: Params) -> PyTree:
        chosen = ["adam"] * len(jax.tree.leaves(params))
        for name, which, _ in reversed(rules):
            here = flags(name, which, params, every_pattern=True)
            chosen = [name if flag else label for flag, label in zip(here, chosen, strict=True)]
        return jax.tree.unflatten(structure(params), chosen)

    orthogonal = functools.partial(
        scale_by_muon,
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        mu_dtype,
        nesterov=nesterov,
        bias_correction=bias_correction,
        consistent_rms=consistent_rms,
        axis_name=axis_name,
    )
    parts: dict[Hashable, AnyTransformation] = {
        name: orthogonal(reduction_axis=axes[0], output_axis=axes[1]) for name, _, axes in rules
    }
    parts["adam"] = scale_by_adam(adam_b1, adam_b2, eps, adam_eps_root, mu_dtype, nesterov=nesterov)
    rate = scale_by_learning_rate(learning_rate)
    if adam_learning_rate is not None:
        rate = partition(dict.fromkeys(parts, rate) | {"adam": scale_by_learning_rate(adam_learning_rate)}, labels)
    return chain(partition(parts, labels), *decayed(weight_decay, mask), rate)


def _rules(matrices: Any) -> list[tuple[str, Any, tuple[Any, Any]]]:
    """What each kind of matrix is called, which leaves are of it, and their axes."""
    if matrices is None:
        return [("matrices", _of_two_axes, (-2, -1))]
    if not (isinstance(matrices, (list, tuple)) and all(isinstance(one, (list, tuple)) for one in matrices)):
        return [("matrices", as_mask("matrices", matrices), (-2, -1))]
    rules = []
    for i, pair in enumerate(matrices):
        if len(pair) != 2 or not isinstance(pair[1], (list, tuple)) or len(pair[1]) != 2:
            raise TypeError(f"matrices[{i}]: expected (which, (reduction_axis, output_axis)), got {pair!r}")
        rules.append((f"matrices[{i}]", as_mask(f"matrices[{i}]", pair[0]), tuple(pair[1])))
    return rules


def _of_two_axes(params: Params) -> PyTree:
    return jax.tree.map(lambda x: jnp.ndim(x) == 2, params)
