"""TFDS sets: real schemas and files with a few images in them, refusals in words."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import base
from eir_jax.data import tfds as ours
from eir_jax.data.class_list import read_class_list
from eir_jax.data.encoded import EncodedImages
from eir_jax.data.sources import load
from eir_jax.system.config import load_config
from eir_jax.system.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")
ROOT = Path(__file__).parents[2]
NUM_CLASSES = {
    "cifar10": 10,
    "cifar100": 100,
    "stl10": 10,
    "caltech_birds2011": 200,
    "cars196": 196,
    "imagenet2012": 1000,
}
FORMATS = ("tfrecord", "array_record")


def data_config(name, path, **changes):
    config = base.get_config().data
    config.name, config.path = name, str(path)
    config.update(changes)
    return config


def example(name, label, number):
    """Return an image that shows its label and number, with what its set has beside."""
    sides = {"cifar10": 32, "cifar100": 32, "stl10": 96}
    rng = np.random.default_rng(number)
    height, width = (sides.get(name) or int(n) for n in rng.integers(20, 60, 2))
    image = np.empty((height, width, 3), np.uint8)
    image[...] = label % 251, max(label, 0) // 251, number % 251
    made = {"image": image, "label": label}
    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    more = {
        "cifar10": {"id": str(number)},
        "cifar100": {"id": str(number), "coarse_label": 0},
        "cars196": {"bbox": box, "id": str(number)},
        "imagenet2012": {"file_name": f"{number}.JPEG"},
        "caltech_birds2011": {
            "image/filename": f"{number}.jpg",
            "label_name": "bird",
            "bbox": box,
            "segmentation_mask": np.zeros((height, width, 1), np.uint8),
        },
    }
    return made | more.get(name, {})


def store(folder, name, splits, file_format):
    """Write files as TFDS does, by the set's own schema; splits: {name: labels}."""
    builder = tfds.builder(name, data_dir=folder)
    if name == "stl10":  # TFDS reads its names from the archive
        builder.info.features["label"].names = [f"class {n}" for n in range(10)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name,
        str(builder.version),
        builder.info.features,
        {
            split: [(i, example(name, label, i)) for i, label in enumerate(labels)]
            for split, labels in splits.items()
        },
        data_dir=folder,
        file_format=file_format,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return folders by file format, each with a small stand-in of every set."""
    pytest.importorskip("tensorflow")
    tfds.disable_progress_bar()
    folders = {}
    for file_format in FORMATS:
        folders[file_format] = tmp_path_factory.mktemp(file_format)
        for name, classes in NUM_CLASSES.items():
            every = range(0, classes, 1 if classes < 500 else 25)
            splits = {"train": [*every, *every[::2]], "test": [*every[::3]]}
            if name == "stl10":
                splits["unlabelled"] = [-1] * 25
            if name == "imagenet2012":
                splits = {"train": splits["train"], "validation": [*every]}
            store(folders[file_format], name, splits, file_format)
    return folders


def shown(images):
    """Return the labels that the images show; JPEG is off by a little."""
    red, green = (images[:, 5, 5, c].astype(float) for c in (0, 1))
    return np.round(red) + 251 * np.round(green)


def config_of(file, folder, *words):
    return load_config(
        str(ROOT / "configs" / file), [f"--config.data.path={folder}", *words]
    ).data


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    ("file", "train", "test", "side"),
    [
        ("cifar10.py", 15, 4, 32),
        ("cifar100.py", 150, 34, 32),
        ("stl10_5k.py", 15, 4, 96),
        ("stl10_105k.py", 40, 4, 96),
        # Classes 0-99 of train (100 + 50) and of test (34); then the rest.
        ("cub200.py", 184, 183, 256),
        ("cars196.py", 98 + 49 + 33, 98 + 49 + 33, 256),
    ],
)
def test_every_config_reads_its_set(stored, file, train, test, side, file_format):
    """Counts, classes and pixels, from both of TFDS's file formats."""
    config = config_of(file, stored[file_format])
    dataset = load(config)
    assert dataset.train.images.shape == (train, side, side, 3)
    assert dataset.test.images.shape == (test, side, side, 3)
    assert dataset.train.images.dtype == np.uint8
    assert len(dataset.class_names) == NUM_CLASSES[config.name]
    for name in ("train", "test"):
        split, classes = getattr(dataset, name), config[f"{name}_classes"]
        assert split.labels.dtype == np.int32
        known = split.labels >= 0
        np.testing.assert_array_equal(shown(split.images)[known], split.labels[known])
        first, after = classes if any(classes) else (0, NUM_CLASSES[config.name])
        assert set(split.labels[known]) <= set(range(first, after))
        if name == "train":
            assert len(set(split.labels[known])) == after - first
    assert f"train holds {train} images where" in dataset.notes[0]
    unlabelled = int((dataset.train.labels < 0).sum())
    assert unlabelled == (25 if file == "stl10_105k.py" else 0)


@pytest.mark.parametrize("file", ["stl10_105k.py", "cub200.py"])
def test_hashes_are_those_of_the_images_not_of_the_files(stored, file):
    """The same order from both file formats, and at each reading."""
    found = [load(config_of(file, stored[f])) for f in (*FORMATS, FORMATS[0])]
    assert len({dataset.content_hash for dataset in found}) == 1


@pytest.mark.parametrize("file_format", FORMATS)
def test_imagenet100_is_the_listed_classes(stored, file_format):
    """Labels are places in the list; the JPEGs stay what they are."""
    config = config_of("imagenet100.py", stored[file_format])
    dataset = load(config)
    names = tfds.builder("imagenet2012").info.features["label"].names
    listed = read_class_list("imagenet100")
    assert dataset.class_names == listed and len(set(listed)) == 100
    images, labels = dataset.train.images, dataset.train.labels
    assert isinstance(images, EncodedImages) and images.shape[1:] == (256, 256, 3)
    every = [names[i] for i in range(0, 1000, 25)]
    want = [n for n in (*every, *every[::2]) if n in listed]
    assert sorted(listed[n] for n in labels) == sorted(want)
    assert len(dataset.test.labels) == sum(n in listed for n in every)
    # What an image shows is its class in TFDS, and its place in the list follows.
    red, green = images[:][:, 128, 128, 0], images[:][:, 128, 128, 1]
    official = np.array([names.index(listed[n]) for n in labels])
    assert np.abs(red - (official % 251.0)).max() <= 3
    assert np.abs(green - (official // 251.0)).max() <= 3
    assert images.read(0)[:3] == b"\xff\xd8\xff"
    config.keep = "pixels"
    np.testing.assert_array_equal(load(config).train.images, images[:])


@pytest.mark.parametrize("layout", ["{name}", "{part}/{name}"])
@pytest.mark.parametrize("file", ["cub200.py", "cars196.py"])
def test_unseen_classes_from_a_folder(tmp_path, file, layout):
    """A directory for each class, or both official splits of such: the same classes."""
    config = config_of(file, tmp_path, "--config.data.source=folder")
    cars = tfds.builder("cars196").info.features["label"].names
    names = [name.replace("/", "-") for name in cars]
    if config.name == "caltech_birds2011":
        names = [f"{n:03}.Bird_{200 - n}" for n in range(1, 201)]
    for label, name in enumerate(names):
        for part in ("train", "test"):
            place = tmp_path / layout.format(part=part, name=name)
            place.mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (6, 4), (label, 0, 0))
            image.save(place / f"{part}.png")
    config.resize = config.image_size = 8
    dataset = load(config)
    half = len(names) // 2
    for split, want in (
        (dataset.train, range(half)),
        (dataset.test, range(half, 2 * half)),
    ):
        assert sorted(split.images[:, 0, 0, 0]) == [n for n in want for _ in range(2)]
        seen = {dataset.class_names[label] for label in split.labels}
        assert seen == {names[n] for n in want}


def test_another_side_is_resized_and_said(stored):
    small = data_config("cifar10", stored["array_record"], image_size=16)
    dataset = load(small)
    assert dataset.train.images.shape == (15, 16, 16, 3)
    assert "images of 32x32 are brought to 16x16" in dataset.notes
    small.image_size = 32
    assert not any("brought to" in note for note in load(small).notes)
    small.keep = "encoded"  # PNG: no pixel is lost
    whole = data_config("cifar10", stored["array_record"])
    np.testing.assert_array_equal(load(small).train.images, load(whole).train.images)


WITHOUT_TENSORFLOW = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *args):
        absent = name.partition(".")[0] in ("tensorflow", "keras")
        return None if absent else self.finder.find_spec(name, *args)
sys.meta_path[:] = map(Without, sys.meta_path)
from tests.data import test_tfds as t
from eir_jax.data.sources import load
for file in ("cifar10", "stl10_105k", "cub200", "imagenet100"):
    dataset = load(t.config_of(file + ".py", sys.argv[1]))
    print(file, dataset.train.images[:].shape, dataset.content_hash)
"""


def test_array_record_is_read_without_tensorflow(stored):
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(stored["array_record"])],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    want = load(config_of("cub200.py", stored["tfrecord"])).content_hash
    assert f"cub200 (184, 256, 256, 3) {want}" in done.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_split": "validation"}, "no split 'validation'.*has train, test"),
        ({"train_split": "train+extra"}, "no split 'extra' .data.train_split=train"),
        ({"train_split": "train[:x%]"}, r"cannot read train\[:x%\] of cifar10"),
        ({"train_classes": (0, 11)}, "has 10 classes"),
        ({"train_classes": (3, 2)}, "first, after the last"),
        ({"test_classes": (1, 3)}, "no image of test of TFDS's cifar10 is left"),
    ],
)
def test_splits_and_classes_that_are_not_there(stored, changes, message):
    config = data_config("cifar10", stored["array_record"], **changes)
    with pytest.raises(UserError, match=message):
        load(config)


def test_splits_of_tfds_and_none(stored):
    """Part of a split, and no test images at all."""
    config = data_config("cifar10", stored["array_record"])
    config.train_split, config.test_split = "train[:40%]+test", ""
    dataset = load(config)
    assert len(dataset.train.images) == 6 + 4 and dataset.test is None


def test_damaged_files_are_refused_in_words(stored, tmp_path):
    (whole,) = stored["array_record"].glob("cifar10/*")
    copy = tmp_path / "cifar10" / whole.name
    copy.mkdir(parents=True)
    for file in whole.iterdir():
        content = file.read_bytes()
        half = len(content) // 2 if "train" in file.name else len(content)
        (copy / file.name).write_bytes(content[:half])
    with pytest.raises(UserError, match="TFDS cannot read train of cifar10") as refused:
        load(data_config("cifar10", tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("file", ["cifar10", "cifar100", "stl10_105k", "cub200"])
def test_tfds_own_mock_is_read(file):
    """The schema of TFDS, random images and labels, no file at all."""
    pytest.importorskip("tensorflow")
    with tfds.testing.mock_data(num_examples=30):
        dataset = load(config_of(f"{file}.py", "nowhere"))
    if file == "cub200":
        assert 0 < len(dataset.train.images) < 30
    else:
        assert len(dataset.train.images) == len(dataset.test.labels) == 30


@pytest.mark.parametrize("splits", [("train",), ("train", "validation")])
@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_sets_without_classes_or_test_images(tmp_path, splits, keep):
    """All that need not be there: what is there is read, and the rest is said."""
    pytest.importorskip("tensorflow")
    features = {"image": tfds.features.Image(shape=(4, 4, 3), encoding_format="png")}
    rows = [(n, {"image": np.full((4, 4, 3), n, np.uint8)}) for n in range(3)]
    tfds.dataset_builders.store_as_tfds_dataset(
        "plain",
        "1.0.0",
        tfds.features.FeaturesDict(features),
        dict.fromkeys(splits, rows),
        data_dir=tmp_path,
    )
    config = data_config("plain", tmp_path, image_size=4, keep=keep)
    dataset = load(config)
    assert dataset.train.labels is None and dataset.class_names is None
    assert sorted(dataset.train.images[:][:, 0, 0, 0]) == [0, 1, 2]
    words = "'validation' is read" if len(splits) > 1 else "there is no test split"
    assert f"TFDS's plain has no split 'test': {words}" in dataset.notes
    assert (dataset.test is None) == (len(splits) == 1)
    config.test_split = "other"
    with pytest.raises(UserError, match="has no split 'other'"):
        load(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", r"no data set 'cifar11'.*did you mean cifar10"),
        ("", "no data set ''"),
        ("cifar10/none", "no data set 'cifar10/none'"),
        ("wiki40b", "needs an 'image' of each"),
        ("floats", "has images of float32"),
    ],
)
def test_unfit_sets_are_refused_in_words(tmp_path, name, message):
    if name in ("wiki40b", "floats"):  # described only with TensorFlow
        pytest.importorskip("tensorflow")
    if name == "floats":
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(
                    shape=(2, 2, 1), dtype=np.float32, encoding_format="png"
                ),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
        )
        rows = [(0, {"image": np.zeros((2, 2, 1), np.float32), "label": 0})]
        tfds.dataset_builders.store_as_tfds_dataset(
            name, "1.0.0", features, {"train": rows}, data_dir=tmp_path
        )
    with pytest.raises(UserError, match=message):
        load(data_config(name, tmp_path))


def no_network(*_, **__):
    raise socket.gaierror(-2, "Name or service not known")


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("cifar10", ["cifar-10-binary.tar.gz", "data.source=arrays"]),
        ("stl10", ["stl10_binary.tar.gz", "data.source=folder"]),
        ("imagenette", ["its archives"]),
        (
            "cars196",
            [
                *("links of cars196 are dead", "cars_train.tgz", "cars_test.tgz"),
                *(
                    "car_devkit.tgz",
                    "cars_test_annos_withlabels.mat",
                    "data.source=folder",
                ),
            ],
        ),
        (
            "imagenet2012",
            [
                *("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "train/"),
                *("data.source=folder", "data.class_list=imagenet100", "val/"),
            ],
        ),
    ],
)
def test_without_a_network_it_says_so_at_once(tmp_path, monkeypatch, name, messages):
    pytest.importorskip("tensorflow")
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    began = time.monotonic()
    with pytest.raises(UserError, match=f"cannot prepare {name}") as refused:
        load(data_config(name, tmp_path))
    assert time.monotonic() - began < 20  # TFDS itself: 204 s
    for words in (*messages, f"{tmp_path}/downloads/manual"):
        assert words in str(refused.value)


def test_the_files_named_are_those_that_tfds_wants():
    """TFDS finds an archive in the manual folder by the name it has registered."""
    for name in ("cars196", "imagenet2012"):
        urls = tfds.builder_cls(name).url_infos
        assert urls and all(u.split("/")[-1] in ours.BY_HAND[name] for u in urls)


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    monkeypatch.setattr(ours, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        there = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: there)
        began = time.monotonic()
        with pytest.raises(UserError, match="cannot prepare cifar100"):
            load(data_config("cifar100", tmp_path))
    assert time.monotonic() - began < 10


def test_a_library_that_preparing_needs_is_named(tmp_path, monkeypatch):
    if importlib.util.find_spec("cv2"):
        pytest.skip("it is here")
    birds = tfds.builder_cls("caltech_birds2011")
    monkeypatch.setattr(
        birds, "download_and_prepare", lambda _: tfds.core.lazy_imports.cv2
    )
    with pytest.raises(UserError, match="pip install opencv-python-headless"):
        load(data_config("caltech_birds2011", tmp_path))


def test_official_class_order_is_that_of_tfds():
    """The unseen-class splits of CUB and Cars-196 count as the authors' lists do."""
    names = tfds.builder("cars196").info.features["label"].names
    assert len(names) == 196
    assert names[0] == "AM General Hummer SUV 2000"  # class 1 of cars_meta.mat
    assert names[97] == "Eagle Talon Hatchback 1998"  # class 98, the last that trains
    assert names[195] == "smart fortwo Convertible 2012"
    # CUB's labels are its folders' numbers less 1: TFDS has no names to get wrong.
    birds = tfds.builder("caltech_birds2011").info.features["label"]
    assert birds.num_classes == 200 and birds.names[199] == "199"
