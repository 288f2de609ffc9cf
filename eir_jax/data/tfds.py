"""Data sets of TensorFlow Datasets: their splits, classes and encoded images.

A set prepared as array_record is read without TensorFlow; any other needs it.
"""

import difflib
import functools
import logging
import re
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from eir_jax.data.dataset import Dataset, Split
from eir_jax.system.errors import UserError, first_line
from eir_jax.system.words import counted

ANSWER_SECONDS = 10  # of a server; TFDS itself would wait for minutes
CHUNK = 1024  # images decoded at a time
DROPPED = -2  # in the place of a label: the image is left out
# What TFDS cannot fetch for a user, and what to do instead.
BY_HAND = {
    "cars196": "the download links of cars196 are dead: put cars_train.tgz, "
    "cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat (TFDS checks "
    "their SHA-256) into {manual}, or give a folder with a directory for each class, "
    "named after it: data.source=folder",
    "imagenet2012": "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (from "
    "image-net.org, with an account) into {manual}, or give a folder with train/ and "
    "val/, each with a directory for each class: data.source=folder (and "
    "data.class_list=imagenet100 for ImageNet-100)",
}
# What TFDS needs beside its own requirements to prepare a set.
PACKAGES = {"caltech_birds2011": "opencv-python-headless"}


def load_tfds(config: ConfigDict) -> Dataset:
    """Load the splits `data.train_split` and `data.test_split` of a set of TFDS.

    Images stored at the side that the settings ask for become one array. Others (of
    any size, or all of `data.keep=encoded`) are held as their encoded files, and with
    `data.keep=pixels` brought to that side as the folder source does. Labels are
    TFDS's, of `data.class_list` the places in that list; -1 is unlabelled, as all of a
    set that has no classes. Where `data.test_split` is left at 'test' and the set has
    none, it is 'validation', or none.

    Raises:
      UserError: no such set, split or class; it cannot be prepared; a library is
        absent; with the way out.
    """
    tfds = _import_tfds()
    builder = _find(tfds, config)
    stored = _check_features(builder)
    _prepare(tfds, builder)
    names, listed = None, None
    if _has_classes(builder):
        names = builder.info.features["label"].names
        names = [unicodedata.normalize("NFC", name) for name in names]
    if config.class_list:
        from eir_jax.data.class_list import read_class_list

        listed = read_class_list(config.class_list)
    side = config.resize or config.image_size
    plain = config.keep == "pixels" and stored == (side, side, 3)
    read = _read_pixels if plain else _read_encoded

    def load(name: str, split: str) -> Split:
        classes = config[f"{name}_classes"]
        place = _places(names or [], listed, classes, f"TFDS's {config.name}")
        _check_split(builder, split, f"data.{name}_split")
        try:
            images, labels = read(tfds, builder, split, place, config)
        except ModuleNotFoundError as error:
            raise _needs(error) from None
        except UserError:
            raise
        except Exception as error:  # TFDS and TensorFlow raise many types
            raise UserError(
                f"TFDS cannot read {split} of {config.name} in {builder.data_dir} "
                f"({first_line(error)}); prepare it anew"
            ) from None
        if not len(labels):
            raise UserError(
                f"no image of {split} of TFDS's {config.name} is left; change "
                f"data.{name}_classes={tuple(classes)} or data.class_list"
            )
        return Split(images, labels if names else None)

    notes: tuple[str, ...] = ()
    if None not in stored[:2] and stored[:2] != (side, side):
        fit = f" ({config.fit})" if stored[0] != stored[1] else ""
        notes = (
            f"images of {stored[0]}x{stored[1]} are brought to {side}x{side}{fit}",
        )
    if not names:
        notes += (f"TFDS's {config.name} has no classes: its images are unlabelled",)
    test_split = _test_split(builder, config)
    if test_split != config.test_split:
        words = f"'{test_split}' is read" if test_split else "there is no test split"
        notes += (f"TFDS's {config.name} has no split 'test': {words}",)
    return Dataset(
        "tfds",
        config.name,
        load("train", config.train_split),
        load("test", test_split) if test_split else None,
        tuple(listed or names or ()) or None,
        notes=notes,
    )


