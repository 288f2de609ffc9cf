"""ISIF, SimCLR and the classifier against float64 NumPy, and EIR's terms on top."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from small import small_config

from eir_jax.models.encoder import EncoderOutput
from eir_jax.objectives import losses
from eir_jax.objectives.batch import draw_partners
from eir_jax.objectives.systems import make_objective

BATCH, DIM = 4, 5


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(0)
    v = reference.unit(rng.normal(size=(BATCH, DIM)))
    w = reference.unit(v + 0.5 * rng.normal(size=v.shape))
    return v, w


def value_and_gradient(function, *arguments):
    """Return a loss and its gradient by each argument, of float32."""
    arguments = [jnp.asarray(x, jnp.float32) for x in arguments]
    places = tuple(range(len(arguments)))
    return jax.jit(jax.value_and_grad(function, places))(*arguments)


def assert_close(found, wanted):
    wanted = np.asarray(wanted)
    scale = max(np.abs(wanted).max(), 1e-3)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale)


def test_isif(views):
    """Value, and gradient by the anchors alone."""
    value, grads = value_and_gradient(lambda v, w: losses.isif_loss(v, w, 0.1), *views)
    x = np.concatenate(views)
    assert_close(value, reference.isif(x, x, 0.1))
    assert_close(
        np.concatenate(grads),
        reference.gradient(lambda y: reference.isif(y, x, 0.1), x),
    )


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_nt_xent(views, tau):
    """Value and gradient, which enters both sides of each pair."""
    value, grads = value_and_gradient(
        lambda v, w: losses.nt_xent_loss(v, w, tau), *views
    )
    x = np.concatenate(views)
    assert_close(value, reference.nt_xent(x, tau))
    assert_close(
        np.concatenate(grads),
        reference.gradient(lambda y: reference.nt_xent(y, tau), x),
    )


def test_equal_rows_have_the_closed_form():
    """B = 128: log 255 - 254 log(1 - 1/255), and log 255."""
    rows = jnp.zeros((128, 3)).at[:, 0].set(1.0)
    isif = losses.isif_loss(rows, rows, 0.1)
    assert isif == pytest.approx(np.log(255) - 254 * np.log(1 - 1 / 255), rel=1e-5)
    assert isif == pytest.approx(6.5393, abs=1e-4)
    assert losses.nt_xent_loss(rows, rows, 0.5) == pytest.approx(np.log(255), rel=1e-6)


def test_isif_augmented(views):
    """Value, gradient by the anchors alone; without either augmentation it is ISIF."""
    partner = np.array([5, 6, 3, 4, 1, 2, 7, 0])
    how = (jnp.asarray(partner), 0.4, 0.5)
    value, grads = value_and_gradient(
        lambda v, w: losses.isif_augmented_loss(v, w, 0.1, *how), *views
    )
    x = np.concatenate(views)

    def wanted(y):
        return reference.isif_augmented(y, x, 0.1, partner, 0.4, 0.5)

    assert_close(value, wanted(x))
    assert_close(np.concatenate(grads), reference.gradient(wanted, x))
    # Of two instances no pair holds neither: there are no negatives besides.
    two = [jnp.asarray(view[:2], jnp.float32) for view in views]
    found = losses.isif_augmented_loss(*two, 0.1, jnp.array([1, 2, 3, 0]), 0.5, 0.0)
    assert found == pytest.approx(float(losses.isif_loss(*two, 0.1)), rel=1e-6)


def test_partners_are_of_other_instances():
    for seed in range(5):
        partner = np.asarray(draw_partners(jax.random.key(seed), 6))
        assert sorted(partner) == list(range(12))
        assert not np.any(partner % 6 == np.arange(12) % 6)


def test_isif_is_finite_where_a_wrong_row_has_all_the_probability():
    """p = 1 to rounding for a row that is no pair: log(1 - p) is told to 1e-7."""
    rows = jnp.eye(4, 3).at[3].set(jnp.array([0.0, 0.0, 1.0]))
    pairs = jnp.stack([rows[0], -rows[0], rows[1], -rows[1]])
    value, grads = value_and_gradient(
        lambda v, w: losses.isif_loss(v, w, 0.01), pairs, jnp.roll(pairs, 1, axis=0)
    )
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_cross_entropy():
    rng = np.random.default_rng(1)
    logits, label = 3 * rng.normal(size=(3, 4)), np.array([2, 0, 3])
    value, (grad,) = value_and_gradient(
        lambda x: losses.cross_entropy_loss(x, jnp.asarray(label)), logits
    )
    assert_close(value, reference.cross_entropy(logits, label))
    assert_close(
        grad,
        reference.gradient(lambda x: reference.cross_entropy(x, label), logits),
    )
    assert losses.cross_entropy_loss(jnp.ones((2, 10)), jnp.zeros(2, int)) == (
        pytest.approx(np.log(10), rel=1e-6)
    )


def outputs_of(views):
    """Return what an encoder would say whose embeddings these are."""
    return {
        name: EncoderOutput(view, view)
        for name, view in zip(("view1", "view2", "mixed"), views, strict=False)
    }


def terms_of(config, names):
    """Return a function of the embeddings: the objective's terms by their names."""
    objective = make_objective(config, 8)

    def terms(*views):
        batch = {
            "index": jnp.arange(BATCH),
            "partner": jnp.array([1, 2, 3, 0]),
            "ratio": jnp.full(BATCH, 0.3),
            "step": jnp.int32(0),
        }
        found = objective.terms(outputs_of(views), {}, batch)
        return sum(found[name] for name in names)

    return terms


