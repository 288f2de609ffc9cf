"""What is found in the bank: neighbourhoods by rounds (AND), clusters by epochs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from sklearn.cluster import KMeans
from small import small_config

from eir_jax.models.encoder import EncoderOutput
from eir_jax.objectives import losses
from eir_jax.objectives.clusters import cluster_loss
from eir_jax.objectives.k_means import first_centres, k_means
from eir_jax.objectives.neighbourhoods import (
    choose_anchors,
    neighbourhood_log_probability,
    neighbourhoods,
)
from eir_jax.objectives.relations import bank_candidates, log_probability
from eir_jax.objectives.systems import make_objective
from eir_jax.system import sharding

TAU = 0.1
EIGHT = pytest.mark.parametrize("devices", [1, 8])


def put(rows, devices):
    """Return the rows, padded by zeros to a multiple of 16, and their mesh."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    padded = np.zeros((-(-len(rows) // 16) * 16, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    return jax.device_put(padded, sharding.split_rows(mesh)), mesh


def random_rows(count, dim=4, seed=0):
    return reference.unit(np.random.default_rng(seed).normal(size=(count, dim)))


@EIGHT
def test_neighbourhoods(devices):
    """Entropies and nearest rows of 6, by hand."""
    rows = random_rows(6)
    bank, mesh = put(rows, devices)
    entropy, nearest = jax.jit(lambda x: neighbourhoods(x, 6, TAU, mesh))(bank)
    cosine = rows @ rows.T
    p = reference.softmax(cosine / TAU)
    np.testing.assert_allclose(entropy[:6], -(p * np.log(p)).sum(1), atol=1e-6)
    np.fill_diagonal(cosine, -2)
    np.testing.assert_array_equal(nearest[:6], cosine.argmax(1))


def test_of_equally_near_rows_the_first_is_meant():
    bank, _ = put(np.repeat(random_rows(1), 5, axis=0), 1)
    entropy, nearest = neighbourhoods(bank, 5, TAU)
    np.testing.assert_allclose(entropy[:5], np.log(5), rtol=1e-6)
    np.testing.assert_array_equal(nearest[:5], [1, 0, 0, 0, 0])


def test_the_surest_are_anchors():
    """Of 6 rows the two of least entropy; of equal ones the first."""
    entropy = jnp.array([3.0, 1.0, 2.0, 1.0, 1.0, 5.0, 0.0, 0.0])
    nearest = jnp.array([5, 4, 3, 2, 1, 0, 7, 7])
    chosen = choose_anchors(entropy, nearest, 2, 6)
    np.testing.assert_array_equal(chosen, [0, 4, 2, 2, 4, 5, 0, 0])
    np.testing.assert_array_equal(
        choose_anchors(entropy, nearest, 6, 6)[:6], nearest[:6]
    )


@pytest.mark.parametrize("form", ["dense", "streamed"])
def test_neighbourhood_loss(form):
    """-log(p_i + p_n), -log p_i where there is no neighbour, and the gradient."""
    rows, view = random_rows(6), random_rows(3, seed=1)
    index, neighbour = np.array([4, 0, 2]), np.array([1, 0, 5])

    def wanted(view):
        p = reference.softmax(view @ rows.T / TAU)
        own = np.arange(3)
        both = p[own, index] + np.where(neighbour != index, p[own, neighbour], 0)
        return -np.log(both).mean()

    bank, _ = put(rows, 1)

    def loss(view):
        log_p = neighbourhood_log_probability(
            *(view, bank, jnp.asarray(index), jnp.asarray(neighbour), TAU, 6),
            form=form,
        )
        return losses.ir_loss(log_p)

    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(view, jnp.float32))
    np.testing.assert_allclose(value, wanted(view), rtol=1e-5)
    want = reference.gradient(wanted, view)
    np.testing.assert_allclose(grad, want, atol=1e-5 * np.abs(want).max())


def test_equal_rows_have_the_closed_forms():
    """log N; log(N / 2) with a neighbour; log(N / |C|) with a cluster."""
    one = np.repeat(random_rows(1), 6, axis=0)
    bank, _ = put(one, 1)
    view, index = jnp.asarray(one[:2], jnp.float32), jnp.array([0, 3])
    found = neighbourhood_log_probability(
        view, bank, index, jnp.array([0, 1]), TAU, 6, form="dense"
    )
    np.testing.assert_allclose(-found, [np.log(6), np.log(3)], rtol=1e-5)
    cluster = jnp.zeros(len(bank), jnp.int32).at[4:6].set(1)
    loss = cluster_loss(view, bank, cluster, index, TAU, 6)
    assert loss == pytest.approx(np.log(6 / 4), rel=1e-5)


