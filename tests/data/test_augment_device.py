"""Views made on the device: those of the tf.data pipeline, wherever the images lie."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from small import slots_of, small_config
from test_main import QUICK, environment

from eir_jax.data.augment_device import make_batch_views, put_images
from eir_jax.data.order import uniform_order
from eir_jax.data.pipeline import make_train_batches
from eir_jax.system import sharding

NUM = 70
LEVEL = 1 / (255 * 0.2)  # one of 255, after normalisation


def smooth_images(size):
    """Return blobs: noise would magnify the last bit of a crop."""
    coarse = np.random.default_rng(0).integers(0, 256, (NUM, 4, 4, 3), np.uint8)
    return coarse.repeat(size // 4, 1).repeat(size // 4, 2)


def device_batches(images, config, start, stop, devices=1, **more):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    resident = {"images": put_images(images, config, mesh)}
    make = jax.jit(make_batch_views(config, slots_of(config), mesh))
    batches = make_train_batches(images, config, slots_of(config), start, stop, **more)
    return [make(b | resident) for b in sharding.put_batches(batches, mesh)]


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
@pytest.mark.parametrize(
    ("stored", "size", "mean", "largest"),
    [(32, 32, 0.01, 1), (128, 112, 1, 8)],  # of 255; Pillow rounds the large ones
)
def test_both_pipelines_agree(kind, stored, size, mean, largest):
    pytest.importorskip("tensorflow")
    images = smooth_images(stored)
    config = small_config(**{"interpolation.kind": kind, "data.image_size": size})
    host = list(make_train_batches(images, config, slots_of(config), 3, 6))
    config.data.pipeline = "device"
    for ours, theirs in zip(device_batches(images, config, 3, 6), host, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("index", "partner", "ratio"):
            np.testing.assert_array_equal(ours[name], theirs[name])
        for name in ("view1", "view2", "mixed"):
            assert ours[name].shape == (16, size, size, 3)
            difference = np.abs(np.asarray(ours[name]) - theirs[name])
            assert difference.mean() <= mean * LEVEL
            assert difference.max() <= largest * LEVEL


def test_both_give_weak_views_and_labels():
    pytest.importorskip("tensorflow")
    images, labels = smooth_images(32), np.arange(NUM) % 7
    config = small_config(objective="eir_moco", **{"data.image_size": 32})
    slots = slots_of(config)
    (host,) = make_train_batches(images, config, slots, 0, 1, labels=labels)
    config.data.pipeline = "device"
    (ours,) = device_batches(images, config, 0, 1, labels=labels)
    assert ours.keys() == host.keys()
    assert {"view1", "view2", "weak", "mixed", "label"} <= ours.keys()
    difference = np.abs(np.asarray(ours["weak"]) - host["weak"])
    assert difference.max() <= LEVEL
    np.testing.assert_array_equal(ours["label"], labels[host["index"]])
    np.testing.assert_array_equal(host["label"], labels[host["index"]])


def test_both_draw_over_groups_and_show_none_twice_alike():
    """A group of one instance: it comes in every other place, each time anew."""
    pytest.importorskip("tensorflow")
    images, groups = smooth_images(32), (np.arange(NUM) == 3).astype(np.int32)
    config = small_config(objective="ir", **{"data.image_size": 32})
    config.lambda_intra = config.lambda_inter = 0.0
    host = list(
        make_train_batches(images, config, slots_of(config), 4, 8, groups=groups)
    )
    config.data.pipeline = "device"
    order = uniform_order(0, 1, groups, 64)
    ours = device_batches(images, config, 4, 8, groups=groups)
    for step, batch in enumerate(ours):
        np.testing.assert_array_equal(batch["index"], host[step]["index"])
        np.testing.assert_array_equal(batch["index"], order[16 * step : 16 * step + 16])
        difference = np.abs(np.asarray(batch["view1"]) - host[step]["view1"])
        assert difference.max() <= LEVEL
    again = np.concatenate([b["view1"] for b in host])[order == 3]
    assert len(again) == 32
    assert len({view.tobytes() for view in again}) == 32


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_placement_and_devices_change_nothing(placement):
    images = smooth_images(8)
    config = small_config(**{"data.pipeline": "device"})
    want = device_batches(images, config, 0, 5)
    config.data.placement = placement
    for a, b in zip(device_batches(images, config, 0, 5, 8), want, strict=True):
        for name in b:
            np.testing.assert_allclose(a[name], b[name], atol=1e-5, err_msg=name)


def test_sharded_images_take_their_share_of_memory():
    config = small_config(**{"data.pipeline": "device", "data.placement": "sharded"})
    images = smooth_images(8)
    put = put_images(images, config, sharding.make_mesh())
    assert put.shape[0] == 72  # 70, and black ones
    assert {shard.data.shape[0] for shard in put.addressable_shards} == {9}
    np.testing.assert_array_equal(put[:NUM], images.reshape(NUM, -1))
    assert not np.asarray(put[NUM:]).any()


def test_what_no_term_looks_at_is_left_out():
    off = {"lambda_inter": 0.0, "lambda_intra": 0.0, "objective": "ir"}
    config = small_config(**{"data.pipeline": "device"} | off)
    (batch,) = device_batches(smooth_images(8), config, 0, 1)
    assert batch.keys() == {"view1", "index"}


def test_training_on_the_device_imports_no_tensorflow(tmp_path):
    """Training with evaluation, then the linear probe on views, as users run them.

    Nor does a library that could use it: TensorBoard, Orbax, TFDS.
    """
    program = f"""
import runpy, sys
def run(module):
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, stop.code
sys.argv = ["main", "--config=configs/digits.py", "--workdir={tmp_path}", *{QUICK}]
run("eir_jax.main")
sys.argv = ["evaluate", "--workdir={tmp_path}", "--tasks=linear",
            "--config.linear.augment=true", "--config.linear.num_epochs=1"]
run("eir_jax.evaluate")
assert "orbax" in sys.modules and "tensorboard" in sys.modules
assert not {{"tensorflow", "tensorflow_datasets", "keras"}} & sys.modules.keys()
"""
    words = [sys.executable, "-c", program]
    subprocess.run(words, env=environment(), check=True, timeout=300)
