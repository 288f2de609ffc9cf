"""Data sets: fixed splits, hashes, and bad files refused in words."""

import io

import numpy as np
import pytest

from configs import base, digits, stl10_5k
from eir_jax.collection.embeddings import opened_npz
from eir_jax.data.dataset import labelled
from eir_jax.data.pipeline import make_view_batches
from eir_jax.data.sources import load
from eir_jax.evaluation.embed import evaluation_view
from eir_jax.system.errors import UserError


def arrays_config(path, size=8):
    config = base.get_config().data
    config.source, config.name = "arrays", "mine"
    config.path, config.image_size = str(path), size
    return config


def good_arrays(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (12, 8, 8, 3), np.uint8),
        "train_labels": np.arange(12) % 3,
        "test_images": rng.integers(0, 256, (5, 8, 8, 3), np.uint8),
        "test_labels": np.arange(5) % 3,
    }
    return {k: v for k, v in (arrays | changes).items() if v is not None}


def save(path, **changes):
    np.savez(path, **good_arrays(**changes))
    return path


def test_digits_are_what_they_always_were():
    """Counts, size, classes and content: numbers measured on them stay comparable."""
    config = digits.get_config().data
    dataset = load(config)
    assert dataset.train.images.shape == (1437, 16, 16, 3)
    assert dataset.test.images.shape == (360, 16, 16, 3)
    assert dataset.train.images.dtype == np.uint8
    assert set(dataset.test.labels) == set(range(10))
    assert dataset.train.images.max() == 255 and dataset.train.images.min() == 0
    assert dataset.train_hash[:12] == "4190f7c9057e"
    mean = dataset.train.images.mean() / 255
    std = dataset.train.images.std() / 255
    np.testing.assert_allclose(config.mean, mean, atol=0.002)
    np.testing.assert_allclose(config.std, std, atol=0.002)


def test_arrays_are_read(tmp_path):
    path = save(tmp_path / "a.npz", class_names=np.array(["cat", "dog", "owl"]))
    dataset = load(arrays_config(path))
    want = good_arrays()
    np.testing.assert_array_equal(dataset.train.images, want["train_images"])
    np.testing.assert_array_equal(dataset.test.labels, want["test_labels"])
    assert dataset.test.labels.dtype == np.int32
    assert dataset.class_names == ("cat", "dog", "owl")
    assert dataset.description == {"source": "arrays", "name": "mine"}


def test_hashes_name_what_they_cover(tmp_path):
    plain = load(arrays_config(save(tmp_path / "a.npz")))
    again = load(arrays_config(save(tmp_path / "copy.npz")))
    assert (plain.train_hash, plain.content_hash) == (
        again.train_hash,
        again.content_hash,
    )
    labels = load(arrays_config(save(tmp_path / "b.npz", test_labels=np.arange(5))))
    assert labels.train_hash == plain.train_hash
    assert labels.content_hash != plain.content_hash
    images = good_arrays()["train_images"].copy()
    images[3, 2, 1, 0] ^= 1
    pixel = load(arrays_config(save(tmp_path / "c.npz", train_images=images)))
    assert pixel.train_hash != plain.train_hash


def test_labels_and_test_may_be_absent_until_they_are_needed(tmp_path):
    path = save(
        tmp_path / "a.npz", train_labels=None, test_images=None, test_labels=None
    )
    dataset = load(arrays_config(path))
    assert dataset.test is None
    with pytest.raises(UserError, match="add 'train_labels'"):
        labelled(dataset, "train")
    with pytest.raises(UserError, match="has no test images"):
        labelled(dataset, "test")


