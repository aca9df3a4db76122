"""Every public factory with one call of it, and for each of its arguments another value and values to refuse.

The tests of what a value is loop over this table, so that no factory and no argument is left out of them;
``test_value_catalog.py`` checks that the table is complete.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import gradxform as gx

NAN = math.nan
PARAMS = {
    "dense": {"kernel": jnp.arange(1.0, 7.0).reshape(2, 3) / 7, "bias": jnp.array([0.5, -0.25, 0.0])},
    "scale": jnp.float32(1.5),
}
GRADS = jax.tree.map(lambda p: 0.3 * p - 0.1, PARAMS)
MASK = {"dense": {"kernel": True, "bias": False}, "scale": False}

TEXT: tuple[Any, ...] = ("much", None)
REAL = (NAN, "much", 1j, True)
COUNT = ("many", 1.5, NAN, True)
NOT_A_MASK = (1.0, {"dense": {"kernel": 1, "bias": False}, "scale": False})


@dataclasses.dataclass(frozen=True)
class Argument:
    """Another value for an argument, values that its factory has to refuse, and the given argument it stands for."""

    other: Any
    refused: tuple[Any, ...] = ()
    instead: str | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of a factory: the arguments given, and every argument it has."""

    factory: Callable[..., Any]
    given: dict[str, Any]
    arguments: dict[str, Argument]

    def __call__(self, **changes: Any) -> Any:
        replaced = {self.arguments[name].instead for name in changes}
        return self.factory(**({name: x for name, x in self.given.items() if name not in replaced} | changes))


def real(other: float) -> Argument:
    return Argument(other, REAL)


def nonnegative(other: float) -> Argument:
    return Argument(other, (*REAL, -0.5))


def positive(other: float) -> Argument:
    return Argument(other, (*REAL, -0.5, 0.0))


def unit(other: float) -> Argument:
    """In [0, 1)."""
    return Argument(other, (*REAL, -0.5, 1.0))


def closed_unit(other: float) -> Argument:
    """In [0, 1]."""
    return Argument(other, (*REAL, -0.5, 1.5))


def integer(other: int, least: int) -> Argument:
    return Argument(other, (*COUNT, least - 1))


def flag(other: bool) -> Argument:
    return Argument(other, ("yes", 0.5))


def dtype() -> Argument:
    return Argument("bfloat16", ("float99", "int32", 3))


MASKS = Argument(MASK, NOT_A_MASK)
AXIS = {"axis_name": Argument("data", (3, ("data", 0), {"data": "rows"}))}
DECAY = real(0.375)
MOMENTS = {"b1": unit(0.5), "b2": unit(0.75), "eps": nonnegative(0.125), "eps_root": nonnegative(0.0625)}
MU_DTYPE = {"mu_dtype": dtype()}
RECIPE = {"learning_rate": real(0.25), "weight_decay": DECAY, "mask": MASKS}
NESTEROV = {"nesterov": flag(True)}
RMS = {
    "decay": unit(0.5),
    "eps": nonnegative(0.125),
    "initial_scale": nonnegative(0.5),
    "eps_in_sqrt": flag(False),
    "bias_correction": flag(True),
}
TX = Argument(gx.scale(0.75), ("sgd", None, 3))
FACTORED = {
    "factored": flag(False),
    "decay_rate": positive(0.5),
    "factored_axes": Argument("last", ("first", 1)),
    "clamp_epsilon": flag(True),
    "min_dim_size_to_factor": integer(4, 1),
}
STEPS = integer(20, 0)
PERIOD = integer(20, 1)
S = gx.schedules


def double(x: Any, *_: Any) -> Any:
    return 2 * x


def negated(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda u: -u, updates)


def twice(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda u: 2 * u, updates)


CASES: dict[str, Case] = {}
ROOMS = {"schedules": S, "augment": gx.augment, "precision": gx.precision, "transfer": gx.transfer}


def case(factory: Callable[..., Any], given: dict[str, Any] | None = None, /, **arguments: Argument) -> None:
    _, room, *_ = factory.__module__.split(".")
    room = f"{room}." if room in ROOMS else ""
    CASES[room + factory.__name__] = Case(factory, given or {}, arguments)


