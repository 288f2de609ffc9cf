"""Health measures against float64 NumPy and cases known by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference

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
