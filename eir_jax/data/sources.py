"""Where images come from: each source gives whole splits, as pixels or encoded.

Nothing here needs TensorFlow or JAX, but for the `tfds` source.
"""

import dataclasses
import hashlib
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from eir_jax.data.encoded import EncodedImages
from eir_jax.errors import UserError, first_line

NUM_DIGITS_TRAIN = 1437


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, and their classes where these are known."""

    images: np.ndarray | EncodedImages
    """uint8 [n, side, side, 3]."""
    labels: np.ndarray | None
    """int32 [n], from 0 on; -1: unlabelled."""


@dataclasses.dataclass(frozen=True)
class LabelledSplit(Split):
    """The images of a split whose classes are known."""

    labels: np.ndarray
    rows: np.ndarray
    """int64 [n]: which of the split they are."""


class PictureFile(NamedTuple):
    """A file of a folder, for the record."""

    split: str
    path: str
    """Relative to the data set's folder."""
    size: int
    """Bytes."""
    broken: str
    """Why it holds no picture; empty where it does."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a run trains on and is judged by."""

    source: str
    name: str
    train: Split
    test: Split | None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    """Lines for the user: what was left out, or is not as expected."""
    files: tuple[PictureFile, ...] = ()
    """What a folder held, the broken ones too; empty for other sources."""

    @cached_property
    def train_hash(self) -> str:
        """SHA-256 of the training images: all that training depends on."""
        return _sha256(self.train.images)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the images and labels of both splits."""
        test = self.test or Split(np.empty(0, np.uint8), None)
        return _sha256(self.train.images, self.train.labels, test.images, test.labels)

    @property
    def description(self) -> dict[str, str]:
        """Source and name, for the record."""
        return {"source": self.source, "name": self.name}


def load(config: ConfigDict) -> Dataset:
    """Load the data set that `config` (the `data` part of the settings) names.

    Raises:
      UserError: it cannot be had, or is not as the settings say; with the way out.
    """
    return check_expected(SOURCES[config.source](config), config.expected)


def check_expected(dataset: Dataset, expected: tuple[int, int]) -> Dataset:
    """Add a note for each split that has not as many images as expected; 0: any."""
    notes = []
    splits = {"train": dataset.train, "test": dataset.test}
    for (name, split), count in zip(splits.items(), expected, strict=True):
        found = 0 if split is None else len(split.images)
        if count and found != count:
            notes.append(
                f"{name} holds {found:,} images where {count:,} are expected "
                "(data.expected)"
            )
    return dataclasses.replace(dataset, notes=(*dataset.notes, *notes))


def existing(dataset: Dataset, split: str) -> Split:
    """Return the 'train' or 'test' split.

    Raises:
      UserError: there is no such split.
    """
    found: Split | None = getattr(dataset, split)
    if found is None:
        way_out = f"add '{split}_images' and '{split}_labels' to the data"
        if dataset.source == "folder":
            way_out = f"put them into {split}/CLASS/ beside the folder of the others"
        raise UserError(
            f"{dataset.name} has no {split} images, which evaluation needs; {way_out}"
        )
    return found


def labelled(dataset: Dataset, split: str) -> LabelledSplit:
    """Return what is labelled of the 'train' or 'test' split.

    Raises:
      UserError: there is no such split, or it has no labels.
    """
    from eir_jax.data.class_list import take

    found, rows = existing(dataset, split), labelled_rows(dataset, split)
    if len(rows) < len(found.images):
        found = take(found, rows)
    assert found.labels is not None
    return LabelledSplit(found.images, found.labels, rows)


def labelled_rows(dataset: Dataset, split: str) -> np.ndarray:
    """Return which images of the 'train' or 'test' split are labelled: int64 [n].

    Raises:
      UserError: there is no such split, or it has no labels.
    """
    labels = existing(dataset, split).labels
    if labels is None or not (labels >= 0).any():
        way_out = f"add '{split}_labels' to the data"
        if dataset.source == "folder":
            way_out = "put them into one folder a class"
        raise UserError(
            f"the {split} images of {dataset.name} have no labels, which evaluation "
            f"needs; {way_out}"
        )
    return np.flatnonzero(labels >= 0)


def _digits(config: ConfigDict) -> Dataset:
    """Scikit-learn's 1,797 digits, enlarged; a fixed split of 1,437 and 360."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    size = config.resize or config.image_size
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.stack(
        [
            np.asarray(
                Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
            )
            for image in grey
        ]
    )
    images = np.repeat(images[..., None], 3, axis=-1)
    order = np.random.RandomState(0).permutation(len(images))
    train, test = np.split(order, [NUM_DIGITS_TRAIN])
    labels = digits.target.astype(np.int32)
    return Dataset(
        "digits",
        config.name,
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
        tuple(str(digit) for digit in range(10)),
    )


