"""Which folders below a data set's root are its splits."""

import os
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from eir_jax.data.picture_files import is_left_lying, is_picture
from eir_jax.system.errors import UserError

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "eval", "dev")
# What the configs call splits of other sources: a folder need not have them.
CUSTOMARY = (*TRAIN_NAMES, *TEST_NAMES, "unlabelled")


def places_of(root: Path, config: ConfigDict) -> tuple[dict[str, str], list[str]]:
    """Return the folder of each split below the root, '' for itself; and the unread.

    Several folders of one split are joined by '+', as in the settings.

    Raises:
      UserError: the folders of the root are of two kinds, or one that is asked for is
        not there.
    """
    train, test = config.train_split, config.test_split
    inside = folders_in(root)
    whole = {"train": ""}
    if tuple(config.test_classes) != (0, 0):
        whole["test"] = ""  # the same folder, other classes
    for split in ("train", "test"):
        _check_there(root, inside, config[f"{split}_split"], f"data.{split}_split")
    trains = _named(inside, train, TRAIN_NAMES)
    tests = _named(inside, test, TEST_NAMES)
    read = "+".join((*trains[:1], *tests)).split("+")
    others = [name for name in inside if name not in read]
    by_custom = train in TRAIN_NAMES  # not asked for by another name
    if config.labels == "none" and by_custom and not (trains and tests):
        return whole, []  # whatever its folders are called
    if not trains:
        found = [name for split in tests for name in split.split("+")]
        asked = test.split("+")
        splits = [x for x in found if x in asked or not _holds_loose(root / x)]
        if splits:
            raise UserError(
                f"{root} holds {splits[0]}/ but no {train}/ (data.train_split); put "
                f"the training pictures there, or give {root / splits[0]} as data.path"
            )
        return whole, []
    if (
        others
        and not tests
        and by_custom
        and all(_holds_loose(root / name) for name in (trains[0], *others))
    ):
        return whole, []  # classes, of which one is called train
    places = {"train": trains[0]}
    if tests:
        places["test"] = tests[0]
    return places, tests[1:] + others


def _check_there(root: Path, inside: Sequence[str], split: str, key: str) -> None:
    """Refuse a split of folders that are not there, if it was not named by custom."""
    names = [name for name in split.split("+") if name]
    missing = [name for name in names if not _called(inside, name)]
    if missing and (len(missing) < len(names) or {*missing} - {*CUSTOMARY}):
        raise UserError(
            f"{root} holds no folder {missing[0]}/ ({key}={split}); it holds "
            f"{_some(inside)}"
        )


def _named(folders: Sequence[str], split: str, customary: Sequence[str]) -> list[str]:
    """Return the folders of a split, or what may stand for it, the likeliest first."""
    if "+" in split:
        parts = [_called(folders, name)[:1] for name in split.split("+")]
        return ["+".join(name for (name,) in parts)] if all(parts) else []
    names = (split, *customary) if split in customary else (split,)
    return [x for name in dict.fromkeys(names) if name for x in _called(folders, name)]


def _called(folders: Sequence[str], name: str) -> list[str]:
    """Return the folders that are called so, in any case, the letter first."""
    same = [x for x in folders if x.casefold() == name.casefold()]
    return sorted(same, key=lambda folder: folder != name)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name}/" for name in names[:8])
    return (shown + (", ..." if len(names) > 8 else "")) or "none"


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in one, sorted, but for what systems leave there.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.is_dir() and not is_left_lying(entry.name)
            )
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None


def _holds_loose(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(
            path.is_file() and not is_left_lying(path.name) and is_picture(path)
            for path in map(Path, entries)
        )