def _test_split(builder, config: ConfigDict) -> str:
    known = list(builder.info.splits)  # none in TFDS's mock
    if config.test_split != "test" or not known or "test" in known:
        return config.test_split
    used = config.train_split
    return "validation" if "validation" in known and "validation" not in used else ""


def _has_classes(builder) -> bool:
    return hasattr(dict(builder.info.features).get("label"), "names")


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.download import downloader
    except ImportError as error:
        raise _needs(error) from None
    # Without a network, say so at once, and do not tell of each try.
    downloader.MAX_RETRIES = 1
    if open_url := getattr(downloader, "_open_url", None):
        unlimited = getattr(open_url, "func", open_url)
        downloader._open_url = functools.partial(unlimited, timeout=ANSWER_SECONDS)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    return tfds


def _needs(error: ImportError) -> UserError:
    return UserError(
        f"data.source=tfds needs a library that is absent ({error}); pip install "
        '"eir_jax[tfds]" (in a clone ".[tfds]"), or use data.source=arrays'
    )


def _find(tfds, config: ConfigDict) -> Any:
    """Return TFDS's builder of the set."""
    name = config.name
    try:
        return tfds.builder(name, data_dir=config.path or None)
    except ModuleNotFoundError as error:
        raise _needs(error) from None
    except Exception as error:  # TFDS raises many types
        known = re.findall(r"^\s*- (\w+)$", str(error), re.MULTILINE)
        near = difflib.get_close_matches(name, known)
        why = first_line(error) if not known else ""
        hint = f"did you mean {' or '.join(near)}?" if near else why
        raise UserError(
            f"TFDS has no data set '{name}' (data.name){hint and '; ' + hint}"
        ) from None


def _check_features(builder) -> tuple[int | None, int | None, int]:
    """Return height, width and channels of the images; None: of any size."""
    features = dict(builder.info.features or {})
    if "image" not in features:
        raise UserError(
            f"TFDS's {builder.name} holds {', '.join(features)}; data.source=tfds "
            "needs an 'image' of each"
        )
    image = features["image"]
    if image.np_dtype != np.uint8:
        raise UserError(
            f"TFDS's {builder.name} has images of {np.dtype(image.np_dtype)}; "
            "data.source=tfds needs uint8; bring them to it as an .npz "
            "(data.source=arrays)"
        )
    return tuple(image.shape)


def _prepare(tfds, builder) -> None:
    """Let TFDS download and prepare the set where it has not been."""
    name = builder.name
    try:
        builder.download_and_prepare()
    except ImportError as error:
        if name not in PACKAGES:
            raise _needs(error) from None
        raise UserError(
            f"preparing {name} needs a library that is absent ({first_line(error)}): "
            f"pip install {PACKAGES[name]}, what is downloaded is kept; or give a "
            "folder with a directory for each class (data.source=folder)"
        ) from None
    except Exception as error:  # TFDS raises many types
        raise UserError(
            f"TFDS cannot prepare {name} in {builder.data_dir} "
            f"({first_line(error)}); {_by_hand(builder)}"
        ) from None


def _by_hand(builder) -> str:
    """Return what a user can do who has no network, or no links that work."""
    # Beside the data sets, not below one.
    above = builder.data_dir.removesuffix(builder.info.full_name)
    manual = Path(above) / "downloads" / "manual"
    if builder.name in BY_HAND:
        return BY_HAND[builder.name].format(manual=manual)
    infos = (builder.url_infos or {}).values()
    files = sorted({info.filename for info in infos if info.filename})
    archives = ", ".join(files) if 0 < len(files) <= 4 else "its archives"
    return (
        "prepare it where there is a network and give its folder as data.path, or put "
        f"{archives} into {manual}, or use data.source=arrays with a local .npz, or "
        "data.source=folder"
    )


