"""Batches: pure functions of (settings, images, step), in any process."""

import io
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from small import slots_of, small_config

from eir_jax.data import pipeline
from eir_jax.data.encoded import EncodedImages
from eir_jax.data.order import draw_interpolation, epoch_order
from eir_jax.data.pipeline import make_train_batches, make_view_batches
from eir_jax.data.sources import load
from eir_jax.system.errors import UserError

pytest.importorskip("tensorflow", reason="the pipeline is TensorFlow's")

NUM, STEPS = 70, 10  # 4 steps an epoch of 16
IMAGES = np.random.default_rng(0).integers(0, 256, (NUM, 8, 8, 3), np.uint8)


def batches(start=0, stop=STEPS, **changes):
    config = small_config(**changes)
    return list(make_train_batches(IMAGES, config, slots_of(config), start, stop))


@pytest.fixture(scope="module")
def run():
    return batches()


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_shapes_and_types(run):
    assert len(run) == STEPS
    for batch in run:
        shapes = {name: (x.shape, x.dtype.name) for name, x in batch.items()}
        image = ((16, 8, 8, 3), "float32")
        assert shapes == {
            "view1": image,
            "view2": image,
            "mixed": image,
            "index": ((16,), "int32"),
            "partner": ((16,), "int32"),
            "ratio": ((16,), "float32"),
        }


@pytest.mark.parametrize("start", [1, 4, 7])
def test_step_s_can_be_asked_for_directly(run, start):
    for a, b in zip(run[start:], batches(start), strict=True):
        assert_equal(a, b)


def test_order_is_the_epochs(run):
    for epoch in (0, 1):
        index = np.concatenate([b["index"] for b in run[4 * epoch : 4 * epoch + 4]])
        np.testing.assert_array_equal(index, epoch_order(0, epoch, NUM)[:64])


