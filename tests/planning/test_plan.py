"""The command on a CPU, and what the programs of other platforms are made of."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from small import TINY, slots_of, small_config

from benchmarks import plans
from eir_jax.data.augment_device import put_images
from eir_jax.data.pipeline import make_train_batches
from eir_jax.models.encoder import make_encoder
from eir_jax.objectives.relations import Comparison, bank_candidates, relate
from eir_jax.objectives.systems import SYSTEMS
from eir_jax.plan import main as plan_command
from eir_jax.planning import programs, study, topologies
from eir_jax.run.validate import validate
from eir_jax.system import sharding
from eir_jax.system.config import load_config
from eir_jax.system.errors import UserError
from eir_jax.training.parts import make_parts

KERNELS = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}


class Device:
    """One that is not here."""

    process_index = 0

    def __init__(self, platform, number=0):
        self.platform, self.id = platform, number
        self.device_kind = {"cuda": "NVIDIA H100 80GB HBM3"}.get(platform, platform)


def elsewhere(platform, count=1):
    return sharding.make_mesh([Device(platform, n) for n in range(count)])


def test_the_target_is_the_meshs_own():
    assert sharding.target_of(elsewhere("cuda", 4)) == ("gpu", 4)
    assert sharding.target_of(elsewhere("tpu")) == ("tpu", 1)
    one = sharding.make_mesh(jax.devices()[:1])
    assert sharding.target_of(one) == ("cpu", 1)
    assert sharding.target_of(None) == ("cpu", jax.device_count())


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_fused_softmax_is_one_kernel(platform):
    rows = jax.ShapeDtypeStruct((512, 128), jnp.float32)
    views = jax.ShapeDtypeStruct((128, 128), jnp.float32)
    index = jax.ShapeDtypeStruct((128,), jnp.int32)

    def loss(view1, view2, bank, index):
        found = relate(
            *(view1, view2, bank_candidates(bank, index, 500), 0.1, Comparison()),
            form="fused",
            mesh=elsewhere(platform),
        )
        return found.divergence.sum()

    kernel = KERNELS[platform]
    unsafe = [export.DisabledSafetyCheck.custom_call(kernel)]
    how = {"platforms": [platform], "disabled_checks": unsafe}
    with study.for_kernels_of(elsewhere(platform)):
        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        module = export.export(step, **how)(views, views, rows, index).mlir_module()
    assert module.count(f"custom_call @{kernel}(") == 1  # and none backwards


@pytest.mark.parametrize(
    ("platform", "dtype", "bfloat16"),
    [("cuda", "auto", True), ("tpu", "auto", True), ("tpu", "float32", False)],
)
def test_convolutions_of_another_platform(platform, dtype, bfloat16):
    """XLA's own, forward and both gradients but that of the images."""
    config = small_config(**{"model.dtype": dtype})
    encoder = make_encoder(config, ((0,),), mesh=elsewhere(platform))
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), images)

    def loss(params, stats, images):
        output, _ = encoder.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return output.embedding.sum()

    exported = export.export(jax.jit(jax.grad(loss)), platforms=[platform])(
        variables["params"], variables["batch_stats"], images
    )
    lines = re.findall(
        r"stablehlo\.convolution.*-> tensor<(\S+)>", exported.mlir_module()
    )
    kernels = sum(len(k.shape) == 4 for k in jax.tree.leaves(variables["params"]))
    assert len(lines) == 3 * kernels - 1
    assert all(x.endswith("bf16") == bfloat16 for x in lines)


@pytest.mark.parametrize("pipeline", ["device", "tf.data"])
@pytest.mark.parametrize("objective", ["iraug", "eir_moco", "supervised"])
def test_the_batch_is_the_pipelines(pipeline, objective):
    if pipeline == "tf.data":
        pytest.importorskip("tensorflow")
    config = small_config(objective=objective, **{"data.pipeline": pipeline})
    if objective == "supervised":
        config.model.num_classes = 3
    images = np.zeros((40, 8, 8, 3), np.uint8)
    config.data.image_size = 8
    mesh = sharding.make_mesh(jax.devices()[:2])
    labels = np.zeros(40, np.int32) if objective == "supervised" else None
    batches = make_train_batches(images, config, slots_of(config), 0, 1, labels=labels)
    batch = sharding.put_batch(next(batches), mesh)
    batches.close()
    if pipeline == "device":
        batch["images"] = put_images(images, config, mesh)
    job = programs.Job(config, 40, mesh)
    like = programs.abstract_batch(job, make_parts(config, 40, mesh))
    assert {k: (x.shape, x.dtype, x.sharding) for k, x in like.items()} == {
        k: (x.shape, x.dtype, x.sharding) for k, x in batch.items()
    }


