"""Retrieval within one set: do the nearest neighbours share the query's class?

Each metric takes the labels of the neighbours found by one search, so that others
(R-precision, MAP@R) can share it.
"""

from collections.abc import Callable, Iterable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from eir_jax.errors import UserError
from eir_jax.evaluation.knn import check_labels, check_neighbours, unit_rows
from eir_jax.evaluation.nearest import nearest


def recall_at_k(
    embedding: Float[np.ndarray, "row dim"],
    label: Int[np.ndarray, " row"],
    *,
    k: Iterable[int] = (1, 2, 4, 8),
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, float]:
    """Measure R@K: the fraction of rows with one of their class among the K nearest.

    The set is both queries and gallery, and a row never finds itself. Similarities are
    cosines: rows that are not of norm 1 are scaled. A row alone in its class counts as
    a miss.

    Args:
        embedding: the set.
        label: classes, >= 0, two or more different ones.
        k: numbers of neighbours, each from 1 to row - 1.
        mesh: as in `nearest`.
        progress: as in `nearest`.

    Returns:
        For each K the fraction of the rows, 0 .. 1.

    Raises:
        UserError: labels are missing or do not fit, all are of one class, an embedding
            is not finite or zero, or a k is out of range.

    Source: Song et al. 2016 (lifted structured embedding), as in the EIR paper.
    """
    k = check_neighbours(k)
    label = check_labels(label, embedding, "retrieval")
    if (label == label[0]).all():
        raise UserError(
            f"retrieval: all {len(label)} labels are {label[0]}, and every neighbour "
            "would count as a hit; evaluate on two or more classes"
        )
    embedding = unit_rows(embedding, "retrieval")
    everyone = np.arange(len(embedding))
    _, index = nearest(
        embedding, embedding, max(k), exclude=everyone, mesh=mesh, progress=progress
    )
    return recall_of_neighbours(label[index], label, k=k)


def recall_of_neighbours(
    neighbour_label: Int[np.ndarray, "query neighbour"],
    query_label: Int[np.ndarray, " query"],
    *,
    k: Iterable[int] = (1, 2, 4, 8),
) -> dict[int, float]:
    """Measure R@K from the neighbours' labels, the nearest first.

    Raises:
        UserError: a k is larger than the number of neighbours.
    """
    k = check_neighbours(k, neighbour_label.shape[1])
    hit = neighbour_label == np.asarray(query_label)[:, None]
    return {n: float(hit[:, :n].any(axis=1).mean()) for n in k}
