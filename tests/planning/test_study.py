"""What is made of a compiled program's counts: by hand, and of programs compiled here."""

# ruff: noqa: E501 (the programs' lines are as XLA writes them)

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small import TINY, small_config
from test_main import run
from test_plan import elsewhere

from eir_jax.plan import main as plan_command
from eir_jax.planning import programs, study
from eir_jax.planning.topologies import Chip, Topology
from eir_jax.system import sharding
from eir_jax.system.config import load_config

TEXT = """HloModule m, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

ENTRY %main (bank: f32[1024,512]) -> f32[1024,512] {
  %bank = f32[1024,512]{1,0} parameter(0)
  %other = f32[600000]{0} parameter(1)
  %x = bf16[2,8,8,3]{3,2,1,0} parameter(2)
  %k = bf16[3,3,3,5]{3,2,1,0} parameter(3)
  %f = f32[6,8]{1,0} parameter(4)
  %g = f32[8,7]{1,0} parameter(5)
  %first = s32[1]{0} parameter(6)
  %rows = f32[96,16]{1,0} parameter(7)
  %views = f32[2,32,16]{2,1,0} parameter(8)
  %anew = f32[1024,512]{0,1} copy(%bank), metadata={op_name="jit(step)/memory/copy"}
  %less = bf16[600000]{0} convert(%other), metadata={op_name="jit(step)/optimizer/convert"}
  %y = bf16[2,4,4,5]{3,2,1,0} convolution(%x, %k), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, metadata={op_name="jit(step)/encoder/conv"}
  %p = f32[6,7]{1,0} dot(%f, %g), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/views/dot"}
  %q = f32[6,7]{1,0} dot(%f, %g), lhs_contracting_dims={1}, rhs_contracting_dims={0}, operand_precision={highest,highest}, metadata={op_name="jit(step)/encoder/dot"}
  %sums = (f32[3,4,32,1]{3,2,1,0}, f32[3,4,32,1]{3,2,1,0}, f32[3,4,32,16]{3,2,1,0}, f32[3,1,32,16]{3,2,1,0}, s32[3,1,32,1]{3,2,1,0}) custom-call(%first, %rows, %views), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(step)/relations/jvp(other_rows)/pallas_call"}
  %said = f32[6,7]{1,0} all-reduce(%p), to_apply=%sum
  ROOT %end = f32[1024,512]{0,1} bitcast(%anew)
}
"""
# Bytes and operations a second, so that each part's time is a round sum.
CHIP = Chip(
    memory=1e9,
    bandwidth=1e6,
    flops={"bf16": 1e5, "f32": 3e6, "exact": 1e4},
    link=1e4,
    network=1e3,
)


def described(chip, hosts=1):
    """Return what is found in TEXT, a device's part of the banks of four."""
    mesh = elsewhere("cuda", 4)
    bank = jax.ShapeDtypeStruct(
        (4096, 512), np.float32, sharding=sharding.split_rows(mesh)
    )
    queue = jax.ShapeDtypeStruct(
        (512, 1024), np.float32, sharding=sharding.replicated(mesh)
    )
    call = programs.Call(4, "images", 1, "all")
    watched = {"lightness": bank, "queue": queue, "colour": bank}
    program = programs.Lowering(None, (), 1, watched, call)
    return study.describe(TEXT, program, Topology("h100:4", mesh, chip, hosts))


def test_copies_bytes_and_work_of_a_program_by_hand():
    found = described(CHIP)
    assert found["in_place"] == {"leaves": 1, "updated": 1}
    assert found["copies"] == {"lightness or colour": 1, "queue": 0}
    assert found["copied_bytes"] == 4 * 1024 * 512 + 2 * 600_000
    assert found["convolutions"] == {"bf16": 1}
    # Along an axis of 8 the four places of stride 2 see 2 + 3 + 3 + 3 numbers; two
    # products; two views are scored, four summed, and one's slope.
    convolution, product = 2 * 2 * 5 * 3 * 11 * 11, 2 * 6 * 7 * 8
    fused = 2 * 96 * 16 * 32 * (2 + 4 + 1)
    assert found["flops"] == convolution + 2 * product + fused
    of_fused = 4 + 4 * 96 * 16 + 4 * 2 * 32 * 16  # read
    of_fused += 4 * 3 * 32 * (4 + 4 + 4 * 16 + 16 + 1)  # written
    of_convolution = 2 * (2 * 8 * 8 * 3 + 3 * 3 * 3 * 5 + 2 * 4 * 4 * 5)
    of_product, of_said = 4 * (48 + 56 + 42), 4 * (42 + 42)
    copied, converted = 2 * 4 * 1024 * 512, (4 + 2) * 600_000
    moved = copied + converted + of_convolution + 2 * of_product + of_fused + of_said
    assert found["bytes_moved"] == moved
    assert found["launches"] == 7
    assert found["collectives"] == [
        {"kind": "all-reduce", "dtype": "f32", "small": True, "number": 1, "bytes": 168}
    ]
    seconds = {part["part"]: part["seconds"] for part in found["parts"]}
    assert seconds == pytest.approx(
        {
            "memory": copied / 1e6,
            "optimizer": converted / 1e6,
            "convolutions": convolution / 1e5,  # which takes longer than its bytes
            "views": of_product / 1e6,  # whose bytes take longer
            "encoder": product / 1e4,  # exact
            "relations": fused / 1e6,  # three passes at a rate of 3e6
            "collectives": of_said / 1e4,
        }
    )
    assert list(seconds) == sorted(seconds, key=seconds.get, reverse=True)


