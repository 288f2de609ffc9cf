"""Encoded pictures read like the array of their pixels."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from eir_jax.data.encoded import EncodedImages
from eir_jax.data.pictures import read_picture
from eir_jax.figures.neighbours import neighbour_grid
from eir_jax.system.errors import UserError

SIDE = 12


def coloured(seed, mode="RGB"):
    """Return a smooth picture with some noise, of a size of its own."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 60, 2)
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 4, y * 4, 128 + 99 * np.sin(x / 5 + y / 7)], axis=-1)
    image = np.clip(image + rng.integers(-20, 20, image.shape), 0, 255)
    return Image.fromarray(image.astype(np.uint8)).convert(mode)


def encode(image, form="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def exif(orientation):
    notes = Image.Exif()
    notes[0x0112] = orientation
    return notes


KINDS = {
    "jpeg": encode(coloured(0)),
    "progressive": encode(coloured(1), progressive=True),
    "444": encode(coloured(2), subsampling=0),
    "grey": encode(coloured(3, "L")),
    "rgb": encode(coloured(4), keep_rgb=True),
    "low quality": encode(coloured(5), quality=5),
    "upright": encode(coloured(6), exif=exif(1)),
    "rotated": encode(coloured(7), exif=exif(6)),
    "cmyk": encode(coloured(8, "CMYK")),
    "png": encode(coloured(9), "PNG"),
    "alpha": encode(coloured(10, "RGBA"), "WEBP"),
    "gif": encode(coloured(11, "P"), "GIF"),
}
PLAIN = [True] * 7 + [False] * 5


@pytest.fixture(params=["bytes", "files"])
def images(request, tmp_path):
    held = EncodedImages.from_bytes(list(KINDS.values()), SIDE)
    if request.param == "bytes":
        return held
    names = [f"ü {name}.jpg" for name in KINDS]
    for name, content in zip(names, KINDS.values(), strict=True):
        (tmp_path / name).write_bytes(content)
    parts = held.rows, held.sizes, held.plain, held.file_sizes
    digests = [hashlib.sha256(content).digest() for content in KINDS.values()]
    digests = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    return EncodedImages(names, *parts, SIDE, "crop", tmp_path, digests)


@pytest.fixture(scope="module")
def pixels():
    return np.stack([read_picture(content, SIDE) for content in KINDS.values()])


def test_reads_like_its_pixels(images, pixels):
    assert images.shape == pixels.shape and images.ndim == pixels.ndim
    assert images.dtype == pixels.dtype and len(images) == len(pixels)
    mask = np.arange(len(pixels)) % 3 == 0
    for index in (
        *(0, -1, np.int32(3), np.int64(-2)),
        *(slice(None), slice(2, 5), slice(-3, None, -2), slice(50, 60)),
        *([4, 4, -1], np.array([2, 0]), np.array([], int), mask, mask[::-1]),
    ):
        found = images[index]
        assert isinstance(found, np.ndarray) and found.dtype == np.uint8
        np.testing.assert_array_equal(found, pixels[index])
        if not isinstance(index, (int, np.integer)):
            np.testing.assert_array_equal(images.select(index)[:], pixels[index])
    np.testing.assert_array_equal(np.asarray(images), pixels)
    np.testing.assert_array_equal(np.asarray(images[1]), pixels[1])
    np.testing.assert_array_equal(np.stack(list(images)), pixels)


@pytest.mark.parametrize(
    "index", [12, -13, np.int64(12), [0, 12], np.zeros(3, bool), (0, 1), [[0, 1]], 0.5]
)
def test_bad_index_raises_as_an_array_does(images, index):
    with pytest.raises(IndexError):
        images[index]


def test_selecting_twice_decodes_nothing(images, pixels):
    chosen = images.select(np.arange(12) % 2 == 1).select([5, 0])
    np.testing.assert_array_equal(chosen[:], pixels[[11, 1]])
    assert chosen.read(1) == KINDS["progressive"]
    assert chosen.plain.tolist() == [False, True]
    assert chosen.sizes.tolist() == images.sizes[[11, 1]].tolist()
    assert len(chosen) == 2 and len(images) == 12


def test_what_the_pipeline_asks_for(images):
    assert images.sizes.dtype == np.int32 and images.plain.dtype == bool
    assert images.plain.tolist() == PLAIN
    for row, content in enumerate(KINDS.values()):
        assert images.read(row) == content
        whole = images.picture(row)
        assert whole.dtype == np.uint8 and whole.shape == (*images.sizes[row], 3)


def test_plain_ones_are_the_same_picture_in_tensorflow(images):
    """To the bit, by its accurate transform; cut ones but for the outermost columns."""
    tf = pytest.importorskip("tensorflow")
    accurate = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
    assert images.plain.sum() == 7
    for row in np.flatnonzero(images.plain):
        content, whole = images.read(row), images.picture(row)
        theirs = tf.io.decode_jpeg(content, **accurate).numpy()
        np.testing.assert_array_equal(theirs, whole)
        for top, left in ((3, 5), (0, 0), (4, 8), (7, 1)):
            window = [top, left, 11, 12]
            theirs = tf.io.decode_and_crop_jpeg(content, window, **accurate).numpy()
            part = whole[top : top + 11, left : left + 12]
            np.testing.assert_array_equal(theirs[:, 1:-1], part[:, 1:-1])


def test_squash():
    images = EncodedImages.from_bytes(list(KINDS.values()), SIDE, "squash")
    expected = read_picture(KINDS["jpeg"], SIDE, "squash")
    np.testing.assert_array_equal(images[0], expected)


def test_hash_follows_content_order_and_size(images):
    same = EncodedImages.from_bytes(list(KINDS.values()), SIDE)
    if images.in_memory:
        assert same.content_hash == images.content_hash
    others = [images.select([1, 0]), images.select([0]), images.select([0, 1])]
    hashes = {images.content_hash, *(other.content_hash for other in others)}
    assert len(hashes) == 4
    changed = list(KINDS.values())
    changed[3] = changed[3][:-5] + b"x" + changed[3][-4:]
    assert EncodedImages.from_bytes(changed, SIDE).content_hash != same.content_hash


def test_file_that_goes_away_is_named(images):
    if images.in_memory:
        pytest.skip("held in memory")
    (images.folder / "ü png.jpg").unlink()
    (images.folder / "ü gif.jpg").write_bytes(KINDS["gif"][:30])
    for ask in (images.read, images.picture, images.__getitem__):
        with pytest.raises(
            UserError, match=r"ü png\.jpg can no longer be read: No such"
        ):
            ask(9)
    with pytest.raises(UserError, match=r"ü gif\.jpg can no longer be read"):
        images[10:]


def test_no_picture_in_memory_is_named():
    with pytest.raises(UserError, match="image 1 cannot be read: no JPEG"):
        EncodedImages.from_bytes([KINDS["gif"], b"text"], SIDE)
    assert EncodedImages.from_bytes([], SIDE)[:].shape == (0, SIDE, SIDE, 3)


def test_figure_decodes_only_what_it_draws(images, tmp_path, monkeypatch):
    read = []
    square = EncodedImages._square
    monkeypatch.setattr(
        EncodedImages,
        "_square",
        lambda self, row: read.append(row) or square(self, row),
    )
    neighbour_grid(images, [[3, 4]], np.array([2]), None, tmp_path / "f.png")
    assert sorted(read) == [2, 3, 4]
