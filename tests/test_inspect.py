"""The look at a data set: what it prints, what it draws, how it refuses."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import small_config

from eir_jax.data.dataset import Dataset, Split
from eir_jax.data.encoded import EncodedImages
from eir_jax.inspect import describe, draw_views
from eir_jax.system.errors import UserError

ROOT = Path(__file__).parent.parent


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "eir_jax.inspect", *map(str, words)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


def noise(count, size=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def test_digits_as_users_see_them(tmp_path):
    result = run("--config=configs/digits.py", f"--out={tmp_path / 'new' / 'folder'}")
    assert result.returncode == 0, result.stderr
    for line in (
        "source   digits, digits",
        "train    1,437 images of 16x16; pixels, 1.1 MB",
        "10 classes, from 137 (class 4) to 153 (class 5) images",
        "test     360 images of 16x16; pixels, 276 kB",
        "training images 4190f7c9057e",
    ):
        assert line in result.stdout
    with Image.open(tmp_path / "new" / "folder" / "views.png") as picture:
        assert picture.width > 500 and picture.height > 1000


def test_arrays_as_users_see_them(tmp_path):
    """Few images, unseen test classes, another size, and no mix."""
    pytest.importorskip("tensorflow", reason="the tf.data pipeline needs TensorFlow")
    np.savez(
        tmp_path / "a.npz",
        train_images=noise(5),
        train_labels=np.array([0, 1, -1, 1, 0]),
        test_images=noise(3),
        test_labels=np.array([2, 2, 4]),
    )
    result = run(
        "--config=configs/cifar10.py",
        "--config.data.source=arrays",
        f"--config.data.path={tmp_path / 'a.npz'}",
        "--config.data.image_size=8",
        "--config.data.pipeline=tf.data",
        "--config.lambda_inter=0",
        f"--out={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    for line in (
        "train    5 images of 8x8; pixels, 960 bytes",
        "2 classes, 2 of each; 1 unlabelled",
        "2 classes, from 1 (class 4) to 2 (class 2) images",
        "no test class occurs in train: retrieval, no kNN",
        "train holds 5 images where 50,000 are expected",
    ):
        assert line in result.stdout
    with Image.open(tmp_path / "views.png") as picture:
        assert 400 < picture.width < 800  # three columns


def test_encoded_images_and_absent_parts_are_described(tmp_path):
    files = []
    for number, size in enumerate([(30, 20), (40, 50)]):
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"{number}.jpg")
        files.append((tmp_path / f"{number}.jpg").read_bytes())
    images = EncodedImages.from_bytes(files, 16, "crop")
    config = small_config()
    config.data.image_size = 12
    dataset = Dataset(
        "folder", "mine", Split(images, None), None, notes=("1 file is broken",)
    )
    text = "\n".join(describe(dataset, config))
    assert "2 images of 16x16, cut to 12x12; encoded in memory" in text
    assert "20 to 50 high, 30 to 40 wide" in text
    assert "no labels" in text and "test     none" in text
    assert "note     1 file is broken" in text


def test_the_picture_shows_the_images_chosen(tmp_path):
    """Each in its colour, as it is evaluated: the training images of one batch."""
    pytest.importorskip("tensorflow", reason="the tf.data pipeline needs TensorFlow")
    colours = np.array(
        [[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0], [0, 250, 250]], np.uint8
    )
    images = np.tile(colours[:, None, None], (1, 8, 8, 1))
    labels = np.arange(5)
    names = tuple(f"a $ class_{n} with quite a long name" for n in labels)
    dataset = Dataset("arrays", "mine", Split(images, labels), None, names)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        draw_views(dataset, small_config(), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    for colour in colours:
        distance = np.abs(pixels.astype(int) - colour).max(axis=-1)
        assert (distance <= 1).sum() > 10_000
    with pytest.raises(UserError, match="cannot be written"):
        draw_views(dataset, small_config(), tmp_path / "a.png" / "views.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=configs/digit.py"], "did you mean configs/digits.py"),
        (["--config=configs/digits.py", "--config.data.siz=3"], "data.siz"),
        (["--config=configs/digits.py", "--config.data.path=x", "--ou=y"], "--ou"),
        (
            ["--config=configs/image_folder.py", "--config.data.path=/nowhere"],
            "/nowhere",
        ),
        ([], "--config"),
    ],
)
def test_bad_input_is_one_line(words, message):
    result = run(*words)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_help_is_quick():
    began = time.monotonic()
    result = run("--help")
    assert result.returncode == 0 and "--out" in result.stdout
    assert time.monotonic() - began < 5