@pytest.mark.parametrize("host", ["isif", "simclr"])
def test_intra_on_top(views, host):
    """Candidates are the other instances' views, which have no gradient."""
    config = small_config(objective=host, on_top=True, **{"intra.temperature": 0.2})
    value, grads = value_and_gradient(
        terms_of(config, ["loss_intra"]), *views, np.zeros_like(views[0])
    )
    x = np.concatenate(views)

    def rows_of(i):
        return np.delete(x, [i, i + BATCH], axis=0)

    def wanted(v, w):
        return reference.divergence(rows_of, v, w, 0.2, 0.2)

    assert_close(value, wanted(*views))
    assert_close(grads[0], reference.gradient(lambda v: wanted(v, views[1]), views[0]))
    assert_close(grads[1], reference.gradient(lambda w: wanted(views[0], w), views[1]))
    same, _ = value_and_gradient(
        terms_of(config, ["loss_intra"]), views[0], views[0], views[0]
    )
    assert same == pytest.approx(0, abs=1e-6)


def test_inter_on_top(views):
    mixed = reference.unit(np.random.default_rng(5).normal(size=(BATCH, DIM)))
    config = small_config(objective="simclr", on_top=True)
    value, _ = value_and_gradient(terms_of(config, ["loss_inter"]), *views, mixed)
    target = reference.mixed_target(
        views[0], np.array([1, 2, 3, 0]), np.full(BATCH, 0.3)
    )
    assert_close(value, reference.inter(mixed, target, 0.1))


@pytest.mark.parametrize("host", ["isif", "simclr", "moco"])
def test_terms_are_on_top_only_where_the_config_says_so(host):
    def names(**changes):
        objective = make_objective(small_config(objective=host, **changes), 8)
        return [s.name for s in objective.slots], set(objective.weights(0))

    assert names() == (["view1", "view2"], {"loss_instance"})
    with_inter = ["view1", "view2", "mixed"]
    both = {"loss_instance", "loss_intra", "loss_inter"}
    assert names(on_top=True) == (with_inter, both)
    assert names(on_top=True, lambda_inter=0.0)[1] == both - {"loss_inter"}
    assert names(on_top=True, lambda_intra=0.0)[1] == both - {"loss_intra"}