def test_cluster_loss():
    rows, view = random_rows(8), random_rows(3, seed=1)
    cluster, index = np.array([0, 1, 2, 0, 1, 1, 0, 0]), np.array([2, 5, 0])
    bank, _ = put(rows, 1)
    padded = jnp.zeros(len(bank), jnp.int32).at[:8].set(cluster)

    def wanted(view):
        p = reference.softmax(view @ rows.T / TAU)
        members = cluster[None] == cluster[index][:, None]
        return -np.log((p * members).sum(1)).mean()

    def loss(view, cluster):
        return cluster_loss(view, bank, cluster, jnp.asarray(index), TAU, 8)

    view32 = jnp.asarray(view, jnp.float32)
    value, grad = jax.jit(jax.value_and_grad(loss))(view32, padded)
    np.testing.assert_allclose(value, wanted(view), rtol=1e-5)
    want = reference.gradient(wanted, view)
    np.testing.assert_allclose(grad, want, atol=1e-5 * np.abs(want).max())
    # A cluster of its own for each row: IR, to the bit.
    candidates = bank_candidates(bank, jnp.asarray(index), 8)
    ir = losses.ir_loss(log_probability(view32, candidates, TAU, form="dense"))
    assert loss(view32, jnp.arange(len(bank))) == ir


