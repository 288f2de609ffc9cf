"""Weighted k-nearest-neighbour classification of embeddings."""

from collections.abc import Callable, Iterable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float64, Int

from eir_jax.evaluation.nearest import check_rows, nearest
from eir_jax.system.errors import UserError


def knn_accuracy(
    query: Float[np.ndarray, "query dim"],
    query_label: Int[np.ndarray, " query"],
    gallery: Float[np.ndarray, "row dim"],
    gallery_label: Int[np.ndarray, " row"],
    *,
    k: Iterable[int] = (5, 20, 200),
    temperature: float = 0.1,
    top: int = 1,
    exclude: Int[np.ndarray, " query"] | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, float]:
    """Measure the accuracy of the weighted kNN classifier for each k.

    Similarities are cosines: rows that are not of norm 1 are scaled. One search at the
    largest k serves all; for several temperatures or `top`, see `vote_accuracy`.

    Args:
        query: embeddings to classify.
        query_label: their classes, >= 0.
        gallery: embeddings that vote.
        gallery_label: their classes, >= 0.
        k: numbers of neighbours, each from 1 to the rows that may vote.
        temperature: of the votes, > 0.
        top: rank within which the right class counts as found.
        exclude: as in `nearest`: the gallery's row of each query, which does not vote.
        mesh: as in `nearest`.
        progress: as in `nearest`.

    Returns:
        For each k the fraction of the queries, 0 .. 1.

    Raises:
        UserError: labels are missing or do not fit, an embedding is not finite or
            zero, or a k is out of range.

    Source: Wu et al. 2018 (instance discrimination); temperature: the EIR paper's.
    """
    k = check_neighbours(k)
    query_label = check_labels(query_label, query, "queries")
    gallery_label = check_labels(gallery_label, gallery, "gallery")
    similarity, index = nearest(
        unit_rows(query, "queries"),
        unit_rows(gallery, "gallery"),
        max(k),
        exclude=exclude,
        mesh=mesh,
        progress=progress,
    )
    neighbour_label = gallery_label[index]
    return vote_accuracy(
        similarity, neighbour_label, query_label, k=k, temperature=temperature, top=top
    )


def vote_accuracy(
    similarity: Float[np.ndarray, "query neighbour"],
    neighbour_label: Int[np.ndarray, "query neighbour"],
    query_label: Int[np.ndarray, " query"],
    *,
    k: Iterable[int] = (5, 20, 200),
    temperature: float = 0.1,
    top: int = 1,
) -> dict[int, float]:
    """Measure the votes' accuracy for each k among neighbours in order of similarity.

    Of equal scores the lower class goes first. A class without a neighbour is never
    found, however large `top` is.

    Raises:
        UserError: a k is larger than the number of neighbours, or the temperature is
            not positive.
    """
    k = check_neighbours(k, similarity.shape[1])
    # Classes numbered from 0 without gaps, in their order.
    classes, label = np.unique(
        np.concatenate([neighbour_label.ravel(), query_label]), return_inverse=True
    )
    neighbour_label = label[: neighbour_label.size].reshape(neighbour_label.shape)
    query_label = label[neighbour_label.size :]
    found = dict.fromkeys(k, 0)
    # In blocks, as [query, class] can be larger than the embeddings.
    for start in range(0, len(query_label), 4096):
        part = slice(start, start + 4096)
        for n in k:
            score = class_scores(
                similarity[part, :n],
                neighbour_label[part, :n],
                len(classes),
                temperature=temperature,
            )
            found[n] += int(_found(score, query_label[part], top).sum())
    return {n: found[n] / len(query_label) for n in k}


def class_scores(
    similarity: Float[np.ndarray, "query neighbour"],
    neighbour_label: Int[np.ndarray, "query neighbour"],
    num_classes: int,
    *,
    temperature: float = 0.1,
) -> Float64[np.ndarray, "query class"]:
    """Sum exp(similarity / temperature) over the neighbours of each class.

    Each query's scores are divided by its largest term, which keeps a small temperature
    from overflowing and changes no order.

    Args:
        similarity: to the neighbours, in any order.
        neighbour_label: their classes, 0 .. num_classes - 1.
        num_classes: columns of the result.
        temperature: > 0.

    Raises:
        UserError: the temperature is not positive.
    """
    if not temperature > 0:
        raise UserError(f"temperature={temperature} must be larger than 0")
    similarity = np.asarray(similarity, np.float64)
    largest = similarity.max(axis=1, keepdims=True)
    weight = np.exp((similarity - largest) / temperature)
    cell = np.arange(len(weight))[:, None] * num_classes + neighbour_label
    score = np.bincount(cell.ravel(), weight.ravel(), len(weight) * num_classes)
    return score.reshape(len(weight), num_classes)


def _found(score, label, top):
    """Tell where fewer than `top` classes go ahead of the labelled one."""
    own = np.take_along_axis(score, label[:, None], axis=1)
    lower = np.arange(score.shape[1])[None] < label[:, None]
    ahead = (score > own) | ((score == own) & lower)
    return (ahead.sum(axis=1) < top) & (own[:, 0] > 0)


def unit_rows(
    x: Float[np.ndarray, "row dim"], name: str
) -> Float[np.ndarray, "row dim"]:
    """Scale rows to norm 1; return them as they are where each is within 1e-5 of it.

    Raises:
        UserError: a row is not finite, or is zero and has no direction.
    """
    x = check_rows(x, name)
    norm = np.sqrt(np.einsum("nd,nd->n", x, x))
    if zeros := np.count_nonzero(norm == 0):
        raise UserError(f"{zeros} of {len(x)} rows of {name} are zero: no cosine")
    return x if np.all(np.abs(norm - 1) < 1e-5) else x / norm[:, None]


def check_labels(
    label: Int[np.ndarray, " row"], rows: Float[np.ndarray, "row dim"], name: str
) -> Int[np.ndarray, " row"]:
    """Return the labels as an array, one class >= 0 for each of the rows.

    Raises:
        UserError: there are none, their number differs from the rows', they are no
            whole numbers, or some are negative, as those of unlabelled images.
    """
    label = np.asarray(label)
    if label.shape != (len(rows),) or not len(rows):
        raise UserError(
            f"{name}: {len(rows)} embeddings and labels of shape {label.shape}; there "
            "must be one label an embedding, and at least one"
        )
    if not np.issubdtype(label.dtype, np.integer):
        raise UserError(f"{name}: labels are {label.dtype}, not whole numbers")
    if unlabelled := np.count_nonzero(label < 0):
        raise UserError(
            f"{name}: {unlabelled} of {len(label)} labels are negative (unlabelled); "
            "leave these rows out, or evaluate on a labelled split"
        )
    return label


def check_neighbours(k: Iterable[int], most: int | None = None) -> tuple[int, ...]:
    """Return the different numbers of neighbours, each from 1 to most.

    Raises:
        UserError: there are none, or one is out of range.
    """
    if isinstance(k, (int, np.integer)):
        raise UserError(f"k={k} is one number; give some, as k=({k},)")
    k = tuple(dict.fromkeys(k))
    if not k or min(k) < 1 or (most is not None and max(k) > most):
        upper = "" if most is None else f" and at most {most}"
        raise UserError(f"k={k} must be one or more numbers, each at least 1{upper}")
    return k
