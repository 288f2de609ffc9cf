"""What is evaluated while training."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eir_jax.data.dataset import Dataset, labelled, take
from eir_jax.evaluation import health
from eir_jax.evaluation.embed import Embed
from eir_jax.evaluation.knn import knn_accuracy
from eir_jax.evaluation.protocol import tag
from eir_jax.evaluation.retrieval import recall_at_k
from eir_jax.evaluation.scores import accuracies, main_number
from eir_jax.evaluation.tasks import (
    knn_protocol,
    refused_tasks,
    retrieval_protocol,
    shared_protocol,
)
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
    the test set stands for it. Unlabelled images count for health alone.
    """
    refused = refused_tasks(dataset)
    voters = None if "knn" in refused else labelled(dataset, "train")
    few = np.arange(min(len(dataset.train.images), health.MAX_ROWS))
    train = voters or take(dataset.train, few)
    gallery = np.asarray(embed(state, train.images).embedding)
    rows = jnp.asarray(gallery[: health.MAX_ROWS])
    std = float(health.embedding_std(rows))
    found: dict[str, Any] = {
        "health": {
            "rank_me": float(health.rank_me(rows)),
            "uniformity": float(health.uniformity(rows)),
            "embedding_std": std,
        }
    }
    if std < health.COLLAPSED_STD:
        found["warning"] = health.collapse_warning(std)
    if "retrieval" in refused and not voters:
        return found
    test = labelled(dataset, "test")
    query = np.asarray(embed(state, test.images).embedding)
    if voters:
        accuracy = knn_accuracy(
            query,
            test.labels,
            gallery,
            voters.labels,
            k=config.knn.k,
            temperature=config.knn.temperature,
            mesh=mesh,
        )
        found["knn"] = {str(k): value for k, value in accuracy.items()}
        protocol = knn_protocol(config)
    else:
        k = [k for k in config.retrieval.k if k < len(query)]
        recall = recall_at_k(query, test.labels, k=k, mesh=mesh)
        found["retrieval"] = {f"R@{k}": value for k, value in recall.items()}
        protocol = retrieval_protocol(config)
    found["protocol"] = tag(protocol, shared_protocol(dataset, config))["hash"]
    return found


def words_of(evaluation: dict[str, Any]) -> str:
    """Say what `evaluate` found, in one line."""
    parts = [f"RankMe {evaluation['health']['rank_me']:.1f}"]
    if "knn" in evaluation:
        knn = evaluation["knn"].items()
        parts = ["kNN " + ", ".join(f"{v:.1%} (k = {k})" for k, v in knn), *parts]
    if "retrieval" in evaluation:
        recall = evaluation["retrieval"].items()
        parts = [", ".join(f"{name} {value:.1%}" for name, value in recall), *parts]
    if "warning" in evaluation:
        parts.append(f"WARNING: {evaluation['warning']}")
    return "; ".join(parts)
