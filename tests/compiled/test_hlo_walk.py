"""The walk through a program's text, on programs whose figures are known; no compiler for TPU is needed."""

from __future__ import annotations

import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks.compiled.cost import Work, work_of
from benchmarks.compiled.target import Chip
from gradxform.sharding.hlo import parse

CHIP = Chip(hbm=1e9, flops=1e12, memory=2**30, clock=1e9, lookup=1e-8)


def read(text: str, rounds: float = 1.0) -> Work:
    return work_of(parse(textwrap.dedent(text)), CHIP, rounds)


def hbm(work: Work) -> float:
    return sum(cost.hbm_bytes for cost in work.costs)


ADDED = """
    %added (p: f32[256]) -> f32[256] {
      %p = f32[256]{0} parameter(0)
      ROOT %sum = f32[256]{0} add(%p, %p)
    }
    """


def test_a_fusion_reads_its_operands_and_writes_its_results() -> None:
    work = read(
        ADDED
        + """
    ENTRY %main (x: f32[256]) -> f32[256] {
      %x = f32[256]{0:T(256)} parameter(0)
      ROOT %y = f32[256]{0:T(256)} fusion(%x), kind=kLoop, calls=%added, backend_config={"estimated_cycles":"700"}
    }
    """
    )
    assert hbm(work) == 2 * 256 * 4
    assert [cost.cycles for cost in work.costs] == [700]
    assert [cost.seconds for cost in work.costs] == [2 * 256 * 4 / 1e9]
    assert work.kinds["fusion"] == 1


def test_what_is_in_vmem_is_free() -> None:
    work = read(
        ADDED
        + """
    ENTRY %main (x: f32[256]) -> f32[256] {
      %x = f32[256]{0:T(256)S(1)} parameter(0)
      ROOT %y = f32[256]{0:T(256)} fusion(%x), kind=kLoop, calls=%added
    }
    """
    )
    assert hbm(work) == 256 * 4


@pytest.mark.parametrize(
    ("view", "moved"),
    [
        ("bitcast(%p)", 2 * 16),
        ("fusion(%p), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%tiled", 2 * 16),
        ("negate(%p)", 1024 + 16),
    ],
)
def test_slices_count_for_what_they_take_and_updates_in_place_for_what_they_put(view: str, moved: int) -> None:
    work = read(
        """
    %tiled (p: f32[1024]) -> f32[1024] {
      %p = f32[1024]{0:T(1024)} parameter(0)
      ROOT %again = f32[1024]{0:T(256)} copy(%p)
    }

    %replaced (p: f32[1024], i: s32[]) -> f32[1024] {
      %p = f32[1024]{0} parameter(0)
      %i = s32[] parameter(1)
      %view = f32[1024]{0} VIEW
      %old = f32[16]{0} dynamic-slice(%view, %i), dynamic_slice_sizes={16}
      %new = f32[16]{0} negate(%old)
      ROOT %out = f32[1024]{0} dynamic-update-slice(%view, %new, %i)
    }

    ENTRY %main (x: f32[1024], i: s32[]) -> f32[1024] {
      %x = f32[1024]{0} parameter(0)
      %i = s32[]{:S(2)} parameter(1)
      ROOT %y = f32[1024]{0} fusion(%x, %i), kind=kLoop, calls=%replaced
    }
    """.replace("VIEW", view)
    )
    assert hbm(work) == moved * 4


LOOP = """
    %condition (s: (s32[], f32[256], s32[])) -> pred[] {{
      %s = (s32[], f32[256]{{0}}, s32[]) parameter(0)
      %i = s32[] get-tuple-element(%s), index=0
      %n = s32[] {limit}
      ROOT %less = pred[] compare(%i, %n), direction={direction}
    }}

    %body (s: (s32[], f32[256], s32[])) -> (s32[], f32[256], s32[]) {{
      %s = (s32[], f32[256]{{0}}, s32[]) parameter(0)
      %i = s32[]{{:S(2)}} get-tuple-element(%s), index=0
      %x = f32[256]{{0}} get-tuple-element(%s), index=1
      %kept = s32[] get-tuple-element(%s), index=2
      %one = s32[]{{:S(2)}} constant(1)
      %next = s32[]{{:S(2)}} add(%i, %one)
      %y = f32[256]{{0}} fusion(%x), kind=kLoop, calls=%added
      ROOT %out = (s32[], f32[256]{{0}}, s32[]) tuple(%next, %y, %kept)
    }}

    ENTRY %main (x: f32[256], m: s32[]) -> (s32[], f32[256], s32[]) {{
      %x = f32[256]{{0}} parameter(0)
      %m = s32[] parameter(1)
      %start = s32[] constant(3)
      %end = s32[] {end}
      %init = (s32[], f32[256]{{0}}, s32[]) tuple(%start, %x, %end)
      ROOT %loop = (s32[], f32[256]{{0}}, s32[]) while(%init), condition=%condition, body=%body{known}
    }}
    """


