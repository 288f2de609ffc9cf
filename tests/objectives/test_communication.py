"""The benchmark's account of what devices send each other."""

from benchmarks.memory_bank import count_collectives

HLO = """
ENTRY %main {
  %g = f32[384,128]{1,0} all-gather(%x), channel_id=1, dimensions={0}
  %all-reduce.1 = (f32[10]{0}, bf16[2,3]{1,0}, /*index=2*/s32[]) all-reduce(%a, %b, %c)
  %s = (f32[5]{0}, f32[40]{0}) all-gather-start(%y), dimensions={0}
  ROOT %d = f32[40]{0:T(8,128)S(1)} all-gather-done(%s)
  %p = u32[4]{0} collective-permute(%z), source_target_pairs={{0,1}}
  %f = f32[100]{0} fusion(%all-reduce.1, %g), kind=kLoop, calls=%all-reduce_fusion
}
"""


def test_collectives_are_counted_by_kind():
    assert count_collectives(HLO) == {
        "all-gather": 4 * 384 * 128 + 4 * 40,
        "all-reduce": 4 * 10 + 2 * 6 + 4,
        "collective-permute": 16,
    }
    assert count_collectives("%x = f32[3]{0} add(%a, %b)") == {}