def _check_split(builder, split: str, key: str) -> None:
    """Refuse a split such as 'train+unlabelled' of which a part does not exist."""
    known = list(builder.info.splits)  # none in TFDS's mock
    wanted = [re.split(r"[\[\s]", part.strip())[0] for part in split.split("+")]
    for name in wanted:
        if known and name not in (*known, "all"):
            raise UserError(
                f"TFDS's {builder.name} has no split '{name}' ({key}={split}); it has "
                f"{', '.join(known)}"
                + ("; '' for no test images" if key.startswith("data.test") else "")
            )


def _places(names, listed, classes, where: str) -> Int[np.ndarray, " label"]:
    """Return the label that each of TFDS's becomes; the last place is for -1."""
    from eir_jax.data.class_list import in_range, listed_labels

    whole = listed is None and tuple(classes) == (0, 0)
    place = listed_labels(names, listed or names, where)
    number = len(listed or names)
    if len(classes) == 2 and max(classes) > number:
        raise UserError(
            f"data.train_classes or data.test_classes is {tuple(classes)}, but {where} "
            f"has {counted(number, 'class', 'classes')}"
        )
    kept = np.where((place >= 0) & in_range(place, classes), place, DROPPED)
    return np.append(kept, -1 if whole else DROPPED).astype(np.int32)


def _read_pixels(
    tfds, builder, split: str, place, config: ConfigDict
) -> tuple[UInt8[np.ndarray, "n height width 3"], Int[np.ndarray, " n"]]:
    """Read images that are stored at the side asked for."""
    examples = _examples(tfds, builder, split)
    images = np.empty((len(examples), *builder.info.features["image"].shape), np.uint8)
    labels: list[int] = []
    for image, label in _kept(examples, place, f"reading {split}"):
        images[len(labels)] = image
        labels.append(label)
    return images[: len(labels)], np.array(labels, np.int32)


def _read_encoded(tfds, builder, split: str, place, config: ConfigDict) -> Any:
    """Read the encoded files; decode them in chunks where pixels are asked for."""
    from eir_jax.data.encoded import EncodedImages

    examples = _examples(tfds, builder, split, encoded=True)
    found = list(_kept(examples, place, f"reading {split}"))
    labels = np.array([label for _, label in found], np.int32)
    side = config.resize or config.image_size
    encoded = EncodedImages.from_bytes([image for image, _ in found], side, config.fit)
    return (_decoded(encoded) if config.keep == "pixels" else encoded), labels


def _decoded(encoded) -> UInt8[np.ndarray, "n side side 3"]:
    from eir_jax.system.progress import ProgressLine

    images = np.empty(encoded.shape, np.uint8)
    with closing(ProgressLine("decoding", len(images))) as bar:
        for start in range(0, len(images), CHUNK):
            part = slice(start, start + CHUNK)
            images[part] = encoded[part]
            bar.update(min(start + CHUNK, len(images)))
    return images


def _examples(tfds, builder, split: str, encoded: bool = False) -> Any:
    """Return the examples of a split, always in the same order; `len` counts them."""
    skip = tfds.decode.SkipDecoding()
    if builder.info.file_format.value == "array_record":  # read without TensorFlow
        features = builder.info.features.items()
        kinds = {key for key, x in features if isinstance(x, tfds.features.Image)}
        skipped = kinds if encoded else kinds - {"image"}  # CUB has masks beside
        decoders = dict.fromkeys(skipped, skip)
        return builder.as_data_source(split=split, decoders=decoders)
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # they are JAX's
    wanted = {"image": True} | ({"label": True} if _has_classes(builder) else {})
    partial = tfds.decode.PartialDecoding(wanted, {"image": skip} if encoded else None)
    # File after file, as array_record is read.
    read_config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    dataset = builder.as_dataset(
        split=split, decoders=partial, read_config=read_config, shuffle_files=False
    )
    return tfds.as_numpy(dataset)


def _kept(examples: Any, place, title: str) -> Iterator[tuple[Any, int]]:
    """Yield image and label of the examples whose class is kept."""
    from eir_jax.system.progress import ProgressLine

    with closing(ProgressLine(title, len(examples))) as bar:
        for number, example in enumerate(examples, 1):
            label = int(place[example.get("label", -1) if len(place) > 1 else -1])
            if label != DROPPED:
                yield example["image"], label
            bar.update(number)
