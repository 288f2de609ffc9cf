"""The evaluations of section 4, each a function of what is judged, embedded.

A task returns parts of the record of `evaluate` and the protocol that decides them.
"""

from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from eir_jax.data.dataset import (
    Dataset,
    Split,
    existing,
    is_labelled,
    labelled,
    labelled_rows,
    take,
)
from eir_jax.data.encoded import EncodedImages
from eir_jax.evaluation import health
from eir_jax.evaluation.allowed import (
    Votes,
    check_spread,
    judged_split,
    knn_votes,
    probed,
    retrieved,
)
from eir_jax.evaluation.classifiers import ProbeSettings
from eir_jax.evaluation.embed import describe_view
from eir_jax.evaluation.knn import check_labels, unit_rows, vote_accuracy
from eir_jax.evaluation.linear_probe import linear_probe
from eir_jax.evaluation.nearest import nearest
from eir_jax.evaluation.protocol import Protocol
from eir_jax.evaluation.restore import Run
from eir_jax.evaluation.retrieval import retrieval_scores
from eir_jax.models.encoder import feature_dim
from eir_jax.system import sharding
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
    """What is judged: a checkpoint, by the data it is asked about and who answers."""

    run: Run
    dataset: Dataset
    query: Embedded
    """The judged split, all of it."""
    gallery: Embedded | None
    """What is labelled of train: the same rows, where train is judged. None where no
    task asked for needs it."""


def embed_subject(run: Run, dataset: Dataset, with_gallery: bool) -> Subject:
    """Embed the judged split, and of train, where it is needed, what is labelled."""

    def embed(name: str, split: Split) -> Embedded:
        with closing(ProgressLine(f"embedding {name}", len(split.images))) as bar:
            output = run.embed(run.state, split.images, bar.update)
        return Embedded(split.images, split.labels, *map(np.asarray, output))

    split = judged_split(dataset)
    query, gallery = embed(split, existing(dataset, split)), None
    if with_gallery and split == "train":
        gallery = query.take(labelled_rows(dataset, "train"))
    elif with_gallery:
        gallery = embed("train", labelled(dataset, "train"))
    return Subject(run, dataset, query, gallery)


def knn(subject: Subject, progress: Progress | None = None) -> Result:
    """Weighted kNN (Tables 1-4): on embedding and feature, top-1 and top-5, and bank.

    Of five classes or fewer there is no top-5: it would be 1 of any embedding.

    Raises:
      UserError: the data does not allow it.
    """
    config, mesh = subject.run.config, subject.run.mesh
    found, k = knn_votes(subject.dataset, config)
    gallery, query = subject.gallery, subject.query.take(found.asked)
    assert gallery is not None and gallery.labels is not None
    assert query.labels is not None
    parts: dict[str, Any] = {}
    ranks = [(1, ""), *[(5, "_top5")] * (len(np.unique(gallery.labels)) > 5)]
    searches = [
        ("knn", "embedding", query.embedding, gallery.embedding),
        ("knn_feature", "feature", query.feature, gallery.feature),
    ]
    if "bank" in subject.run.state.memory:  # a row for each training image
        bank = sharding.fetch(subject.run.state.memory["bank"])[found.voters]
        searches.append(("knn_bank", "bank", query.embedding, bank))
    for number, (name, what, asked, voting) in enumerate(searches):
        similarity, index = nearest(
            unit_rows(asked, f"the queries ({what})"),
            unit_rows(voting, f"train ({what})"),
            max(k),
            exclude=found.own,
            mesh=mesh,
            progress=_part(progress, number, len(searches)),
        )
        for top, suffix in ranks:
            accuracy = vote_accuracy(
                similarity,
                check_labels(gallery.labels, voting, "train")[index],
                check_labels(query.labels, asked, "queries"),
                k=k,
                temperature=config.knn.temperature,
                top=top,
            )
            parts[name + suffix] = {str(n): value for n, value in accuracy.items()}
    return parts, knn_protocol(config, found, k)