def _arrays(config: ConfigDict) -> Dataset:
    """A local .npz: `train_images`, and if present `train_labels`, `test_*`."""
    if not config.path:
        raise UserError(
            "data.source=arrays needs --config.data.path=FILE.npz, the arrays' file"
        )
    path = Path(config.path).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path} (data.path); give an .npz file")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # a damaged file raises some ten types
        raise UserError(
            f"{path} cannot be read as an .npz of plain arrays ({first_line(error)}); "
            "write it anew with numpy.savez"
        ) from None
    needed = ["train_images"] + ["test_images"] * ("test_labels" in arrays)
    for key in needed:
        if key not in arrays:
            held = ", ".join(arrays) or "none"
            raise UserError(f"{path} holds no '{key}' (it holds: {held})")
    train = _checked_split(path, arrays, "train", config)
    test = None
    if "test_images" in arrays:
        test = _checked_split(path, arrays, "test", config)
    names = _checked_names(path, arrays, train, test)
    return Dataset("arrays", config.name, train, test, names)


def _checked_names(
    path: Path, arrays: dict, train: Split, test: Split | None
) -> tuple[str, ...] | None:
    if "class_names" not in arrays:
        return None
    names = arrays["class_names"]
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise UserError(
            f"'class_names' of {path} is {names.dtype} {list(names.shape)}; it must be "
            "a list of strings"
        )
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8", "replace")
    for split, name in ((train, "train"), (test, "test")):
        if split and split.labels is not None and split.labels.max() >= len(names):
            raise UserError(
                f"'{name}_labels' of {path} holds {split.labels.max()}, but "
                f"'class_names' holds {len(names)} names"
            )
    return tuple(str(name) for name in names)


def _folder(config: ConfigDict) -> Dataset:
    from eir_jax.data.folder import load_folder

    return load_folder(config)


def _checked_split(path: Path, arrays: dict, split: str, config: ConfigDict) -> Split:
    images, labels = arrays[f"{split}_images"], arrays.get(f"{split}_labels")
    key = f"'{split}_images' of {path}"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"{key} is {images.dtype} {list(images.shape)}; it must be uint8 "
            "[N, height, width, 3]"
        )
    if not len(images):
        raise UserError(f"{key} holds no image")
    setting = "resize" if config.resize else "image_size"
    size = config[setting]
    if images.shape[1:3] != (size, size):
        height, width = images.shape[1:3]
        raise UserError(
            f"{key} are {height}x{width} pixels and data.{setting} is {size}; "
            + (f"use --config.data.{setting}={height}" if height == width else "")
            + ("" if height == width else "make them square")
        )
    if labels is None:
        return Split(images, None)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"'{split}_labels' of {path} is {labels.dtype} {list(labels.shape)}; it "
            f"must hold {len(images)} whole numbers, one for each image"
        )
    for label in (labels.min(), labels.max()):
        if not -1 <= label < 2**31:
            raise UserError(
                f"'{split}_labels' of {path} holds {label}; classes count from 0, and "
                "-1 is an unlabelled image"
            )
    return Split(images, labels.astype(np.int32))


def _tfds(config: ConfigDict) -> Dataset:
    from eir_jax.data.tfds import load_tfds

    return load_tfds(config)


def _sha256(*arrays: np.ndarray | EncodedImages | None) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"none")
            continue
        if isinstance(array, EncodedImages):
            digest.update(array.content_hash.encode())
            continue
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


SOURCES = {"digits": _digits, "arrays": _arrays, "folder": _folder, "tfds": _tfds}
