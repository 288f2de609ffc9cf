"""Health measures against float64 NumPy and cases known by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from sklearn.neighbors import NearestNeighbors

from eir_jax.evaluation import health


@pytest.fixture
def rows():
    return reference.unit(np.random.default_rng(0).normal(size=(300, 16)))


def test_against_numpy(rows):
    other = reference.unit(rows + 0.1 * np.random.default_rng(1).normal(size=(300, 16)))
    values = np.linalg.svd(rows)[1]
    share = values / values.sum()
    want = np.exp(-(share * np.log(share)).sum())
    assert health.rank_me(jnp.float32(rows)) == pytest.approx(want, rel=1e-4)
    want = np.sqrt(((rows - rows.mean(0)) ** 2).sum(1).mean())
    assert health.embedding_std(jnp.float32(rows)) == pytest.approx(want, rel=1e-5)
    want = ((rows - other) ** 2).sum(1).mean()
    found = health.alignment(jnp.float32(rows), jnp.float32(other))
    assert found == pytest.approx(want, rel=1e-5)
    pairs = [
        np.exp(-2 * ((a - b) ** 2).sum())
        for i, a in enumerate(rows)
        for j, b in enumerate(rows)
        if i != j
    ]
    found = health.uniformity(jnp.float32(rows))
    assert found == pytest.approx(np.log(np.mean(pairs)), rel=1e-5)


def test_collapsed_and_spread_out():
    collapsed = jnp.tile(jnp.array([[0.6, 0.8, 0.0]]), (50, 1))
    assert health.embedding_std(collapsed) < 1e-3
    assert health.rank_me(collapsed) == pytest.approx(1, abs=1e-3)
    assert health.uniformity(collapsed) == pytest.approx(0, abs=1e-5)
    assert health.alignment(collapsed, collapsed) == 0
    spread = jnp.concatenate([jnp.eye(8), -jnp.eye(8)])
    assert health.embedding_std(spread) == pytest.approx(1)
    assert health.rank_me(spread) == pytest.approx(8, rel=1e-3)


def test_of_many_rows_some_from_all_of_them_are_looked_at(monkeypatch):
    """Of three classes in their order, each: the first rows are one class's."""
    monkeypatch.setattr(health, "MAX_ROWS", 6)
    rows = np.repeat(np.eye(3), 5, axis=0)
    np.testing.assert_array_equal(health.spread_rows(15), [0, 2, 5, 7, 10, 12])
    np.testing.assert_array_equal(health.spread_rows(4), range(4))
    assert len(health.spread_rows(0)) == 0
    assert health.measure(rows)["rank_me"] == pytest.approx(3, rel=1e-3)
    images = np.repeat(np.arange(15, dtype=np.uint8), 192).reshape(15, 8, 8, 3)
    labels = np.repeat([0, 1, 2], 5)
    found = health.against_pixels(rows, images, labels)
    assert found["same_class"] == found["same_class_by_pixels"] == 1


def test_neighbours_are_compared_with_those_by_pixels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3), np.uint8)
    images[1] = images[0]
    labels = np.arange(40) % 4
    labels[0] = labels[1] = -1
    labels[7] = 35
    small = images.reshape(40, 8, 2, 8, 2, 3).astype(np.float64).mean((2, 4))
    pixels = small.reshape(40, -1)
    np.testing.assert_allclose(health.thumbnails(images), pixels, rtol=1e-6)
    embedding = rng.normal(size=(40, 5))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    found = health.against_pixels(embedding, images, labels)

    def nearest(rows):
        return NearestNeighbors(n_neighbors=2).fit(rows).kneighbors(rows)[1][:, 1]

    near, by_pixels = nearest(embedding), nearest(pixels)
    by_pixels[1] = 0
    assert found["nearest_by_pixels"] == pytest.approx((near == by_pixels).mean())
    # Unlabelled rows are nobody's neighbour; one alone in its class can have none.
    known = np.flatnonzero(labels >= 0)
    alone, near, by_pixels = (
        labels[known],
        nearest(embedding[known]),
        nearest(pixels[known]),
    )
    for name, index in (("", near), ("_by_pixels", by_pixels)):
        want = (labels[known][index] == labels[known])[alone < 35].mean()
        assert found[f"same_class{name}"] == pytest.approx(want)
    odd = images[:, :13, :13]  # parts of one and two pixels
    assert health.thumbnails(odd).shape == (40, 192)
    assert health.thumbnails(images[:, :4, :4]).shape == (40, 48)
    flat = health.against_pixels(pixels / np.linalg.norm(pixels), images, None)
    assert flat == {"nearest_by_pixels": 1.0}
    assert "for 100% of them" in health.pixels_warning(flat)
    assert health.against_pixels(embedding[:2], images[:2], labels[:2]) == {}
    each = health.against_pixels(embedding, images, np.arange(40))
    assert each.keys() == {"nearest_by_pixels"}  # and no 0 that says nothing


@pytest.mark.parametrize(
    ("ours", "theirs"), [(0.5, 0.4), (0.4, 0.5), (0.5, 0.5), (1, 1)]
)
def test_no_better_than_pixels_is_said(ours, theirs):
    words = health.pixels_warning(
        {"nearest_by_pixels": 0.9, "same_class": ours, "same_class_by_pixels": theirs}
    )
    assert bool(words) == (ours <= theirs and ours < 1)
    assert not words or "train longer" in words
