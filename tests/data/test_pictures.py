"""Headers, squashing and listing; what a picture looks like is in test_embed_search."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from eir_jax.data.pictures import (
    BrokenPicture,
    list_pictures,
    preparation,
    read_header,
    read_picture,
    read_whole,
)


def noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("form", "mode", "plain"),
    [
        ("JPEG", "RGB", True),
        ("JPEG", "L", True),
        ("JPEG", "CMYK", False),
        ("PNG", "RGB", False),
        ("PNG", "I;16", False),
        ("WEBP", "RGBA", False),
        ("GIF", "P", False),
        ("BMP", "1", False),
    ],
)
@pytest.mark.parametrize("decode", [True, False])
def test_header(form, mode, plain, decode):
    content = encoded(Image.new(mode, (31, 22)), form)
    assert read_header(content, decode) == (22, 31, plain)
    assert read_whole(content).shape == (22, 31, 3)


@pytest.mark.parametrize("orientation", range(10))
def test_every_exif_orientation_as_pillow_has_it(orientation, tmp_path):
    """Also 0 and 9, which are none; from a file and from bytes."""
    image = Image.fromarray(noise(0, 18, 26))
    content = encoded(image, "JPEG", exif=rotated(orientation))
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read_whole(content), expected)
    (tmp_path / "a.jpg").write_bytes(content)
    np.testing.assert_array_equal(read_whole(tmp_path / "a.jpg"), expected)
    header = read_header(content)
    assert header[:2] == expected.shape[:2]
    assert header.plain == (orientation in (0, 1, 9))


def test_damaged_exif_beside_whole_pixels_is_no_harm():
    image = Image.fromarray(noise(0, 18, 26))
    content = encoded(image, "JPEG", exif=b"Exif\0\0" + b"no notes at all")
    assert read_header(content) == (18, 26, True)
    clean = encoded(image, "JPEG")
    np.testing.assert_array_equal(read_whole(content), read_whole(clean))


@pytest.mark.parametrize("shape", [(40, 90), (90, 41), (1, 1), (10, 20000)])
def test_squashed_is_resized_whole(shape):
    image = noise(1, *shape)
    found = read_picture(encoded(Image.fromarray(image), "PNG"), 20, "squash")
    whole = Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(whole))


def test_words_say_how():
    assert "centre square" in preparation(96, "crop")
    assert "squashed" in preparation(64, "squash") and "64x64" in preparation(
        64, "squash"
    )


def test_header_decodes_to_see_that_the_file_is_whole():
    for form in ("JPEG", "PNG", "WEBP"):
        content = encoded(Image.fromarray(noise(0, 64, 64)), form)
        for cut in (content[: len(content) // 2], content[:-300], content[:1], b""):
            with pytest.raises(BrokenPicture):
                read_header(cut)


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BrokenPicture, match="DecompressionBomb"):
        read_header(encoded(Image.new("L", (100, 100)), "PNG"))


def test_listing_leaves_out_what_lies_above(tmp_path):
    """A link to a folder above would list the other split, and these twice."""
    for name in ("train/cat/1.png", "test/cat/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "train" / "up").symlink_to(tmp_path)
    (tmp_path / "train" / "cat" / "again").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "folder.png").mkdir()
    assert list_pictures(tmp_path / "train") == ["cat/1.png"]
    found = list_pictures(tmp_path / "train", and_folders=True)
    assert found == ["cat/1.png", "folder.png"]
