"""A folder of pictures as a data set: classes are folders, or there are none.

Needs neither TensorFlow nor JAX.
"""

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from eir_jax.data.class_list import in_range, listed_labels, read_class_list
from eir_jax.data.dataset import Dataset, PictureFile, Split
from eir_jax.data.encoded import EncodedImages
from eir_jax.data.folder_layout import folders_in, places_of
from eir_jax.data.picture_files import SUFFIXES, list_files, others_in_words
from eir_jax.data.pictures import BrokenPicture, Header, read_header, read_picture
from eir_jax.system.errors import UserError, one_line
from eir_jax.system.words import counted

MOST_NAMED = 20  # broken files; the others are counted
CHUNK = 256  # files between two updates of the progress line


class Found(NamedTuple):
    """The pictures of a split, before any of them is opened."""

    paths: list[str]
    """Relative to the data set's folder, sorted."""
    classes: list[str] | None
    """Of each picture, where the folders give them; in Unicode's form NFC."""
    others: Counter[str]
    """How many files are no pictures, by suffix."""


def load_folder(config: ConfigDict) -> Dataset:
    """Load the folder `data.path`: train/CLASS/*, CLASS/*, or pictures without classes.

    With `data.labels=none`, and where pictures stand beside folders, no folder is a
    class, and every picture at any depth is taken. A test split lies beside train/ in
    test/, val/ or the like (`data.test_split`, `data.train_split`; 'train+test' is
    both). With `data.test_classes`, CLASS/* and train+test hold the test split too, in
    other classes. Labels are the places of the classes in the sorted names of both
    splits, or in `data.class_list`. A picture's index is its place in the sorted
    relative paths, the broken ones left out; which files are pictures is said in
    picture_files.py, and what was taken for what in the notes.

    Raises:
      UserError: there is no such folder, or no pictures in it as the settings say.
    """
    root = Path(config.path).expanduser()
    if not config.path or not root.is_dir():
        raise UserError(
            f"there is no folder '{config.path}' (data.path); give one of pictures"
        )
    places, unread = places_of(root, config)
    notes, others, listed_once = [], Counter[str](), set()
    found = {}
    for split, place in places.items():
        parts = []
        for name in place.split("+"):
            part, empty, words = _find(root, name, config.labels)
            notes += words
            if part.paths:
                parts.append(part)
            notes += [_empty_words(root, name) for name in empty]
            if name not in listed_once:
                others += part.others
            listed_once.add(name)
        if parts:
            found[split] = _joined(root, parts)
        elif split == "test":
            notes.append(f"{place}/ holds no pictures: there is no test split")
        else:
            words = others_in_words(others) or [f"{' '.join(SUFFIXES)} and the like"]
            raise UserError(f"{root / place} holds no pictures: {words[0]}")
    notes = [*_layout_words(root, places, found, unread), *notes]
    notes += others_in_words(others)
    names = sorted({name for f in found.values() for name in f.classes or ()})
    labels_of = np.arange(len(names))
    if config.class_list and names:
        listed = read_class_list(config.class_list)
        labels_of = listed_labels(names, listed, str(root))
        class_names = listed
    else:
        class_names = tuple(names)
    place_of = dict(zip(names, labels_of.tolist(), strict=True))
    splits, files = {}, []
    for split in found:
        paths, labels = _chosen(found[split], place_of, split, root, config)
        images, records = _read(root, paths, split, config)
        whole = np.array([not record.broken for record in records])
        notes += _broken_words(root, records, config.broken)
        splits[split] = Split(images, None if labels is None else labels[whole])
        files += records
    return Dataset(
        "folder",
        config.name,
        splits["train"],
        splits.get("test"),
        class_names or None,
        tuple(dict.fromkeys(notes)),
        tuple(files),
    )


