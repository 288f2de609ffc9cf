"""What is evaluated while training."""

from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eir_jax.data.dataset import Dataset, Split, existing, labelled_rows, take
from eir_jax.evaluation import health
from eir_jax.evaluation.allowed import (
    judged_split,
    knn_votes,
    refused_tasks,
    retrieved,
)
from eir_jax.evaluation.embed import Embed
from eir_jax.evaluation.knn import knn_accuracy
from eir_jax.evaluation.protocol import tag
from eir_jax.evaluation.retrieval import recall_at_k
from eir_jax.evaluation.scores import accuracies, main_number
from eir_jax.evaluation.tasks import knn_protocol, retrieval_protocol, shared_protocol
from eir_jax.run.state import TrainState


def best_by(evaluation: dict[str, Any]) -> float | None:
    """Return what ranks checkpoints, the number that judges a run; None without one."""
    numbers = accuracies(evaluation)
    name = main_number(numbers)
    return None if name is None else numbers[name]


def evaluate(
    config: ConfigDict, dataset: Dataset, mesh: Mesh, embed: Embed, state: TrainState
) -> dict[str, Any]:
    """Return `knn` by k where the labels allow it, and `health` of train.

    Where kNN has no sense (unseen test classes, train unlabelled), `retrieval` within
    the test set stands for it. Without test images both are within train. Unlabelled
    images count for health alone.
    """

    def embedded(split: Split) -> np.ndarray:
        return np.asarray(embed(state, split.images).embedding)

    refused = refused_tasks(dataset, config)
    votes = "knn" not in refused
    rows = health.spread_rows(len(dataset.train.images))
    if votes:
        rows = labelled_rows(dataset, "train")
    train = take(dataset.train, rows)
    gallery = embedded(train)
    measured = min(len(gallery), health.MAX_ROWS)
    found: dict[str, Any] = {
        "health": health.measure(gallery),
        "health_of": f"{measured} train images",
    }
    found["health"] |= health.against_pixels(gallery, train.images, train.labels)
    std = found["health"].get("embedding_std", 1.0)
    if std < health.COLLAPSED_STD:
        found["warning"] = (
            f"{health.collapse_warning(std)}; lower optimizer.learning_rate or "
            "lambda_intra"
        )
    if votes:
        asked, k = knn_votes(dataset, config)
        if asked.own is None:
            query = take(existing(dataset, "test"), asked.asked)
            query_embedding = embedded(query)
        else:
            query, query_embedding = take(train, asked.own), gallery[asked.own]
        assert query.labels is not None and train.labels is not None
        accuracy = knn_accuracy(
            query_embedding,
            query.labels,
            gallery,
            train.labels,
            k=k,
            temperature=config.knn.temperature,
            exclude=asked.own,
            mesh=mesh,
        )
        found["knn"] = {str(n): value for n, value in accuracy.items()}
        protocol = knn_protocol(config, asked, k)
    elif "retrieval" not in refused:
        split = judged_split(dataset)
        rows, k = retrieved(dataset, config)
        query = take(existing(dataset, split), rows)
        assert query.labels is not None
        recall = recall_at_k(embedded(query), query.labels, k=k, mesh=mesh)
        found["retrieval"] = {f"R@{n}": value for n, value in recall.items()}
        protocol = retrieval_protocol(config, split, k)
    else:
        return found
    found["protocol"] = tag(protocol, shared_protocol(dataset, config))["hash"]
    return found


def words_of(evaluation: dict[str, Any]) -> str:
    """Say what `evaluate` found, in one line."""
    parts = []
    if "rank_me" in evaluation["health"]:
        rank, of = evaluation["health"]["rank_me"], evaluation["health_of"]
        parts = [f"RankMe {rank:.1f} of {of}"]
    if "knn" in evaluation:
        knn = evaluation["knn"].items()
        parts = ["kNN " + ", ".join(f"{v:.1%} (k = {k})" for k, v in knn), *parts]
    if "retrieval" in evaluation:
        recall = evaluation["retrieval"].items()
        parts = [", ".join(f"{name} {value:.1%}" for name, value in recall), *parts]
    if "warning" in evaluation:
        parts.append(f"WARNING: {evaluation['warning']}")
    return "; ".join(parts) or f"nothing to measure of {evaluation['health_of']}"
