"""What a schedule promises as a value, and that no way of calling it changes a number."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradxform as gx

s = gx.schedules
SCHEDULES = [
    s.constant(0.1),
    s.step(0.1, 0.5, 3),
    s.exponential(0.1, 0.2),
    s.polynomial(0.1, 0.01, 6, 0.5),
    s.linear(0.1, 0.01, 6),
    s.cosine(0.1, 6, 0.01),
    s.cosine_restarts(0.1, 3, 0.01, factor=2, decay=0.5),
    s.triangular(0.01, 0.1, 3, "triangular2"),
    s.triangular(0.01, 0.1, 3, "exp_range", 0.9),
    s.one_cycle(0.1, 6),
    s.inverse_sqrt(0.1, 3),
    s.warmup(3, s.cosine(0.1, 6, 0.01), 0.001),
    s.warmup_stable_decay(0.1, 2, 2, 3, decay="sqrt"),
    s.piecewise(0.1, {3: 0.5, 5: 0.5}),
    s.join([s.linear(0.01, 0.1, 3), 0.05, s.cosine(0.1, 4)], [3, 5]),
]
every_schedule = pytest.mark.parametrize("made", SCHEDULES, ids=[f"{m.name}-{i}" for i, m in enumerate(SCHEDULES)])
ULPS = 1e-14 if jax.config.jax_enable_x64 else 5e-7


def test_list_is_complete():
    assert {made.name for made in SCHEDULES} == {f"schedules.{name}" for name in s.__all__}


@every_schedule
def test_print_pickle_equality(made):
    again = eval(repr(made), vars(gx))
    assert again == made and hash(again) == hash(made) and repr(again) == repr(made)
    assert pickle.loads(pickle.dumps(made)) == made
    assert jax.tree.unflatten(jax.tree.structure(made), jax.tree.leaves(made)) == made
    name = next(key for key, value in made.arguments.items() if not isinstance(value, str) and key != "boundaries")
    other = {"schedules": (0.3, 0.05, 0.1), "steps": 4, "boundaries_and_scales": {3: 0.4}}.get(name, 0.3)
    assert made.replace(**{name: other}) != made


def test_print():
    assert repr(s.cosine(1, 10)) == "schedules.cosine(init_value=1.0, steps=10, end_value=0.0, exponent=1.0)"
    assert repr(s.warmup(5, s.constant(0.1))) == (
        "schedules.warmup(steps=5, schedule=schedules.constant(value=0.1), init_value=0.0)"
    )
    assert s.cosine(1, 10) == s.cosine(1.0, 10, 0)


def test_numbers_are_children_and_steps_are_not():
    assert sorted(jax.tree.leaves(s.warmup(5, s.cosine(0.1, 10, 0.01), 0.2))) == [0.01, 0.1, 0.2, 1.0]
    assert jax.tree.structure(s.cosine(0.1, 10)) == jax.tree.structure(s.cosine(0.2, 10))
    assert jax.tree.structure(s.cosine(0.1, 10)) != jax.tree.structure(s.cosine(0.1, 11))
    assert sorted(jax.tree.leaves(s.triangular(1.0, 2.0, jnp.array(7)))) == [1.0, 1.0, 2.0, 7]


@every_schedule
def test_every_kind_of_step_agrees(made):
    steps = np.arange(12)
    whole, jitted = made(steps), jax.jit(made)
    assert whole.shape == (12,) and whole.dtype == jnp.result_type(float) and not whole.weak_type
    np.testing.assert_allclose(jitted(steps.reshape(3, 4)), whole.reshape(3, 4), rtol=ULPS)
    np.testing.assert_allclose(jax.jit(jax.vmap(made))(steps), whole, rtol=ULPS)
    for one in (made(4), made(np.int64(4)), *(jitted(kind(4)) for kind in (np.int8, np.uint32, jnp.uint8, float))):
        assert one.shape == () and one.dtype == whole.dtype
        np.testing.assert_allclose(one, whole[4], rtol=ULPS)
    assert made(-5) == made(0)


@every_schedule
def test_jit_is_eager_and_does_not_retrace(made):
    traces = []

    @jax.jit
    def call(schedule, step):
        traces.append(step)
        return schedule(step)

    steps = np.arange(12)
    np.testing.assert_allclose(jax.jit(made)(steps), made(steps), rtol=ULPS)
    np.testing.assert_allclose(call(made, steps), made(steps), rtol=4 * ULPS)
    other = jax.tree.map(lambda x: x * 0.9, made)
    np.testing.assert_allclose(call(other, steps + 1), other(steps + 1), rtol=4 * ULPS)
    assert len(traces) == 1


@every_schedule
def test_vmap_over_a_population(made):
    population = [made, jax.tree.map(lambda x: x * 0.9, made)]
    stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *population)
    got = jax.jit(jax.vmap(lambda schedule: schedule(np.arange(12))))(stacked)
    np.testing.assert_allclose(got, [one(np.arange(12)) for one in population], rtol=4 * ULPS)


def test_counts_of_steps_may_be_arrays():
    made = [
        (lambda n: s.step(0.1, 0.5, n), [2, 3]),
        (lambda n: s.polynomial(0.1, 0.01, n, 0.5), [4, 9]),
        (lambda n: s.linear(0.1, 0.01, n), [4, 9]),
        (lambda n: s.cosine(0.1, n, 0.01), [4, 9]),
        (lambda n: s.cosine_restarts(0.1, n, 0.01, factor=3), [1, 2]),
        (lambda n: s.triangular(0.01, 0.1, n), [1, 2]),
        (lambda n: s.one_cycle(0.1, n), [4, 9]),
        (lambda n: s.inverse_sqrt(0.1, n), [1, 4]),
        (lambda n: s.warmup(n, s.cosine(0.1, 6)), [0, 4]),
        (lambda n: s.join([0.1, s.cosine(0.2, 4)], [n]), [1, 4]),
        (lambda n: s.warmup_stable_decay(0.1, n, n, n + 1), [0, 3]),
    ]
    for make, counts in made:
        got = jax.jit(jax.vmap(lambda n, make=make: make(n)(np.arange(12))))(jnp.array(counts))
        np.testing.assert_allclose(got, [make(n)(np.arange(12)) for n in counts], rtol=4 * ULPS)
    # A count kept in 8 bits does not wrap.
    assert s.triangular(0.0, 1.0, jnp.array(100, jnp.int8))(200) == 0


def test_power_is_differentiable_where_the_fall_ends():
    made = s.polynomial(0.1, 0.0, 4, 0.3)
    slope = jax.jit(jax.vmap(jax.grad(lambda made, t: made(t)), (None, 0)))(made, np.arange(6)).arguments["power"]
    left = np.array([1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(slope, [*(0.1 * left**0.3 * np.log(left)), 0, 0], rtol=1e-5)


def test_values_are_no_narrower_than_float32():
    made = s.cosine(jnp.asarray(0.1, jnp.bfloat16), 10)
    assert made(0).dtype == jnp.result_type(float) and made(0) == jnp.asarray(0.1, jnp.bfloat16)
    followed = s.warmup(2, lambda step: jnp.asarray(0.5, jnp.float16))
    assert followed(3).dtype == jnp.result_type(float)


@pytest.mark.parametrize(
    "follow",
    [
        optax.cosine_decay_schedule(0.1, 6),
        optax.cosine_onecycle_schedule(10, 0.1),
        lambda step: 0.1,
        lambda step: 0.1 / (1 + step),
    ],
    ids=["optax", "optax one step at a time", "constant", "function"],
)
def test_other_functions_of_the_step(follow):
    steps = np.arange(8).reshape(2, 4)
    want = [float(follow(0)) * step / 3 if step < 3 else float(follow(step - 3)) for step in range(8)]
    for made in (s.warmup(3, follow), s.join([s.linear(0.0, follow(0), 3), follow], [3])):
        np.testing.assert_allclose(made(steps).ravel(), want, rtol=2e-6)
        np.testing.assert_allclose(jax.jit(made)(5), want[5], rtol=2e-6)
        assert made(steps[:0]).shape == (0, 4)