def _layout_words(
    root: Path, places: dict[str, str], found: dict[str, Found], unread: Sequence[str]
) -> Iterator[str]:
    """Yield what was taken for what, as it may not be what was meant."""
    splits = []
    for split, pictures in found.items():
        place, classes = places[split], sorted(set(pictures.classes or ()))
        words = f"{len(classes):,} classes ({_some(classes)})"
        if len(classes) == 1:
            words = f"1 class ({classes[0]})"
        where = f"{place}/" if place else "all"
        splits.append(f"{where} is {split}, {words if classes else 'without classes'}")
    missing = "" if "test" in found else "; no test split"
    yield f"read as: {'; '.join(splits)}{missing}"
    if unread:
        are = "is" if len(unread) == 1 else "are"
        yield f"{', '.join(f'{name}/' for name in unread)} {are} not read"
    for split, pictures in found.items():
        paths, depth = pictures.paths, 1 + bool(places[split])
        top = root.joinpath(*paths[0].split("/")[:depth])
        deeper = all(path.count("/") > depth for path in paths)
        if deeper and len(set(pictures.classes or ())) == 1:
            yield (
                f"all pictures of {split} lie in folders of {top.name}/, which counts "
                "as one class; if those are the classes, give it as data.path"
            )

    train, test = (
        set(found[split].classes or ()) if split in found else set()
        for split in ("train", "test")
    )
    if train and len(test) == 1 and not test & train:
        yield (
            f"the pictures of test lie in {next(iter(test))}/, which counts as a class "
            "that train has not; if they have no classes, move them out of that "
            f"folder, into {places['test']}/ itself"
        )


def _empty_words(root: Path, name: str) -> str:
    if (root / name).is_symlink():
        return f"{name} is a link, and leads to no pictures but those that are read"
    return f"{name} holds no pictures"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _find(root: Path, place: str, labels: str) -> tuple[Found, list[str], list[str]]:
    """List the pictures of a split, the class folders that hold none, and what to say.

    Raises:
      UserError: some lie in folders and some beside them, and folders shall be classes.
    """
    folder = root / place
    paths, others = list_files(folder)
    loose = [path for path in paths if "/" not in path]
    prefix = f"{place}/" if place else ""
    unlabelled = Found([prefix + path for path in paths], None, others)
    if len(loose) == len(paths) or labels == "none":
        return unlabelled, [], []
    if loose:
        inside = next(path for path in paths if "/" in path)
        words = f"pictures beside folders, such as {loose[0]} beside {inside}"
        if labels == "folders":
            raise UserError(
                f"{folder} holds {words}; put every picture into a class folder, or "
                "take all without classes: data.labels=none"
            )
        where = prefix or "the folder"
        said = [f"{where} holds {words}: no folder is taken for a class"]
        return unlabelled, [], said
    folders = [path.split("/")[0] for path in paths]
    empty = [prefix + name for name in folders_in(folder) if name not in set(folders)]
    name_of = {name: _class_name(name) for name in set(folders)}
    merged = Counter(name_of.values())
    said = [
        f"{number} folders are one class, {prefix}{name}: their names differ in "
        "Unicode's form alone"
        for name, number in sorted(merged.items())
        if number > 1
    ]
    return unlabelled._replace(classes=[name_of[x] for x in folders]), empty, said


def _class_name(folder: str) -> str:
    """Return a folder's name in form NFC; bytes that are no UTF-8 are spelt out."""
    name = os.fsencode(folder).decode(errors="backslashreplace")
    return unicodedata.normalize("NFC", name)


def _joined(root: Path, parts: Sequence[Found]) -> Found:
    """Return the pictures of several folders as one split, sorted.

    Raises:
      UserError: some have classes and some have none.
    """
    if len(parts) == 1:
        return parts[0]
    paths = [path for part in parts for path in part.paths]
    others = sum((part.others for part in parts), Counter[str]())
    if all(part.classes is None for part in parts):
        return Found(sorted(paths), None, others)
    for part in parts:
        if part.classes is None:
            raise UserError(
                f"{root / part.paths[0]} lies in no class folder, others of its split "
                "do; put every picture into a class folder, or none"
            )
    classes = [name for part in parts for name in part.classes or ()]
    order = sorted(range(len(paths)), key=paths.__getitem__)
    chosen = [paths[row] for row in order], [classes[row] for row in order]
    return Found(*chosen, others)


def _chosen(
    found: Found, place_of: dict[str, int], split: str, root: Path, config: ConfigDict
) -> tuple[list[str], np.ndarray | None]:
    """Return paths and labels of the classes that the settings keep.

    Raises:
      UserError: none is left, or there are no classes to choose from.
    """
    classes = config[f"{split}_classes"]
    chooses = config.class_list or tuple(classes) != (0, 0)
    if found.classes is None:
        if chooses:
            raise UserError(
                f"the {split} pictures of {root} lie in no class folders, which "
                f"data.class_list and data.{split}_classes choose from; leave these out"
            )
        return found.paths, None
    labels = np.array([place_of[name] for name in found.classes], np.int32)
    kept = (labels >= 0) & in_range(labels, classes)
    if not kept.any():
        raise UserError(
            f"{root} holds no {split} pictures of the classes chosen "
            f"(data.class_list='{config.class_list}', data.{split}_classes={classes})"
        )
    return [found.paths[row] for row in np.flatnonzero(kept)], labels[kept]