def knn_protocol(config: ConfigDict, found: Votes, k: tuple[int, ...]) -> Protocol:
    """Return what decides a kNN number, while training and afterwards."""
    split, without, without_its = "test", "", ""
    if found.own is not None:
        split, without, without_its = "train", ", without the query", ", without its"
    return {
        "k": list(k),
        "temperature": config.knn.temperature,
        "weight": "exp(cosine / temperature)",
        "gallery": f"train, embedded anew in evaluation mode{without}; knn_bank: the "
        f"bank's rows{without_its}",
        "query": split,
        "features": _features(config),
        "metric": f"share of {split} images whose class has the largest vote (top5: is "
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
    if is_labelled(dataset.train) and is_labelled(dataset.test):
        alone = _images_of_other_classes(dataset)
        if alone:  # their classes nobody can vote for: asked by retrieval alone
            data["test_images_of_classes_not_in_train"] = alone
    return {
        "data": data,
        "transform": describe_view(config.data),
    }


def _images_of_other_classes(dataset: Dataset) -> int:
    assert dataset.test is not None and dataset.train.labels is not None
    asked = dataset.test.labels
    assert asked is not None
    return int((~np.isin(asked[asked >= 0], dataset.train.labels)).sum())


def linear(subject: Subject, progress: Progress | None = None) -> Result:
    """Linear probe on the frozen feature before the head (Tables 3 and 4).

    Raises:
      UserError: the data does not allow it.
    """
    found = probed(subject.dataset)
    train, test = subject.gallery, subject.query.take(found.asked)
    assert train is not None and train.labels is not None and test.labels is not None
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
        train.labels,
        test_feature,
        test.labels,
        ProbeSettings(**options),
        epoch_features=_augmented(subject, pooled_map) if augment else None,
        mesh=subject.run.mesh,
        progress=progress,
    )
    if not probe.converged:
        print(
            f"linear probe: lbfgs ended after {ProbeSettings.max_iterations} "
            "iterations, short of the minimum; its number is of where it ended"
        )
    part = {"top-1": probe.top1, "weight_decay": probe.weight_decay}
    if len(np.unique(train.labels)) > 5:  # else it is 1 of any embedding
        part["top-5"] = probe.top5
    if probe.learning_rate is not None:
        part["learning_rate"] = probe.learning_rate
    feature = "last map, averaged over windows of 2x2" if pooled_map else "feature"
    return {"linear": part}, probe.protocol | {
        "features": f"{feature}; {_features(subject.run.config)}"
    }


def retrieval(subject: Subject, progress: Progress | None = None) -> Result:
    """Retrieval within the judged split (Table 5): R@K, MAP@R, R-precision, NMI.

    Raises:
      UserError: the data does not allow it.
    """
    config = subject.run.config
    rows, k = retrieved(subject.dataset, config)
    query = subject.query.take(rows)
    assert query.labels is not None
    scores = retrieval_scores(
        query.embedding,
        query.labels,
        k=k,
        nmi_limit=config.retrieval.nmi_limit,
        mesh=subject.run.mesh,
        progress=progress,
    )
    split = judged_split(subject.dataset)
    return {"retrieval": scores}, retrieval_protocol(config, split, k)


def retrieval_protocol(config: ConfigDict, split: str, k: tuple[int, ...]) -> Protocol:
    """Return what decides a retrieval number, while training and afterwards."""
    return {
        "k": list(k),
        "gallery": f"{split}, without the query",
        "query": split,
        "features": _features(config),
        "similarity": "cosine",
        "metric": "R@K: share of queries with one of their class among the K nearest; "
        "MAP@R, R-precision: Musgrave et al. (2020), R = others of the class; NMI: of "
        "k-means with as many clusters as classes (scikit-learn, 10 starts, seed 0), "
        "arithmetic mean",
    }


def label_free(subject: Subject, progress: Progress | None = None) -> Result:
    """Health of the judged split's embedding: no label is looked at.

    Raises:
      UserError: it is not finite, or of one image.
    """
    check_spread(subject.dataset)
    query = subject.query
    parts: dict[str, Any] = health.measure(query.embedding)
    if len(query.images.shape) == 4:  # another program's embeddings have no pictures
        parts |= health.against_pixels(query.embedding, query.images, query.labels)
    rows = len(health.spread_rows(len(query.embedding)))
    record: dict[str, Any] = {"health": parts | {"rows": rows}}
    if parts["embedding_std"] < health.COLLAPSED_STD:
        record["warnings"] = [health.collapse_warning(parts["embedding_std"])]
    elif words := health.pixels_warning(parts):
        record["warnings"] = [words]
    split = judged_split(subject.dataset)
    return record, {
        "rows": f"{health.MAX_ROWS} {split} images at most, evenly spaced",
        "features": _features(subject.run.config),
    }


TASKS: dict[str, Callable[..., Result]] = {
    "knn": knn,
    "linear": linear,
    "retrieval": retrieval,
    "health": label_free,
}


def _augmented(subject: Subject, pooled_map: bool) -> Callable[[int], np.ndarray]:
    """Return epoch -> the train images' features, each from a fresh training view."""
    from eir_jax.data.pipeline import make_view_batches

    assert subject.gallery is not None
    run, images = subject.run, subject.gallery.images

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
