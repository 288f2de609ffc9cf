"""Retrieval within one set: do the nearest neighbours share the query's class?

Each metric takes the labels of the neighbours found by one search, so that others
(R-precision, MAP@R) can share it.
"""

import warnings
from collections.abc import Callable, Iterable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from eir_jax.evaluation.knn import check_labels, check_neighbours, unit_rows
from eir_jax.evaluation.nearest import nearest
from eir_jax.system.errors import UserError

STARTS = 10  # of k-means
AT_ONCE = 1024  # rows: of each some tens of bytes for each of its neighbours


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
    found, label = _neighbour_labels(embedding, label, max(k), mesh, progress)
    return recall_of_neighbours(found, label, k=k)


def retrieval_scores(
    embedding: Float[np.ndarray, "row dim"],
    label: Int[np.ndarray, " row"],
    *,
    k: Iterable[int] = (1, 2, 4, 8),
    nmi_limit: int = 20_000_000,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float | None]:
    """Measure R@K, MAP@R, R-precision and NMI, each in [0, 1], by one search.

    Arguments, errors and R@K as in `recall_at_k`. MAP@R, R-precision and NMI are None
    where every row is alone in its class. NMI is left out, with a line, where rows
    times classes exceed `nmi_limit`.
    """
    k = check_neighbours(k)
    _, count = np.unique(label, return_counts=True)
    depth = max(max(k), int(count.max(initial=1)) - 1)
    found, checked = _neighbour_labels(embedding, label, depth, mesh, progress)
    recall = recall_of_neighbours(found, checked, k=k)
    scores: dict[str, float | None] = {f"R@{n}": value for n, value in recall.items()}
    scores["MAP@R"], scores["R-precision"] = precision_of_neighbours(found, checked)
    cost = len(checked) * len(count)
    if nmi_limit and len(count) == len(checked):
        scores["NMI"] = None  # of clusters of one row it is 1
    elif cost <= nmi_limit:
        scores["NMI"] = clustering_nmi(embedding, checked, progress)
    elif nmi_limit:
        print(
            f"without NMI: k-means of {len(checked):,} rows in {len(count):,} clusters "
            f"takes long; allow it by --config.retrieval.nmi_limit={cost}"
        )
    return scores


def precision_of_neighbours(
    neighbour_label: Int[np.ndarray, "query neighbour"],
    query_label: Int[np.ndarray, " query"],
) -> tuple[float | None, float | None]:
    """Measure MAP@R and R-precision, R being the other rows of the query's class.

    R-precision is the share of the R nearest that are of the class; MAP@R the mean over
    those R places of the precision there, where the place itself is right. A row alone
    in its class has no R and is left out; where all are, there is no mean: None.

    Args:
        neighbour_label: the nearest first; as many as the largest class less 1.
        query_label: all rows of the set.

    Source: Musgrave et al. 2020 (A metric learning reality check), Eq. 3 and 4.
    """
    _, inverse, count = np.unique(query_label, return_inverse=True, return_counts=True)
    others = count[inverse] - 1
    rows = np.flatnonzero(others)
    if not len(rows):
        return None, None
    place = np.arange(1, neighbour_label.shape[1] + 1)[None]
    average, share = np.empty((2, len(rows)))
    for start in range(0, len(rows), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        own, other = query_label[rows[some], None], others[rows[some], None]
        hit = (neighbour_label[rows[some]] == own) & (place <= other)
        precision = np.cumsum(hit, axis=1) / place
        average[some] = (precision * hit).sum(axis=1) / other[:, 0]
        share[some] = hit.sum(axis=1) / other[:, 0]
    return float(average.mean()), float(share.mean())


def clustering_nmi(
    embedding: Float[np.ndarray, "row dim"],
    label: Int[np.ndarray, " row"],
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Measure the normalised mutual information of k-means clusters and classes.

    As many clusters as classes, on unit rows; scikit-learn's k-means, the best of 10
    starts from seed 0, and its arithmetic mean in the denominator.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import normalized_mutual_info_score

    rows = unit_rows(embedding, "retrieval")
    # Start by start, as `n_init=10` does, to tell how far it is.
    random, best = np.random.RandomState(0), None
    for start in range(STARTS):
        clusters = KMeans(len(np.unique(label)), n_init=1, random_state=random)
        with warnings.catch_warnings():  # equal rows may make fewer clusters: no harm
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = clusters.fit(rows)
        if best is None or found.inertia_ < best.inertia_:
            best = found
        if progress:
            progress(start + 1, STARTS)
    assert best is not None
    return float(normalized_mutual_info_score(label, best.labels_))


def _neighbour_labels(embedding, label, k, mesh, progress):
    """Return the labels of each row's k nearest others, and the checked labels."""
    label = check_labels(label, embedding, "retrieval")
    if (label == label[0]).all():
        raise UserError(
            f"retrieval: all {len(label)} labels are {label[0]}, and every neighbour "
            "would count as a hit; evaluate on two or more classes"
        )
    embedding = unit_rows(embedding, "retrieval")
    everyone = np.arange(len(embedding))
    _, index = nearest(
        embedding, embedding, k, exclude=everyone, mesh=mesh, progress=progress
    )
    return label[index], label


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
