"""DeepCluster: whitening, k-means that leaves no cluster empty, the head, the draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from scipy import stats
from sklearn.decomposition import PCA
from small import SmallRun, small_config

from eir_jax.data.order import REPEATED, showings, uniform_order
from eir_jax.models.encoder import EncoderOutput
from eir_jax.objectives.k_means import k_means, split_largest, whiten
from eir_jax.objectives.systems import make_objective
from eir_jax.run.optimizer import make_optimizer
from eir_jax.system import sharding
from eir_jax.training.periods import put_features

EIGHT = pytest.mark.parametrize("devices", [1, 8])
SETTINGS = {"objective": "deepcluster", "clusters.count": 5, "model.num_classes": 5}


def put(rows, devices):
    """Return the rows, padded to a multiple of 16 so that each device has some."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    padded = np.zeros((-(-len(rows) // 16) * 16, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    return jax.device_put(padded, sharding.split_rows(mesh)), mesh


@EIGHT
@pytest.mark.parametrize("components", [3, 9])
def test_whitening_is_scikit_learns(devices, components):
    """But for the axes' signs: the cosines of 40 rows, of which two axes are none."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 7)) + 3
    given, mesh = put(rows, devices)
    found = jax.jit(lambda x: whiten(x, 40, components, mesh))(given)
    assert found.shape == (48, min(components, 7)) and not np.any(found[40:])
    theirs = PCA(min(components, 5), whiten=True).fit_transform(rows)
    theirs = reference.unit(theirs)
    np.testing.assert_allclose(found[:40] @ found[:40].T, theirs @ theirs.T, atol=1e-4)
    if components > 5:
        assert not np.any(found[:, 5:])


def test_rows_that_are_all_alike_are_whitened_to_nothing():
    given, _ = put(np.ones((6, 4)), 1)
    np.testing.assert_array_equal(whiten(given, 6, 2), 0)


def test_the_largest_cluster_is_halved_for_each_empty_one():
    """Of 5 and 4 rows, for two empty ones: the 5 to 3 and 2, then the 4."""
    centres = jnp.array([[1.0, 2.0], [9.0, 9.0], [3.0, 4.0], [9.0, 9.0]])
    found = split_largest(centres, jnp.array([5, 0, 4, 0]))
    up, down = 1 + 1 / 1024, 1 - 1 / 1024
    wanted = [[up, 2 * down], [3 * down, 4 * up]]
    np.testing.assert_allclose(found[1], wanted[0], rtol=1e-6)
    np.testing.assert_allclose(found[0], [down, 2 * up], rtol=1e-6)
    np.testing.assert_allclose(found[3], [3 * up, 4 * down], rtol=1e-6)
    np.testing.assert_allclose(found[2], wanted[1], rtol=1e-6)
    np.testing.assert_array_equal(split_largest(centres, jnp.ones(4, int)), centres)


def lloyd(rows, centres, iterations):
    """k-means in NumPy, row by row; each empty cluster takes half of the largest."""
    centres = centres.copy()
    wave = np.where(np.arange(rows.shape[1]) % 2, -1, 1) / 1024

    def nearest():
        return ((rows[:, None] - centres) ** 2).sum(2).argmin(1)

    for _ in range(iterations):
        own = nearest()
        sizes = [int((own == k).sum()) for k in range(len(centres))]
        for k, size in enumerate(sizes):
            if size:
                centres[k] = rows[own == k].mean(0)
        for k in range(len(centres)):
            if sizes[k] == 0:
                big = sizes.index(max(sizes))
                centres[k], centres[big] = (
                    centres[big] * (1 + wave),
                    centres[big] * (1 - wave),
                )
                sizes[k], sizes[big] = sizes[big] // 2, sizes[big] - sizes[big] // 2
    return nearest()


@EIGHT
def test_k_means_leaves_no_cluster_empty(devices):
    """Three of the eight starts are one point, and one lies far from all rows."""
    rows = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    start = rows[[0, 1, 2, 3, 4, 4, 4, 5]]
    start[7] = 50
    given, mesh = put(rows, devices)
    find = jax.jit(lambda x, c, n: k_means(x, c, 90, n, mesh, split=True))
    for iterations in (1, 2, 6):
        found = find(given, start, iterations)
        wanted = lloyd(rows.astype(float), start.astype(float), iterations)
        np.testing.assert_array_equal(found[:90], wanted)
    assert len(set(wanted)) == 8 and not np.any(found[90:])
    plain = k_means(given, jnp.asarray(start), 90, 6, mesh)
    assert len(set(np.asarray(plain[:90]))) < 8


def test_loss_is_cross_entropy_with_the_cluster():
    """Value and gradient against float64 NumPy; log K where all logits are equal."""
    objective = make_objective(small_config(**SETTINGS), 9)
    cluster = np.array([0, 4, 2, 2, 1, 3, 0, 1, 4])
    memory = {"cluster": jnp.zeros(512, jnp.int32).at[:9].set(cluster)}
    index, logits = np.array([3, 8, 0]), np.random.default_rng(0).normal(size=(3, 5))
    unused = jnp.ones((3, 2))

    @jax.jit
    @jax.value_and_grad
    def loss(logits):
        outputs = {"view1": EncoderOutput(unused, unused, logits)}
        return objective.terms(outputs, memory, {"index": jnp.asarray(index)})[
            "loss_class"
        ]

    p = reference.softmax(logits)
    own = np.arange(3), cluster[index]
    value, gradient = loss(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(value, -np.log(p[own]).mean(), rtol=1e-5)
    p[own] -= 1
    np.testing.assert_allclose(gradient, p / 3, atol=1e-6)
    assert loss(jnp.ones((3, 5)))[0] == pytest.approx(np.log(5), rel=1e-6)


@pytest.fixture(scope="module")
def run():
    return SmallRun(small_config(**SETTINGS, **{"clusters.components": 6}))


def features(seed):
    return np.random.default_rng(seed).normal(size=(70, 12)).astype(np.float32)


def test_a_refresh_labels_all_and_begins_the_head_anew(run):
    """A function of features, seed and period; all but the head stays."""
    before = jax.device_get(run.create())
    refresh = run.parts.compiled_refresh()

    def refreshed(period, seed=0):
        given = put_features(features(seed), run.mesh)
        return jax.device_get(refresh(run.create(), period, given))

    one, again, other = refreshed(1), refreshed(1), refreshed(2)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    cluster = one.memory["cluster"]
    assert set(cluster[:70]) == set(range(5)) and not cluster[70:].any()
    assert (refreshed(1, seed=1).memory["cluster"] != cluster).any()
    assert (other.memory["cluster"] != cluster).any()
    heads = [state.params.pop("classifier") for state in (before, one, other)]
    jax.tree.map(
        np.testing.assert_array_equal,
        before.replace(memory={}),
        one.replace(memory={}),
    )
    for head in heads[1:]:
        assert not head["bias"].any()
        scaled = head["kernel"].ravel() / 0.01
        assert stats.kstest(scaled, "norm").pvalue > 0.001
    assert not np.array_equal(heads[1]["kernel"], heads[2]["kernel"])


def test_the_head_has_no_momentum_and_a_constant_rate():
    """Three steps by one gradient, of two an epoch: the second epoch's rate is lower.

    PyTorch's SGD of the body, plain of the head.
    """
    milestones = {"optimizer.milestones": (1,), "optimizer.factors": (0.1,)}
    tx = make_optimizer(small_config(**SETTINGS, **milestones), steps_per_epoch=2)
    params = {
        name: {"w": jnp.ones(3), "k": jnp.ones((2, 2))}
        for name in ("body", "classifier")
    }
    gradient = jax.tree.map(lambda x: 0.5 * x, params)
    state, moved = tx.init(params), []
    for _ in range(3):
        updates, state = tx.update(gradient, state, params)
        moved.append(jax.tree.map(lambda x: float(x.ravel()[0]), updates))
    once = -0.03 * (0.5 + 5e-4)
    for part in ("w", "k"):
        for name, wanted in (("body", (1, 1.9, 0.271)), ("classifier", (1, 1, 1))):
            found = [step[name][part] / once for step in moved]
            np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_step_writes_nothing_and_a_loss_that_is_not_finite_too(run):
    state = run.parts.compiled_refresh()(
        run.create(), 0, put_features(features(0), run.mesh)
    )
    step = run.compiled(state)
    before = np.array(state.memory["cluster"])
    for spoil in (False, True):
        batch = {name: run.put(0)[name] for name in ("view1", "index")}
        if spoil:
            batch["view1"] = jnp.full_like(batch["view1"], jnp.nan)
        state, metrics = step(state, batch)
        assert np.isfinite(metrics["loss"]) != spoil
        np.testing.assert_array_equal(state.memory["cluster"], before)


def test_an_epoch_draws_uniformly_over_the_clusters():
    """Of 40, 3 and 1 instances, 20 places each, to one; none of the 40 twice."""
    group = np.full(44, 7)
    group[[5, 20, 33]], group[11] = 2, 0
    order = uniform_order(0, 3, group, 61)
    assert order.dtype == np.int32 and len(order) == 61
    sizes = {g: int((group[order] == g).sum()) for g in (0, 2, 7)}
    assert set(sizes.values()) == {20, 21}
    assert len(set(order[group[order] == 7])) == sizes[7]
    assert set(order[group[order] == 2]) <= {5, 20, 33}
    np.testing.assert_array_equal(order, uniform_order(0, 3, group, 61))
    for other in ((1, 3), (0, 4)):
        assert not np.array_equal(order, uniform_order(*other, group, 61))
    # All alike: each one once, as any other epoch.
    whole = uniform_order(0, 0, np.zeros(30, int), 30)
    np.testing.assert_array_equal(np.sort(whole), np.arange(30))
    # No place is a group's: over 600 epochs of 2 places for 3 groups.
    drawn = np.concatenate([group[uniform_order(0, e, group, 2)] for e in range(600)])
    assert stats.chisquare([np.sum(drawn == g) for g in (0, 2, 7)]).pvalue > 0.001


def test_an_instance_that_comes_again_has_another_number():
    order = np.array([4, 4, 9, 4, 9], np.int32)
    wanted = 3 + REPEATED * np.array([0, 1, 0, 2, 1])
    np.testing.assert_array_equal(showings(order, 3), wanted)
    assert showings(np.zeros(40_000, np.int32), 65_535).min() == 65_535
