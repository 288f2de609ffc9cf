"""Counting in programs written by hand, by hand; and in one that XLA compiled."""

# ruff: noqa: E501 (the programs' lines are as XLA writes them)

import jax
import jax.numpy as jnp
import pytest

from eir_jax.planning import count, hlo

HEAD = (
    "HloModule m, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }\n"
)
# 8 rows of 4 numbers a step of the loop, three times: 128 bytes read and written each.
LOOP = (
    HEAD
    + """
%body.1 (p: (s32[], f32[24,4])) -> (s32[], f32[24,4]) {
  %p = (s32[], /*index=1*/f32[24,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[24,4]{1,0} get-tuple-element(%p), index=1
  %rows = f32[8,4]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={8,4}
  %next = s32[] add(%i, %i)
  %y = f32[24,4]{1,0} dynamic-update-slice(%x, %rows, %i, %i)
  ROOT %t = (s32[], f32[24,4]{1,0}) tuple(%next, %y)
}

%cond.1 (p: (s32[], f32[24,4])) -> pred[] {
  %p = (s32[], f32[24,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %three), direction=LT
}

ENTRY %main.1 (a: (s32[], f32[24,4])) -> (s32[], f32[24,4]) {
  %a = (s32[], f32[24,4]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[24,4]{1,0}) while(%a), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
}
"""
)
FUSIONS = (
    HEAD
    + """
%gathers (q0: f32[100,4], q1: s32[2]) -> f32[2,4] {
  %q0 = f32[100,4]{1,0} parameter(0)
  %q1 = s32[2]{0} parameter(1)
  %g = f32[2,4]{1,0} gather(%q0, %q1), offset_dims={1}, slice_sizes={1,4}
  ROOT %n = f32[2,4]{1,0} negate(%g)
}

%writes (r0: f32[100,4], r1: f32[2,4], r2: s32[2]) -> f32[100,4] {
  %r2 = s32[2]{0} parameter(2)
  %r0 = f32[100,4]{1,0} parameter(0)
  %r1 = f32[2,4]{1,0} parameter(1)
  ROOT %s = f32[100,4]{1,0} scatter(%r0, %r2, %r1), to_apply=%other
}

%turns (s0: f32[100,4]) -> (bf16[4,100], f32[100,4]) {
  %s0 = f32[100,4]{1,0} parameter(0)
  %c = bf16[100,4]{1,0} convert(%s0)
  %t = bf16[4,100]{0,1} transpose(%c), dimensions={1,0}
  %d = f32[100,4]{1,0} add(%s0, %s0)
  ROOT %both = (bf16[4,100]{0,1}, f32[100,4]{1,0}) tuple(%t, %d)
}

ENTRY %main (bank: f32[100,4], index: s32[2]) -> f32[100,4] {
  %bank = f32[100,4]{1,0} parameter(0), metadata={op_name="bank"}
  %index = s32[2]{0} parameter(1)
  %one = f32[2,4]{1,0} fusion(%bank, %index), kind=kLoop, calls=%gathers, metadata={op_name="jit(step)/relations/neg"}
  %two = (bf16[4,100]{0,1}, f32[100,4]{1,0}) fusion(%bank), kind=kInput, calls=%turns
  %kept = f32[100,4]{1,0:T(8,128)S(1)} copy(%bank)
  %anew = f32[100,4]{0,1:T(8,128)S(1)} copy(%kept)
  %part = ((f32[100,4]{1,0}), f32[25,4]{1,0:S(1)}, s32[]) slice-start(%bank), slice={[0:25], [0:4]}
  ROOT %three = f32[100,4]{1,0} fusion(%bank, %one, %index), kind=kInput, calls=%writes
}
"""
)
WORK = (
    HEAD
    + """
ENTRY %main () -> f32[] {
  %x = bf16[2,8,8,3]{3,2,1,0} parameter(0)
  %k = bf16[5,3,3,3]{3,2,1,0} parameter(1)
  %y = (bf16[2,4,4,5]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/encoder/conv"}
  %dy = bf16[2,4,4,5]{3,2,1,0} get-tuple-element(%y), index=0
  %dk = (bf16[5,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%x, %dy), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %dx = (bf16[2,8,8,3]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %k), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %f = f32[6,8]{1,0} parameter(2)
  %g = f32[8,7]{1,0} parameter(3)
  %p = f32[6,7]{1,0} dot(%f, %g), lhs_contracting_dims={1}, rhs_contracting_dims={0}, operand_precision={highest,highest}
  %q = f32[6,7]{1,0} custom-call(%f, %g), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %first = s32[1]{0} parameter(4)
  %bank = f32[96,16]{1,0} parameter(5)
  %views = f32[2,32,16]{2,1,0} parameter(6)
  %sums = (f32[3,4,32,1]{3,2,1,0}, f32[3,4,32,1]{3,2,1,0}, f32[3,4,32,16]{3,2,1,0}, f32[3,1,32,16]{3,2,1,0}, s32[3,1,32,1]{3,2,1,0}) custom-call(%first, %bank, %views), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(step)/relations/jvp(other_rows)/pallas_call"}
  ROOT %z = f32[6,7]{1,0} convolution(%f, %g), dim_labels=bf_io->bf
}
"""
)
SAID = (
    HEAD
    + """
ENTRY %main () -> f32[] {
  %x = f32[10]{0} parameter(0)
  %big = bf16[40000]{0} parameter(1)
  %r = (f32[10]{0}, s32[2]{0}) all-reduce(%x, %x), to_apply=%sum
  %s = (f32[10]{0}, f32[40]{0}) all-gather-start(%x), dimensions={0}
  %d = f32[40]{0} all-gather-done(%s)
  %b = bf16[40000]{0} all-reduce-start(%big), to_apply=%sum
  ROOT %e = bf16[40000]{0} all-reduce-done(%b)
}
"""
)
STARTS = (
    HEAD
    + """
ENTRY %main () -> f32[] {
  %x = f32[1000]{0} parameter(0)
  %y = f32[3000]{0} parameter(1)
  %both = (f32[1000]{0}, f32[3000]{0}) all-reduce-start(%x, %y), to_apply=%sum
  %two = ((f32[1000]{0}, f32[3000]{0}), (f32[4000]{0}, f32[12000]{0})) all-gather-start(%x, %y), dimensions={0}
  %sent = (f32[1000]{0}, f32[1000]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}
  %near = (f32[1000]{0:S(1)}, f32[1000]{0}, u32[]) copy-start(%x)
  ROOT %done = f32[1000]{0:S(1)} copy-done(%near)
}
"""
)
BRANCHES = (
    HEAD
    + """
%small (p: f32[10]) -> f32[10] {
  %p = f32[10]{0} parameter(0)
  ROOT %n = f32[10]{0} negate(%p)
}

%large (q: f32[10]) -> f32[10] {
  %q = f32[10]{0} parameter(0)
  %e = f32[10]{0} exponential(%q)
  ROOT %l = f32[10]{0} log(%e)
}

%nothing (r: f32[10]) -> f32[10] {
  ROOT %r = f32[10]{0} parameter(0)
}

ENTRY %main (which: s32[], x: f32[10]) -> f32[10] {
  %which = s32[] parameter(0)
  %x = f32[10]{0} parameter(1)
  %some = f32[10]{0} conditional(%which, %x, %x, %x), branch_computations={%small, %large, %nothing}
  %is = pred[] compare(%which, %which), direction=EQ
  ROOT %other = f32[10]{0} conditional(%is, %some, %some), true_computation=%nothing, false_computation=%small
}
"""
)


