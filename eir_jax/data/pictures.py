"""Picture files of any format, mode and size as uint8 arrays.

Needs neither TensorFlow nor JAX.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from eir_jax.system.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # by content, whatever the suffix
TURNS = {  # of the EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(TURNS[orientation] for orientation in (5, 6, 7, 8))
FITS = {
    "crop": "centre square of the shorter side, PIL bilinear to {size}x{size}",
    "squash": "both sides squashed, PIL bilinear to {size}x{size}",
}


class BrokenPicture(Exception):
    """A file that gives no picture; the message says why, without the path."""


class Header(NamedTuple):
    """What is known of a picture without its pixels."""

    height: int
    """After EXIF rotation, like `width`."""
    width: int
    plain: bool
    """A grey or colour JPEG, not rotated: other decoders see the same picture."""


def preparation(size: int, fit: str) -> str:
    """Return what `read_picture` does, in words, for the record."""
    return (
        "first frame, EXIF rotation applied, alpha composited on white, sRGB assumed, "
        + FITS[fit].format(size=size)
    )


def list_pictures(folder: Path, and_folders: bool = False) -> list[str]:
    """Return the pictures in a folder and below it, by suffix: sorted relative paths.

    Links are followed; a folder that is reached twice, in a loop say, counts once, and
    one above the folder not at all. With `and_folders`, empty folders that are named
    like a picture are listed too.

    Raises:
      UserError: the folder, or one below it, cannot be read.
    """

    def refuse(error: OSError):
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    found = []
    seen = {_identity(above) for above in folder.resolve().parents}
    for root, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        identity = _identity(root)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders.sort()
        place = Path(root).relative_to(folder)
        found += [(place / f).as_posix() for f in files if is_named_picture(f)]
        empty = and_folders and not folders and not files
        if empty and place.parts and is_named_picture(place.name):
            found.append(place.as_posix())
    return sorted(found)


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def is_named_picture(name: str) -> bool:
    """Return whether a name ends as a picture's does."""
    return name.lower().endswith(SUFFIXES)


def read_picture(
    source: Path | bytes, size: int, fit: str = "crop"
) -> UInt8[np.ndarray, "size size 3"]:
    """Read a picture file, or its content, as `preparation` says: RGB in 0 .. 255.

    Grey pictures get three equal channels, CMYK is converted, 16 bits become 8.

    Raises:
      BrokenPicture: there is no file, or it holds no whole picture.
    """
    with _opened(source) as image:
        rgb = _to_rgb(image)
        box = None
        if fit == "crop":
            side = min(rgb.size)
            left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
            # Cropped and resized at once: a very wide picture is never enlarged whole.
            box = (left, top, left + side, top + side)
        square = rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(square)


def read_whole(source: Path | bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Read a picture as `read_picture` does, at its own size.

    Raises:
      BrokenPicture: as `read_picture`.
    """
    with _opened(source) as image:
        return np.asarray(_to_rgb(image))


def read_header(source: Path | bytes, decode: bool = True) -> Header:
    """Return size and kind of a picture; with `decode`, of one that is surely whole.

    Raises:
      BrokenPicture: as `read_picture`; without `decode`, not of what is cut short.
    """
    with _opened(source) as image:
        width, height = image.size
        is_jpeg = image.format in ("JPEG", "MPO")
        mode = image.mode
        if decode:
            # Of a JPEG an eighth of the pixels: the whole file is read, but quickly.
            image.draft(None, (1, 1))
            image.load()
        turn = _turn(image)
        if turn in SIDEWAYS:
            width, height = height, width
    plain = is_jpeg and mode in ("L", "RGB") and turn is None
    return Header(height, width, plain)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Open a picture; whatever is wrong with it then raises BrokenPicture."""
    try:
        if isinstance(source, Path):
            status = os.stat(source)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                raise BrokenPicture("not a regular file")
            empty = not status.st_size
        else:
            empty = not source
        if empty:
            raise BrokenPicture("the file is empty")
        file = source if isinstance(source, Path) else io.BytesIO(source)
        with Image.open(file, formats=FORMATS) as image:
            yield image
    except BrokenPicture:
        raise
    except UnidentifiedImageError:
        raise BrokenPicture("no JPEG, PNG, WebP, BMP or GIF picture") from None
    except OSError as error:
        raise BrokenPicture(error.strerror or str(error)) from None
    except Exception as error:  # on hostile files Pillow raises many types
        raise BrokenPicture(f"{type(error).__name__}: {error}") from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged notes beside whole pixels
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Turn upright and convert to RGB; where it is transparent, white shows through."""
    image.load()
    turn = _turn(image)
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL would clip at 255
        grey = np.clip(np.asarray(image).astype(np.float32) / 257, 0, 255)
        image = Image.fromarray(np.round(grey).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)