def test_the_command(tmp_path, capsys):
    """On the CPU that is here, for people and as JSON."""
    (tmp_path / "config.py").write_text(TINY)
    words = [f"--config={tmp_path / 'config.py'}", "--topology=cpu:1"]
    words += ["--num_examples=600", "--what=memory,nearest"]
    plan_command(words)
    out = capsys.readouterr().out
    assert "1 of 1 state leaf" in out and "nothing has run" in out
    plan_command([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    memory, nearest = found["programs"]
    assert (found["devices"], found["num_examples"]) == (1, 600)
    assert memory["in_place"] == {"leaves": 1, "updated": 1}
    dim, batch = load_config(tmp_path / "config.py").model.embedding_dim, 8
    bank = 4 * 1024 * dim
    assert bank < memory["memory"]["arguments"] < bank + 4 * 8 * batch * dim
    assert memory["copies"] == {"bank": 0}
    # Queries and gallery of 600, in blocks: one product of 1,024 x 640 x dim.
    assert nearest["flops"] == 2 * 1024 * 640 * dim


# What a system needs beside its name, and what is watched: [rows, dim].
NEEDS = {
    "cmc": {"model.towers": "lab"},
    "and": {"num_rounds": 2},
    "deepcluster": {"model.num_classes": 7, "clusters.count": 7},
    "supervised": {"model.num_classes": 7},
}
BANK = {"bank": (512, 16)}  # of 70 rows, filled up to a multiple of 512
WATCHED = {
    **dict.fromkeys(("iraug", "iraug_sum", "ir", "ir_nce", "and", "clusters"), BANK),
    "cmc": {"lightness": (512, 8), "colour": (512, 8)},
    "moco": {"queue": (48, 16)},
    "eir_moco": {"queue": (48, 16), "weak_queue": (48, 16)},
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_memory_of_every_system(name):
    """Lowered alone: a step that writes what it remembers, in the same place."""
    settings = {"queue.size": 48, "clusters.count": 7, **NEEDS.get(name, {})}
    config = small_config(objective=name, **settings)
    validate(config)
    mesh = sharding.make_mesh(jax.devices()[:4])
    job = programs.Job(config, 70, mesh)
    found = programs.lower_memory(job)
    memory = job.parts().abstract_state().memory
    assert found.donated == len(jax.tree.leaves(memory))
    assert {k: x.shape for k, x in found.watched.items()} == WATCHED.get(name, {})
    after, _ = found.lowered.out_info
    assert {k: (x.shape, x.dtype) for k, x in flat(after).items()} == {
        k: (x.shape, x.dtype) for k, x in flat(memory).items()
    }


def flat(tree):
    return {jax.tree_util.keystr(k): x for k, x in jax.tree.leaves_with_path(tree)}


ONE = ["--config.batch_size=1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--topology=h1"], r"h1 is none; give h100:1, h100:2x8"),
        (["--topology=a100:1"], r"of a100 nothing is known"),
        (["--topology=h100:16"], r"at most 8 GPUs; give .* like h100:2x8"),
        (["--topology=h100:8x1x1"], r"at most 8 GPUs; give .* like h100:8$"),
        (["--topology=v5e:32x32"], r"1,024 chips, and a slice of v5e has at most 256"),
        (["--topology=cpu:4000"], r"this process has \d+ CPU device"),
        (["--topology=cpu:1", "--what=trian"], r"trian is none of train, views"),
        (["--topology=cpu:1", "--num_examples=0"], r"give --num_examples=N"),
        (["--topology=cpu:1", "--num_examples=-5"], r"=-5: .*; give 1 to 2147418112$"),
        (["--topology=cpu:1", "--num_examples=100000000000"], r"; give 1 to 21474"),
        (
            ["--topology=cpu:1", "--num_examples=2000000000"],
            r"reach step 80,000,000,000 of 2,0.*; use a larger --config.batch_size",
        ),
        (
            ["--topology=cpu:1", "--num_examples=1", *ONE, "--what=nearest"],
            r"one training image .*; give --num_examples=2 or more",
        ),
        (["--topology=cpu:3"], r"batch_size=4 .* 3 devices; use 3 or 6"),
        (["--topology=cpu:1", "--what=views"], r"use --config.data.pipeline=device"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(tmp_path, words, said):
    (tmp_path / "config.py").write_text(TINY)
    words = ["--num_examples=60", *words, "--config.data.pipeline=tf.data"]
    with pytest.raises(UserError, match=said):
        plan_command([f"--config={tmp_path / 'config.py'}", *words])


@pytest.mark.parametrize(("name", "extra"), [("h100:1", "cuda13"), ("v5e:2x2", "tpu")])
def test_a_plug_in_that_is_not_there_is_named(monkeypatch, name, extra):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=rf'pip install "jax\[{extra}\]=={jax.__version__}'
    ):
        topologies.find_topology(name)


class Registry:
    """`jax.experimental.topologies` where plug-ins know only some slices."""

    def __init__(self, *known):
        self.known = known

    def get_topology_desc(self, name, platform, **_):
        if name not in self.known:
            raise NotImplementedError(f"topology not implemented for {platform}\nat x")
        self.devices = [Device(platform)]
        return self


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("h100:2", [], r"does not work, .*--upgrade \"jax\[cuda13\]==.* for cuda\)$"),
        ("v5e:3x3", [], r"does not work, .*--upgrade \"jax\[tpu\]==.* for tpu\)$"),
        ("v5e:3x3", ["v5e:1x1"], r"libtpu knows no such slice; .*for tpu\)$"),
        ("v5p:3x3", ["v5p:1x1x1"], r"no such slice; give v5p: with 1, 2x2x1 or 4x4x4"),
    ],
)
def test_a_plug_in_that_does_not_work_is_told_from_a_slice_that_is_none(
    monkeypatch, name, known, said
):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(topologies, "topologies", Registry(*known))
    with pytest.raises(UserError, match=said) as found:
        topologies.find_topology(name)
    assert not isinstance(found.value, topologies.MissingPlugin)


