"""What a source gives: splits of images, labelled or not, and where they came from."""

import dataclasses
import hashlib
from functools import cached_property
from typing import NamedTuple

import numpy as np

from eir_jax.data.encoded import EncodedImages
from eir_jax.system.errors import UserError


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
    held_out: str = ""
    """How the test split was taken from train, in words; empty: it was not."""

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
        """Source and name, and what is held out, for the record."""
        words = {"source": self.source, "name": self.name}
        return words | ({"held_out": self.held_out} if self.held_out else {})

    def trains_as(self, train_hash: str) -> bool:
        """Tell whether a run's `train_hash` is that of these training images.

        Runs of before knew picture files that stay encoded by names and sizes.
        """
        images = self.train.images
        if isinstance(images, EncodedImages) and images.digests is not None:
            before = hashlib.sha256(images.names_hash.encode()).hexdigest()
            return train_hash in (self.train_hash, before)
        return train_hash == self.train_hash


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
            f"{dataset.name} has no {split} images; {way_out}, or train with "
            "--config.data.held_out=0.1"
        )
    return found


def labelled(dataset: Dataset, split: str) -> LabelledSplit:
    """Return what is labelled of the 'train' or 'test' split.

    Raises:
      UserError: there is no such split, or it has no labels.
    """
    found, rows = existing(dataset, split), labelled_rows(dataset, split)
    found = take(found, rows)
    assert found.labels is not None
    return LabelledSplit(found.images, found.labels, rows)


def check_classes(labels: np.ndarray, name: str, each: str) -> None:
    """Check that whole numbers, at least one, are classes or -1.

    Raises:
      UserError: one is below -1, or more than int32 holds; `name` is what they are
        called, `each` what has one of them.
    """
    for label in (labels.min(), labels.max()):
        if not -1 <= label < 2**31:
            raise UserError(
                f"{name} holds {label}; classes are whole numbers from 0 to "
                f"{2**31 - 1}, and -1 is an unlabelled {each}"
            )


def labelled_rows(dataset: Dataset, split: str) -> np.ndarray:
    """Return which images of the 'train' or 'test' split are labelled: int64 [n].

    Raises:
      UserError: there is no such split, or it has no labels.
    """
    if not is_labelled(existing(dataset, split)):
        way_out = f"add '{split}_labels' to the data"
        if dataset.source == "folder":
            way_out = "put them into one folder a class"
        elif dataset.source == "embeddings":
            way_out = "add 'label' to their file"
        raise UserError(
            f"the {split} images of {dataset.name} have no labels; {way_out}"
        )
    labels = existing(dataset, split).labels
    assert labels is not None
    return np.flatnonzero(labels >= 0)


def is_labelled(split: Split | None) -> bool:
    """Return whether a split is there and any of its images is labelled."""
    return (
        split is not None
        and split.labels is not None
        and bool((split.labels >= 0).any())
    )


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


def take(split: Split, index: np.ndarray) -> Split:
    """Return the rows of a split that an array or a mask chooses.

    All in their order are the split itself: they may fill half the memory.
    """
    images = split.images
    if index.dtype != bool and np.array_equal(index, np.arange(len(images))):
        return split
    images = (
        images.select(index) if isinstance(images, EncodedImages) else images[index]
    )
    return Split(images, None if split.labels is None else split.labels[index])


def is_grey(images: np.ndarray) -> bool:
    """Tell whether red, green and blue are equal in all images [n, side, side, 3]."""
    return bool((images == images[..., :1]).all())