@pytest.mark.parametrize(
    ("limit", "direction", "end", "known", "trips"),
    [
        ("constant(10)", "LT", "constant(0)", "", 7),
        ("constant(10)", "LE", "constant(0)", "", 8),
        ("constant(0)", "GT", "constant(0)", "", 3),
        ("get-tuple-element(%s), index=2", "LT", "constant(8)", "", 5),
        ("get-tuple-element(%s), index=2", "LT", "copy(%m)", "", None),
        ("get-tuple-element(%s), index=2", "LT", "copy(%m)", ', backend_config={"known_trip_count":{"n":"12"}}', 12),
    ],
)
def test_trips_of_a_loop(limit: str, direction: str, end: str, known: str, trips: int | None) -> None:
    work = read(ADDED + LOOP.format(limit=limit, direction=direction, end=end, known=known), rounds=2.5)
    fusion = next(cost for cost in work.costs if cost.op.kind == "fusion")
    assert fusion.trips == (2.5 if trips is None else trips)
    assert fusion.hbm_bytes == fusion.trips * 2 * 256 * 4
    assert len(work.unknown_loops) == (trips is None)
    assert work.kinds["while"] == 1


def test_of_a_conditional_the_dearest_branch_counts_and_in_the_mean_each() -> None:
    work = read(
        ADDED
        + """
    %cheap (p: f32[256]) -> f32[256] {
      ROOT %p = f32[256]{0} parameter(0)
    }

    %dear (p: f32[256]) -> f32[256] {
      %p = f32[256]{0} parameter(0)
      %once = f32[256]{0} fusion(%p), kind=kLoop, calls=%added, backend_config={"estimated_cycles":"600"}
      ROOT %twice = f32[256]{0} fusion(%once), kind=kLoop, calls=%added
    }

    %middling (p: f32[256]) -> f32[256] {
      %p = f32[256]{0} parameter(0)
      ROOT %once = f32[256]{0} fusion(%p), kind=kLoop, calls=%added, backend_config={"estimated_cycles":"300"}
    }

    ENTRY %main (x: f32[256], i: s32[]) -> f32[256] {
      %x = f32[256]{0} parameter(0)
      %i = s32[] parameter(1)
      ROOT %y = f32[256]{0} conditional(%i, %x, %x, %x), branch_computations={%cheap, %dear, %middling}
    }
    """
    )
    assert hbm(work) == 2 * 2 * 256 * 4
    assert sum(cost.cycles for cost in work.costs) == 600
    assert work.alike == (600 + 300) / 3


def test_look_ups_are_the_slices_that_gathers_take_and_scatters_put() -> None:
    work = read("""
    %add (a: f32[], b: f32[]) -> f32[] {
      %a = f32[] parameter(0)
      %b = f32[] parameter(1)
      ROOT %c = f32[] add(%a, %b)
    }

    ENTRY %main (x: f32[1000,128], i: s32[50,1], u: f32[50]) -> f32[1000] {
      %x = f32[1000,128]{1,0} parameter(0)
      %i = s32[50,1]{1,0} parameter(1)
      %u = f32[50]{0} parameter(2)
      %zero = f32[1000]{0} constant({...})
      %rows = f32[50,128]{1,0} gather(%x, %i), offset_dims={1}, collapsed_slice_dims={0}, slice_sizes={1,128}
      ROOT %y = f32[1000]{0} scatter(%zero, %i, %u), update_window_dims={}, inserted_window_dims={0}, to_apply=%add
    }
    """)
    assert {cost.op.kind: cost.lookups for cost in work.costs} == {"gather": 50, "scatter": 50}


def test_bytes_of_collectives_are_those_of_their_results() -> None:
    work = read("""
    ENTRY %main (x: f32[128]) -> f32[512] {
      %x = f32[128]{0} parameter(0)
      %start = (f32[128]{0}, f32[512]{0}) all-gather-start(%x), dimensions={0}
      %all = f32[512]{0} all-gather-done(%start)
      %sum = (f32[512]{0}, bf16[4]{0}) all-reduce(%all, %x), to_apply=%add
      ROOT %y = f32[512]{0} get-tuple-element(%sum), index=0
    }
    """)
    assert work.collectives == [("all-gather", 1, 2048), ("all-reduce", 1, 2056)]
    assert hbm(work) == 0


def test_a_text_without_an_entry_or_of_unknown_elements_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a computation marked ENTRY, got 1 without"):
        read(ADDED)
    with pytest.raises(ValueError, match=r"expected elements of .*, got f31"):
        read("""
        ENTRY %main (x: f31[2]) -> f31[2] {
          %x = f31[2]{0} parameter(0)
          ROOT %y = f31[2]{0} negate(%x)
        }
        """)


def test_programs_that_xla_makes_here() -> None:
    def work(function: object, *shapes: object) -> Work:
        return work_of(parse(jax.jit(function).lower(*shapes).compile().as_text()), CHIP)  # type: ignore[arg-type]

    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    assert hbm(work(lambda x: x + 1, x)) == 2 * 4 * 1000
    looped = work(lambda x: lax.fori_loop(0, 7, lambda _, x: jnp.sin(x), x), x)
    assert looped.unknown_loops == [] and max(cost.trips for cost in looped.costs) == 7
    gathered = work(lambda x, i: x[i], x, jax.ShapeDtypeStruct((50,), jnp.int32))
    assert sum(cost.lookups for cost in gathered.costs) == 50