SILENT = LOOP.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
assert SILENT != LOOP


@pytest.mark.parametrize("text", [LOOP, SILENT])
def test_a_loop_counts_as_often_as_it_turns(text):
    """As the compiler says, and where it does not (a TPU's), as its condition does."""
    program = hlo.parse(text)
    rows = list(count.rows(program))
    # The slice reads 128 bytes and two numbers, and writes 128; the update reads the
    # rows and two numbers and writes 128; the sum of two numbers writes a third.
    assert sum(row.bytes for row in rows) == 3 * (264 + 12 + 264)
    assert sum(row.times for row in rows) == 9
    assert program.in_place == 1


def test_fusions_read_what_they_gather_and_write_in_place():
    program = hlo.parse(FUSIONS)
    by_name = {
        run.instruction.name: count.moved(program, run) for run in hlo.executed(program)
    }
    assert by_name == {
        "one": 32 + 8 + 32,  # two rows, their places; two rows
        "two": 1600 + 800 + 1600,  # read once for both
        "kept": 3200,
        "anew": 3200,
        "part": 800,
        "three": 32 + 8 + 32,  # nothing of the rest is read or written
    }
    (kept,) = (r for r in hlo.executed(program) if r.instruction.name == "kept")
    assert count.moved(program, kept, on_chip=1) == 1600
    parts = {row.part for row in count.rows(program)}
    assert parts == {"relations", "rest"}


