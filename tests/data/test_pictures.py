"""Headers, squashing and listing; what a picture looks like is in test_embed_search."""

import hashlib
import io
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from eir_jax.data.picture_files import list_files, list_pictures, others_in_words
from eir_jax.data.pictures import (
    BrokenPicture,
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
    digest = hashlib.sha256(content).digest() if decode else b""
    assert read_header(content, decode) == (22, 31, plain, digest)
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
    assert read_header(content)[:3] == (18, 26, True)
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


# Which files are pictures.


def test_what_pillow_opens_is_a_picture(tmp_path):
    """By suffix, or without one by its first bytes."""
    image = Image.fromarray(noise(0, 9, 12))
    for suffix in ("tif", "tiff", "jpe", "ppm", "jp2", "tga", "avif", "apng", "TIF"):
        image.save(tmp_path / f"a.{suffix}")
    image.save(tmp_path / "b.jfif", "JPEG")
    for form in ("JPEG", "PNG", "TIFF", "WEBP"):
        image.save(tmp_path / f"without {form}", form)
    found, others = list_files(tmp_path)
    assert len(found) == 14 and not others
    for name in found:
        assert read_whole(tmp_path / name).shape == (9, 12, 3)
        assert read_header(tmp_path / name)[:2] == (9, 12)


def test_the_other_files_are_counted_in_a_line(tmp_path):
    for name in ("a.heic", "b.HEIC", "c.mp4", "README", "d.pdf", "e.txt", "f.h5"):
        (tmp_path / name).write_text("no picture of Pillow's")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    found, others = list_files(tmp_path)
    assert found == []
    assert others == {".heic": 2, "": 3, ".mp4": 1, ".pdf": 1, ".txt": 1, ".h5": 1}
    (line,) = others_in_words(others)
    assert line.startswith(
        "9 files of other kinds are not read: 3 without suffix, 2 .h"
    )
    assert "pip install pillow-heif" in line
    (line,) = others_in_words(Counter({".txt": 1}))
    assert line == "1 file of another kind is not read: 1 .txt"
    assert others_in_words(Counter()) == []


@pytest.mark.parametrize(
    "name",
    [
        *(".hidden.png", "._a.png", ".thumbnails/a.png", ".ipynb_checkpoints/a.png"),
        *("__MACOSX/a.png", "@eaDir/a.jpg/SYNO.jpg", "Thumbs.db", "desktop.ini"),
        *("$RECYCLE.BIN/a.png", "lost+found/a.png", ".DS_Store", "Icon\r"),
    ],
)
def test_what_systems_leave_lying_is_passed_over(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 3)).save(tmp_path / name, "PNG")
    assert list_files(tmp_path) == ([], {})


# The range of tones.


RAMP = np.linspace(0, 1, 64)


def ramp(largest, dtype):
    return np.tile((RAMP * largest).astype(dtype), (4, 1))


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("PNG", ramp(65535, np.uint16)),
        ("TIFF", ramp(65535, np.uint16)),
        ("TIFF", ramp(4095, np.uint16)),  # 12 bits of a microscope
        ("TIFF", ramp(1023, np.uint16)),
        ("PNG", ramp(4095, np.uint16)),  # of a depth camera: 16 of 255 otherwise
        ("PNG", ramp(1023, np.uint16)),
        ("TIFF", ramp(65535, np.int32)),
        ("TIFF", ramp(1, np.float32)),
        ("TIFF", ramp(255, np.float32)),
        ("TIFF", ramp(65535, np.float32)),
        ("TIFF", ramp(2, np.float32) - 1),  # a network's: 2 of 255 otherwise
        ("TIFF", ramp(1.01, np.float32)),
        ("TIFF", ramp(0.001, np.float32)),
        ("PNG", ramp(255, np.uint8)),
    ],
)
def test_grey_of_any_depth_keeps_its_tones(form, values):
    found = read_whole(encoded(Image.fromarray(values), form)).astype(int)
    assert (found == found[..., :1]).all()
    assert np.abs(found[0, :, 0] - 255 * RAMP).max() <= 1


def test_a_dark_picture_stays_dark():
    """White is the file's, not the picture's own."""
    dark = ramp(6000, np.uint16)
    found = read_whole(encoded(Image.fromarray(dark), "PNG"))
    assert found.max() == round(6000 / 257)
    black = read_whole(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))
    assert black.max() == 0
    broken = np.full((4, 4), np.nan, np.float32)
    assert read_whole(encoded(Image.fromarray(broken), "TIFF")).max() == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_modes_keep_black_and_white(mode):
    """Half black, half white; and white where there is nothing to see."""
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (4, 0, 8, 4))
    found = read_whole(encoded(image.convert(mode), "TIFF")).astype(int)
    assert found[:, :4].max() <= 2 and found[:, 4:].min() >= 253
    clear = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    np.testing.assert_array_equal(read_whole(encoded(clear, "PNG")), 255)
    palette = image.quantize(2)
    palette.info["transparency"] = palette.getpixel((0, 0))
    np.testing.assert_array_equal(read_whole(encoded(palette, "GIF")), 255)
