import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from eir_jax.evaluation import retrieval
from eir_jax.evaluation.retrieval import (
    clustering_nmi,
    recall_at_k,
    recall_of_neighbours,
    retrieval_scores,
)
from eir_jax.system import sharding
from eir_jax.system.errors import UserError


def data(rows=500, classes=40, dim=6):
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, rows)
    x = rng.standard_normal((classes, dim))[label] + rng.standard_normal((rows, dim))
    return x.astype(np.float32), label


def test_equals_scikit_learn():
    x, label = data()
    recall = recall_at_k(x, label)
    assert list(recall) == [1, 2, 4, 8]
    search = NearestNeighbors(algorithm="brute", metric="cosine").fit(x.astype(float))
    # Without an argument, scikit-learn leaves each row out of its own neighbours.
    index = search.kneighbors(None, 8, return_distance=False)
    for k, fraction in recall.items():
        assert fraction == (label[index[:, :k]] == label[:, None]).any(axis=1).mean()
    assert 0.05 < recall[1] < recall[2] < recall[4] < recall[8] < 0.95


def test_by_hand():
    """On a circle at 0, 10, 30, 70, 150 degrees: classes 0, 1, 0, 1, 1.

    The orders: 0: 1 2 3 4 · 1: 0 2 3 4 · 2: 1 0 3 4 · 3: 2 1 0 4 · 4: 3 2 1 0.
    """
    angle = np.deg2rad([0, 10, 30, 70, 150])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1) * [[3], [1], [9], [1], [0.1]]
    label = np.array([0, 1, 0, 1, 1])
    expected = {1: 1 / 5, 2: 4 / 5, 3: 5 / 5}
    assert recall_at_k(x, label, k=(1, 2, 3)) == expected


def test_doubles_find_each_other_and_never_themselves():
    x, label = data(60, 30)
    doubled = np.concatenate([x, x])
    assert recall_at_k(doubled, np.tile(label, 2), k=(1,)) == {1: 1.0}
    # Every row alone in its class: a row that found itself would count.
    assert recall_at_k(doubled, np.arange(120), k=(1, 119)) == {1: 0.0, 119: 0.0}


def test_collapsed_embeddings():
    """All equal: the neighbours are the lowest other rows."""
    label = np.array([0, 0, 1, 1, 1])
    recall = recall_at_k(np.ones((5, 3)), label, k=(1, 3))
    # Nearest: of row 0 row 1, of all others row 0; by 3: rows 0 1 2 (3).
    assert recall == {1: 2 / 5, 3: 5 / 5}


def test_devices_change_nothing():
    x, label = data(333)
    mesh = sharding.make_mesh()
    assert recall_at_k(x, label, mesh=mesh) == recall_at_k(x, label)


def test_rows_at_once_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 60)
    found = label[rng.permuted(np.tile(np.arange(60), (60, 1)), axis=1)]
    whole = retrieval.precision_of_neighbours(found, label)
    monkeypatch.setattr(retrieval, "AT_ONCE", 7)
    assert retrieval.precision_of_neighbours(found, label) == whole


def test_from_neighbours():
    neighbours = np.array([[1, 0, 0], [2, 2, 1]])
    recall = recall_of_neighbours(neighbours, np.array([0, 1]), k=(1, 2, 3))
    assert recall == {1: 0.0, 2: 0.5, 3: 1.0}
    with pytest.raises(UserError, match="at most 3"):
        recall_of_neighbours(neighbours, np.array([0, 1]), k=(8,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(label=np.full(9, 3)), "all 9 labels are 3"),
        (dict(label=np.arange(9) - 1), "1 of 9 labels are negative"),
        (dict(label=np.arange(8)), r"9 embeddings and labels of shape \(8,\)"),
        (dict(k=(1, 9)), "k=9 must be from 1 to 8.*itself excluded"),
        (dict(embedding=np.full((9, 4), np.inf)), "9 of 9 rows of retrieval"),
        (dict(embedding=np.zeros((9, 4))), "9 of 9 rows of retrieval are zero"),
        (dict(embedding=np.zeros((0, 4)), label=np.zeros(0, int)), "0 embeddings"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    x, _ = data(9)
    arguments = dict(embedding=x, label=np.arange(9) % 3, k=(1, 2)) | change
    with pytest.raises(UserError, match=message):
        recall_at_k(**arguments)


def test_nmi_is_of_the_best_of_ten_starts(capsys):
    """As scikit-learn's own ten, start by start, so that it tells how far it is."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    rng = np.random.default_rng(0)
    label = rng.integers(0, 6, 150)
    rows = rng.normal(size=(150, 8)) + 0.8 * np.eye(8)[label]
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    told = []
    ours = clustering_nmi(rows, label, lambda *x: told.append(x))
    theirs = KMeans(6, n_init=10, random_state=0).fit_predict(rows)
    assert ours == pytest.approx(normalized_mutual_info_score(label, theirs))
    assert told == [(n, 10) for n in range(1, 11)]
    # Beyond the limit it is left out, in words; with a limit of 0 without.
    for limit, said in ((899, "nmi_limit=900"), (0, ""), (900, "")):
        scores = retrieval_scores(rows, label, nmi_limit=limit)
        assert ("NMI" in scores) == (limit == 900)
        printed = capsys.readouterr().out
        assert said in printed and bool(printed) == bool(said)
