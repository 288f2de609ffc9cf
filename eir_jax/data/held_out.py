"""A test split taken from train, for data that comes without one.

Needs neither TensorFlow nor JAX.
"""

import dataclasses
from itertools import count

import numpy as np
from jaxtyping import Int

from eir_jax.data.dataset import Dataset, take
from eir_jax.system.errors import UserError


def hold_out(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Take a share of each class of train as the test split; 0: none.

    Unlabelled images stay in train, but where there are no labels at all: then the
    share is of all images.

    Raises:
      UserError: there is a test split already, or too few images to part.
    """
    if not share:
        return dataset
    if dataset.test is not None:
        raise UserError(
            f"data.held_out={share} takes test images from train, but {dataset.name} "
            "has a test split; use --config.data.held_out=0"
        )
    train = dataset.train
    labels = np.zeros(len(train.images), int) if train.labels is None else train.labels
    known = np.flatnonzero(labels >= 0)
    _, held = split_held_out(labels[known], share, seed)
    held = known[held]
    if not len(held):
        raise UserError(
            f"data.held_out={share} takes nothing from the train images of "
            f"{dataset.name}: no class has two; use --config.data.held_out=0"
        )
    is_held = np.zeros(len(labels), bool)
    is_held[held] = True
    row = count()  # the files that are pictures are the images, in their order
    files = tuple(
        file if file.broken or not is_held[next(row)] else file._replace(split="test")
        for file in dataset.files
    )
    each = "all" if train.labels is None else "each class of"
    return dataclasses.replace(
        dataset,
        train=take(train, ~is_held),
        test=take(train, is_held),
        files=files,
        held_out=f"{share:g} of {each} train, by seed {seed}",
        notes=(
            *dataset.notes,
            f"{len(held):,} of {len(labels):,} train images are held out as test "
            "images (data.held_out)",
        ),
    )


def split_held_out(
    label: Int[np.ndarray, " row"], share: float, seed: int
) -> tuple[Int[np.ndarray, " fitted"], Int[np.ndarray, " held"]]:
    """Return rows (kept, held out), sorted: of each class `share`, at least one.

    And at most all but one: a class of one image keeps it.
    """
    held = np.zeros(len(label), bool)
    for value in np.unique(label):
        rows = np.flatnonzero(label == value)
        number = min(max(1, round(share * len(rows))), len(rows) - 1)
        order = np.random.default_rng((seed, int(value))).permutation(rows)
        held[order[:number]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