def test_isif_beside_the_clusters():
    """(1 - t) ISIF + t clusters, t from .2 to .5 over 180 epochs; then clusters."""
    changes = {"clusters.isif_epochs": 180, "batch_size": 3, "model.embedding_dim": 4}
    config = small_config(objective="clusters", **changes)
    objective = make_objective(config, 8)
    assert [slot.name for slot in objective.slots] == ["view1", "view2"]
    for epoch, share in ((0, 0.2), (60, 0.3), (120, 0.4), (180, 1), (200, 1)):
        weights = objective.weights(jnp.int32(epoch * (8 // 3)))
        assert weights["loss_instance"] == pytest.approx(share)
        assert weights["loss_isif"] == pytest.approx(1 - share)

    rows, views = random_rows(8), random_rows(6, seed=1)
    cluster, index = np.array([0, 1, 2, 0, 1, 1, 0, 0]), np.array([2, 5, 0])
    bank = jnp.asarray(rows, jnp.float32)
    outputs = {
        name: EncoderOutput(jnp.asarray(x), jnp.asarray(x))
        for name, x in (("view1", views[:3]), ("view2", views[3:]))
    }
    memory = {"bank": bank, "cluster": jnp.asarray(cluster)}
    found = objective.terms(outputs, memory, {"index": jnp.asarray(index)})
    p = reference.softmax(views[:3] @ rows.T / TAU)
    members = cluster[None] == cluster[index][:, None]
    wanted = -np.log((p * members).sum(1)).mean()
    assert found["loss_instance"] == pytest.approx(wanted, rel=1e-5)
    assert found["loss_isif"] == pytest.approx(
        reference.isif(views, views, TAU), rel=1e-5
    )


@EIGHT
@pytest.mark.parametrize("alike", [False, True])
def test_streamed_clusters_are_the_dense_ones(devices, alike):
    """In float64, value and gradient; of one cluster alone, which all are in: 0."""
    rows, view = random_rows(5000, dim=6), random_rows(4, dim=6, seed=1)
    rng = np.random.default_rng(2)
    cluster = np.zeros(5120, int)
    if not alike:
        cluster[:5000] = rng.integers(0, 40, 5000)
    index, mesh = np.array([4999, 0, 77, 2500]), sharding.make_mesh()
    if devices == 1:
        mesh = sharding.make_mesh(jax.devices()[:1])
    with jax.enable_x64(True):
        split = sharding.split_rows(mesh)
        bank = jax.device_put(np.pad(rows, ((0, 120), (0, 0))), split)
        given = (bank, jax.device_put(cluster.astype(np.int32), split))

        @functools.partial(jax.jit, static_argnames="form")
        def found(view, form):
            def loss(view):
                how = (jnp.asarray(index), TAU, 5000)
                bank, numbers = given
                if form == "fused":  # which takes rows of 16 numbers or more
                    wider = functools.partial(jnp.pad, pad_width=((0, 0), (0, 10)))
                    bank, view = wider(bank), wider(view)
                return cluster_loss(view, bank, numbers, *how, form=form, mesh=mesh)

            return jax.value_and_grad(loss)(view)

        dense, *others = [found(view, form) for form in ("dense", "streamed", "fused")]
    p = reference.softmax(view @ rows.T / TAU)
    members = cluster[:5000][None] == cluster[index][:, None]
    wanted = -np.log((p * members).sum(1)).mean()
    for value, gradient in (dense, *others):
        np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(gradient, dense[1], rtol=1e-10, atol=1e-13)
    assert np.any(np.abs(dense[1]) > 1e-3) != alike


@EIGHT
def test_k_means_is_scikit_learns(devices):
    """Lloyd's from the same start: 300 rows in 7 clusters, 5 moves."""
    rows = random_rows(300).astype(np.float32)
    start = rows[[3, 50, 51, 120, 200, 250, 299]]
    bank, mesh = put(rows, devices)
    found = jax.jit(lambda x, c: k_means(x, c, 300, 5, mesh))(bank, start)
    theirs = KMeans(7, init=start, n_init=1, max_iter=5, tol=0, algorithm="lloyd")
    np.testing.assert_array_equal(found[:300], theirs.fit(rows).labels_)
    assert not np.any(found[300:])


def test_k_means_by_hand():
    """Ties go to the first centre; a cluster without rows keeps its own, for later."""
    rows = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    bank, _ = put(rows, 1)
    centres = jnp.array([[0.0], [2.0], [2.0], [100.0]])
    np.testing.assert_array_equal(k_means(bank, centres, 6, 0)[:6], [0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(k_means(bank, centres, 6, 9)[:6], [0, 0, 2, 1, 1, 1])


@pytest.mark.parametrize("period", [1, 2])
def test_the_surest_instances_have_neighbours_and_all_clusters_begin_anew(period):
    """The numbers of 8 rows: by NumPy; and by scikit-learn from the rows drawn."""
    rows = random_rows(8, seed=5).astype(np.float32)
    bank, _ = put(rows, 1)

    def refreshed(name, key):
        config = small_config(objective=name, num_rounds=3, **{"clusters.count": 3})
        objective = make_objective(config, 8)
        return np.asarray(objective.refresh({"bank": bank}, period)[key])[:8]

    cosine = rows @ rows.T
    p = reference.softmax(cosine / TAU)
    order = np.argsort(-(p * np.log(p)).sum(1), kind="stable")
    np.fill_diagonal(cosine, -2)
    wanted = np.arange(8)
    surest = order[: 2 * period]
    wanted[surest] = cosine.argmax(1)[surest]
    np.testing.assert_array_equal(refreshed("and", "neighbour"), wanted)
    start = [
        np.asarray(first_centres(bank, small_config().seed, jnp.int32(at), 3, 8))
        for at in (period, 3 - period)
    ]
    assert not np.array_equal(*start)
    theirs = KMeans(3, init=start[0], n_init=1, max_iter=20, tol=0, algorithm="lloyd")
    found = refreshed("clusters", "cluster")
    np.testing.assert_array_equal(found, theirs.fit(rows).labels_)


@EIGHT
@pytest.mark.parametrize(
    ("name", "key", "period", "changed"),
    [
        ("and", "neighbour", 1, 5),
        ("and", "neighbour", 2, 10),
        ("clusters", "cluster", 1, 0),
    ],
)
def test_refresh(name, key, period, changed, devices):
    """Period 0 leaves every row by itself; then a quarter more each round have one."""
    config = small_config(objective=name, num_rounds=3, **{"clusters.count": 4})
    mesh = sharding.make_mesh(jax.devices()[:devices])
    objective = make_objective(config, 20, mesh)
    memory = jax.jit(objective.init)(jax.random.key(0), {})
    rows = np.arange(len(memory["bank"]))
    own = np.where(rows < 20, rows, 0)
    refresh = jax.jit(objective.refresh)
    np.testing.assert_array_equal(memory[key], own)
    np.testing.assert_array_equal(refresh(memory, 0)[key], own)
    found = np.asarray(refresh(memory, period)[key])
    np.testing.assert_array_equal(refresh(memory, period)[key], found)
    assert not found[20:].any()
    if name == "and":
        assert (found != own).sum() == changed
    else:
        assert set(found[:20]) <= set(range(4)) and len(set(found[:20])) > 1
