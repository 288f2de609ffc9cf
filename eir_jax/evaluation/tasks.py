"""The evaluations of section 4, each a function of the embedded splits.

A task returns parts of the record of `evaluate` and the protocol that decides them.
"""

from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from eir_jax.data.dataset import Dataset, Split, existing, labelled, labelled_rows, take
from eir_jax.data.encoded import EncodedImages
from eir_jax.evaluation import health
from eir_jax.evaluation.classifiers import ProbeSettings
from eir_jax.evaluation.embed import describe_view
from eir_jax.evaluation.knn import (
    check_labels,
    check_neighbours,
    unit_rows,
    vote_accuracy,
)
from eir_jax.evaluation.linear_probe import linear_probe
from eir_jax.evaluation.nearest import nearest
from eir_jax.evaluation.protocol import Protocol
from eir_jax.evaluation.restore import Run
from eir_jax.evaluation.retrieval import retrieval_scores
from eir_jax.models.encoder import feature_dim
from eir_jax.system import sharding
from eir_jax.system.errors import UserError
from eir_jax.system.progress import ProgressLine

Progress = Callable[[int, int], None]
Result = tuple[dict[str, Any], Protocol]


class Embedded(NamedTuple):
    """A split, or what is labelled of it, and what the encoder says of it."""

    images: np.ndarray | EncodedImages
    labels: np.ndarray | None
    embedding: Float[np.ndarray, "row dim"]
    feature: Float[np.ndarray, "row feature"]

    def take(self, rows: np.ndarray) -> "Embedded":
        """Return some of the rows."""
        if len(rows) == len(self.embedding):
            return self
        kept = take(Split(self.images, self.labels), rows)
        return Embedded(
            kept.images, kept.labels, self.embedding[rows], self.feature[rows]
        )


class Subject(NamedTuple):
    """What is judged: a checkpoint, its data, both splits embedded."""

    run: Run
    dataset: Dataset
    train: Embedded | None
    """What is labelled of it; None where no task asked for needs it."""
    test: Embedded


def embed_subject(run: Run, dataset: Dataset, with_train: bool) -> Subject:
    """Embed the test split, and of train, where it is needed, what is labelled."""

    def embed(name: str, split: Split) -> Embedded:
        with closing(ProgressLine(f"embedding {name}", len(split.images))) as bar:
            output = run.embed(run.state, split.images, bar.update)
        return Embedded(split.images, split.labels, *map(np.asarray, output[:2]))

    test = embed("test", existing(dataset, "test"))
    train = embed("train", labelled(dataset, "train")) if with_train else None
    return Subject(run, dataset, train, test)


def knn(subject: Subject, progress: Progress | None = None) -> Result:
    """Weighted kNN (Tables 1-4): on embedding and feature, top-1 and top-5, and bank.

    Raises:
      UserError: labels are missing, or test classes do not occur in train.
    """
    config, mesh = subject.run.config, subject.run.mesh
    train, train_labels, test, test_labels = _labelled_pair(subject)
    rows = labelled_rows(subject.dataset, "train")
    k = check_neighbours(config.knn.k)
    parts: dict[str, Any] = {}
    searches = [
        ("knn", test.embedding, train.embedding),
        ("knn_feature", test.feature, train.feature),
    ]
    if "bank" in subject.run.state.memory:  # a row for each training image
        bank = sharding.fetch(subject.run.state.memory["bank"])[rows]
        searches.append(("knn_bank", test.embedding, bank))
    for number, (name, query, gallery) in enumerate(searches):
        similarity, index = nearest(
            unit_rows(query, "test"),
            unit_rows(gallery, name),
            max(k),
            mesh=mesh,
            progress=_part(progress, number, len(searches)),
        )
        for top, suffix in ((1, ""), (5, "_top5")):
            accuracy = vote_accuracy(
                similarity,
                check_labels(train_labels, gallery, "train")[index],
                check_labels(test_labels, query, "test"),
                k=k,
                temperature=config.knn.temperature,
                top=top,
            )
            parts[name + suffix] = {str(n): value for n, value in accuracy.items()}
    return parts, knn_protocol(config)


def knn_protocol(config: ConfigDict) -> Protocol:
    """Return what decides a kNN number, while training and afterwards."""
    return {
        "k": list(config.knn.k),
        "temperature": config.knn.temperature,
        "weight": "exp(cosine / temperature)",
        "gallery": "train, embedded anew in evaluation mode; knn_bank: the bank's rows",
        "query": "test",
        "features": _features(config),
        "metric": "share of test images whose class has the largest vote (top5: is "
        "among the five largest)",
    }


def shared_protocol(dataset: Dataset, config: ConfigDict) -> Protocol:
    """Return what decides every number: data and transform."""
    data = dataset.description | {
        "content_hash": dataset.content_hash,
        "train_images": len(dataset.train.images),
        "test_images": len(dataset.test.images) if dataset.test else 0,
    }
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        if split and split.labels is not None and (split.labels < 0).any():
            count = int((split.labels < 0).sum())
            data[f"unlabelled_{name}_images"] = count  # seen by no task but health
    return {
        "data": data,
        "transform": describe_view(config.data),
    }


