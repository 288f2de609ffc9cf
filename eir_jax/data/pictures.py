"""Picture files of any format, mode and size as uint8 arrays.

Needs neither TensorFlow nor JAX.
"""

import errno
import hashlib
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

from eir_jax.data.picture_files import formats_of
from eir_jax.system.errors import UserError, one_line

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


# What the system says of itself or a network disk, not of the file.
PASSING = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN),
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
    digest: bytes = b""
    """SHA-256 of the file; empty where it was not read whole."""


def preparation(size: int, fit: str) -> str:
    """Return what `read_picture` does, in words, for the record."""
    return (
        "first frame, EXIF rotation applied, alpha composited on white, sRGB assumed, "
        + FITS[fit].format(size=size)
    )


def read_picture(
    source: Path | bytes, size: int, fit: str = "crop"
) -> UInt8[np.ndarray, "size size 3"]:
    """Read a picture file, or its content, as `preparation` says: RGB in 0 .. 255.

    Grey pictures get three equal channels, CMYK is converted; of more than 8 bits a
    channel the whole range becomes 0 .. 255 (see `_white`).

    Raises:
      BrokenPicture: there is no file, or it holds no whole picture.
      UserError: memory or the disk fails.
    """
    with _opened(source) as (image, _):
        return _square(_to_rgb(image), size, fit)


def read_with_header(
    source: Path | bytes, size: int, fit: str = "crop"
) -> tuple[UInt8[np.ndarray, "size size 3"], Header]:
    """Read a picture as `read_picture`, and its file's size in pixels and digest.

    Raises:
      BrokenPicture: as `read_picture`.
    """
    with _opened(source, whole=True) as (image, content):
        plain = _is_plain(image)
        rgb = _to_rgb(image)
        header = Header(rgb.height, rgb.width, plain, hashlib.sha256(content).digest())
        return _square(rgb, size, fit), header


def read_thumbnail(source: Path, size: int) -> UInt8[np.ndarray, "height width 3"]:
    """Read a picture whole and small, its longer side at most `size`, quickly.

    Of a large JPEG fewer pixels are decoded, so that it is `read_picture`'s but for
    rounding: for the eye, not for an encoder.

    Raises:
      BrokenPicture: as `read_picture`.
    """
    with _opened(source) as (image, _):
        image.draft("RGB", (2 * size, 2 * size))
        rgb = _to_rgb(image)
        rgb.thumbnail((size, size), Image.Resampling.BILINEAR)
        return np.asarray(rgb)


def read_whole(source: Path | bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Read a picture as `read_picture` does, at its own size.

    Raises:
      BrokenPicture: as `read_picture`.
    """
    with _opened(source) as (image, _):
        return np.asarray(_to_rgb(image))


def read_header(source: Path | bytes, decode: bool = True) -> Header:
    """Return size and kind of a picture; with `decode`, of one that is surely whole.

    Then the file is read whole, and its digest returned.

    Raises:
      BrokenPicture: as `read_picture`; without `decode`, not of what is cut short.
    """
    digest = b""
    with _opened(source, whole=decode) as (image, content):
        width, height = image.size
        plain = _is_plain(image)
        if decode:
            digest = hashlib.sha256(content).digest()
            # Of a JPEG an eighth of the pixels: the whole file is read, but quickly.
            image.draft(None, (1, 1))
            image.load()
        turn = _turn(image)
        if turn in SIDEWAYS:
            width, height = height, width
    return Header(height, width, plain, digest)


@contextmanager
def _opened(
    source: Path | bytes, whole: bool = False
) -> Iterator[tuple[Image.Image, bytes]]:
    """Open a picture; whatever is wrong with it then raises BrokenPicture.

    With `whole` the file is read at once: the second is its bytes, else none.

    Raises:
      UserError: memory or the disk fails, so that whole pictures would count as broken.
    """
    name = source if isinstance(source, Path) else "a picture"
    try:
        if isinstance(source, Path):
            status = os.stat(source)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                raise BrokenPicture("not a regular file")
            empty, formats = not status.st_size, formats_of(source.name)
        else:
            empty, formats = not source, formats_of("")
        if empty:
            raise BrokenPicture("the file is empty")
        if whole and isinstance(source, Path):
            source = source.read_bytes()
        content = source if isinstance(source, bytes) else b""
        file = io.BytesIO(content) if content else source
        with Image.open(file, formats=formats) as image:  # type: ignore[arg-type]
            yield image, content
    except BrokenPicture:
        raise
    except UnidentifiedImageError:
        raise BrokenPicture("no JPEG, PNG, or other picture that is read") from None
    except UserError:
        raise
    except OSError as error:
        if error.errno in PASSING:
            raise UserError(
                f"{name} cannot be read now: {error.strerror}; start again when the "
                "disk answers, or remove the file"
            ) from None
        raise BrokenPicture(error.strerror or one_line(str(error))) from None
    except MemoryError:
        raise UserError(
            f"out of memory: {name} cannot be decoded; leave more memory free, or "
            "remove the file"
        ) from None
    except Exception as error:  # on hostile files Pillow raises many types
        raise BrokenPicture(one_line(f"{type(error).__name__}: {error}")) from None


def _is_plain(image: Image.Image) -> bool:
    is_jpeg = image.format in ("JPEG", "MPO")
    return is_jpeg and image.mode in ("L", "RGB") and _turn(image) is None


def _square(rgb: Image.Image, size: int, fit: str) -> UInt8[np.ndarray, "size size 3"]:
    box = None
    if fit == "crop":
        side = min(rgb.size)
        left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
        # Cropped and resized at once: a very wide picture is never enlarged whole.
        box = (left, top, left + side, top + side)
    square = rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(square)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged notes beside whole pixels
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Turn upright and convert to RGB; where it is transparent, white shows through."""
    image.load()
    turn = _turn(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey(image)  # Pillow would clip at 255
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _grey(image: Image.Image) -> Image.Image:
    """Bring grey values of more than 8 bits, or floats, to 0 .. 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
    black, white = min(values.min(), 0.0), values.max()
    white = black + _white(white - black, image.format, image.mode)
    grey = np.round((values - black) * (255 / (white - black)))
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def _white(largest: float, form: str | None, mode: str) -> float:
    """Return the value that is white, of a picture whose largest value is given.

    That of the file's bits, not of the picture, so that dark ones stay dark: 65,535 in
    a PNG. In other files, as of microscopes, 10, 12 or 14 bits often lie in 16, and
    floats count to 1 or 255: the smallest of such ranges that holds the picture. One
    that would be all but black, below a sixteenth of white, is of another range: of
    fewer bits, or floats of its own, as -1 .. 1.
    """
    ranges = [2**bits - 1.0 for bits in (8, 10, 12, 14, 16, 24, 32)]
    if mode == "F":
        ranges = [1.0, *ranges]
    white = next((white for white in ranges if largest <= white), largest)
    if form == "PNG" and largest > 65535 / 16:
        return 65535
    if mode == "F" and 0 < largest < white / 16:
        return largest
    return white
