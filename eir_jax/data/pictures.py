"""Picture files of any format, mode and size as square uint8 arrays.

Needs neither TensorFlow nor JAX.
"""

import os
import stat
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from eir_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # by content, whatever the suffix
PREPARATION = (
    "first frame, EXIF rotation applied, alpha composited on white, sRGB assumed, "
    "centre square of the shorter side, PIL bilinear to {size}x{size}"
)
"""What `read_picture` does, in words, for the record."""


class BrokenPicture(Exception):
    """A file that gives no picture; the message says why, without the path."""


def list_pictures(folder: Path) -> list[str]:
    """Return the pictures in a folder and below it, by suffix: sorted relative paths.

    Links are followed; a folder that is reached twice, in a loop say, counts once.

    Raises:
      UserError: the folder, or one below it, cannot be read.
    """

    def refuse(error: OSError):
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    found, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        place = Path(root).relative_to(folder)
        found += [
            (place / file).as_posix()
            for file in files
            if file.lower().endswith(SUFFIXES)
        ]
    return sorted(found)


def read_picture(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Read a picture as `PREPARATION` says, RGB in 0 .. 255.

    Grey pictures get three equal channels, CMYK is converted, 16 bits become 8.

    Raises:
      BrokenPicture: there is no file, or it holds no whole picture.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise BrokenPicture("not a regular file")
        if not status.st_size:
            raise BrokenPicture("the file is empty")
        with Image.open(path, formats=FORMATS) as image:
            rgb = _to_rgb(ImageOps.exif_transpose(image))
        side = min(rgb.size)
        left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
        # Resized and cropped at once: a very wide picture need not be enlarged whole.
        box = (left, top, left + side, top + side)
        square = rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)
    except BrokenPicture:
        raise
    except UnidentifiedImageError:
        raise BrokenPicture("no JPEG, PNG, WebP, BMP or GIF picture") from None
    except OSError as error:
        raise BrokenPicture(error.strerror or str(error)) from None
    except Exception as error:  # on hostile files Pillow raises many types
        raise BrokenPicture(f"{type(error).__name__}: {error}") from None
    return np.asarray(square)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; where it is transparent, white shows through."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # PIL would clip at 255
        grey = np.clip(np.asarray(image).astype(np.float32) / 257, 0, 255)
        image = Image.fromarray(np.round(grey).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