def test_copies_are_found_in_fusions_too():
    found = list(count.copies(hlo.parse(FUSIONS), at_least=1))
    assert [(c.of.dtype, c.of.dims, c.source, c.times) for c in found] == [
        ("bf16", (4, 100), (100, 4), 1),  # not the sum beside it, nor what is in place
        ("f32", (100, 4), (100, 4), 1),  # on the chip; its way there is no copy
    ]
    assert not list(count.copies(hlo.parse(FUSIONS), at_least=1601))


def test_products_and_convolutions():
    program = hlo.parse(WORK)
    work = [w for row in count.rows(program) for w in row.work]
    # Along an axis of 8 the four places of stride 2 see 2 + 3 + 3 + 3 numbers.
    conv = 2 * 2 * 5 * 3 * 11 * 11
    # Two views are scored, four are summed, and one's slope.
    fused = 2 * 96 * 16 * 32 * (2 + 4 + 1)
    product = 2 * 6 * 7 * 8
    assert [w.flops for w in work] == [conv] * 3 + [product] * 2 + [fused, product]
    assert [w.is_convolution for w in work] == [True] * 3 + [False] * 4
    assert [w.exact for w in work] == [False] * 3 + [True, False, False, False]
    assert work[5].dtype == "f32x3"
    assert count.convolutions(program) == {"bf16": 3}
    assert [row.part for row in count.rows(program)][:3] == ["convolutions"] * 3


def test_collectives_by_kind_type_and_bytes():
    found = [tuple(one) for one in count.collectives(hlo.parse(SAID))]
    assert found == [
        ("all-reduce", "f32", 48, 1),
        ("all-gather", "f32", 160, 1),
        ("all-reduce", "bf16", 80000, 1),
    ]


def test_what_begins_reads_its_operands_and_writes_its_results():
    program = hlo.parse(STARTS)
    by_name = {
        run.instruction.name: count.moved(program, run) for run in hlo.executed(program)
    }
    assert by_name == {
        "both": 16_000 + 16_000,
        "two": 16_000 + 64_000,
        "sent": 4_000 + 4_000,
        "near": 4_000 + 4_000,
    }
    *_, near = hlo.executed(program)
    assert count.moved(program, near, on_chip=1) == 4_000  # what it writes is not
    assert [(c.kind, c.bytes) for c in count.collectives(program)] == [
        ("all-reduce", 16_000),
        ("all-gather", 64_000),
        ("collective-permute", 4_000),
    ]


def test_of_branches_the_one_that_makes_most_is_run():
    program = hlo.parse(BRANCHES)
    ran = [run.instruction.name for run in hlo.executed(program)]
    assert ran == ["e", "l", "is", "n"]


def test_text_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule m\n")


def test_what_xla_compiles_here_is_understood():
    """A product of 64 x 32 x 16 in a loop of 5, a convolution, a donated argument."""

    def step(state, x, kernel):
        def body(_, total):
            return total + jnp.matmul(x, x.T)[: len(total), : len(total)]

        total = jax.lax.fori_loop(0, 5, body, state)
        return total, jax.lax.conv(kernel, kernel, (1, 1), "VALID")

    shapes = [(32, 32), (32, 16), (2, 3, 5, 5)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    program = hlo.parse(compiled.as_text())
    assert program.in_place == 1
    assert count.convolutions(program) == {"f32": 1}
    flops = sum(w.flops for row in count.rows(program) for w in row.work)
    # XLA may take the product out of the loop.
    product, convolution = 2 * 32 * 32 * 16, 2 * 2 * 2 * 3 * 25
    assert flops in (product + convolution, 5 * product + convolution)
    assert sum(row.bytes for row in count.rows(program)) > 4 * 32 * 32