def test_unlabelled_images_are_told_apart(tmp_path):
    """-1 among the labels: kept as images, left out by `labelled`, with their rows."""
    some = np.array([-1, 2, -1, 0, 1, -1, -1, 2, 2, 2, 2, -1])
    path = save(tmp_path / "a.npz", train_labels=some, test_labels=np.full(5, -1))
    dataset = load(arrays_config(path))
    np.testing.assert_array_equal(dataset.train.labels, some)
    found = labelled(dataset, "train")
    np.testing.assert_array_equal(found.rows, [1, 3, 4, 7, 8, 9, 10])
    np.testing.assert_array_equal(found.labels, some[found.rows])
    np.testing.assert_array_equal(found.images, dataset.train.images[found.rows])
    with pytest.raises(UserError, match="test images of mine have no labels"):
        labelled(dataset, "test")
    whole = load(arrays_config(save(tmp_path / "b.npz")))
    assert labelled(whole, "train").images is whole.train.images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, r"holds no 'train_images' \(it holds: train_labels"),
        ({"train_images": np.zeros((9, 8, 8), np.uint8)}, r"uint8 \[9, 8, 8\]"),
        ({"train_images": np.zeros((9, 8, 8, 3))}, r"float64 \[9, 8, 8, 3\]"),
        ({"train_images": np.zeros((9, 8, 8, 1), np.uint8)}, "it must be uint8"),
        ({"train_images": np.zeros((0, 8, 8, 3), np.uint8)}, "holds no image"),
        ({"train_images": np.zeros((9, 6, 6, 3), np.uint8)}, "data.image_size=6"),
        ({"train_images": np.zeros((9, 6, 8, 3), np.uint8)}, "make them square"),
        ({"test_images": np.zeros((9, 8), np.uint8)}, "'test_images' of"),
        ({"train_labels": np.arange(3)}, "must hold 12 whole numbers"),
        ({"train_labels": np.linspace(0, 1, 12)}, r"float64 .* one for each image$"),
        ({"train_labels": np.arange(12.0)}, r"float64 .* image: labels.astype\(int\)"),
        ({"train_labels": np.arange(3.0)}, "one for each image$"),
        ({"test_labels": np.full(5, -2)}, "numbers from 0 to 2147483647, and -1 is"),
        (
            {"train_labels": np.array([None] * 12)},
            "'train_labels' of .* as a plain array",
        ),
        ({"test_images": None}, r"holds no 'test_images' \(it holds: train_images"),
        ({"train_labels": np.full(12, 2**40)}, "holds 1099511627776"),
        ({"train_labels": np.arange(12)[:, None]}, r"each image: labels\.ravel\(\)"),
        ({"train_labels": np.eye(12, dtype=int)}, "argmax"),
        ({"test_labels": np.array(list("abcab"))}, "return_inverse=True"),
        ({"test_labels": np.array([b"a"] * 5)}, "return_inverse=True"),
        ({"train_labels": np.arange(12) > 3}, r"astype\(int\)"),
        ({"test_images": np.zeros((5, 6, 6, 3), np.uint8)}, "of the training images"),
        ({"class_names": np.array(["a", "b", None])}, "'class_names' of .*bad"),
        ({"class_names": np.arange(3)}, "must be a list of strings"),
        ({"class_names": np.array(["a", "b"])}, "'class_names' holds 2 names"),
    ],
)
def test_bad_arrays_are_refused_in_words(tmp_path, changes, message):
    path = save(tmp_path / "bad.npz", **changes)
    with pytest.raises(UserError, match=message) as refused:
        load(arrays_config(path))
    assert "bad.npz" in str(refused.value)


def test_names_that_are_one_to_the_eye_are_said(tmp_path):
    """Case, blanks, underscores, Unicode's forms: two classes, and a line."""
    names = np.array(["Hot dog ", "hot_dog", "\ufb01sh", "fish", "cat", "Cat"])
    labels = dict(train_labels=np.arange(12) % 5, test_labels=np.arange(5) % 2)
    path = save(tmp_path / "a.npz", class_names=names, **labels)
    (line,) = (x for x in load(arrays_config(path)).notes if "nearly the same" in x)
    assert (
        "'Hot dog ' and 'hot_dog'; '\ufb01sh' and 'fish'; they" in line
    )  # no Cat here
    path = save(tmp_path / "b.npz", class_names=names[[0, 2, 4]])
    assert not load(arrays_config(path)).notes


