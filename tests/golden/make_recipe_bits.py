"""Makes recipe_bits.npz: what every recipe, brick and wrapper computes over 20 steps, to the last bit.

A redesign of the core is not to move a bit of any update or state. Run by hand before one, from the project's root:

    PYTHONPATH=. python tests/golden/make_recipe_bits.py

Of every case, jitted and eager, the file has a digest of each step (the structure, and the dtype, shape and bytes of
every leaf of updates and state, in order) and the arrays of the last step, so that a difference can be shown. What may
differ elsewhere is the compiler: which products and sums it fuses into one rounding, how wide it makes its vectors and
so in what order it adds, and its polynomials of exp and log. The file says with which jaxlib and for which features of
the CPU it was made; ``test_recipe_bits.py`` asks for equal bits where those are the same.

The bits are those of commit 43fd9ea, but for the cases with ``accumulate``, whose state has two scalars more since, and
for ``skip_nonfinite`` jitted: a guard is fused with what it guards since, and other products and sums are rounded once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import platform
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax

import gradxform as gx

STEPS = 20
FILE = pathlib.Path(__file__).parent / "recipe_bits.npz"
SHAPES: Any = {
    "body": [{"bias": (3,), "kernel": (4, 3)}, {"kernel": (2, 2, 3)}],
    "head": {"kernel": (4, 3)},
    "nothing": (0, 3),
    "temperature": (),
}
MASK = {
    "body": [{"bias": False, "kernel": True}, {"kernel": True}],
    "head": {"kernel": False},
    "nothing": True,
    "temperature": False,
}
LABELS = {"body": "slow", "head": "fast", "nothing": "slow", "temperature": "fast"}
LAYERS = (r"^body/(\d+)/",)
S = gx.schedules
RATE = S.warmup(3, S.cosine(0.1, 15))
HALF = gx.ndim_at_least(2)

Tree = Any


def _fill(make: Callable[[tuple[int, ...]], np.ndarray]) -> Tree:
    return jax.tree.map(
        lambda shape: np.asarray(make(shape), np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def problem() -> tuple[list[Tree], list[Tree]]:
    """The params and the gradients of every step, in float32.

    The params do not follow the updates, so that a last digit that differs does not grow from step to step. Two
    elements of body/0 never have a gradient; the scale of the others runs from 0.03 to 3.
    """
    random = np.random.RandomState(20261127)
    start, drift = _fill(lambda s: random.standard_normal(s)), _fill(lambda s: random.standard_normal(s))
    params, gradients = [], []
    for _ in range(STEPS):
        size = 10.0 ** random.uniform(-1.5, 0.5)
        params.append(jax.tree.map(lambda p: np.float32(p + 0.1 * random.standard_normal(p.shape)), start))
        gradients.append(jax.tree.map(lambda d: np.float32(size * (random.standard_normal(d.shape) + d / 2)), drift))
        gradients[-1]["body"][0]["bias"][0] = 0
        gradients[-1]["body"][0]["kernel"][0, 0] = 0
    return params, gradients


def fisher() -> Tree:
    random = np.random.RandomState(3)
    return _fill(lambda s: random.uniform(0, 2, s))


@dataclasses.dataclass(frozen=True)
class Case:
    """A transformation, how its steps are run, and at which steps a gradient has an infinity."""

    make: Callable[[], Any]
    argument: bool = False
    broken: tuple[int, ...] = ()


CASES: dict[str, Case] = {}


def case(name: str, make: Callable[[], Any], **options: Any) -> None:
    assert name not in CASES
    CASES[name] = Case(make, **options)


def _cases() -> None:
    # Recipes.
    case("sgd", lambda: gx.sgd(0.1))
    case("sgd momentum", lambda: gx.sgd(RATE, momentum=0.9, accumulator_dtype="bfloat16", weight_decay=0.01, mask=HALF))
    case("sgd nesterov", lambda: gx.sgd(0.1, momentum=0.9, nesterov=True))
    case("adam", lambda: gx.adam(0.1))
    case(
        "adam nesterov decay",
        lambda: gx.adam(RATE, eps_root=1e-8, mu_dtype="bfloat16", weight_decay=0.1, mask=MASK, nesterov=True),
    )
    case("adamw", lambda: gx.adamw(1e-3))
    case("adamw mask", lambda: gx.adamw(RATE, weight_decay=0.1, mask=MASK))
    case(
        "adamw schedules",
        lambda: gx.adamw(
            RATE,
            weight_decay=S.linear(0.1, 0.0, 10),
            mask=HALF,
            mu_dtype="bfloat16",
            nesterov=True,
            base_learning_rate=0.5,
        ),
    )
    case("adamw argument", lambda: gx.adamw(0.01, b1=0.8, mask=HALF), argument=True)
    case("amsgrad", lambda: gx.amsgrad(0.1))
    case(
        "amsgrad torch",
        lambda: gx.amsgrad(
            RATE, bias_correction_mu=False, max_of_corrected=False, weight_decay=0.1, mu_dtype="bfloat16", mask=MASK
        ),
    )
    case("nadam", lambda: gx.nadam(0.1))
    case("nadam momentum decay", lambda: gx.nadam(RATE, momentum_decay=4e-3, weight_decay=0.1, mask=HALF))
    case("nadamw", lambda: gx.nadamw(0.1, weight_decay=0.1))
    case("nadamw momentum decay", lambda: gx.nadamw(RATE, momentum_decay=4e-3, mu_dtype="bfloat16", mask=MASK))
    case("radam", lambda: gx.radam(0.1))
    case("radam nesterov", lambda: gx.radam(RATE, b2=0.9, nesterov=True, weight_decay=0.1, mask=MASK))
    case("adabelief", lambda: gx.adabelief(0.1))
    case("adabelief nesterov", lambda: gx.adabelief(RATE, nesterov=True, weight_decay=0.1, mask=MASK))
    case("lion", lambda: gx.lion(0.1))
    case("lion mask", lambda: gx.lion(RATE, mu_dtype="bfloat16", weight_decay=S.constant(0.1), mask=MASK))
    case("yogi", lambda: gx.yogi(0.1))
    case("yogi plain", lambda: gx.yogi(RATE, bias_correction=False, initialize_mu=False, weight_decay=0.1, mask=HALF))
    case("lamb", lambda: gx.lamb(0.1))
    case("lamb masks", lambda: gx.lamb(RATE, weight_decay=0.1, mask=MASK, trust_ratio_mask=HALF, max_trust_ratio=2.0))
    case("lars", lambda: gx.lars(0.1))
    case("lars masks", lambda: gx.lars(RATE, weight_decay=0.1, mask=MASK, trust_ratio_mask=HALF, nesterov=True))
    case("lars optax", lambda: gx.lars(0.1, weight_decay=0.1, norm_of_sum=False, rate_in_momentum=False))
    case("rmsprop", lambda: gx.rmsprop(0.1))
    case(
        "rmsprop centered",
        lambda: gx.rmsprop(
            RATE, centered=True, momentum=0.9, nesterov=True, initial_scale=1.0, weight_decay=0.1, mask=MASK
        ),
    )
    case(
        "rmsprop torch",
        lambda: gx.rmsprop(0.1, eps_in_sqrt=False, momentum=0.9, bias_correction=True, rate_in_momentum=False),
    )
    case("adagrad", lambda: gx.adagrad(0.1))
    case("adagrad torch", lambda: gx.adagrad(RATE, eps_in_sqrt=False, weight_decay=0.1, mask=MASK))
    case("adafactor", lambda: gx.adafactor(0.1, min_dim_size_to_factor=2))
    case("adafactor whole", lambda: gx.adafactor(factored=False, multiply_by_parameter_scale=False))
    case(
        "adafactor momentum",
        lambda: gx.adafactor(
            RATE, min_dim_size_to_factor=2, momentum=0.9, dtype_momentum="bfloat16", weight_decay=0.1, mask=MASK
        ),
    )
    case(
        "adafactor torch",
        lambda: gx.adafactor(
            0.1,
            min_dim_size_to_factor=1,
            relative_step=True,
            rate_on_decay=True,
            weight_decay=0.1,
            factored_axes="last",
            clamp_epsilon=True,
        ),
    )
    # Bricks.
    case("scale_by_adam", gx.scale_by_adam)
    case("scale_by_amsgrad", gx.scale_by_amsgrad)
    case("scale_by_belief", gx.scale_by_belief)
    case("scale_by_factored_rms", lambda: gx.scale_by_factored_rms(min_dim_size_to_factor=3, step_offset=2))
    case("scale_by_lion refined", lambda: gx.scale_by_lion(mode="refined"))
    case("scale_by_lion smooth", lambda: gx.scale_by_lion(mode="smooth"))
    case("scale_by_nadam", gx.scale_by_nadam)
    case("scale_by_radam", gx.scale_by_radam)
    case("scale_by_rms", lambda: gx.scale_by_rms(bias_correction=True))
    case("scale_by_rss", gx.scale_by_rss)
    case("scale_by_stddev", lambda: gx.scale_by_stddev(initial_scale=1.0))
    case("scale_by_yogi", gx.scale_by_yogi)
    case("scale_by_trust_ratio", lambda: gx.scale_by_trust_ratio(min_norm=0.01, eps=1e-3, weight_decay=0.1))
    case("scale_by_param_block_rms", gx.scale_by_param_block_rms)
    case("scale", lambda: gx.scale(-0.3))
    case("scale_by_schedule", lambda: gx.scale_by_schedule(S.exponential(1.0, 0.1)))
    case("scale_by_learning_rate", lambda: gx.scale_by_learning_rate(RATE))
    case("add_decayed_weights", lambda: gx.add_decayed_weights(S.linear(0.1, 0.0, 10)))
    case("add_noise", lambda: gx.add_noise(0.1, 0.55, key=3))
    case("centralize", gx.centralize)
    case("trace", lambda: gx.trace(0.9, nesterov=True, accumulator_dtype="bfloat16"))
    case("ema", lambda: gx.ema(0.9))
    case("ema biased", lambda: gx.ema(0.9, debias=False, accumulator_dtype="bfloat16"))
    case("clip", lambda: gx.clip(0.5))
    case("clip_by_global_norm", lambda: gx.clip_by_global_norm(1.0, eps=1e-6))
    case("clip_by_block_rms", lambda: gx.clip_by_block_rms(0.5))
    case("adaptive_grad_clip", lambda: gx.adaptive_grad_clip(0.1))
    case("record_norms", lambda: gx.chain(gx.record_norms(), gx.clip_by_global_norm(1.0), gx.sgd(0.5)))
    case("add_l2_sp", lambda: gx.transfer.add_l2_sp(None, 0.3))
    case(
        "add_l2_sp head",
        lambda: gx.transfer.add_l2_sp(problem()[0][0], S.linear(0.3, 0.1, 10), head_strength=0.1, head="^head"),
    )
    case("add_ewc", lambda: gx.transfer.add_ewc(None, fisher(), 0.3))
    case(
        "add_ewc head",
        lambda: gx.chain(
            gx.transfer.add_ewc(problem()[0][0], fisher(), 0.3, head_strength=0.1, head="^head"),
            gx.adamw(RATE, mask=MASK),
        ),
    )
    # Wrappers and chains.
    adam = gx.adam(0.1)
    case("set_to_zero", gx.set_to_zero)
    case("masked", lambda: gx.masked(gx.scale_by_adam(), MASK))
    case("masked_chain", lambda: gx.masked(gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(RATE)), HALF))
    case("partition", lambda: gx.partition({"slow": gx.sgd(0.1, 0.9), "fast": gx.adamw(RATE, mask=HALF)}, LABELS))
    case(
        "selective_transform",
        lambda: gx.selective_transform(
            gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1)), freeze_mask=gx.path_matches("^body")
        ),
    )
    case("freeze", lambda: gx.chain(adam, gx.freeze(gx.path_matches("bias"))))
    case("accumulate", lambda: gx.accumulate(gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(RATE)), every=4))
    case("skip_nonfinite", lambda: gx.skip_nonfinite(gx.adamw(RATE), 5, raise_in_jit=False), broken=(3, 4, 11))
    case("layerwise_decay", lambda: gx.chain(gx.scale_by_adam(), gx.transfer.layerwise_decay(RATE, 0.7, LAYERS)))
    case("scale_by_layer", lambda: gx.chain(gx.adamw(0.1), gx.transfer.scale_by_layer(0.7, LAYERS)))
    case("discriminative_rates", lambda: gx.transfer.discriminative_rates(RATE, 0.3, LAYERS))
    case(
        "gradual_unfreeze",
        lambda: gx.transfer.gradual_unfreeze(
            gx.adamw(RATE),
            (("^head", 0), ("^body/1", 4), ("^body/0", 8), ("", None)),
            before=gx.clip_by_global_norm(1.0),
        ),
    )
    case("clip_and_adamw", lambda: gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(RATE, mask=MASK)))
    case(
        "clip_and_adamw argument",
        lambda: gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1, mask=HALF)),
        argument=True,
    )
    case(
        "named_chain",
        lambda: gx.chain(
            gx.clip(2.0),
            gx.named_chain(
                ("norm", gx.clip_by_global_norm(1.0)),
                ("rule", gx.chain(gx.scale_by_adam(), gx.identity())),
                ("center", gx.centralize()),
                ("rate", gx.scale_by_learning_rate(RATE)),
            ),
        ),
    )
    case("stateless", lambda: gx.chain(adam, gx.stateless(lambda u, p: jax.tree.map(lambda x: 2 * x, u)), adam))
    case(
        "two_clips",
        lambda: gx.chain(
            gx.clip_by_block_rms(0.7),
            gx.clip_by_global_norm(1.0),
            gx.scale_by_rms(),
            gx.clip_by_global_norm(3.0),
            gx.scale(-0.1),
        ),
    )
    case(
        "optax_inside",
        lambda: gx.chain(
            optax.clip_by_global_norm(1.0),
            gx.adamw(RATE, mask=MASK),
            optax.trace(0.9),
            gx.masked(optax.scale(2.0), HALF),
        ),
    )
    case("inside_optax", lambda: optax.chain(gx.clip_by_global_norm(1.0), optax.masked(gx.adamw(RATE), MASK)))
    case(
        "nested_wrappers",
        lambda: gx.accumulate(
            gx.skip_nonfinite(
                gx.partition(
                    {
                        "slow": gx.masked(gx.adamw(RATE), HALF),
                        "fast": gx.chain(gx.clip_by_global_norm(1.0), gx.trace(0.9)),
                    },
                    LABELS,
                ),
                5,
                raise_in_jit=False,
            ),
            every=2,
        ),
        broken=(2,),
    )


_cases()


def run(one: Case, jitted: bool) -> Iterator[tuple[str, list[np.ndarray]]]:
    """The structure of updates and state, and their leaves in order, after every step."""
    params, gradients = problem()
    tx = one.make()
    step = lambda tx, g, state, p: optax.with_extra_args_support(tx).update(g, state, p)  # noqa: E731
    if jitted:
        step = jax.jit(step) if one.argument else jax.jit(lambda tx, *rest, step=step, own=tx: step(own, *rest))
    state = tx.init(jax.tree.map(jnp.asarray, params[0]))
    for t, (p, g) in enumerate(zip(params, gradients, strict=True)):
        if t in one.broken:
            g["head"]["kernel"][1, 1] = np.inf
        given = tx if one.argument or not jitted else None
        updates, state = step(given, jax.tree.map(jnp.asarray, g), state, jax.tree.map(jnp.asarray, p))
        leaves, structure = jax.tree.flatten((updates, state))
        yield (
            str(structure),
            [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in leaves],
        )


def digest(structure: str, leaves: list[np.ndarray]) -> np.uint64:
    """64 bits of SHA-256 over a structure and the dtype, shape and bytes of its leaves."""
    seen = hashlib.sha256(structure.encode())
    for leaf in leaves:
        seen.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return np.frombuffer(seen.digest()[:8], "<u8")[0]


def machine() -> str:
    """The compiler and the features of the CPU for which it compiles."""
    flags: set[str] = set()
    cpu = pathlib.Path("/proc/cpuinfo")
    if cpu.exists():
        lines = [line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))]
        flags = {
            flag
            for line in lines[:1]
            for flag in line.split()
            if flag.startswith(("sse", "avx", "fma", "f16c", "bmi", "amx", "asimd", "sve"))
        }
    return " ".join([f"jaxlib-{jaxlib.__version__}", platform.machine(), *sorted(flags)])


def main() -> None:
    names = [f"{name}, {mode}" for name in CASES for mode in ("jitted", "eager")]
    digests, structures, last = [], [], []
    for name in names:
        key, _, mode = name.rpartition(", ")
        steps = list(run(CASES[key], mode == "jitted"))
        digests.append([digest(*step) for step in steps])
        structures.append(steps[-1][0])
        last.append([leaf.tobytes() for leaf in steps[-1][1]])
    np.savez_compressed(
        FILE,
        machine=machine(),
        names=names,
        digests=np.array(digests, np.uint64),
        # As bytes, which compress; the sizes say where a leaf ends.
        structures=np.frombuffer("\n".join(structures).encode(), np.uint8),
        counts=np.array([len(leaves) for leaves in last], np.uint16),
        sizes=np.array([len(leaf) for leaves in last for leaf in leaves], np.uint16),
        last=np.frombuffer(b"".join(leaf for leaves in last for leaf in leaves), np.uint8),
    )


if __name__ == "__main__":
    main()