RATE = {"learning_rate": 0.1}
# Recipes.
case(gx.sgd, RATE, **RECIPE, momentum=closed_unit(0.5), nesterov=flag(True), accumulator_dtype=dtype())
case(
    gx.rmsprop,
    RATE,
    **RECIPE,
    **RMS,
    centered=flag(True),
    momentum=closed_unit(0.5),
    nesterov=flag(True),
    rate_in_momentum=flag(False),
)
case(
    gx.adagrad,
    RATE,
    **RECIPE,
    initial_accumulator_value=nonnegative(0.5),
    eps=nonnegative(0.125),
    eps_in_sqrt=flag(False),
)
case(gx.adam, RATE, **RECIPE, **MOMENTS, **MU_DTYPE, **NESTEROV)
case(gx.adamw, RATE, **RECIPE, **MOMENTS, **MU_DTYPE, **NESTEROV, base_learning_rate=positive(0.5))
case(gx.nadam, RATE, **RECIPE, **MOMENTS, **MU_DTYPE, momentum_decay=nonnegative(0.01))
case(gx.nadamw, RATE, **RECIPE, **MOMENTS, **MU_DTYPE, momentum_decay=nonnegative(0.01))
case(
    gx.amsgrad,
    RATE,
    **RECIPE,
    **MOMENTS,
    **MU_DTYPE,
    bias_correction_mu=flag(False),
    bias_correction_nu=flag(False),
    max_of_corrected=flag(False),
)
case(
    gx.radam,
    RATE,
    **RECIPE,
    **(MOMENTS | {"b2": Argument(0.75, (*REAL, -0.5, 0.0, 1.0))}),
    **NESTEROV,
    threshold=Argument(4.5, (*REAL, 3.5)),
)
case(gx.adabelief, RATE, **RECIPE, **MOMENTS, **NESTEROV)
case(
    gx.yogi,
    RATE,
    **RECIPE,
    b1=unit(0.5),
    b2=unit(0.75),
    eps=nonnegative(0.125),
    bias_correction=flag(False),
    initialize_mu=flag(False),
)
case(gx.lion, RATE, **RECIPE, b1=unit(0.5), b2=unit(0.75), **MU_DTYPE)
case(
    gx.lars,
    RATE,
    **RECIPE,
    trust_coefficient=nonnegative(0.5),
    eps=nonnegative(0.125),
    trust_ratio_mask=MASKS,
    momentum=closed_unit(0.5),
    nesterov=flag(True),
    norm_of_sum=flag(False),
    rate_in_momentum=flag(False),
    stacked=MASKS,
    **AXIS,
)
case(gx.lamb, RATE, **RECIPE, **MOMENTS, trust_ratio_mask=MASKS, max_trust_ratio=positive(2.0), stacked=MASKS, **AXIS)
case(
    gx.adafactor,
    RATE,
    **RECIPE,
    **FACTORED,
    decay_offset=integer(3, 0),
    multiply_by_parameter_scale=flag(False),
    clipping_threshold=positive(2.0),
    momentum=unit(0.5),
    dtype_momentum=dtype(),
    eps=nonnegative(0.125),
    relative_step=flag(True),
    rate_on_decay=flag(True),
    **AXIS,
)
MUON = {
    "ns_coeffs": Argument((3.0, -4.0, 2.0), ((3.0, -4.0), 2.0, ("a", -4.0, 2.0), ((3.0, -4.0, 2.0),))),
    "ns_steps": integer(4, 1),
    "beta": unit(0.5),
    "eps": nonnegative(0.125),
    **MU_DTYPE,
    "nesterov": flag(False),
    "bias_correction": flag(False),
    "consistent_rms": positive(0.25),
    **AXIS,
}
case(
    gx.muon,
    RATE,
    **RECIPE,
    **MUON,
    matrices=Argument((("kernel", (0, 1)),), ("(", (("kernel", 0),), (("kernel",),))),
    adam_learning_rate=real(0.25),
    adam_b1=unit(0.5),
    adam_b2=unit(0.75),
    adam_eps_root=nonnegative(0.0625),
)
# Rules.
case(gx.scale, {"step_size": -0.5}, step_size=real(0.25))
case(gx.scale_by_learning_rate, RATE, learning_rate=real(0.25), flip_sign=flag(False))
case(
    gx.scale_by_schedule,
    {"step_size_fn": S.linear(1.0, 0.0, 4)},
    step_size_fn=Argument(S.linear(1.0, 0.0, 5), ("fast", 0.5)),
)
case(gx.scale_by_param_block_rms, min_scale=nonnegative(0.5), **AXIS)
case(gx.trace, {"decay": 0.9}, decay=closed_unit(0.5), nesterov=flag(True), accumulator_dtype=dtype())
case(gx.ema, {"decay": 0.9}, decay=unit(0.5), debias=flag(False), accumulator_dtype=dtype())
case(gx.scale_by_rms, **RMS)
case(gx.scale_by_stddev, **RMS)
case(gx.scale_by_rss, initial_accumulator_value=nonnegative(0.5), eps=nonnegative(0.125), eps_in_sqrt=flag(False))
case(gx.scale_by_adam, **MOMENTS, **MU_DTYPE, **NESTEROV)
case(
    gx.scale_by_amsgrad,
    **MOMENTS,
    **MU_DTYPE,
    bias_correction_mu=flag(False),
    bias_correction_nu=flag(False),
    max_of_corrected=flag(False),
)
case(gx.scale_by_belief, **MOMENTS, **NESTEROV)
case(
    gx.scale_by_yogi,
    **MOMENTS,
    initial_accumulator_value=nonnegative(0.5),
    bias_correction=flag(False),
    initialize_mu=flag(False),
)
case(
    gx.scale_by_radam,
    **(MOMENTS | {"b2": Argument(0.75, (*REAL, -0.5, 0.0, 1.0))}),
    **NESTEROV,
    threshold=Argument(4.5, (*REAL, 3.5)),
)
case(gx.scale_by_nadam, **MOMENTS, **MU_DTYPE, momentum_decay=nonnegative(0.01))
case(
    gx.scale_by_lion,
    b1=unit(0.5),
    b2=unit(0.75),
    **MU_DTYPE,
    mode=Argument("smooth", ("round", 1)),
    smooth_beta=Argument(0.5, REAL),
)
case(gx.scale_by_muon, **MUON, reduction_axis=Argument((-3, -2), COUNT), output_axis=Argument(-3, COUNT))
case(
    gx.scale_by_factored_rms,
    **FACTORED,
    step_offset=integer(3, 0),
    epsilon=nonnegative(0.125),
    decay_rate_fn=Argument(double, ("fast", 0.5)),
    **AXIS,
)
case(
    gx.scale_by_trust_ratio,
    min_norm=nonnegative(0.5),
    trust_coefficient=nonnegative(0.5),
    eps=nonnegative(0.125),
    weight_decay=nonnegative(0.375),
    max_ratio=positive(2.0),
    layer_axis=Argument(0, COUNT),
    **AXIS,
)
case(gx.add_decayed_weights, {"weight_decay": 0.1}, weight_decay=DECAY, mask=MASKS)
case(
    gx.add_noise,
    {"eta": 0.1, "gamma": 0.55, "key": 0},
    eta=nonnegative(0.5),
    gamma=nonnegative(0.25),
    key=Argument(1, ("seed", 1.5, None, True)),
    **AXIS,
)
case(gx.centralize, output_axis=Argument(-1, COUNT), **AXIS)
# Clips.
case(gx.clip, {"max_delta": 1.0}, max_delta=nonnegative(0.5))
case(gx.clip_by_global_norm, {"max_norm": 1.0}, max_norm=nonnegative(0.5), eps=nonnegative(0.125), **AXIS)
case(gx.clip_by_block_rms, {"threshold": 1.0}, threshold=positive(0.5), **AXIS)
case(
    gx.adaptive_grad_clip,
    {"clipping": 0.1},
    clipping=nonnegative(0.5),
    eps=nonnegative(0.125),
    axis=Argument(-1, ("rows", 1.5)),
    **AXIS,
)
# Combinators.
case(gx.identity)
case(gx.set_to_zero)
case(gx.record_norms, **AXIS)
case(gx.stateless, {"f": negated}, f=Argument(twice, ("sign", 3)))
case(
    gx.masked,
    {"inner": gx.scale(0.5), "mask": gx.ndim_at_least(1)},
    inner=TX,
    mask=MASKS,
    mask_compatible_extra_args=flag(True),
)
case(
    gx.partition,
    {"transforms": {"a": gx.scale(0.5), "b": gx.sgd(0.1)}, "param_labels": {"dense": "a", "scale": "b"}},
    transforms=Argument({"a": gx.scale(0.5), "b": gx.sgd(0.2)}, ("ab", {"a": "sgd"}, None)),
    param_labels=Argument({"dense": "b", "scale": "b"}),
    mask_compatible_extra_args=flag(True),
)
case(gx.freeze, {"mask": gx.path_matches("bias")}, mask=MASKS)
case(
    gx.selective_transform,
    {"optimizer": gx.sgd(0.1), "freeze_mask": gx.path_matches("bias")},
    optimizer=TX,
    freeze_mask=MASKS,
)
case(gx.accumulate, {"tx": gx.sgd(0.1), "every": 2}, tx=TX, every=integer(3, 1))
case(
    gx.skip_nonfinite,
    {"tx": gx.sgd(0.1), "max_consecutive": 2, "raise_in_jit": False},
    tx=TX,
    max_consecutive=integer(3, 0),
    raise_in_jit=flag(True),
    **AXIS,
)
# Loss scales.
POWER = Argument(8.0, (*REAL, 0.0, -2.0, 3.0))
case(
    gx.precision.dynamic_loss_scale,
    {"tx": gx.sgd(0.1), "initial": 16.0, "backoff_factor": 0.25},
    tx=TX,
    initial=POWER,
    growth_factor=Argument(4.0, (*REAL, 1.0, 3.0)),
    backoff_factor=Argument(0.5, (*REAL, 1.0, 0.3)),
    growth_interval=integer(3, 1),
    min_scale=POWER,
    max_scale=Argument(32.0, (*REAL, 0.0, -2.0, 48.0)),
    **AXIS,
)
case(gx.precision.static_loss_scale, {"tx": gx.sgd(0.1), "scale": 16.0}, tx=TX, scale=POWER, **AXIS)
# Selectors.
case(gx.path_matches, {"pattern": "bias$"}, pattern=Argument("kernel", (None, 3, "(")))
case(gx.ndim_at_least, {"n": 2}, n=integer(1, 0))
# Schedules.
case(S.constant, {"value": 0.5}, value=real(0.25))
case(S.step, {"init_value": 1.0, "gamma": 0.5, "every": 10}, init_value=real(0.25), gamma=positive(0.75), every=PERIOD)
case(S.exponential, {"init_value": 1.0, "rate": 0.1}, init_value=real(0.25), rate=real(0.2))
case(
    S.polynomial,
    {"init_value": 1.0, "end_value": 0.1, "steps": 10, "power": 2.0},
    init_value=real(0.25),
    end_value=real(0.2),
    steps=STEPS,
    power=positive(3.0),
)
case(
    S.linear,
    {"init_value": 1.0, "end_value": 0.1, "steps": 10},
    init_value=real(0.25),
    end_value=real(0.2),
    steps=STEPS,
)
case(
    S.cosine,
    {"init_value": 1.0, "steps": 10},
    init_value=real(0.25),
    steps=STEPS,
    end_value=real(0.2),
    exponent=positive(2.0),
)
case(
    S.cosine_restarts,
    {"init_value": 1.0, "steps": 10},
    init_value=real(0.25),
    steps=PERIOD,
    end_value=real(0.2),
    factor=integer(2, 1),
    decay=positive(0.5),
)
case(
    S.triangular,
    {"base_value": 0.1, "max_value": 1.0, "half_cycle": 10},
    base_value=real(0.25),
    max_value=real(0.75),
    half_cycle=PERIOD,
    mode=Argument("triangular2", ("square", 1)),
    gamma=positive(0.5),
)
case(
    S.one_cycle,
    {"max_value": 1.0, "steps": 10},
    max_value=real(0.75),
    steps=STEPS,
    warmup_fraction=closed_unit(0.5),
    div_factor=positive(10.0),
    final_div_factor=positive(100.0),
    anneal=Argument("linear", ("square", 1)),
)
case(S.inverse_sqrt, {"peak_value": 1.0, "warmup_steps": 10}, peak_value=real(0.75), warmup_steps=PERIOD)
case(
    S.warmup,
    {"steps": 10, "schedule": S.cosine(1.0, 20)},
    steps=STEPS,
    schedule=Argument(S.cosine(1.0, 30), TEXT),
    init_value=real(0.25),
)
case(
    S.warmup_stable_decay,
    {"peak_value": 1.0, "warmup_steps": 5, "stable_steps": 5, "decay_steps": 10},
    peak_value=real(0.75),
    warmup_steps=STEPS,
    stable_steps=STEPS,
    decay_steps=STEPS,
    init_value=real(0.25),
    end_value=real(0.2),
    decay=Argument("sqrt", ("square", 1)),
)
case(
    S.piecewise,
    {"init_value": 1.0, "boundaries_and_scales": {5: 0.5, 10: 0.1}},
    init_value=real(0.25),
    boundaries_and_scales=Argument(
        {5: 0.5, 10: 0.2}, ("late", [5, 10], {5: "much"}, {5: NAN}, {5: -0.5}, {-1: 0.5}, {1.5: 0.5})
    ),
)
case(
    S.join,
    {"schedules": [S.constant(1.0), S.linear(1.0, 0.0, 10)], "boundaries": [5]},
    schedules=Argument([S.constant(1.0), S.linear(1.0, 0.0, 20)], ("late", ["late", 0.5], [0.5, NAN], 3)),
    boundaries=Argument([6], ("late", [1.5], [-1], [1, 2], 3)),
)
# Augmentations.
A = gx.augment
SIZE = Argument((20, 24), ("large", 0, -1, 1.5, (20,), (20, 24, 3), (0, 5), NAN))
BOUNDS = ("much", NAN, 1j, (0.5,), (0.9, 0.5), (NAN, 0.5), (-0.5, 0.5))
PAIR = Argument((0.25, 0.125), ("much", NAN, (0.5,), (NAN, 0.5), (-0.5, 0.5)))
BORDER = {
    "border": Argument("edge", ("wrap", 1, None)),
    "mask_fill": Argument(3, ("many", 1.5, None)),
    "fill": Argument((0.5, 0.25, 1.0), (*REAL, -0.5, 1.5, (0.5, 2.0))),
}
BETWEEN = {"interpolation": Argument("nearest", ("cubic", 1))}
RESIZING = {"interpolation": Argument("bicubic", ("cubic", 1)), "antialias": flag(False)}
DEGREES = Argument((-5.0, 15.0), (*REAL, -0.5, (0.5,), (15.0, -5.0), (NAN, 1.0)))
ENLARGED = Argument((1.5, 2.0), (*BOUNDS, (0.5, 2.0)))
STRENGTH = Argument((0.25, 0.375), (*BOUNDS, -0.5, True))
AUG = Argument(A.random_rotation(5.0), ("invert", None, 3, gx.sgd(0.1)))
case(A.random_crop, {"size": 16}, size=SIZE, padding=Argument((1, 2), ("wide", -1, 1.5, (1,))), **BORDER)
case(A.center_crop, {"size": 16}, size=SIZE)
case(
    A.resize,
    {"size": 16},
    size=SIZE,
    shorter=Argument(20, (0, 1.5, "much"), instead="size"),
    longer=Argument(20, (0, 1.5, "much"), instead="size"),
    **RESIZING,
)
case(A.pad, {"padding": 2}, padding=Argument(((1, 2), (3, 4)), ("wide", -1, 1.5, (1,), ((1, 2), 3))), **BORDER)
case(A.pad_to, {"size": 32}, size=SIZE, **BORDER)
case(A.letterbox, {"size": 32}, size=SIZE, **RESIZING, **BORDER)
case(A.random_scale_jitter, {"size": 16}, size=SIZE, scale=Argument((0.5, 0.75), BOUNDS), **RESIZING, **BORDER)
case(A.random_zoom_out, factor=ENLARGED, p=closed_unit(0.25), **RESIZING, **BORDER)
case(
    A.random_iou_crop,
    {"size": 16},
    size=SIZE,
    scale=Argument((0.5, 0.75), (*BOUNDS, (0.0, 1.0), (0.5, 1.5))),
    ratio=Argument((0.25, 4.0), (*BOUNDS, (0.0, 1.0))),
    overlaps=Argument((0.0, 0.5), ("much", (), (NAN,), (-0.5,))),
    **RESIZING,
)
case(
    A.random_object_crop,
    {"size": 16},
    size=SIZE,
    of=Argument("mask", ("points", 1)),
    classes=Argument((1, 2), (1, (), (0.5,), ("cat",))),
)
case(A.random_rot90, p=closed_unit(0.25))
case(A.random_transpose, p=closed_unit(0.25))
case(A.random_d4)
case(A.random_perspective, distortion_scale=closed_unit(0.25), p=closed_unit(0.25), **BETWEEN, **BORDER)
case(A.rotate, {"degrees": 30.0}, degrees=real(15.0), **BETWEEN, **BORDER, crop_border=flag(True))
case(
    A.random_resized_crop,
    {"size": 16},
    size=SIZE,
    scale=Argument((0.5, 0.75), (*BOUNDS, (0.0, 1.0), (0.5, 1.5))),
    ratio=Argument((0.5, 2.0), (*BOUNDS, (0.0, 1.0))),
    **RESIZING,
)
JOINTS = Argument(((1, 2), (3, 4)), (3, (1, 2), ((1, 2, 3),), ((0.5, 1),), ((1, -2),), ((1, 2), (2, 3))))
case(A.random_flip_left_right, p=closed_unit(0.25), joints=JOINTS)
case(A.random_flip_up_down, p=closed_unit(0.25), joints=JOINTS)
case(A.drop_slivers, visibility=closed_unit(0.25), side=nonnegative(2.0))
case(A.random_rotation, {"max_degrees": 30.0}, max_degrees=DEGREES, **BETWEEN, **BORDER, crop_border=flag(True))
case(
    A.random_affine,
    max_degrees=DEGREES,
    translate=PAIR,
    scale=Argument((0.5, 0.75), BOUNDS),
    shear=PAIR,
    **BETWEEN,
    antialias=flag(True),
    **BORDER,
)
case(A.elastic_deformation, alpha=nonnegative(15.0), sigma=positive(3.0), **BETWEEN, **BORDER)
case(
    A.color_jitter,
    brightness=STRENGTH,
    contrast=STRENGTH,
    saturation=STRENGTH,
    hue=Argument((-0.25, 0.375), ("much", NAN, (0.5,), (0.375, -0.25), 0.75, -0.5)),
)
case(A.random_brightness, {"amount": 0.5}, amount=STRENGTH)
case(A.random_contrast, {"amount": 0.5}, amount=STRENGTH)
case(A.random_saturation, {"amount": 0.5}, amount=STRENGTH)
case(A.random_hue, {"amount": 0.5}, amount=Argument((-0.25, 0.375), ("much", NAN, (0.5,), 0.75, -0.5)))
case(A.random_grayscale, p=closed_unit(0.25))
case(
    A.gaussian_blur,
    {"kernel_size": 5},
    sigma=Argument((0.5, 0.75), BOUNDS),
    kernel_size=Argument(3, ("wide", 1.5, -1, 4)),
)
case(A.sharpness, {"factor": 2.0}, factor=Argument((0.5, 2.0), (*BOUNDS, -0.5, None)))
case(A.posterize, {"bits": 4}, bits=Argument((3, 8), ("many", 1.5, -1, 9, (3, 9), (2.5, 4), (5, 3))))
case(A.solarize, {"threshold": 128.0}, threshold=Argument((64.0, 256.0), (*BOUNDS, -1.0, 257.0, (0.0, 257.0))))
case(A.jpeg, quality=Argument((30, 75), ("many", 1.5, 0, 101, (0, 9), (2.5, 4), (5, 3))))
case(A.random_gamma, gamma=Argument((0.5, 0.75), (*BOUNDS, 0.0, (0.0, 1.0))))
case(A.gaussian_noise, std=Argument((0.25, 0.5), (*BOUNDS, -0.5)), clip=flag(False))
for simple in (A.equalize, A.autocontrast, A.invert, A.channel_shuffle):
    case(simple)
