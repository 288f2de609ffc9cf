"""Where images come from: each source gives whole splits, as pixels or encoded.

Nothing here needs TensorFlow or JAX, but for the `tfds` source.
"""

import dataclasses
import re
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from eir_jax.data.dataset import Dataset, Split, check_classes, is_labelled
from eir_jax.data.held_out import hold_out
from eir_jax.system.errors import UserError, first_line, one_line
from eir_jax.system.words import counted

NUM_DIGITS_TRAIN = 1437


def load(config: ConfigDict) -> Dataset:
    """Load the data set that `config` (the `data` part of the settings) names.

    Raises:
      UserError: it cannot be had, or is not as the settings say; with the way out.
    """
    dataset = check_expected(SOURCES[config.source](config), config.expected)
    dataset = hold_out(dataset, config.held_out, config.held_out_seed)
    more = [*_view_words(config), *_class_words(dataset), *_alike_words(dataset)]
    notes = tuple(map(one_line, (*dataset.notes, *more)))  # names may hold line ends
    return dataclasses.replace(dataset, notes=notes)


def _view_words(config: ConfigDict) -> list[str]:
    """Return a line where the encoder sees a small part of each image."""
    seen = (config.image_size / (config.resize or config.image_size)) ** 2
    if seen > 0.5:
        return []
    return [
        f"evaluation sees the centre {config.image_size} of {config.resize} pixels, "
        f"{seen:.0%} of each square (data.image_size, data.resize)"
    ]


def _class_words(dataset: Dataset) -> list[str]:
    """Return lines that say which classes are in one of the splits alone."""
    if not (is_labelled(dataset.train) and is_labelled(dataset.test)):
        return []
    assert dataset.test is not None
    labels = {"train": dataset.train.labels, "test": dataset.test.labels}
    counts: dict[str, dict[int, int]] = {}
    for name, found in labels.items():
        assert found is not None
        classes, count = np.unique(found[found >= 0], return_counts=True)
        counts[name] = dict(zip(classes.tolist(), count.tolist(), strict=True))

    def words(one: str, other: str, meaning: str) -> list[str]:
        alone = sorted(counts[one].keys() - counts[other].keys())
        if not alone:
            return []
        number = sum(counts[one][label] for label in alone)
        names = [_class_name(label, dataset.class_names) for label in alone[:5]]
        more = f" and {len(alone) - 5:,} more" if len(alone) > 5 else ""
        return [
            f"{one} classes not in {other}: {', '.join(names)}{more}, "
            f"{number:,} image{'s' * (number != 1)}{meaning}"
        ]

    meaning = ", which kNN and linear probe leave out"
    return [*words("test", "train", meaning), *words("train", "test", "")]


def _alike_words(dataset: Dataset) -> Iterator[str]:
    """Yield a line for classes whose names are one to the eye, and two here."""
    names = dataset.class_names or ()
    used = {
        label
        for split in (dataset.train, dataset.test)
        if names and split is not None and split.labels is not None
        for label in np.unique(split.labels).tolist()
    }
    alike = defaultdict(list)
    for label in sorted(used - {-1}):
        name = unicodedata.normalize("NFKC", names[label]).casefold()
        alike[" ".join(re.split(r"[\s_-]+", name)).strip()].append(names[label])
    groups = [group for group in alike.values() if len(group) > 1]
    if groups:
        shown = "; ".join(" and ".join(map(repr, group)) for group in groups[:4])
        more = f" and {len(groups) - 4:,} more" if len(groups) > 4 else ""
        same = {"folder": "name", "arrays": "label"}.get(dataset.source)
        yield (
            f"classes of the same or nearly the same name: {shown}{more}; they count "
            "as different ones"
            + (f", so give those that are one the same {same}" if same else "")
        )


def _class_name(label: int, names: tuple[str, ...] | None) -> str:
    return str(label) if names is None else names[label]


def check_expected(dataset: Dataset, expected: tuple[int, int]) -> Dataset:
    """Add a note for each split that has not as many images as expected; 0: any."""
    notes = []
    splits = {"train": dataset.train, "test": dataset.test}
    for (name, split), count in zip(splits.items(), expected, strict=True):
        found = 0 if split is None else len(split.images)
        if count and found != count:
            notes.append(
                f"{name} holds {counted(found, 'image')} where {count:,} are expected "
                "(data.expected)"
            )
    return dataclasses.replace(dataset, notes=(*dataset.notes, *notes))


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
    key, arrays = "", {}
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise zipfile.BadZipFile
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                for key in file.files:
                    arrays[key] = file[key]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    except Exception as error:  # a damaged file raises some ten types
        if not key:
            raise UserError(
                f"{path} cannot be read: it is no .npz, or not a whole one; write it "
                "anew with numpy.savez(FILE, train_images=..., train_labels=...)"
            ) from None
        raise UserError(
            f"'{key}' of {path} cannot be read as a plain array ({first_line(error)}); "
            "write it anew with numpy.savez, names as strings, not as objects"
        ) from None
    needed = ["train_images"] + ["test_images"] * ("test_labels" in arrays)
    for key in needed:
        if key not in arrays:
            held = ", ".join(arrays) or "none"
            raise UserError(
                f"{path} holds no '{key}' (it holds: {held}); give the images that name"
            )
    train = _checked_split(path, arrays, "train", config)
    test, notes = None, []
    if "test_images" in arrays and not arrays["test_images"].size:
        notes = ["'test_images' holds no image: there is no test split"]
    elif "test_images" in arrays:
        test = _checked_split(path, arrays, "test", config)
    names = _checked_names(path, arrays, train, test)
    return Dataset("arrays", config.name, train, test, names, tuple(notes))


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
    return tuple(unicodedata.normalize("NFC", str(name)) for name in names)


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
        way_out = f"use --config.data.{setting}={height}"
        if height != width:
            way_out = "make them square"
        elif split == "test":  # those of train are of that size
            way_out = "bring them to the size of the training images"
        raise UserError(
            f"{key} are {height}x{width} pixels and data.{setting} is {size}; {way_out}"
        )
    if labels is None:
        return Split(images, None)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"'{split}_labels' of {path} is {labels.dtype} {list(labels.shape)}; it "
            f"must hold {len(images)} whole numbers, one for each image"
            + (_label_advice(labels) if labels.shape[:1] == (len(images),) else "")
        )
    check_classes(labels, f"'{split}_labels' of {path}", "image")
    return Split(images, labels.astype(np.int32))


def _label_advice(labels: np.ndarray) -> str:
    """Say what makes whole numbers of labels in another form, where it is usual."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        return ": labels.ravel()"
    if labels.ndim == 2:
        return ": labels.argmax(axis=1), if there is a one in each row"
    if labels.ndim == 1 and labels.dtype.kind in "US":
        return (
            ", their names in 'class_names': class_names, number = "
            "numpy.unique(names, return_inverse=True), of both splits at once"
        )
    if labels.ndim == 1 and labels.dtype.kind in "fb" and not (labels % 1).any():
        return ": labels.astype(int)"
    return ""


def _tfds(config: ConfigDict) -> Dataset:
    from eir_jax.data.tfds import load_tfds

    return load_tfds(config)


SOURCES = {"digits": _digits, "arrays": _arrays, "folder": _folder, "tfds": _tfds}
