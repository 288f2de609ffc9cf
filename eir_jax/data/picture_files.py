"""Which files of a folder are pictures: one rule for training, looking and embedding.

What Pillow opens is a picture, by its suffix, or, without one, by its first bytes.
What systems and file managers leave lying about is passed over. The rest is counted.
"""

import functools
import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from eir_jax.system.files import refuse_unreadable

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".avif")
"""The usual ones, for words; `is_picture` decides."""
# Known by their first bytes, so they are read whatever the suffix, and without one.
KNOWN_BY_CONTENT = {
    *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF", "JXL"),
    *("JPEG2000", "PPM", "PSD", "QOI"),
}
# Pillow names these, but decodes them by another program or not at all.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
# Beside whatever begins with a dot.
LEFT_LYING = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__"),
    *("@eadir", "@recycle", "#recycle", "$recycle.bin", "recycler", "lost+found"),
    *("system volume information", "picasa.ini", "#snapshot"),
}
HEIC = (".heic", ".heif")


class Listing(NamedTuple):
    """What a folder holds, to the bottom."""

    pictures: list[str]
    """Sorted paths, relative to the folder."""
    others: Counter[str]
    """How many files are no pictures, by suffix; '': without one."""


def list_pictures(folder: Path) -> list[str]:
    """Return the pictures in a folder and below it: `list_files` without the rest."""
    return list_files(folder).pictures


def list_files(folder: Path) -> Listing:
    """List the pictures in a folder and below it, and count the other files.

    Links are followed; a folder that is reached twice, in a loop say, counts once,
    where it lies itself if that is here, and one above the folder not at all. Hidden
    files and folders, and what is `is_left_lying`, are passed over and not counted.

    Raises:
      UserError: the folder, or one below it, cannot be read.
    """
    found, others = [], Counter[str]()
    seen = {_identity(above) for above in folder.resolve().parents}
    waiting = [str(folder)]  # links come last: what they lead to may lie here itself
    while waiting:
        for root, folders, files in os.walk(waiting.pop(0), onerror=refuse_unreadable):
            identity = _identity(root)
            if identity in seen:
                folders.clear()
                continue
            seen.add(identity)
            folders[:] = sorted(name for name in folders if not is_left_lying(name))
            place = Path(root)
            waiting += [str(place / x) for x in folders if (place / x).is_symlink()]
            for name in files:
                if is_left_lying(name):
                    continue
                if is_picture(place / name):
                    found.append((place.relative_to(folder) / name).as_posix())
                else:
                    others[_suffix(name)] += 1
    return Listing(sorted(found), others)


def is_left_lying(name: str) -> bool:
    """Return whether a name is hidden, or that of what systems leave in folders."""
    return name.startswith(".") or name.lower() in LEFT_LYING


def is_picture(path: Path) -> bool:
    """Return whether a file is to be read as a picture, broken as it may be."""
    suffix = _suffix(path.name)
    return suffix in _formats() if suffix else _begins_as_picture(path)


def formats_of(name: str) -> list[str]:
    """Return Pillow's formats that a file of this name may have."""
    of_suffix = _formats().get(_suffix(name))
    return sorted(_known() | ({of_suffix} if of_suffix else set()))


def others_in_words(others: Counter[str]) -> list[str]:
    """Return one line that counts by suffix the files that are not read, or none."""
    if not others:
        return []
    number = others.total()
    counts = ", ".join(
        f"{count:,} {suffix or 'without suffix'}"
        for suffix, count in sorted(others.items(), key=lambda x: (-x[1], x[0]))[:12]
    )
    more = ", ..." if len(others) > 12 else ""
    hint = "; .heic needs pip install pillow-heif" if _any_heic(others) else ""
    files = "1 file of another kind is" if number == 1 else f"{number:,} files of other"
    files += "" if number == 1 else " kinds are"
    return [f"{files} not read: {counts}{more}{hint}"]


def _any_heic(suffixes: Iterable[str]) -> bool:
    return any(suffix in HEIC for suffix in suffixes)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _begins_as_picture(path: Path) -> bool:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever
            return False
        with Image.open(path, formats=sorted(_known())):
            return True
    except Exception:  # whatever it is, it does not begin as a picture
        return False


@functools.cache
def _formats() -> dict[str, str]:
    """Return {suffix: format} of all that Pillow decodes, by its plugins too."""
    try:
        from pillow_heif import register_heif_opener  # iPhones' pictures

        register_heif_opener()
    except ImportError:
        pass
    return {
        suffix: form
        for suffix, form in Image.registered_extensions().items()
        if form in Image.OPEN and form not in NOT_DECODED
    } | {".mpo": "JPEG"}  # of two lenses: Pillow's JPEG reader opens it


@functools.cache
def _known() -> set[str]:
    _formats()
    return KNOWN_BY_CONTENT & Image.OPEN.keys()
