"""Which classes of a data set are kept: a list of names, or a range.

Needs neither TensorFlow nor JAX.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from eir_jax.data.dataset import Split, take
from eir_jax.system.errors import UserError
from eir_jax.system.files import in_words

PACKAGED = {"imagenet100": Path(__file__).parent / "imagenet100_classes.txt"}
COMMENT = re.compile(r"(?:^|\s)#")


def read_class_list(name: str) -> tuple[str, ...]:
    """Read names, one a line, from a text file or the packaged list `name`.

    In UTF-8, with or without the byte order mark that Windows writes. Blank lines and
    comments, a '#' at the start or after a blank, are left out. Names are brought to
    Unicode's form NFC, as those of folders are.

    Raises:
      UserError: there is no such file or list, it holds no name, or one twice.
    """
    path = PACKAGED.get(name, Path(name).expanduser())
    try:
        if path.exists() and not path.is_file():  # a device may never end
            raise ValueError(path)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UserError(
            f"the class list {in_words(path)} (data.class_list) cannot be read: {why}; "
            f"give a text file with one class a line, or {' or '.join(PACKAGED)}"
        ) from None
    lines = unicodedata.normalize("NFC", text).splitlines()
    names = [name for line in lines if (name := COMMENT.split(line)[0].strip())]
    if not names:
        raise UserError(f"the class list {name} (data.class_list) holds no class")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            f"the class list {name} (data.class_list) names {_some(twice)} twice"
        )
    return tuple(names)


def listed_labels(
    names: Sequence[str], listed: Sequence[str], where: str
) -> Int[np.ndarray, " name"]:
    """Return for each of `names` its place in the list, -1 where it is left out.

    Args:
      names: all classes of the data set.
      listed: the classes kept; their order is that of the new labels.
      where: the data set, for the message.

    Raises:
      UserError: a listed class is not in the data set.
    """
    absent = sorted(set(listed) - set(names))
    if absent:
        raise UserError(
            f"the class list (data.class_list) names {_some(absent)}, which {where} "
            f"does not hold; it holds {_some(names)}"
        )
    place = {name: label for label, name in enumerate(listed)}
    return np.array([place.get(name, -1) for name in names], np.int32)


def keep_listed(
    split: Split, names: Sequence[str], listed: Sequence[str], where: str
) -> Split:
    """Keep the images of the listed classes; labels become places in the list.

    Raises:
      UserError: as `listed_labels`; or no image is left, or there are no labels.
    """
    place = listed_labels(names, listed, where)
    labels = _known(split.labels, where)
    labels = np.where(labels < 0, -1, place[labels]).astype(np.int32)
    kept = take(Split(split.images, labels), labels >= 0)
    if not len(kept.images):
        raise UserError(f"{where} holds no image of the classes of data.class_list")
    return kept


def keep_classes(split: Split, classes: tuple[int, int], where: str = "data") -> Split:
    """Keep the images of classes (first, after the last), which keep their labels.

    (0, 0) keeps all, the unlabelled ones too.

    Raises:
      UserError: it is no range, no image is left, or there are no labels.
    """
    if tuple(classes) == (0, 0):
        return split
    kept = take(split, in_range(_known(split.labels, where), classes))
    if not len(kept.images):
        raise UserError(f"{where} holds no image of the classes {range_words(classes)}")
    return kept


def in_range(
    labels: Int[np.ndarray, " n"], classes: tuple[int, int]
) -> Bool[np.ndarray, " n"]:
    """Return which labels lie in (first, after the last); (0, 0): all.

    Raises:
      UserError: it is no range.
    """
    if tuple(classes) == (0, 0):
        return np.ones(len(labels), bool)
    if len(classes) != 2 or not 0 <= classes[0] < classes[1]:
        raise UserError(
            f"data.train_classes or data.test_classes is {classes}; give (first, after "
            "the last) of the classes counted from 0, or 0,0 for all"
        )
    return (labels >= classes[0]) & (labels < classes[1])


def range_words(classes: tuple[int, int]) -> str:
    """Return a range of classes in words."""
    return f"{classes[0]} to {classes[1] - 1}"


def _known(labels: np.ndarray | None, where: str) -> np.ndarray:
    if labels is None:
        raise UserError(
            f"{where} has no classes, which data.class_list, data.train_classes and "
            "data.test_classes choose from; leave these out"
        )
    return labels


def _some(names: Sequence[str]) -> str:
    """Return the first few names."""
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