def test_between_hosts_the_network_is_what_counts():
    (said,) = (p for p in described(CHIP, 2)["parts"] if p["part"] == "collectives")
    assert said["seconds"] == pytest.approx(4 * (42 + 42) / 1e3)
    assert all("seconds" not in part for part in described(None)["parts"])


def test_the_peak_holds_what_is_not_in_place_beside_the_arguments():
    sizes = {"argument": 1000, "output": 300, "alias": 200, "temp": 50}
    stats = SimpleNamespace(**{f"{k}_size_in_bytes": x for k, x in sizes.items()})
    assert study._memory(stats)["memory"] == {
        "arguments": 1000,
        "temporaries": 50,
        "peak": 1000 + 50 + (300 - 200),
    }


def nbytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_the_programs_of_a_run(tmp_path, capsys):
    """The step, what makes its views, and evaluation's embedding, on the CPU here."""
    (tmp_path / "config.py").write_text(TINY)
    words = [f"--config={tmp_path / 'config.py'}", "--topology=cpu:1", "--json"]
    plan_command([*words, "--num_examples=600", "--what=train,views,embed"])
    found = json.loads(capsys.readouterr().out)
    assert found["assumptions"][0].endswith("nothing has run.")
    train, views, embed = found["programs"]
    assert [facts["what"] for facts in found["programs"]] == ["train", "views", "embed"]
    config = load_config(tmp_path / "config.py")
    mesh = sharding.make_mesh(jax.devices()[:1])
    state = programs.Job(config, 600, mesh).parts().create_state()
    images, batch = 600 * 8 * 8 * 3, 4
    # Beside the images: index, partner, ratio, epoch and a box of four, 4 bytes each.
    assert train["memory"]["arguments"] == nbytes(state) + images + batch * 8 * 4
    assert train["memory"]["peak"] > sum(
        train["memory"][name] for name in ("arguments", "temporaries")
    )
    leaves = len(jax.tree.leaves(state))
    assert train["in_place"] == {"leaves": leaves, "updated": leaves}
    assert train["copies"] == {"bank": 0, "images": 0}
    assert set(train["convolutions"]) == {"f32"}
    task = "an epoch of 600 images"
    assert train["call"] == {"rows": 4, "of": "images", "number": 150, "task": task}
    assert views["call"] == train["call"]
    assert views["convolutions"] == {} and views["in_place"]["leaves"] == 0
    # Made of each image, and told of it: three views of float32, and their numbers.
    made = 4 * 3 * batch * 8 * 8 * 3
    assert made < views["memory"]["peak"] - images < 20 * made
    # On a CPU a kernel of one pixel is a product.
    kernels = [x for x in jax.tree.leaves(state.params) if x.ndim == 4 and len(x) > 1]
    assert embed["convolutions"] == {"f32": len(kernels)}
    given = nbytes(state.params) + nbytes(state.batch_stats) + 32 * 8 * 8 * 3
    assert embed["memory"]["arguments"] == given
    assert (embed["call"]["rows"], embed["call"]["number"]) == (32, 19)  # 18.75


def knn_of(num_test, devices, **settings):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    config = small_config(**settings)
    job = programs.Job(config, 300_000, mesh, num_test)
    return programs.lower_nearest(job), programs.lower_merge(job)


def test_calls_of_a_kNN():
    """10,000 queries are two chunks of ten blocks of 512."""
    nearest, merge = knn_of(10_000, 2)
    best, _, queries, rows, _ = nearest.arguments
    assert (best.shape, queries.shape) == ((2, 5120, 200), (5120, 16))
    # 150,000 rows a device are three blocks of at most 65,536.
    assert rows.shape[0] // 2 in range(50_000, 50_100)
    assert nearest.call.rows == 5120 and nearest.call.number == 2 * 3
    assert (
        nearest.call.task
        == "a kNN of 10,000 queries among 300,000 rows, beside 2 of merge"
    )
    assert (merge.call.rows, merge.call.number) == (5120, 2)
    assert [x.shape for x in merge.arguments] == [(2, 5120, 200)] * 2


def test_without_test_images_each_finds_itself_too():
    nearest, _ = knn_of(0, 1, **{"knn.k": (5,)})
    assert nearest.arguments[0].shape == (1, 8192, 6)
    assert nearest.call.task == "a kNN of 300,000 queries among 300,000 rows"


@pytest.mark.parametrize(
    ("expected", "share", "given", "found"),
    [
        ((50_000, 10_000), 0, 0, (50_000, 10_000)),
        ((50_000, 10_000), 0, 700, (700, 10_000)),
        ((5_000, 0), 0.1, 0, (4_500, 500)),
        ((5_000, 0), 0.1, 900, (900, 100)),
    ],
)
def test_images_that_are_held_out_are_not_trained_on(expected, share, given, found):
    config = small_config(**{"data.expected": expected, "data.held_out": share})
    assert study.sizes(config, given) == found


@pytest.mark.parametrize("source", ["folder", "arrays"])
def test_no_data_is_asked_for(source):
    config = small_config(**{"data.source": source, "knn.k": (1,)})
    found = study.plan(config, "cpu:1", ["nearest"], 600, say=lambda _: None)
    assert found["num_examples"] == 600


def test_what_plan_does_not_know_is_told_from_settings(tmp_path):
    (tmp_path / "config.py").write_text(TINY)
    words = [f"--config={tmp_path / 'config.py'}", "--topology=cpu:1"]
    ended = run("plan", *words, "--coordinator=x")
    said = ended.stderr
    assert ended.returncode == 2 and "unknown argument '--coordinator=x'" in said
    assert "workdir" not in said