case(
    A.normalize,
    {"mean": (0.5, 0.25, 0.125), "std": 0.5},
    mean=Argument(0.25, (*REAL, "mnist", "half")),
    std=Argument(0.25, (*REAL, 0.0, -0.5, None)),
)
case(A.cutout, {"size": 8}, size=integer(4, 1), fill=BORDER["fill"])
case(
    A.random_erasing,
    p=closed_unit(0.25),
    scale=Argument((0.25, 0.5), BOUNDS),
    ratio=Argument((0.5, 2.0), BOUNDS),
    fill=Argument("normal", (NAN, -0.5, 1.5, "noise")),
)
MIXING = {
    "per_image": flag(True),
    "label_smoothing": Argument(0.5, (*REAL, -0.5, 1.5)),
    "num_classes": Argument(10, ("many", 1.5, 0)),
}
case(A.mixup, alpha=positive(0.5), **MIXING)
case(A.cutmix, alpha=positive(0.5), **MIXING)
case(
    A.mixup_or_cutmix,
    mixup_alpha=positive(0.5),
    cutmix_alpha=positive(0.5),
    cutmix_probability=closed_unit(0.25),
    **MIXING,
)
case(
    A.mosaic,
    {"size": 16},
    size=SIZE,
    center=Argument((0.5, 0.75), (*BOUNDS, (0.5, 1.5))),
    fill=BORDER["fill"],
    mask_fill=BORDER["mask_fill"],
)
case(A.copy_paste, p=closed_unit(0.25))
POLICY = BETWEEN | BORDER
case(
    A.rand_augment,
    num_ops=integer(3, 1),
    magnitude=Argument(5.0, (*REAL, -0.5, 31.0)),
    preset=Argument("google", ("keras", 1, None)),
    probability=closed_unit(0.25),
    scaled=flag(True),
    **POLICY,
)
case(A.trivial_augment, **POLICY)
case(
    A.auto_augment,
    policy=Argument("svhn", ("mnist", 1, None)),
    interpolation=Argument("bilinear", ("cubic", 1)),
    **BORDER,
)
case(
    A.aug_mix,
    severity=Argument(2.0, (*REAL, 0.0, 11.0)),
    width=integer(2, 1),
    depth=Argument(2, ("many", 1.5, 0)),
    alpha=positive(0.5),
    all_ops=flag(True),
    interpolation=BETWEEN["interpolation"],
    fill=BORDER["fill"],
)
case(A.random_apply, {"aug": A.invert()}, aug=AUG, p=closed_unit(0.25))
case(A.two_views, {"first": A.invert()}, first=AUG, second=Argument(A.random_rotation(5.0), ("invert", 3)))
case(
    A.simclr_views,
    {"size": 20},
    size=Argument((24, 20), ("large", 0, 1.5)),
    strength=Argument(0.5, (*REAL, -0.5, 3.0)),
    blur=flag(False),
)
case(A.byol_views, {"size": 20}, size=Argument((24, 20), ("large", 0, 1.5)))
case(
    A.random_photometric_distort,
    brightness=STRENGTH,
    contrast=STRENGTH,
    saturation=STRENGTH,
    hue=Argument((-0.25, 0.375), ("much", NAN, (0.5,), 0.75, -0.5)),
    p=closed_unit(0.25),
)
case(A.three_augment, strength=nonnegative(0.5))
# Precision.
C = gx.precision
ROUNDING = {"rounding": Argument("nearest", ("down", 1))}
BLOCK = Argument(32, ("column", 1, 0, 1.5, True))
case(C.bf16, **ROUNDING)
case(C.fp8, top=positive(7.0), **ROUNDING)
case(C.int8_blockwise, block=BLOCK, code=Argument("linear", ("cubic", 1)), **ROUNDING)
case(C.int4_blockwise, block=BLOCK, **ROUNDING)
case(
    C.compress_state,
    {"tx": gx.adam(0.1), "min_size": 2},
    tx=TX,
    codec=Argument("fp8", ("fp99", 3, None, [3])),
    where=Argument("mu", ("(",)),
    min_size=integer(4, 1),
    seed=Argument(1, COUNT),
)
case(C.master_weights, {"tx": gx.sgd(0.1)}, tx=TX, bits=Argument(24, (*COUNT, 16, 8)))
case(C.stochastic_rounding, {"tx": gx.sgd(0.1)}, tx=TX, seed=Argument(1, COUNT))
# Transfer.
T = gx.transfer
LAYERS = Argument(("kernel",), ("(", (), 3, ("kernel", 3)))
HEAD = {"head_strength": nonnegative(0.25), "head": Argument("^scale$", ("(", 1.0))}
case(
    T.add_l2_sp,
    {"pretrained": None, "strength": 0.5, "head": "bias"},
    pretrained=Argument(PARAMS),
    strength=nonnegative(0.375),
    **HEAD,
)
case(
    T.add_ewc,
    {"pretrained": None, "fisher": GRADS, "strength": 0.5, "head": "bias"},
    pretrained=Argument(PARAMS),
    fisher=Argument(PARAMS),
    strength=nonnegative(0.375),
    **HEAD,
)
case(T.scale_by_layer, {"decay": 0.5, "groups": "bias"}, decay=Argument(0.75, (*REAL, 0.0, -0.5)), groups=LAYERS)
case(
    T.layerwise_decay,
    {"learning_rate": 0.1, "decay": 0.5, "groups": "bias"},
    learning_rate=real(0.25),
    decay=Argument(0.75, (*REAL, 0.0, -0.5)),
    groups=LAYERS,
)
case(
    T.discriminative_rates,
    {"first": 0.01, "last": 0.1, "groups": "bias"},
    first=nonnegative(0.02),
    last=nonnegative(0.2),
    groups=LAYERS,
)
case(
    T.gradual_unfreeze,
    {"optimizer": gx.sgd(0.1), "schedule": (("bias", 0), ("", 2))},
    optimizer=TX,
    schedule=Argument((("bias", 0), ("", 3)), ("late", (), (("(", 0),), (("bias", -1),), (("bias", 1.5),))),
    before=Argument(gx.clip_by_global_norm(1.0), ("clip", 3)),
)
# Chains take any number of transformations and so stand outside the table of arguments.
VARIADIC: dict[str, tuple[Any, Any]] = {
    "chain": (gx.chain(gx.clip(1.0), gx.sgd(0.1)), gx.chain(gx.clip(1.0), gx.sgd(0.2))),
    "named_chain": (
        gx.named_chain(("clip", gx.clip(1.0)), ("rate", gx.scale(0.1))),
        gx.named_chain(("clip", gx.clip(1.0)), ("speed", gx.scale(0.1))),
    ),
}
VARIADIC |= {
    "augment.chain": (A.chain(A.invert(), A.sharpness(2.0)), A.chain(A.invert(), A.sharpness(3.0))),
    "augment.views": (A.views(A.invert(), A.sharpness(2.0)), A.views(A.invert(), A.sharpness(3.0))),
    "augment.one_of": (A.one_of(A.invert(), A.sharpness(2.0)), A.one_of(A.invert(), A.sharpness(3.0))),
}
# A schedule goes wherever a rate does.
SCHEDULED = {f"{name} with a schedule": case_ for name, case_ in CASES.items() if "learning_rate" in case_.arguments}

