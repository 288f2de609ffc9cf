"""Linear probe: a linear classifier on frozen features, its settings chosen on train.

Every setting of the sweep is trained at once. `fit` and `choose` are given train alone;
test labels meet the finished classifier in the last lines of `linear_probe`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from eir_jax.data.held_out import split_held_out
from eir_jax.evaluation.classifiers import (
    Classifiers,
    EpochFeatures,
    ProbeSettings,
    Setting,
    accuracy,
    check_finite,
    fit,
)
from eir_jax.system import sharding
from eir_jax.system.errors import UserError

Progress = Callable[[int, int], None]


class LinearProbe(NamedTuple):
    """The number, what was chosen for it, and the classifier that reached it."""

    top1: float  # share of test images, in [0, 1]
    top5: float  # label among the min(5, classes) largest logits
    learning_rate: float | None
    weight_decay: float
    sweep: tuple[Setting, ...]
    converged: bool  # of the final fit; False: 'lbfgs' ran into max_iterations
    classifier: Classifiers  # of one setting, in NumPy
    classes: Int[np.ndarray, " label"]  # the label of each logit
    protocol: dict


def linear_probe(
    train_feature: Float[np.ndarray, "train dim"],
    train_label: Int[np.ndarray, " train"],
    test_feature: Float[np.ndarray, "test dim"],
    test_label: Int[np.ndarray, " test"],
    settings: ProbeSettings | None = None,
    *,
    epoch_features: EpochFeatures | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> LinearProbe:
    """Choose a setting on a held-out part of train, refit on all of it, test once.

    Args:
        train_feature: frozen features of any dimension.
        train_label: integers >= 0; two classes or more, two images of each or more.
        test_feature: features of the same dimension.
        test_label: classes of train.
        settings: the sweep and the solver; ProbeSettings() when left out.
        epoch_features: epoch -> [train, dim], features of freshly augmented views of
            the same images in the same order, which 'sgd' then trains on;
            train_feature still standardises and is held out.
        mesh: devices that a batch is split over, where it divides; this process's
            first when left out.
        progress: called with (epochs or iterations done, in all), of both fits.

    Raises:
        UserError: arrays that do not fit together, are not finite or cannot be probed;
            a setting out of its range; every setting diverges.
    """
    settings = settings or ProbeSettings()
    _check_settings(settings, epoch_features)
    train_feature, train_label = _checked(train_feature, train_label, "train")
    test_feature, test_label = _checked(test_feature, test_label, "test")
    _check_pair(train_feature, train_label, test_feature, test_label)
    classes, label = np.unique(train_label, return_inverse=True)
    run = functools.partial(
        fit,
        train_feature,
        label.astype(np.int32),
        settings=settings,
        epoch_features=epoch_features,
        mesh=mesh or sharding.make_mesh(jax.local_devices()[:1]),
    )
    total = settings.num_epochs if settings.solver == "sgd" else settings.max_iterations

    def tell(before, done):
        if progress:
            progress(before + done, 2 * total)

    sweep = choose(run, train_feature, label, settings, functools.partial(tell, 0))
    chosen = max(sweep, key=lambda s: s.held_out_accuracy)  # the first of equals
    final = run(
        np.arange(len(label)), [chosen[:2]], progress=functools.partial(tell, total)
    )
    final = jax.tree.map(np.asarray, final)
    if not np.isfinite(final.weight).all():
        raise UserError("the linear probe diverged: lower learning_rates")

    hits = accuracy(final, test_feature, np.searchsorted(classes, test_label))
    protocol = dataclasses.asdict(settings) | {
        "classifier": "linear with bias, softmax cross-entropy, starting at 0; "
        "weight decay on the weight alone; float32",
        "order": "shuffled each epoch by (seed, epoch), the incomplete batch left out",
        "schedule": "learning rate x .1 at each of milestones x num_epochs",
        "selection": "largest held-out top-1 (equals: smaller learning rate, then "
        "smaller weight decay), refitted on all of train",
        "trained_on": "augmented views, new each epoch" if epoch_features else "train",
        "num_train": len(train_feature),
        "num_classes": len(classes),
        "feature_dim": train_feature.shape[1],
    }
    return LinearProbe(
        top1=float(hits[0, 0]),
        top5=float(hits[1, 0]),
        learning_rate=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
        sweep=sweep,
        converged=bool(final.converged[0]),
        classifier=final,
        classes=classes,
        protocol=protocol,
    )


def choose(run, feature, label, settings, progress) -> tuple[Setting, ...]:
    """Train the whole grid on a part of train and score it on the rest."""
    sgd = settings.solver == "sgd"
    rates = sorted(set(settings.learning_rates)) if sgd else [None]
    grid = list(itertools.product(rates, sorted(set(settings.weight_decays))))
    fitted, held_out = split_held_out(label, settings.held_out, settings.seed)
    swept = run(fitted, grid, progress=progress)
    scores = accuracy(swept, feature[held_out], label[held_out])[0]
    return tuple(Setting(*s, float(x)) for s, x in zip(grid, scores, strict=True))


def _check_settings(s: ProbeSettings, epoch_features):
    """Raise where settings are out of range, all of them at once."""
    checks = {
        f"solver={s.solver!r} is not 'sgd' or 'lbfgs'": s.solver in ("sgd", "lbfgs"),
        f"learning_rates={s.learning_rates} must be some > 0": (
            min(s.learning_rates, default=0) > 0
        ),
        f"weight_decays={s.weight_decays} must be some >= 0": (
            min(s.weight_decays, default=-1) >= 0
        ),
        f"momentum={s.momentum} must be in [0, 1)": 0 <= s.momentum < 1,
        f"tolerance={s.tolerance} must be > 0": s.tolerance > 0,
        f"seed={s.seed} must be >= 0": s.seed >= 0,
        f"held_out={s.held_out} must be in (0, 1)": 0 < s.held_out < 1,
        "num_epochs, batch_size and max_iterations must be >= 1": (
            min(s.num_epochs, s.batch_size, s.max_iterations) >= 1
        ),
        "augmented features need solver='sgd'": not epoch_features or s.solver == "sgd",
    }
    if wrong := [message for message, holds in checks.items() if not holds]:
        raise UserError(f"linear probe: {'; '.join(wrong)}")


def _checked(feature, label, name):
    """Return float32 [row, dim] and integer [row], or raise."""
    feature, label = np.asarray(feature, np.float32), np.asarray(label)
    if feature.ndim != 2 or not feature.size:
        raise UserError(
            f"{name} features must be [row, dim] and not empty, not {feature.shape}"
        )
    if label.shape != (len(feature),):
        raise UserError(
            f"{len(feature)} {name} features but labels of shape {label.shape}: "
            "the probe needs one label a feature"
        )
    if not np.issubdtype(label.dtype, np.integer):
        raise UserError(f"{name} labels are {label.dtype}: the probe needs integers")
    if label.min() < 0:
        raise UserError(
            f"{np.count_nonzero(label < 0)} of {len(label)} {name} labels are negative "
            "(-1 is unlabelled): probe the labelled images alone"
        )
    check_finite(feature, f"{name} features")
    return feature, label


def _check_pair(train_feature, train_label, test_feature, test_label):
    """Raise where train and test make no probe together."""
    if train_feature.shape[1] != test_feature.shape[1]:
        raise UserError(
            f"train features {train_feature.shape} and test features "
            f"{test_feature.shape} differ in dimension"
        )
    check_train_classes(train_label)
    unseen = np.setdiff1d(test_label, train_label)
    if len(unseen):
        raise UserError(
            f"{len(unseen)} test classes ({unseen[0]}, ...) are not in train: sets of "
            "unseen classes cannot be probed, only retrieved from"
        )


def check_train_classes(
    label: Int[np.ndarray, " train"], names: Sequence[str] | None = None
) -> None:
    """Check that a probe can be chosen and trained on images of these classes.

    Raises:
        UserError: there are fewer than two classes, or than two images of one.
    """
    classes, counts = np.unique(label, return_counts=True)
    if len(classes) < 2:
        name = _class_name(classes[0], names)
        raise UserError(
            f"train holds class {name} alone: a probe needs two classes or more"
        )
    single = classes[counts < 2]
    if len(single):
        more = f" (and {len(single) - 1:,} more classes)" if len(single) > 1 else ""
        raise UserError(
            f"class {_class_name(single[0], names)}{more} has 1 train image: a probe "
            "needs 2 of each, one to hold out; leave the class out"
        )


def _class_name(label: int, names: Sequence[str] | None) -> str:
    return str(label) if names is None else names[label]