def test_views_depend_on_seed_epoch_and_index_alone(run):
    """In batches of 8 the same (seed, epoch, index) gives the same pixels."""
    views = {
        (step // 4, i): (batch["view1"][row], batch["view2"][row])
        for step, batch in enumerate(run)
        for row, i in enumerate(batch["index"])
    }
    found = 0
    for step, batch in enumerate(batches(stop=16, batch_size=8)):
        for row, i in enumerate(batch["index"]):
            if (step // 8, i) in views:
                found += 1
                for name, want in zip(
                    ("view1", "view2"), views[step // 8, i], strict=True
                ):
                    np.testing.assert_array_equal(batch[name][row], want)
    assert found > 100


def test_epochs_seeds_and_views_differ(run):
    first = {i: v for b in run[:4] for i, v in zip(b["index"], b["view1"], strict=True)}
    second = {
        i: v for b in run[4:8] for i, v in zip(b["index"], b["view1"], strict=True)
    }
    both = first.keys() & second.keys()
    assert not any(np.array_equal(first[i], second[i]) for i in both)
    assert not np.array_equal(run[0]["view1"], run[0]["view2"])
    other = batches(stop=1, seed=1)[0]
    assert not np.array_equal(run[0]["index"], other["index"])
    for a, b in pairwise(run):
        assert not np.array_equal(a["ratio"], b["ratio"])


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
@pytest.mark.parametrize("size", [8, 100])
def test_processes_make_their_parts_of_one_batch(kind, size):
    """Whatever the part, a partner may lie in another's (both ways of cropping)."""
    images = np.random.default_rng(0).integers(0, 256, (20, size, size, 3), np.uint8)
    changes = {"interpolation.kind": kind, "data.image_size": size, "batch_size": 6}
    config = small_config(**changes)
    whole = list(make_train_batches(images, config, slots_of(config), 2, 4))
    parts = [
        list(make_train_batches(images, config, slots_of(config), 2, 4, rows))
        for rows in (slice(0, 2), slice(2, 6))
    ]
    for step, batch in enumerate(whole):
        for name, value in batch.items():
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_allclose(joined, value, atol=1e-5, err_msg=name)


def test_large_images_are_cropped_as_small_ones(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (20, 40, 50, 3), np.uint8)
    for size in (16, 64):  # smaller and larger than most crops
        config = small_config(**{"data.image_size": size})
        small = next(make_train_batches(images, config, slots_of(config), 0, 1))
        monkeypatch.setattr(pipeline, "LARGEST_BATCHED", 1)
        large = next(make_train_batches(images, config, slots_of(config), 0, 1))
        monkeypatch.undo()
        for name in ("view1", "view2", "mixed"):
            # Pillow rounds each pixel, and the colour jitter magnifies that.
            difference = np.abs(large[name] - small[name]) * 0.2 * 255
            assert difference.mean() <= 2 and np.quantile(difference, 0.999) <= 8


def test_encoded_pictures_give_the_pixels_of_their_arrays(tmp_path):
    """JPEG and PNG files, of one size each, against the same pixels as an array."""
    size = (120, 150)
    coarse = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), np.uint8)
    contents, whole = [], []
    for i, blob in enumerate(coarse):
        picture = Image.fromarray(blob).resize(size[::-1], Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        picture.save(stream, "PNG" if i % 3 == 0 else "JPEG", quality=90)
        contents.append(stream.getvalue())
        whole.append(np.asarray(Image.open(stream).convert("RGB")))
    encoded = EncodedImages.from_bytes(contents, side=64)
    assert encoded.plain.sum() == 13  # the others are not TensorFlow's to decode
    config = small_config(**{"data.image_size": 64})
    for rows in (slice(None), slice(0, 5)):
        ours = list(make_train_batches(encoded, config, slots_of(config), 0, 3, rows))
        want = list(
            make_train_batches(np.stack(whole), config, slots_of(config), 0, 3, rows)
        )
        for a, b in zip(ours, want, strict=True):
            np.testing.assert_array_equal(a["index"], b["index"])
            for name in ("view1", "view2", "mixed"):
                difference = np.abs(a[name] - b[name]) * 0.2 * 255
                assert difference.mean() <= 0.1  # a JPEG window's outermost columns
    views = np.concatenate(list(make_view_batches(encoded, config, 1, 7)))
    assert views.shape == (20, 64, 64, 3)


def test_a_picture_that_is_gone_is_named(tmp_path):
    for i in range(20):
        Image.new("RGB", (30, 30), (i, 0, 0)).save(tmp_path / f"{i:02}.jpg")
    config = small_config(
        **{"data.source": "folder", "data.path": str(tmp_path), "data.keep": "encoded"}
    )
    images = load(config.data).train.images
    (tmp_path / "07.jpg").unlink()
    with pytest.raises(UserError, match=r"07\.jpg can no longer be read"):
        list(make_train_batches(images, config, slots_of(config), 0, 8))


def test_fresh_views_are_view1_of_an_epoch(run):
    config = small_config()
    views = np.concatenate(list(make_view_batches(IMAGES, config, 1, 32)))
    assert len(views) == NUM
    for batch in run[4:8]:
        np.testing.assert_allclose(views[batch["index"]], batch["view1"], atol=1e-5)
    config.data.pipeline = "device"
    device = np.concatenate(list(make_view_batches(IMAGES, config, 1, 32)))
    np.testing.assert_allclose(device, views, atol=1e-3)


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_mixed_is_view1_with_the_partners_other_view(kind):
    for step, batch in enumerate(batches(stop=3, **{"interpolation.kind": kind})):
        drawn = draw_interpolation(0, step, 16, 8, kind=kind)
        np.testing.assert_array_equal(batch["partner"], drawn.partner)
        np.testing.assert_array_equal(batch["ratio"], drawn.ratio)
        other = batch["view2"][drawn.partner]
        if kind == "mixup":
            r = drawn.ratio[0]
            want = r * batch["view1"] + (1 - r) * other
        else:
            want = batch["view1"].copy()
            top, left, bottom, right = drawn.box[0]
            want[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        np.testing.assert_allclose(batch["mixed"], want, atol=1e-6)


def test_what_no_term_looks_at_is_left_out():
    assert batches(stop=1, lambda_inter=0.0)[0].keys() == {"view1", "view2", "index"}
    off = {"lambda_inter": 0.0, "lambda_intra": 0.0, "objective": "ir"}
    assert batches(stop=1, **off)[0].keys() == {"view1", "index"}


def test_another_process_makes_the_same_pixels(run, tmp_path):
    program = (
        "import sys, numpy as np; sys.path[:0] = ['tests', '.']\n"
        "import tests.data.test_pipeline as t\n"
        f"np.savez({str(tmp_path / 'b.npz')!r}, **t.batches(5, 6)[0])\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    with np.load(tmp_path / "b.npz") as other:
        assert_equal(run[5], dict(other))


def test_a_program_that_closes_its_batches_ends():
    """Left running, the pipeline's threads can keep the interpreter from ending."""
    program = (
        "import sys; from contextlib import closing; sys.path[:0] = ['tests', '.']\n"
        "import tests.data.test_pipeline as t\n"
        "c = t.small_config()\n"
        "made = t.make_train_batches(t.IMAGES, c, t.slots_of(c), 0, 10**6)\n"
        "with closing(made) as batches: next(batches)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
