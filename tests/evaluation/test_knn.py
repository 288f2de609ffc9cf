import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from eir_jax.evaluation.knn import (
    check_neighbours,
    class_scores,
    knn_accuracy,
    unit_rows,
    vote_accuracy,
)
from eir_jax.system import sharding
from eir_jax.system.errors import UserError


def clusters(seed, rows, classes=7, dim=12, noise=1.3):
    """Overlapping classes around the same centres, norms far from 1."""
    centre = np.random.default_rng(0).standard_normal((classes, dim))
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, rows)
    x = centre[label] + noise * rng.standard_normal((rows, dim))
    return x.astype(np.float32), label


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_scikit_learn(temperature):
    (query, query_label), (gallery, gallery_label) = clusters(1, 300), clusters(2, 900)
    ours = knn_accuracy(
        query,
        query_label,
        gallery,
        gallery_label,
        k=(1, 5, 20, 200),
        temperature=temperature,
    )
    for k, accuracy in ours.items():
        theirs = KNeighborsClassifier(
            k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature)
        ).fit(gallery, gallery_label)
        assert accuracy == theirs.score(query, query_label)
        assert 0.3 < accuracy < 0.99
    top = knn_accuracy(query, query_label, gallery, gallery_label, k=(200,), top=3)
    assert top[200] > ours[200]


def test_scores_equal_scikit_learn():
    (query, _), (gallery, label) = clusters(1, 50), clusters(2, 400)
    theirs = KNeighborsClassifier(
        20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1)
    ).fit(gallery.astype(np.float64), label)
    distance, index = theirs.kneighbors(query)
    score = class_scores(1 - distance, label[index], 7, temperature=0.1)
    share = score / score.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(share, theirs.predict_proba(query), atol=1e-9)


def test_by_hand():
    """Cosines 1, .8, .6, 0 from classes 4, 2, 2, 9."""
    gallery = np.array([[1, 0], [4, 3], [3, 4], [0, 1]], np.float32)
    label = np.array([4, 2, 2, 9])
    query = np.array([[2, 0]], np.float32)

    def found(own, **kwargs):
        return knn_accuracy(query, np.array([own]), gallery, label, **kwargs)

    # e^10 > e^8 + e^6, but e^1 < e^.8 + e^.6.
    assert found(4, k=(1, 3)) == {1: 1.0, 3: 1.0}
    assert found(4, k=(1, 3), temperature=1.0) == {1: 1.0, 3: 0.0}
    assert found(2, k=(1, 3), temperature=1.0) == {1: 0.0, 3: 1.0}
    assert found(2, k=(1, 3, 4), top=2) == {1: 0.0, 3: 1.0, 4: 1.0}
    assert found(9, k=(3, 4), top=3) == {3: 0.0, 4: 1.0}
    # A class without a neighbour is no guess, not even where all classes count.
    assert found(5, k=(4,), top=9) == {4: 0.0}


def test_of_equal_scores_the_lower_class_wins():
    similarity = np.array([[0.5, 0.5, 0.5, 0.5]])
    neighbours = np.array([[8, 3, 3, 8]])
    for own, top1 in ((3, 1.0), (8, 0.0)):
        found = vote_accuracy(similarity, neighbours, np.array([own]), k=(4,))
        assert found == {4: top1}
        assert vote_accuracy(
            similarity, neighbours, np.array([own]), k=(4,), top=2
        ) == {4: 1.0}


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e6])
def test_any_temperature_is_finite(temperature):
    similarity = np.array([[0.9, 0.8, 0.7], [-0.1, -0.2, -0.9]])
    score = class_scores(
        similarity, np.array([[1, 0, 0], [0, 2, 2]]), 3, temperature=temperature
    )
    assert np.isfinite(score).all()
    nearest_wins = temperature < 1
    assert (score.argmax(axis=1) == ([1, 0] if nearest_wins else [0, 2])).all()


def test_large_similarities_do_not_overflow():
    score = class_scores(np.array([[1e6, 1.0]]), np.array([[0, 1]]), 2)
    np.testing.assert_array_equal(score, [[1, 0]])


def test_one_class_is_legal_and_always_right():
    query, gallery = clusters(1, 20)[0], clusters(2, 30)[0]
    label = np.full(30, 6)
    assert knn_accuracy(query, label[:20], gallery, label, k=(5,)) == {5: 1.0}


def test_collapsed_embeddings_are_chance_and_deterministic():
    """Equal rows: the first k rows of the gallery vote on every query."""
    x = np.ones((40, 4), np.float32)
    label = np.arange(40) % 4
    assert knn_accuracy(x, label, x, label, k=(4, 6)) == {4: 0.25, 6: 0.25}


def test_large_and_gappy_labels():
    (query, query_label), (gallery, gallery_label) = clusters(1, 90), clusters(2, 200)
    small = knn_accuracy(query, query_label, gallery, gallery_label, k=(9,))
    huge = knn_accuracy(
        query, query_label * 10**9, gallery, gallery_label * 10**9, k=(9,)
    )
    assert small == huge


def test_many_queries_and_devices_change_nothing():
    (query, label), gallery = clusters(1, 4200), clusters(2, 99)
    all_at_once = knn_accuracy(query, label, *gallery, k=(9, 5, 5))
    parts = [
        knn_accuracy(query[i], label[i], *gallery, k=(5, 9), mesh=sharding.make_mesh())
        for i in (slice(2100), slice(2100, None))
    ]
    for k in (5, 9):
        assert all_at_once[k] == pytest.approx((parts[0][k] + parts[1][k]) / 2)


def test_unit_rows_leaves_unit_rows_alone():
    x = clusters(1, 20)[0]
    unit = unit_rows(x, "x")
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert unit_rows(unit, "x") is unit
    x[3] = 0
    with pytest.raises(UserError, match="1 of 20 rows of x are zero"):
        unit_rows(x, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(query_label=np.full(4, -1)), "queries: 4 of 4 labels are negative"),
        (dict(gallery_label=np.r_[np.zeros(8, int), -1]), "gallery: 1 of 9 labels"),
        (dict(gallery_label=np.zeros(8, int)), r"gallery: 9 embeddings.*\(8,\)"),
        (dict(query_label=np.zeros((4, 1), int)), "queries: 4 embeddings"),
        (dict(query_label=np.zeros(4)), "float64, not whole numbers"),
        (dict(gallery=np.zeros((0, 12)), gallery_label=np.zeros(0, int)), "gallery: 0"),
        (dict(gallery=np.full((9, 12), np.nan)), "9 of 9 rows of gallery hold NaN"),
        (dict(k=(5, 10)), "k=10 must be from 1 to 9"),
        (dict(k=(0, 5)), "at least 1"),
        (dict(k=()), "one or more"),
        (dict(temperature=0.0), "temperature=0.0 must be larger than 0"),
        (dict(temperature=float("nan")), "temperature=nan"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    (query, query_label), (gallery, gallery_label) = clusters(1, 4), clusters(2, 9)
    arguments = dict(
        query=query,
        query_label=query_label,
        gallery=gallery,
        gallery_label=gallery_label,
        k=(5,),
    )
    with pytest.raises(UserError, match=message):
        knn_accuracy(**(arguments | change))


def test_votes_want_enough_neighbours():
    with pytest.raises(UserError, match="at most 3"):
        vote_accuracy(np.ones((2, 3)), np.zeros((2, 3), int), np.zeros(2, int), k=(4,))
    assert check_neighbours([5, 1, 5]) == (5, 1)