def linear(subject: Subject, progress: Progress | None = None) -> Result:
    """Linear probe on the frozen feature before the head (Tables 3 and 4).

    Raises:
      UserError: labels are missing, or test classes do not occur in train.
    """
    train, train_labels, test, test_labels = _labelled_pair(subject)
    options = subject.run.config.linear.to_dict()
    pooled_map, augment = options.pop("pooled_map"), options.pop("augment")
    train_feature, test_feature = train.feature, test.feature
    if pooled_map:
        run = subject.run
        train_feature, test_feature = (
            np.asarray(run.embed(run.state, x.images, pooled_map=True).feature)
            for x in (train, test)
        )
    probe = linear_probe(
        train_feature,
        train_labels,
        test_feature,
        test_labels,
        ProbeSettings(**options),
        epoch_features=_augmented(subject, pooled_map) if augment else None,
        mesh=subject.run.mesh,
        progress=progress,
    )
    part = {
        "top-1": probe.top1,
        "top-5": probe.top5,
        "weight_decay": probe.weight_decay,
    }
    if probe.learning_rate is not None:
        part["learning_rate"] = probe.learning_rate
    feature = "last map, averaged over windows of 2x2" if pooled_map else "feature"
    return {"linear": part}, probe.protocol | {
        "features": f"{feature}; {_features(subject.run.config)}"
    }


def retrieval(subject: Subject, progress: Progress | None = None) -> Result:
    """Retrieval within the test set (Table 5): R@K, MAP@R, R-precision, NMI.

    Raises:
      UserError: labels are missing or all alike.
    """
    test = subject.test.take(labelled_rows(subject.dataset, "test"))
    assert test.labels is not None
    scores = retrieval_scores(
        test.embedding,
        test.labels,
        k=subject.run.config.retrieval.k,
        mesh=subject.run.mesh,
        progress=progress,
    )
    return {"retrieval": scores}, retrieval_protocol(subject.run.config)


def retrieval_protocol(config: ConfigDict) -> Protocol:
    """Return what decides a retrieval number, while training and afterwards."""
    return {
        "k": list(config.retrieval.k),
        "gallery": "test, without the query",
        "query": "test",
        "features": _features(config),
        "similarity": "cosine",
        "metric": "R@K: share of queries with one of their class among the K nearest; "
        "MAP@R, R-precision: Musgrave et al. (2020), R = others of the class; NMI: of "
        "k-means with as many clusters as classes (scikit-learn, 10 starts, seed 0), "
        "arithmetic mean",
    }


def label_free(subject: Subject, progress: Progress | None = None) -> Result:
    """Health of the test embedding: no label is looked at."""
    rows = jnp.asarray(subject.test.embedding[: health.MAX_ROWS])
    parts = {
        "rank_me": float(health.rank_me(rows)),
        "embedding_std": float(health.embedding_std(rows)),
        "uniformity": float(health.uniformity(rows)),
    }
    record: dict[str, Any] = {"health": parts}
    if parts["embedding_std"] < health.COLLAPSED_STD:
        record["warnings"] = [health.collapse_warning(parts["embedding_std"])]
    return record, {
        "rows": f"the first {health.MAX_ROWS} test images at most",
        "features": _features(subject.run.config),
    }


TASKS: dict[str, Callable[..., Result]] = {
    "knn": knn,
    "linear": linear,
    "retrieval": retrieval,
    "health": label_free,
}


def refused_tasks(dataset: Dataset) -> dict[str, str]:
    """Return the tasks that the data does not allow, and why not."""
    refused = {}
    for task, check in (
        ("knn", _check_pair),
        ("linear", _check_pair),
        ("retrieval", _check_classes),
    ):
        try:
            check(dataset)
        except UserError as error:
            refused[task] = str(error)
    return refused


def _check_pair(dataset: Dataset) -> None:
    seen, asked = (
        getattr(dataset, name).labels[labelled_rows(dataset, name)]
        for name in ("train", "test")
    )
    if not np.isin(asked, seen).any():
        raise UserError(
            f"the test classes of {dataset.name} do not occur in train: kNN and linear "
            "probe have no sense there; use --tasks=retrieval,health,figures"
        )


def _check_classes(dataset: Dataset) -> None:
    labels = existing(dataset, "test").labels
    rows = labelled_rows(dataset, "test")
    assert labels is not None
    if (labels[rows] == labels[rows[0]]).all():
        raise UserError(
            f"the test images of {dataset.name} are all of one class: every neighbour "
            "would count as a hit"
        )


def _labelled_pair(
    subject: Subject,
) -> tuple[Embedded, np.ndarray, Embedded, np.ndarray]:
    """Return train, its labels, what is labelled of test and its labels."""
    _check_pair(subject.dataset)
    train = subject.train
    test = subject.test.take(labelled_rows(subject.dataset, "test"))
    assert train is not None and train.labels is not None and test.labels is not None
    return train, train.labels, test, test.labels


def _augmented(subject: Subject, pooled_map: bool) -> Callable[[int], np.ndarray]:
    """Return epoch -> the train images' features, each from a fresh training view."""
    from eir_jax.data.pipeline import make_view_batches

    assert subject.train is not None
    run, images = subject.run, subject.train.images

    def features(epoch: int) -> np.ndarray:
        size = run.config.evaluation_batch_size
        return np.concatenate(
            [
                np.asarray(run.embed(run.state, views, pooled_map=pooled_map).feature)
                for views in make_view_batches(images, run.config, epoch, size)
            ]
        )

    return features


def _features(config: ConfigDict) -> str:
    model = config.model
    return (
        f"embedding: {model.embedding_dim}-d, unit length; feature: "
        f"{feature_dim(model)}-d, last stage averaged over space"
    )


def _part(progress: Progress | None, number: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, count * total)