@pytest.mark.parametrize(
    ("error", "status"),
    [(topologies.MissingPlugin("no plug-in"), 0), (UserError("does not fit"), 1)],
)
def test_the_check_of_plans_leaves_out_only_what_has_no_plug_in(
    monkeypatch, capsys, error, status
):
    def plan(*_, **__):
        raise error

    monkeypatch.setattr(study, "plan", plan)
    assert plans.main([]) == status
    out, err = capsys.readouterr()
    assert ("left out: no plug-in" in out, "does not fit" in err) == (
        status == 0,
        status == 1,
    )


def refused(name, count, what, **settings):
    """Return the words that refuse `count` images of 3 kB and rows of 512 bytes."""
    like = {"model.embedding_dim": 128, "data.pipeline": "device"}
    config = small_config(**{**like, "data.image_size": 32, **settings})
    kind, mesh = name.partition(":")[0], sharding.make_mesh(jax.devices()[:1])
    place = topologies.Topology(name, mesh, topologies.CHIPS[kind], 1)
    with pytest.raises(UserError) as found:
        study.study(what, programs.Job(config, count, mesh), place, lambda _: None)
    return str(found.value)


def test_a_bank_that_does_not_fit_is_refused_before_compiling():
    """200 million rows of 128 float32 are 102 GB; an H100 has 85."""
    config = small_config(**{"model.embedding_dim": 128, "data.pipeline": "device"})
    mesh = sharding.make_mesh(jax.devices()[:1])
    place = topologies.Topology("h100:1", mesh, topologies.CHIPS["h100"], 1)
    with pytest.raises(UserError, match=r"2 devices or more, --config.bank.dtype=bf"):
        study.study("memory", programs.Job(config, 200_000_000, mesh), place, print)


TF_DATA, SHARDED, HALF = (
    "--config.data.pipeline=tf.data",
    "--config.data.placement=sharded",
    "--config.bank.dtype=bfloat16",
)


@pytest.mark.parametrize(
    ("name", "count", "what", "settings", "ways"),
    [
        # 102 GB of rows, of 76 GB that may be filled: two devices, or half of it.
        (
            "h100:1",
            2e8,
            "memory",
            {},
            f"one of: M=h100:2 for 2 devices or more, {HALF}",
        ),
        # Of 15.5 GB that is seven devices, and there is no v5e of seven.
        ("v5e:1", 2e8, "memory", {}, "M=v5e:2x4 for 8 devices or more"),
        # Thirty-four, over which a batch of 16 does not divide.
        (
            *("v5e:1", 2e9, "memory", {"bank.dtype": "bfloat16"}),
            "M=v5e:8x8 --config.batch_size=64 for 64 devices or more",
        ),
        # 307 GB of images on each device: no number of those holds them.
        (
            *("h100:1", 1e8, "train", {}),
            f"one of: M=h100:8 {SHARDED} for 8 devices or more, {TF_DATA}",
        ),
        # Without them there is nothing that the views are made of.
        ("h100:1", 1e8, "views", {}, f"M=h100:8 {SHARDED} for 8 devices or more"),
        (
            *("h100:1", 1e8, "train", {"data.placement": "sharded"}),
            f"one of: M=h100:8 for 8 devices or more, {TF_DATA}",
        ),
        # 80 GB of images and 13 GB of rows, which halved are too many yet.
        (
            *("h100:1", 26e6, "train", {}),
            f"one of: M=h100:2 {SHARDED} for 2 devices or more, {TF_DATA}",
        ),
        ("h100:1", 1e8, "nearest", {"knn.k": (2_000_000,)}, "a smaller --config.knn.k"),
        ("h100:1", 1e8, "merge", {"knn.k": (2_000_000,)}, "a smaller --config.knn.k"),
    ],
)
def test_what_would_fit_is_said(name, count, what, settings, ways):
    found = refused(name, int(count), what, **settings)
    assert found.endswith(f" use {ways.replace('M=', '--topology=')}")


def test_a_batch_that_does_not_fit_is_to_be_smaller(monkeypatch):
    """Images of 3 kB, ten thousand of them, where there is room for 20 MB."""
    small = topologies.CHIPS["h100"]._replace(memory=20e6)
    monkeypatch.setitem(topologies.CHIPS, "h100", small)
    found = refused("h100:1", 10_000, "embed", evaluation_batch_size=10_000)
    assert found.endswith("use a smaller --config.evaluation_batch_size")
    views = {"data.pipeline": "tf.data", "batch_size": 2000}
    found = refused("h100:1", 2_000, "train", **views)
    assert "a smaller --config.batch_size" in found and HALF not in found