WITH_ARRAYS = {"transfer.add_ewc"}
"""What is printed of an array is no call."""
TRANSFORMATIONS = {name: case_ for name, case_ in CASES.items() if isinstance(case_(), gx.Transformation)}


def values() -> dict[str, Any]:
    """One value of every public factory, and one of each that holds a schedule."""
    made = {name: case_() for name, case_ in CASES.items()}
    made |= {name: pair[0] for name, pair in VARIADIC.items()}
    made |= {name: case_(learning_rate=S.warmup(5, S.cosine(0.1, 20, 0.01))) for name, case_ in SCHEDULED.items()}
    made["both"] = gx.ndim_at_least(2) & gx.path_matches("kernel")
    made["either"] = gx.ndim_at_least(2) | gx.path_matches("bias")
    made["negated"] = ~gx.ndim_at_least(2)
    return made


VALUES = values()


def public_factories() -> dict[str, Callable[..., Any]]:
    """Every public function that was made a factory, found by looking and not by the table above."""
    flat = {name: getattr(gx, name) for name in gx.__all__}
    rooms = {f"{room}.{name}": getattr(module, name) for room, module in ROOMS.items() for name in module.__all__}
    return {
        name: item for name, item in (flat | rooms).items() if inspect.isfunction(item) and hasattr(item, "__wrapped__")
    }


def factories(value: Any) -> set[str]:
    """The factories whose transformations one is made of, its own included."""
    if isinstance(value, gx.Transformation):
        return {value.name} | factories(value.built) | factories([*value.arguments.values()])
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return set[str]().union(*map(factories, inside))


def equal_trees(a: Any, b: Any, rtol: float = 1e-6) -> None:
    """Asserts that two trees have one structure, the same dtypes and nearly the same numbers."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert jnp.allclose(x, y, rtol=rtol, atol=rtol, equal_nan=True), (x, y)
