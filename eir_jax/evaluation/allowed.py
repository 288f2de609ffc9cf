"""What the data allows to be measured: who is asked, who votes, and what is left out.

Known before anything is embedded, of the labels and the settings alone.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from eir_jax.data.dataset import Dataset, existing, is_labelled, labelled_rows
from eir_jax.evaluation.linear_probe import check_train_classes
from eir_jax.system.errors import UserError, one_line
from eir_jax.system.words import counted


class Votes(NamedTuple):
    """Who is asked for a class, and who votes: in kNN, and for a probe."""

    asked: Int[np.ndarray, " query"]
    """Rows of the judged split."""
    voters: Int[np.ndarray, " gallery"]
    """The labelled rows of train."""
    own: Int[np.ndarray, " query"] | None
    """The place among the voters of each one asked, which does not vote for itself;
    None where they are of two splits."""

    @property
    def most(self) -> int:
        """How many may vote for one."""
        return len(self.voters) - (self.own is not None)


def judged_split(dataset: Dataset) -> str:
    """Return which split is embedded and judged, 'test' or 'train'.

    Test, but where there is none, or where it has no labels and train has.
    """
    if dataset.test is None:
        return "train"
    only_train = is_labelled(dataset.train) and not is_labelled(dataset.test)
    return "train" if only_train else "test"


def votes(dataset: Dataset) -> Votes:
    """Return who is asked and who votes.

    Those are left out of whose class nobody (else) of train is: no vote for them could
    be right. Within train each is asked, and the others vote.

    Raises:
      UserError: labels are missing or all alike in train, or nobody is left.
    """
    voters = labelled_rows(dataset, "train")
    train_labels = _labels(dataset, "train", voters)
    if (train_labels == train_labels[0]).all():
        raise UserError(
            f"the labelled train images of {dataset.name} are all of one class: there "
            "is nothing to tell apart"
        )
    if judged_split(dataset) == "train":
        classes, counts = np.unique(train_labels, return_counts=True)
        own = np.flatnonzero(np.isin(train_labels, classes[counts > 1]))
        if not len(own):
            raise UserError(
                f"{dataset.name} has no test images, and no class has two images in "
                "train: no vote could be right"
            )
        return Votes(voters[own], voters, own)
    asked = labelled_rows(dataset, "test")
    known = np.isin(_labels(dataset, "test", asked), train_labels)
    if not known.any():
        raise UserError(
            f"the test classes of {dataset.name} do not occur in train: kNN and linear "
            "probe have no sense there; use --tasks=retrieval,health,figures"
        )
    return Votes(asked[known], voters, None)


def knn_votes(dataset: Dataset, config: ConfigDict) -> tuple[Votes, tuple[int, ...]]:
    """Return who is asked and votes in kNN, and the k of the settings that fit.

    Raises:
      UserError: as `votes`; or no k fits.
    """
    found = votes(dataset)
    return found, _fitting("knn", config, found.most, "labelled train image")


def probed(dataset: Dataset) -> Votes:
    """Return who is asked and who trains a linear probe.

    Raises:
      UserError: as `votes`; or there is no test split, or train makes no probe.
    """
    found = votes(dataset)
    if found.own is not None:
        raise UserError(
            f"{dataset.name} has no labelled test images to judge a linear probe by; "
            f"{_held_out_advice(dataset)}"
        )
    check_train_classes(_labels(dataset, "train", found.voters), dataset.class_names)
    return found


def retrieved(dataset: Dataset, config: ConfigDict) -> tuple[np.ndarray, tuple]:
    """Return the rows of the judged split that find each other, and the k that fit.

    Raises:
      UserError: labels are missing or all alike, or no k fits.
    """
    split = judged_split(dataset)
    rows = labelled_rows(dataset, split)
    labels = _labels(dataset, split, rows)
    if (labels == labels[0]).all():
        raise UserError(
            f"the {split} images of {dataset.name} are all of one class: every "
            "neighbour would count as a hit"
        )
    return rows, _fitting("retrieval", config, len(rows) - 1, f"other {split} image")


def refused_tasks(dataset: Dataset, config: ConfigDict) -> dict[str, str]:
    """Return the tasks that the data does not allow, and why not."""
    checks = {
        "knn": lambda: knn_votes(dataset, config),
        "linear": lambda: probed(dataset),
        "retrieval": lambda: retrieved(dataset, config),
        "health": lambda: check_spread(dataset),
    }
    refused = {}
    for task, check in checks.items():
        try:
            check()
        except UserError as error:
            refused[task] = one_line(str(error))
    return refused


def remarks(dataset: Dataset, config: ConfigDict) -> list[str]:
    """Return what to know of the numbers that are measured, in lines."""
    split = judged_split(dataset)
    refused = refused_tasks(dataset, config)
    lines = []
    if split == "train" and is_labelled(dataset.train):
        names = {"knn": "kNN", "retrieval": "retrieval"}
        within = [name for task, name in names.items() if task not in refused]
        said = "train is judged"
        if within:
            said = (
                f"{' and '.join(within)} {'is' if len(within) == 1 else 'are'} within "
                f"train, each image among the others; "
                f"{_held_out_advice(dataset)}"
            )
        lines.append(f"{dataset.name} has no labelled test images: {said}")
    elif split == "train":
        lines.append(f"{dataset.name} has no test images: train is judged")
    if "knn" not in refused:
        found = votes(dataset)
        lines += _too_many("knn", config, found.most, "labelled train image")
        alone = len(found.voters) - len(found.asked)
        if found.own is not None and alone:
            lines.append(
                f"{_are(alone, 'train image')} alone in {_its(alone)} class: left out "
                "of kNN"
            )
    if "retrieval" not in refused:
        rows = labelled_rows(dataset, split)
        lines += _too_many("retrieval", config, len(rows) - 1, f"other {split} image")
        _, inverse, count = np.unique(
            _labels(dataset, split, rows), return_inverse=True, return_counts=True
        )
        alone = int((count[inverse] == 1).sum())
        if alone == len(rows):
            lines.append(
                f"no class has two {split} images: R@K is 0 of any embedding, and "
                "MAP@R, R-precision and NMI are of nothing"
            )
        elif alone:
            lines.append(
                f"{_are(alone, f'{split} image')} alone in {_its(alone)} class: "
                f"{'a miss' if alone == 1 else 'misses'} of R@K, left out of MAP@R and "
                "R-precision"
            )
    return lines


def _labels(dataset: Dataset, split: str, rows: np.ndarray) -> np.ndarray:
    labels = existing(dataset, split).labels
    assert labels is not None
    return labels[rows]


def check_spread(dataset: Dataset) -> None:
    """Check that health can be measured: of one image there is no spread.

    Raises:
      UserError: there is one alone.
    """
    split = judged_split(dataset)
    if len(existing(dataset, split).images) < 2:
        raise UserError(
            f"{dataset.name} has one {split} image: a spread needs two or more"
        )


def _held_out_advice(dataset: Dataset) -> str:
    if dataset.source == "embeddings":
        if dataset.test is not None:
            return "add 'label' to the second file, which is not judged without"
        return "give those of labelled test images too: --embeddings=TRAIN.npz,TEST.npz"
    hold_out = "train with --config.data.held_out=0.1 to hold a share of train out"
    return hold_out if dataset.test is None else f"label them, or, without, {hold_out}"


def _fitting(group: str, config: ConfigDict, most: int, whose: str) -> tuple[int, ...]:
    """Return the k that are not more than there are neighbours.

    Raises:
      UserError: none fits.
    """
    k = tuple(config[group].k)
    fitting = tuple(n for n in k if n <= most)
    if not fitting:
        raise UserError(
            f"{group}.k={_listed(k)} asks for more than the {counted(most, whose)}; "
            f"use --config.{group}.k={most}"
        )
    return fitting


def _too_many(group: str, config: ConfigDict, most: int, whose: str) -> Iterator[str]:
    left_out = [n for n in config[group].k if n > most]
    if left_out:
        yield (
            f"without k={_listed(left_out)} of {group}.k: there {_are_so(most, whose)} "
            f"(--config.{group}.k={_listed(_fitting(group, config, most, whose))})"
        )


def _listed(k: Sequence[int]) -> str:
    return ",".join(map(str, k))


def _are(number: int, what: str) -> str:
    return f"{counted(number, what)} {'is' if number == 1 else 'are'}"


def _are_so(number: int, what: str) -> str:
    return f"{'is' if number == 1 else 'are'} {counted(number, what)}"


def _its(number: int) -> str:
    return "its" if number == 1 else "their"
