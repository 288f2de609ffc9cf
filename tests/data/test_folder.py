"""Folders of pictures as data sets: layouts, hostile files, changes between runs."""

import hashlib
import io
import os
import subprocess
import sys
import unicodedata
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import small_config
from test_embed_search import make_broken

from configs import base, cars196, cub200, image_folder, imagenet100
from eir_jax.data import class_list, picture_record
from eir_jax.data.dataset import Dataset, Split, labelled
from eir_jax.data.encoded import EncodedImages
from eir_jax.data.pictures import read_picture
from eir_jax.data.sources import check_expected, load
from eir_jax.run.validate import validate
from eir_jax.system.config import load_config
from eir_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
SIDE = 8


def picture(path, seed=0, mode="RGB", size=(12, 9), **options):
    """Write a picture of noise."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def tree(root, *paths):
    for seed, path in enumerate(paths):
        picture(root / path, seed)
    return root


def settings(root, **changes):
    config = base.get_config().data
    config.source, config.name, config.path = "folder", "mine", str(root)
    config.image_size = SIDE
    config.update(changes)
    return config


def paths_of(dataset, split):
    return [f.path for f in dataset.files if f.split == split and not f.broken]


# Layouts.


def test_train_and_test_with_classes(tmp_path):
    """Labels are places in the names of both splits: here no class is in both."""
    root = tree(
        tmp_path,
        *("train/owl/2.png", "train/cat/1.png", "train/owl/deep/3.png"),
        *("test/dog/1.png", "test/ant/9.png"),
    )
    dataset = load(settings(root))
    assert dataset.class_names == ("ant", "cat", "dog", "owl")
    assert dataset.train.labels.tolist() == [1, 3, 3]
    assert dataset.test.labels.tolist() == [0, 2]
    assert dataset.train.labels.dtype == np.int32
    assert paths_of(dataset, "train") == [
        *("train/cat/1.png", "train/owl/2.png", "train/owl/deep/3.png")
    ]
    for split in ("train", "test"):
        images = getattr(dataset, split).images
        assert images.dtype == np.uint8
        for image, path in zip(images, paths_of(dataset, split), strict=True):
            np.testing.assert_array_equal(image, read_picture(root / path, SIDE))
    assert dataset.description["source"] == "folder"
    assert dataset.notes == (
        "read as: train/ is train, 2 classes (cat, owl); test/ is test, 2 classes "
        "(ant, dog)",
        "test classes not in train: ant, dog, 2 images, which kNN and linear probe "
        "leave out",
        "train classes not in test: cat, owl, 3 images",
    )


def test_names_of_two_lines_are_said_in_one(tmp_path):
    root = tree(tmp_path, "a\nb.png", "deep\n er/1.png")
    notes = load(settings(root)).notes
    assert "such as a\\nb.png beside deep\\n er/1.png" in notes[1]


def test_val_is_a_test_split(tmp_path):
    root = tree(tmp_path, "train/a/1.png", "val/a/1.png", "val/a/2.png")
    assert len(load(settings(root)).test.images) == 2
    tree(tmp_path, "test/a/1.png", "spare/1.png")
    (tmp_path / ".cache").mkdir()
    dataset = load(settings(root))
    assert len(dataset.test.images) == 1
    assert dataset.notes[1] == "val/, spare/ are not read"
    assert len(load(settings(root, test_split="val")).test.images) == 2


def test_splits_that_are_asked_for_by_name(tmp_path):
    """Taken as they are asked for, or refused: never passed over."""
    root = tree(tmp_path, "train/a/1.png", "train/b/1.png", "extra/a/1.png")

    def split(**names):
        dataset = load(settings(root, **names))
        return paths_of(dataset, "train"), dataset.class_names

    both = (["extra/a/1.png", "train/a/1.png", "train/b/1.png"], ("a", "b"))
    for name in ("train+extra", "Train+EXTRA"):
        for test in ("test", ""):
            assert split(train_split=name, test_split=test) == both
    tree(tmp_path, "late/2.png", "spare/2.png")
    assert split(train_split="late") == (["late/2.png"], None)
    assert split(train_split="late", labels="none") == (["late/2.png"], None)
    for names, missing in (
        ({"train_split": "trainx"}, r"trainx/ \(data.train_split=trainx\)"),
        ({"train_split": "train[:9%]"}, r"train\[:9%\]/"),
        ({"train_split": "train+exta"}, r"exta/ .*; it holds extra/, late/, spare/"),
        ({"train_split": "train+test"}, "no folder test/"),
        ({"test_split": "held"}, r"no folder held/ \(data.test_split=held\)"),
    ):
        with pytest.raises(UserError, match=missing):
            split(**names)
    classes = tree(tmp_path / "classes", "a/1.png", "b/1.png")
    custom = load(settings(classes, train_split="train+test", test_split="train+test"))
    assert custom.class_names == ("a", "b")  # as configs/cub200.py has it


@pytest.mark.parametrize("names", [("owl", "cat"), ("owl", "train"), ("train", "bus")])
def test_classes_without_splits(tmp_path, names):
    """One of them may be called train; but train of classes is a split."""
    dataset = load(settings(tree(tmp_path, *(f"{name}/1.png" for name in names))))
    assert dataset.class_names == tuple(sorted(names)) and dataset.test is None
    assert dataset.train.labels.tolist() == [0, 1]
    tree(tmp_path, "train/deeper/1.png", "train/here/1.png")
    (tmp_path / "train" / "1.png").unlink(missing_ok=True)
    assert load(settings(tmp_path)).class_names == ("deeper", "here")


@pytest.mark.parametrize("place", ["", "train/"])
def test_without_labels(tmp_path, place):
    root = tree(tmp_path, f"{place}b.png", f"{place}a.jpg", f"{place}.hidden.png")
    (root / "notes").mkdir()
    dataset = load(settings(root))
    assert dataset.train.labels is None and dataset.class_names is None
    assert paths_of(dataset, "train") == [f"{place}a.jpg", f"{place}b.png"]
    with pytest.raises(UserError, match="one folder a class"):
        labelled(dataset, "train")
    with pytest.raises(UserError, match="test/CLASS/"):
        labelled(dataset, "test")


@pytest.mark.parametrize("labels", ["auto", "none"])
def test_a_photo_tree_is_one_collection(tmp_path, labels):
    paths = ["2019/May/1.png", "2019/1.png", "2020/1.png", "cover.jpg", "test/1.png"]
    tree(tmp_path, *paths, "2020/.trash/1.png", "Training/1.png")
    others = ["test"] if labels == "none" else ["my test"]  # no split by itself
    (tmp_path / "Training").rename(tmp_path / "my Training")
    (tmp_path / "test").rename(tmp_path / others[0])
    dataset = load(settings(tmp_path, labels=labels))
    want = [*paths[:4], f"{others[0]}/1.png", "my Training/1.png"]
    assert paths_of(dataset, "train") == sorted(want)
    assert dataset.train.labels is None and dataset.test is None
    said = "\n".join(dataset.notes)
    assert ("cover.jpg beside" in said) == (labels == "auto")
    assert "without classes" in said


def test_labels_can_be_left_out(tmp_path):
    tree(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png")
    dataset = load(settings(tmp_path, labels="none"))
    assert dataset.train.labels is None and dataset.test.labels is None
    assert paths_of(dataset, "train") == ["train/a/1.png", "train/b/1.png"]
    tree(tmp_path / "classes", "a/1.png", "b/1.png")
    whole = load(settings(tmp_path / "classes", labels="none"))
    assert whole.train.labels is None and len(whole.train.images) == 2


def test_labelled_test_beside_unlabelled_train(tmp_path):
    root = tree(tmp_path, "train/1.png", "test/b/1.png", "test/a/1.png")
    dataset = load(settings(root))
    assert dataset.train.labels is None and dataset.test.labels.tolist() == [0, 1]


def test_words_for_what_is_no_data_set(tmp_path):
    def said(root, **changes):
        with pytest.raises(UserError) as error:
            load(settings(root, **changes))
        return str(error.value)

    assert "there is no folder" in said(tmp_path / "none")
    assert "there is no folder ''" in said("")
    (tmp_path / "file").touch()
    assert "there is no folder" in said(tmp_path / "file")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    assert "holds no pictures: .jpg" in said(tmp_path / "empty")
    (tmp_path / "empty" / "cat" / "film.mp4").touch()
    assert "not read: 1 .mp4" in said(tmp_path / "empty")
    (tmp_path / "late" / "train").mkdir(parents=True)
    tree(tmp_path / "late", "test/a/1.png")
    assert "late/train holds no pictures" in said(tmp_path / "late")
    tree(tmp_path / "only", "test/a/1.png")
    assert "holds test/ but no train/" in said(tmp_path / "only")
    tree(tmp_path / "mixed", "a/1.png", "cover.png")
    words = said(tmp_path / "mixed", labels="folders")
    assert "such as cover.png beside a/1.png" in words and "data.labels=none" in words
    make_broken(tmp_path / "broken" / "a")
    for keep in ("pixels", "encoded"):
        words = said(tmp_path / "broken", keep=keep)
        assert "none of the 8 train files" in words and "a/bits.png" in words


def test_class_folder_without_pictures_is_noted(tmp_path):
    root = tree(tmp_path, "train/cat/1.png")
    (root / "train" / "dog").mkdir()
    (root / "train" / "dog" / "notes.txt").touch()
    (root / "train" / ".cache").mkdir()
    dataset = load(settings(root))
    assert dataset.notes[1:] == (
        "train/dog holds no pictures",
        "1 file of another kind is not read: 1 .txt",
    )
    assert dataset.class_names == ("cat",)


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "valid"), ("Train", "VAL"), ("training", "validation")],
)
def test_common_names_of_splits_are_understood(tmp_path, train, test):
    paths = [f"{split}/{name}/1.png" for split in (train, test) for name in "ab"]
    dataset = load(settings(tree(tmp_path, *paths)))
    assert (len(dataset.train.images), len(dataset.test.images)) == (2, 2)
    assert dataset.notes == (
        f"read as: {train}/ is train, 2 classes (a, b); {test}/ is test, 2 classes "
        "(a, b)",
    )
    with pytest.raises(UserError, match="Valid/ but no train/"):
        load(settings(tree(tmp_path / "other", "Valid/a/1.png")))
    # Loose pictures in it: a class that happens to be called so.
    classes = tree(tmp_path / "classes", "valid/1.png", "void/1.png")
    assert load(settings(classes)).class_names == ("valid", "void")


def test_a_test_folder_without_pictures_is_no_test_split(tmp_path):
    root = tree(tmp_path, "train/a/1.png", "train/b/1.png")
    (root / "test" / "a").mkdir(parents=True)
    dataset = load(settings(root))
    assert dataset.test is None
    assert dataset.notes[0].endswith("; no test split")
    assert "test/ holds no pictures: there is no test split" in dataset.notes


def test_what_is_guessed_of_a_layout_is_said(tmp_path):
    def said(*paths):
        return load(settings(tree(tmp_path / paths[0][:3], *paths))).notes

    assert said("a/1.png", "b/1.png") == (
        "read as: all is train, 2 classes (a, b); no test split",
    )
    assert said("c1.png") == ("read as: all is train, without classes; no test split",)
    layout, hint = said("images/001/1.png", "images/002/1.png")
    assert "1 class (images)" in layout
    assert "lie in folders of images/, which counts as one class" in hint


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_class_is_one_in_both_forms_of_unicode(tmp_path, forms):
    """As macOS and others write it; and in a list of classes."""
    one, other = (unicodedata.normalize(form, "café") for form in forms)
    root = tree(tmp_path, f"train/{one}/1.png", f"test/{other}/1.png", "train/x/1.png")
    dataset = load(settings(root))
    assert dataset.class_names == ("café", "x")
    assert dataset.train.labels.tolist() == [0, 1]
    assert dataset.test.labels.tolist() == [0]
    assert not any("classes not in train" in note for note in dataset.notes)
    (tmp_path / "list.txt").write_text(other + "\n", encoding="utf-8-sig")
    dataset = load(settings(root, class_list=str(tmp_path / "list.txt")))
    assert dataset.class_names == ("café",)


# A test split from train.


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_a_share_of_each_class_is_held_out(tmp_path, keep):
    paths = [f"{name}/{n:02}.png" for name in "ab" for n in range(10)]
    root = tree(tmp_path, *paths, "c/0.png")
    (root / "a" / "00.png").write_text("broken")
    whole = load(settings(root, keep=keep))
    dataset = load(settings(root, keep=keep, held_out=0.3))
    assert np.bincount(dataset.test.labels).tolist() == [3, 3]
    assert np.bincount(dataset.train.labels).tolist() == [6, 7, 1]
    for split in ("train", "test"):
        found = getattr(dataset, split)
        for image, path in zip(found.images, paths_of(dataset, split), strict=True):
            np.testing.assert_array_equal(image, read_picture(root / path, SIDE))
    again = load(settings(root, keep=keep, held_out=0.3))
    assert again.content_hash == dataset.content_hash != whole.content_hash
    other = load(settings(root, keep=keep, held_out=0.3, held_out_seed=1))
    assert paths_of(other, "test") != paths_of(dataset, "test")
    assert dataset.description["held_out"] == "0.3 of each class of train, by seed 0"
    assert "held_out" not in whole.description
    assert "6 of 20 train images are held out" in dataset.notes[-2]


def test_what_cannot_be_held_out(tmp_path):
    other = tree(tmp_path / "other", "a/1.png")
    bytes_of_latin_1 = os.fsencode(other) + b"/caf\xe9"
    try:
        os.rename(other / "a", bytes_of_latin_1)
    except OSError:  # macOS keeps no such name
        bytes_of_latin_1 = None
    if bytes_of_latin_1:
        dataset = load(settings(other))
        assert dataset.class_names == ("caf\\xe9",)  # what figures can draw
        assert len(dataset.train.images) == 1

    flat = tree(tmp_path / "flat", *(f"{n}.png" for n in range(10)))
    dataset = load(settings(flat, held_out=0.2))
    assert len(dataset.train.images) == 8 and len(dataset.test.images) == 2
    assert dataset.test.labels is None
    root = tree(tmp_path / "both", "train/a/1.png", "test/a/1.png")
    with pytest.raises(UserError, match=r"has a test split; use --config\.data\.held"):
        load(settings(root, held_out=0.1))
    root = tree(tmp_path / "one", "a/1.png", "b/1.png")
    with pytest.raises(UserError, match="no class has two"):
        load(settings(root, held_out=0.1))
    config = image_folder.get_config()
    config.data.path, config.data.held_out = "x", 1.0
    with pytest.raises(UserError, match=r"data\.held_out=1\.0 must be in"):
        validate(config)


def test_what_may_not_be_meant_is_said(tmp_path):
    """Links to what is read anyway, names of one form, a folder that is no class."""
    root = tree(tmp_path / "links", "b/1.png", "c/1.png", "c/2.png", "d/1.png")
    (root / "a").symlink_to(root / "c")  # before it by name
    (root / "d" / "all").symlink_to(root / "b")
    (root / "loop").symlink_to(root)
    dataset = load(settings(root))
    assert [file.path for file in dataset.files] == [
        *("b/1.png", "c/1.png", "c/2.png", "d/1.png")
    ]
    assert dataset.class_names == ("b", "c", "d")
    link = "a is a link, and leads to no pictures but those that are read"
    assert link in dataset.notes
    outside = tree(tmp_path / "outside", "x/1.png", "y/2.png")
    (outside / "z").symlink_to(root / "c")
    assert load(settings(outside)).class_names == ("x", "y", "z")

    two = tree(tmp_path / "two", "train/café/1.png", "train/x\ny/1.png")
    picture(two / "train" / unicodedata.normalize("NFD", "café") / "2.png")
    dataset = load(settings(two))
    assert dataset.train.labels.tolist() in ([0, 0, 1], [1, 1, 0])
    assert any("2 folders are one class, train/café" in x for x in dataset.notes)
    assert all(line.isprintable() for line in dataset.notes)

    flat = tree(
        tmp_path / "flat", "train/a/1.png", "train/b/1.png", "test/images/1.png"
    )
    words = "the pictures of test lie in images/, which counts as a class that train"
    assert any(words in line for line in load(settings(flat)).notes)
    for name in ("b", "c"):
        picture(flat / "test" / name / "1.png")
    assert not any(words in line for line in load(settings(flat)).notes)

    (tmp_path / "film" / "a").mkdir(parents=True)
    (tmp_path / "film" / "a" / "1.mp4").touch()
    with pytest.raises(UserError, match="no pictures: 1 file of another kind is not"):
        load(settings(tmp_path / "film"))
    alone = tree(tmp_path / "alone", "test/a/1.png")
    with pytest.raises(UserError, match=r"or give .*alone/test as data\.path"):
        load(settings(alone))


# Pixels.


@pytest.mark.parametrize("module", [image_folder, imagenet100, cub200, cars196])
def test_the_size_alone_never_shows_a_corner(module):
    """What is resized follows what is shown, by 8/7, until it is given itself."""
    config = module.get_config()
    assert (config.data.image_size, config.data.resize) == (224, 256)
    for size in (7, 32, 64, 96, 300):
        config.data.image_size = size
        assert config.data.resize == size * 8 // 7
    config.data.resize = 128
    config.data.image_size = 64
    assert config.data.resize == 128


@pytest.mark.parametrize("name", ["image_folder", "imagenet100", "cub200", "cars196"])
@pytest.mark.parametrize("as_object", [False, True])
def test_the_size_of_the_command_line_never_shows_a_corner(name, as_object):
    config = import_module(f"configs.{name}").get_config() if as_object else name
    for size in (32, 64, 300):
        words = [f"--config.data.image_size={size}"]
        assert load_config(config, words).data.resize == size * 8 // 7
        given = load_config(config, ["--config.data.resize=400", *words])
        assert given.data.resize == 400
        given = load_config(config, [*words, "--config.data.resize=400"])
        assert given.data.resize == 400
    assert load_config(config).data.resize == 256  # what was given is as it was


def test_a_small_part_of_the_square_is_said(tmp_path):
    root = tree(tmp_path, "1.png")
    assert load(settings(root, resize=16)).notes[-1] == (
        "evaluation sees the centre 8 of 16 pixels, 25% of each square "
        "(data.image_size, data.resize)"
    )
    assert len(load(settings(root, resize=9)).notes) == 1


def test_encoded_files_are_known_by_their_content(tmp_path):
    """Not by names and sizes; runs that knew no better are still taken."""
    root = tree(tmp_path, "a/1.bmp", "a/2.bmp", "b/1.bmp")
    before = load(settings(root, keep="encoded"))
    names = hashlib.sha256(before.train.images.names_hash.encode()).hexdigest()
    assert before.trains_as(before.train_hash) and before.trains_as(names)
    assert not before.trains_as("0" * 64)
    picture(root / "a" / "2.bmp", 9)  # BMPs of one size have one size of file
    after = load(settings(root, keep="encoded"))
    assert after.files == before.files
    assert after.train.images.names_hash == before.train.images.names_hash
    assert after.train_hash != before.train_hash


# Which classes.


CLASSES = [f"{split}/{name}/1.png" for name in "abcd" for split in ("train", "test")]


def test_ranges_of_classes(tmp_path):
    """As for CUB: the first half trains, the second is the test; labels stay."""
    root = tree(tmp_path, *CLASSES)
    (root / "train" / "d" / "1.png").write_text("never opened")
    dataset = load(settings(root, train_classes=(0, 2), test_classes=(2, 4)))
    assert dataset.train.labels.tolist() == [0, 1]
    assert not any("hold" in note for note in dataset.notes)
    assert dataset.test.labels.tolist() == [2, 3]
    for bad in ((2, 2), (-1, 2), (3, 1), (1,)):
        with pytest.raises(UserError, match="give \\(first, after the last\\)"):
            load(settings(root, train_classes=bad))
    with pytest.raises(UserError, match="no train pictures of the classes chosen"):
        load(settings(root, train_classes=(4, 9)))
    flat = tree(tmp_path / "flat", "1.png")
    with pytest.raises(UserError, match="lie in no class folders"):
        load(settings(flat, train_classes=(0, 1)))


def test_list_of_classes(tmp_path, monkeypatch):
    root = tree(tmp_path / "data", *CLASSES)
    names = tmp_path / "list.txt"
    names.write_text("# mine\nd  # the last\n\n  b\n")
    dataset = load(settings(root, class_list=str(names)))
    assert dataset.class_names == ("d", "b")
    assert paths_of(dataset, "train") == ["train/b/1.png", "train/d/1.png"]
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == [1, 0]
    names.write_text("d\nx\n")
    with pytest.raises(UserError, match=r"names x, which .* it holds a, b, c, d"):
        load(settings(root, class_list=str(names)))
    monkeypatch.setitem(class_list.PACKAGED, "imagenet100", names)
    assert class_list.read_class_list("imagenet100") == ("d", "x")
    flat = tree(tmp_path / "flat", "1.png")
    with pytest.raises(UserError, match="lie in no class folders"):
        load(settings(flat, class_list=str(names)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file .* or imagenet100"),
        (b"\n# none\n", "holds no class"),
        (b"C#\nC++\nC#\n", "names C# twice"),
        (b"\xff\xfe\x00", "it is no text"),
    ],
)
def test_bad_class_lists(tmp_path, text, words):
    if text is not None:
        (tmp_path / "list.txt").write_bytes(text)
    with pytest.raises(UserError, match=words):
        class_list.read_class_list(str(tmp_path / "list.txt"))


@pytest.mark.parametrize("encoded", [False, True])
def test_classes_of_a_split(encoded):
    """As sources without folders choose them; the unlabelled (-1) are in no range."""
    pixels = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    images = pixels
    if encoded:
        contents = []
        for image in pixels:
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "PNG")
            contents.append(stream.getvalue())
        images = EncodedImages.from_bytes(contents, 1)
    split = Split(images, np.array([0, 2, -1, 1, 2, 3], np.int32))

    kept = class_list.keep_classes(split, (1, 3))
    assert isinstance(kept.images, EncodedImages) == encoded
    np.testing.assert_array_equal(kept.images[:], pixels[[1, 3, 4]])
    assert kept.labels.tolist() == [2, 1, 2]
    assert class_list.keep_classes(split, (0, 0)) is split

    kept = class_list.keep_listed(split, "abcd", ("c", "a"), "here")
    np.testing.assert_array_equal(kept.images[:], pixels[[0, 1, 4]])
    assert kept.labels.tolist() == [1, 0, 0]
    with pytest.raises(UserError, match="no image of the classes 7 to 8"):
        class_list.keep_classes(split, (7, 9))
    with pytest.raises(UserError, match="has no classes"):
        class_list.keep_classes(Split(images, None), (0, 1))


# Hostile files.


def hostile(root):
    """Fill a class with odd and broken pictures; return the names of the whole ones."""
    place = root / "train" / "all kinds, ü"
    broken = set(make_broken(place))
    picture(place / "1x1.png", size=(1, 1))
    picture(place / "wide.jpg", size=(10, 20000))
    picture(place / "ü 日本 %41.jpg")
    picture(place / "new\nline.png")
    picture(place / "cmyk.jpg", mode="CMYK")
    picture(place / "grey.jpg", mode="L")
    picture(place / "alpha.png", mode="RGBA")
    picture(place / "png.gif", format="PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(place / "rotated.jpg", exif=exif)
    (place / "link.png").symlink_to("1x1.png")
    (place / "up").symlink_to(root)
    (place / "round").symlink_to(place)
    (place / "folder.jpg").mkdir()
    picture(place / "full.jpg" / "in.png")
    (place / "notes.txt").touch()
    listed = {
        *("1x1.png", "wide.jpg", "ü 日本 %41.jpg", "new\nline.png", "cmyk.jpg"),
        *("grey.jpg", "alpha.png", "png.gif", "rotated.jpg", "link.png"),
        "full.jpg/in.png",
    }
    if os.geteuid():  # root may read every file
        picture(place / "locked.png")
        (place / "locked.png").chmod(0)
        broken.add("locked.png")
    return place, listed, broken


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("resize", [0, 11])
def test_hostile_files_are_named_and_left_out(tmp_path, fit, resize):
    """And pixels and encoded hold the same images to the bit."""
    place, whole, broken = hostile(tmp_path)
    changes = {"fit": fit, "resize": resize}
    pixels = load(settings(tmp_path, **changes))
    encoded = load(settings(tmp_path, keep="encoded", **changes))
    assert pixels.files == encoded.files and pixels.notes == encoded.notes
    expected = sorted(f"train/all kinds, ü/{name}" for name in whole)
    assert paths_of(pixels, "train") == expected
    side = resize or SIDE
    images = np.stack([read_picture(tmp_path / path, side, fit) for path in expected])
    np.testing.assert_array_equal(pixels.train.images, images)
    assert encoded.train.images.shape == images.shape
    np.testing.assert_array_equal(encoded.train.images[:], images)
    np.testing.assert_array_equal(pixels.train.labels, np.zeros(len(whole)))

    for row, path in enumerate(expected):
        plain = path.endswith(".jpg") and "cmyk" not in path and "rotated" not in path
        assert encoded.train.images.plain[row] == plain
    sizes = dict(zip(expected, encoded.train.images.sizes.tolist(), strict=True))
    assert sizes[f"train/{place.name}/wide.jpg"] == [10, 20000]
    assert sizes[f"train/{place.name}/rotated.jpg"] == [9, 12]

    layout, others, first, *named = pixels.notes
    assert layout.startswith("read as: train/ is train, 1 class (all kinds")
    assert others == "1 file of another kind is not read: 1 .txt"
    assert first.startswith(f"{len(broken)} files hold no picture")
    assert len(named) == len(broken) and all("\n" not in line for line in named)
    for name in broken:
        assert sum(f"train/{place.name}/{name}: " in line for line in named) == 1
    with pytest.raises(UserError, match=f"{len(broken)} files hold no picture"):
        load(settings(tmp_path, broken="error"))


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_a_file_that_may_not_be_read(tmp_path, keep, monkeypatch):
    """Also where the tests run as root, who may read all."""
    tree(tmp_path, "a.png", "b.png", "c.png")
    ways = ((Image, "open", Image.open), (Path, "read_bytes", Path.read_bytes))
    for of, name, opened in ways:

        def refuse(file, opened=opened, **options):
            if getattr(file, "name", "") == "b.png":
                raise PermissionError(13, "Permission denied")
            return opened(file, **options)

        monkeypatch.setattr(of, name, refuse)
    dataset = load(settings(tmp_path, keep=keep))
    assert paths_of(dataset, "train") == ["a.png", "c.png"]
    assert dataset.notes[-1] == "  b.png: Permission denied"
    images = dataset.train.images[:]
    np.testing.assert_array_equal(images[1], read_picture(tmp_path / "c.png", SIDE))


def test_many_broken_files_are_counted(tmp_path):
    tree(tmp_path, "whole.png")
    for number in range(30):
        (tmp_path / f"{number:02}.png").touch()
    notes = load(settings(tmp_path)).notes
    assert len(notes) == 23 and notes[-1] == "  10 more"
    assert notes[2] == "  00.png: the file is empty"


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_ten_thousand_files(tmp_path, keep):
    picture(tmp_path / "0.jpg")
    for number in range(1, 10_000):
        os.link(tmp_path / "0.jpg", tmp_path / f"{number}.jpg")
    dataset = load(settings(tmp_path, keep=keep))
    assert dataset.train.images.shape == (10_000, SIDE, SIDE, 3)
    picture_record.record(dataset, tmp_path, resumes=False)
    picture_record.record(dataset, tmp_path, resumes=True)


# The same on every machine and in every run.


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
def test_index_and_hash_do_not_depend_on_place_or_age(tmp_path, keep):
    names = ["b/1.png", "a b/1.png", "a/1.png", "B/1.png", "ä/1.png", "a-/2.png"]
    contents = {name: seed for seed, name in enumerate(names)}
    for copy, order in (("one", names), ("other", names[::-1])):
        for name in order:
            picture(tmp_path / copy / name, contents[name])
    one, other = (load(settings(tmp_path / x, keep=keep)) for x in ("one", "other"))
    assert paths_of(one, "train") == sorted(names)  # by code point, in any locale
    assert one.files == other.files
    assert one.train_hash == other.train_hash
    assert one.content_hash == other.content_hash != one.train_hash
    np.testing.assert_array_equal(one.train.images[:], other.train.images[:])

    (tmp_path / "other" / "b").rename(tmp_path / "other" / "c")
    moved = load(settings(tmp_path / "other", keep=keep))
    assert moved.files != other.files
    assert moved.train_hash == other.train_hash  # in the same order


def test_changed_folder_is_refused_in_words(tmp_path):
    root, workdir = (
        tree(tmp_path / "data", "cat/1.png", "cat/2.png", "dog/1.png"),
        tmp_path,
    )
    picture_record.record(
        load(settings(root)), workdir, resumes=True
    )  # none before: kept
    lines = (workdir / "pictures.jsonl").read_text().splitlines()
    assert lines[0].startswith('["train", "cat/1.png", ') and len(lines) == 3
    picture_record.record(load(settings(root)), workdir, resumes=True)

    def said():
        with pytest.raises(UserError) as error:
            picture_record.record(load(settings(root)), workdir, resumes=True)
        return str(error.value)

    tree(root, "cat/x.jpg", "cat/y.jpg")
    (root / "dog" / "1.png").unlink()
    words = said()
    assert "2 files are new, such as cat/x.jpg" in words
    assert "1 file is gone, such as dog/1.png" in words and "--workdir" in words
    picture_record.record(load(settings(root)), workdir, resumes=False)  # begun anew
    content = (root / "cat" / "2.png").read_bytes()
    (root / "cat" / "2.png").write_bytes(bytes(len(content)))
    assert "1 file is broken or mended, such as cat/2.png" in said()
    (root / "cat" / "2.png").write_bytes(content + b"more")
    assert "1 file is of another size, such as cat/2.png" in said()
    (workdir / "pictures.jsonl").write_text("{")
    assert "cannot be read as a list of pictures" in said()
    other = Dataset(
        "arrays", "mine", Split(np.zeros((1, 8, 8, 3), np.uint8), None), None
    )
    picture_record.record(other, workdir / "no such folder", resumes=True)


def test_expected_sizes(tmp_path):
    root = tree(tmp_path, "train/a/1.png", "train/a/2.png")
    layout, *none = load(settings(root, expected=(2, 0))).notes
    assert not none
    assert load(settings(root, expected=(9469, 3925))).notes[1:] == (
        "train holds 2 images where 9,469 are expected (data.expected)",
        "test holds 0 images where 3,925 are expected (data.expected)",
    )
    assert check_expected(load(settings(root)), (0, 0)).notes == (layout,)


# As users run it.


def test_path_is_asked_for():
    with pytest.raises(UserError, match="is empty; give the folder of pictures"):
        validate(image_folder.get_config())


def test_loading_imports_neither_tensorflow_nor_jax(tmp_path):
    root = tree(tmp_path, "a/1.jpg", "b/1.png")
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['jax'] = None\n"
        "from configs import image_folder\n"
        "from eir_jax.data.sources import load\n"
        "config = image_folder.get_config().data\n"
        f"config.path = {str(root)!r}\n"
        "for config.keep in ('pixels', 'encoded'):\n"
        "    assert load(config).train.images[:].shape == (2, 256, 256, 3)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=120
    )
    assert result.returncode == 0, result.stderr.decode()


def test_trains_evaluates_and_refuses_a_changed_folder(one_device, tmp_path, capsys):
    pytest.importorskip("tensorflow", reason="the tf.data pipeline needs TensorFlow")
    from eir_jax.embed import main as embed
    from eir_jax.experiments.evaluate import evaluate
    from eir_jax.training.loop import train_and_evaluate

    root, workdir = tmp_path / "data", tmp_path / "run"
    for split, count in (("train", 12), ("test", 5)):
        for name in ("cat", "dog"):
            for number in range(count):
                picture(root / split / name / f"{number}.jpg", number)
    (root / "train" / "cat" / "x.jpg").write_text("text")
    config = small_config(
        **{
            f"data.{key}": value
            for key, value in settings(root, keep="encoded").items()
        },
        **{"num_epochs": 1, "knn.k": (1, 5), "eval_every_epochs": 1},
    )
    assert train_and_evaluate(config, workdir) == 0
    said = capsys.readouterr().out
    assert "24 training images, 10 test images" in said
    assert "  train/cat/x.jpg: no JPEG, PNG" in said
    assert len((workdir / "pictures.jsonl").read_text().splitlines()) == 35
    found = evaluate(workdir, tasks=["knn"])
    assert found["knn"].keys() == {"1", "5"}
    assert "train/cat/x.jpg" in capsys.readouterr().err

    # A folder of the same pictures gives the same embeddings as the split.
    one, other = tmp_path / "split.npz", tmp_path / "folder.npz"
    embed([f"--workdir={workdir}", "--split=test", f"--out={one}"])
    embed([f"--workdir={workdir}", f"--images={root / 'test'}", f"--out={other}"])
    with np.load(one) as one, np.load(other) as other:
        np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-5)

    config.num_epochs = 2
    picture(root / "train" / "dog" / "new.jpg")
    with pytest.raises(UserError, match=r"1 file is new, such as train/dog/new\.jpg"):
        train_and_evaluate(config, workdir)


@pytest.mark.parametrize("start", ["\ufeff", "", "# mine\n\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_class_lists_as_editors_save_them(tmp_path, start, end):
    text = f"{start}cat{end}Löwe{end}"
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert class_list.read_class_list(str(tmp_path / "list.txt")) == ("cat", "Löwe")