def _read(
    root: Path, paths: list[str], split: str, config: ConfigDict
) -> tuple[np.ndarray | EncodedImages, list[PictureFile]]:
    """Read each file whole, once: the images of those that are, and what each is."""
    side, fit = config.resize or config.image_size, config.fit
    title = f"reading {split} pictures"
    file_sizes = np.array([_file_size(root / path) for path in paths], np.int64)
    if config.keep == "pixels":
        pixels = _allocate(len(paths), side)

        def decode(row: int) -> None:
            pixels[row] = read_picture(root / paths[row], side, fit)

        broken = _for_each(len(paths), decode, title)
    else:
        headers = [Header(0, 0, False)] * len(paths)

        def verify(row: int) -> None:
            headers[row] = read_header(root / paths[row])

        broken = _for_each(len(paths), verify, title)
    records = [
        PictureFile(split, path, int(size), broken.get(row, ""))
        for row, (path, size) in enumerate(zip(paths, file_sizes, strict=True))
    ]
    whole = np.array([row for row in range(len(paths)) if row not in broken], np.int64)
    if not len(whole):
        raise UserError(
            f"none of the {counted(len(paths), f'{split} file')} of {root} holds a "
            "picture: "
            f"{one_line(f'{paths[0]}: {broken[0]}')}"
        )
    if config.keep == "pixels":
        for place, row in enumerate(whole):  # moved up in place: no second copy
            if place != row:
                pixels[place] = pixels[row]
        return pixels[: len(whole)], records
    sizes = np.array([header[:2] for header in headers], np.int32)
    plain = np.array([header.plain for header in headers])
    digests = np.frombuffer(b"".join(headers[row].digest for row in whole), np.uint8)
    images = EncodedImages(
        paths,
        whole,
        sizes[whole],
        plain[whole],
        file_sizes[whole],
        side,
        fit,
        root,
        digests.reshape(-1, 32),
    )
    return images, records


def _allocate(count: int, side: int) -> np.ndarray:
    try:
        return np.empty((count, side, side, 3), np.uint8)
    except MemoryError:
        raise UserError(
            f"{count:,} pictures of {side}x{side} are {count * side**2 * 3 / 1e9:.1f} "
            "GB of pixels, more than there is memory; use --config.data.keep=encoded"
        ) from None


def _file_size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # gone, or a link to nowhere: reading it will say so
        return 0


def _for_each(count: int, work: Callable[[int], None], title: str) -> dict[int, str]:
    """Call work(row) in threads; return why it failed, by row."""
    from eir_jax.system.progress import ProgressLine

    broken: dict[int, str] = {}

    def attempt(row: int) -> None:
        try:
            work(row)
        except BrokenPicture as error:
            broken[row] = str(error)

    with (
        warnings.catch_warnings(),
        closing(ProgressLine(title, count)) as bar,
        ThreadPoolExecutor() as pool,
    ):
        warnings.simplefilter("ignore")  # Pillow's, of odd but readable files
        for start in range(0, count, CHUNK):
            chunk = range(start, min(start + CHUNK, count))
            for _ in pool.map(attempt, chunk):
                pass
            bar.update(chunk.stop)
    return broken


def _broken_words(
    root: Path, records: Sequence[PictureFile], broken: str
) -> Iterator[str]:
    """Yield lines that name the broken files; raise where they are to be an error."""
    named = [f"{record.path}: {record.broken}" for record in records if record.broken]
    if not named:
        return
    one = len(named) == 1
    files = "1 file holds" if one else f"{len(named):,} files hold"
    lines = [one_line(line) for line in named[:MOST_NAMED]]
    if len(named) > MOST_NAMED:
        lines.append(f"{len(named) - MOST_NAMED:,} more")
    if broken == "error":
        raise UserError(
            f"{files} no picture in {root} ({'; '.join(lines)}); mend or remove them, "
            "or leave them out by data.broken=skip"
        )
    is_out = "is left out" if one else "are left out"
    yield f"{files} no picture and {is_out} ({records[0].split}):"
    yield from (f"  {line}" for line in lines)