def test_classes_of_one_name_are_said_with_what_can_be_done(tmp_path):
    path = save(tmp_path / "a.npz", class_names=np.array(["crane", "crane", "x"]))
    (line,) = load(arrays_config(path)).notes
    assert "'crane' and 'crane'; they count" in line and "the same label" in line


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = save(tmp_path / "a.npz")

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", refuse)
        with pytest.raises(UserError, match="Permission denied") as error:
            load(arrays_config(path))
    assert "savez" not in str(error.value)
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())  # a zip still, for some
    with pytest.raises(UserError, match=r"it is no \.npz"):
        load(arrays_config(path))


def npz_bytes():
    buffer = io.BytesIO()
    np.savez(buffer, **good_arrays())
    return buffer.getvalue()


def npy_bytes():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 8, 8, 3), np.uint8))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"not an npz", npz_bytes()[:1000], npz_bytes()[:-10], npy_bytes()],
    ids=["empty", "text", "half", "cut", "npy"],
)
def test_broken_file_is_refused_in_words(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.npz cannot be read") as refused:
        load(arrays_config(path))
    assert "pickle" not in str(refused.value)
    with (
        pytest.raises(UserError, match=r"bad\.npz cannot be read") as refused,
        opened_npz(path),
    ):
        pass
    assert "pickle" not in str(refused.value)


@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
def test_overwritten_bytes_are_refused_in_words_or_harmless(tmp_path, save_as):
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    save_as(buffer, **good_arrays(class_names=np.array(["a", "b", "c"])))
    refused = 0
    for _ in range(300):
        content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        content[rng.integers(len(content), size=2)] = rng.integers(256, size=2)
        path = tmp_path / "bad.npz"
        path.write_bytes(content.tobytes())
        try:
            load(arrays_config(path))
        except UserError as error:
            refused += 1
            assert "bad.npz" in str(error) and "\n" not in str(error)
    assert refused > 200


def test_missing_file_is_refused_in_words(tmp_path):
    with pytest.raises(UserError, match=r"data\.path=FILE\.npz"):
        load(arrays_config(""))
    with pytest.raises(UserError, match=r"there is no file .*absent\.npz"):
        load(arrays_config(tmp_path / "absent.npz"))
    with pytest.raises(UserError, match="there is no file"):
        load(arrays_config(tmp_path))  # a folder


def test_stl10_is_cut_to_64_pixels_by_two_settings(tmp_path):
    """Each pixel says its row and column: the judged view is the centre of 96."""
    place = np.mgrid[:96, :96].transpose(1, 2, 0)
    image = np.concatenate([place, place[..., :1]], axis=2).astype(np.uint8)
    images = np.repeat(image[None], 4, axis=0)
    np.savez(tmp_path / "a.npz", train_images=images, test_images=images)
    config = stl10_5k.get_config()
    assert (config.data.image_size, config.data.resize) == (96, 0)
    config.data.source, config.data.path = "arrays", str(tmp_path / "a.npz")
    config.data.image_size, config.data.resize = 64, 96
    config.data.mean, config.data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    stored = load(config.data).train.images
    np.testing.assert_array_equal(stored, images)
    view = np.asarray(evaluation_view(stored, config))[0]
    assert view.shape == (64, 64, 3)
    np.testing.assert_allclose(view[..., 0] * 255, place[16:80, 16:80, 0], atol=1e-4)
    np.testing.assert_allclose(view[..., 1] * 255, place[16:80, 16:80, 1], atol=1e-4)
    # Training views are cut from all of the 96.
    config.views.crop_area = config.views.crop_aspect = (1.0, 1.0)
    config.views.jitter = config.views.grey = config.views.flip = 0.0
    config.data.pipeline = "device"
    (view, *_) = next(make_view_batches(stored, config, 0, 1))
    assert view.shape == (64, 64, 3)
    assert view[..., 1].min() * 255 < 2 and view[..., 1].max() * 255 > 93
