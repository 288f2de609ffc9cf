"""Each loss and its gradient against float64 NumPy and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from eir_jax.objectives import losses
from eir_jax.objectives.memory_bank import padded_rows
from eir_jax.objectives.relations import (
    Comparison,
    bank_candidates,
    log_probability,
    relate,
)

TAU = 0.1


class Case:
    """Random unit vectors in float64; the float32 copies go to the code under test."""

    def __init__(self, seed=0, batch=6, num_examples=37, dim=8):
        rng = np.random.default_rng(seed)
        self.n = num_examples
        self.bank = reference.unit(rng.normal(size=(num_examples, dim)))
        self.v = reference.unit(rng.normal(size=(batch, dim)))
        near = self.v + 0.4 * rng.normal(size=(batch, dim))
        self.w = reference.unit(near)
        self.mixed = reference.unit(rng.normal(size=(batch, dim)))
        self.index = rng.permutation(num_examples)[:batch].astype(np.int32)
        self.partner = rng.permutation(batch).astype(np.int32)
        self.ratio = rng.uniform(size=batch)

    @property
    def padded_bank(self):
        rows = padded_rows(self.n)
        return jnp.zeros((rows, self.bank.shape[1])).at[: self.n].set(self.bank)

    @property
    def candidates(self):
        return bank_candidates(self.padded_bank, self.index, self.n)

    @property
    def negatives(self):
        both = np.stack([self.index, self.index[self.partner]], axis=1)
        return self.candidates._replace(excluded=both)

    def relate(self, v, w, **options):
        comparison = Comparison(**{"temperature": TAU} | options)
        return relate(v, w, self.candidates, TAU, comparison)


def assert_same(function, expected, arguments):
    """Compare value and every gradient, to a relative 1e-5 (of the largest entry)."""
    arguments = [np.asarray(a) for a in arguments]
    float32 = [jnp.asarray(a, jnp.float32) for a in arguments]
    value, grads = jax.value_and_grad(function, argnums=tuple(range(len(float32))))(
        *float32
    )
    np.testing.assert_allclose(value, expected(*arguments), rtol=1e-5)
    for place, grad in enumerate(grads):

        def at(x, place=place):
            return expected(*arguments[:place], x, *arguments[place + 1 :])

        want = reference.gradient(at, arguments[place])
        assert np.abs(grad - want).max() <= 1e-5 * max(np.abs(want).max(), 1e-3)


@pytest.fixture(params=[0, 1, 2])
def case(request):
    return Case(seed=request.param)


def test_ir(case):
    assert_same(
        lambda v: losses.ir_loss(log_probability(v, case.candidates, TAU)),
        lambda v: reference.instance_losses(case.bank, v, v, case.index, TAU)["ir"],
        [case.v],
    )


@pytest.mark.parametrize("form", ["iraug", "iraug_sum"])
def test_iraug(case, form):
    assert_same(
        lambda v, w: losses.iraug_loss(case.relate(v, w), form),
        lambda v, w: reference.instance_losses(case.bank, v, w, case.index, TAU)[form],
        [case.v, case.w],
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("own_row", [True, False])
@pytest.mark.parametrize(("target", "tau"), [(0.0, TAU), (0.0, 1.0), (0.04, 0.5)])
def test_intra(case, symmetric, target, tau, own_row):
    how = {"symmetric": symmetric, "own_row": own_row}
    left_out = None if own_row else case.index
    assert_same(
        lambda v, w: losses.intra_loss(
            case.relate(v, w, temperature=tau, target_temperature=target, **how)
        ),
        lambda v, w: reference.intra(
            case.bank,
            v,
            w,
            tau,
            target_temperature=target,
            symmetric=symmetric,
            left_out=left_out,
        ),
        [case.v, case.w],
    )


@pytest.mark.parametrize("symmetric", [False, True])
def test_intra_stop_gradient(case, symmetric):
    """Only view 2 moves: view 1's distribution is a constant."""
    grad_v, grad_w = jax.grad(
        lambda v, w: losses.intra_loss(
            case.relate(v, w, stop_gradient=True, symmetric=symmetric)
        ),
        argnums=(0, 1),
    )(jnp.asarray(case.v, jnp.float32), jnp.asarray(case.w, jnp.float32))
    assert not grad_v.any()
    want = reference.gradient(
        lambda w: reference.intra(
            case.bank, case.v, w, TAU, symmetric=symmetric, p_from=case.v
        ),
        case.w,
    )
    assert np.abs(grad_w - want).max() <= 1e-5 * np.abs(want).max()


def test_own_temperature_leaves_the_instance_term_alone(case):
    plain = case.relate(case.v, case.w)
    other = case.relate(case.v, case.w, temperature=0.7)
    np.testing.assert_array_equal(plain.log_p, other.log_p)
    np.testing.assert_array_equal(plain.log_q, other.log_q)
    assert not np.allclose(plain.divergence, other.divergence)


@pytest.mark.parametrize("literal", [False, True])
def test_inter(case, literal):
    assert_same(
        lambda mixed, v: losses.inter_loss(
            mixed,
            losses.mixed_target(v, case.partner, jnp.float32(case.ratio)),
            TAU,
            literal=literal,
        ),
        lambda mixed, v: reference.inter(
            mixed,
            reference.mixed_target(v, case.partner, case.ratio),
            TAU,
            literal=literal,
        ),
        [case.mixed, case.v],
    )


@pytest.mark.parametrize("literal", [False, True])
def test_inter_with_bank_negatives(case, literal):
    assert_same(
        lambda mixed, v: losses.inter_candidates_loss(
            mixed,
            losses.mixed_target(v, case.partner, jnp.float32(case.ratio)),
            case.negatives,
            TAU,
            literal=literal,
        ),
        lambda mixed, v: reference.inter_bank(
            mixed,
            reference.mixed_target(v, case.partner, case.ratio),
            case.bank,
            case.index,
            case.partner,
            TAU,
            literal=literal,
        ),
        [case.mixed, case.v],
    )


def test_no_gradient_enters_the_bank(case):
    v, w, mixed = (jnp.asarray(x, jnp.float32) for x in (case.v, case.w, case.mixed))

    def total(bank):
        candidates = case.candidates._replace(rows=bank)
        relations = relate(v, w, candidates, TAU, Comparison())
        return (
            losses.iraug_loss(relations)
            + losses.intra_loss(relations)
            + losses.ir_loss(log_probability(v, candidates, TAU))
            + losses.inter_candidates_loss(
                mixed, v, case.negatives._replace(rows=bank), TAU
            )
        )

    assert not jax.grad(total)(case.padded_bank).any()


def test_entropies_and_rank(case):
    relations = case.relate(case.v, case.w)
    for view, found in ((case.v, relations.entropy_p), (case.w, relations.entropy_q)):
        p = reference.softmax(view @ case.bank.T / TAU)
        np.testing.assert_allclose(found, -(p * np.log(p)).sum(1), rtol=1e-4)
    cosine = case.v @ case.bank.T
    own = cosine[np.arange(len(case.v)), case.index]
    np.testing.assert_array_equal(relations.rank, 1 + (cosine > own[:, None]).sum(1))


def test_equal_views_have_no_divergence(case):
    relations = case.relate(case.v, case.v)
    np.testing.assert_array_equal(relations.divergence, 0)
    # -log(p + p) = -log p - log 2
    np.testing.assert_allclose(
        losses.iraug_loss(relations), losses.ir_loss(relations.log_p) - np.log(2), 1e-6
    )


@pytest.mark.parametrize(("ratio", "takes"), [(1.0, "own"), (0.0, "partner")])
def test_ratio_at_its_ends_takes_one_embedding(case, ratio, takes):
    ratios = jnp.full(len(case.v), ratio)
    target = losses.mixed_target(jnp.asarray(case.v), case.partner, ratios)
    want = case.v if takes == "own" else case.v[case.partner]
    np.testing.assert_allclose(target, want, atol=1e-6)


def test_one_instance():
    """N = 1: the only row is certain, and the two distributions are equal."""
    case = Case(batch=1, num_examples=1)
    relations = case.relate(case.v, case.w)
    assert losses.ir_loss(relations.log_p) == 0
    assert losses.iraug_loss(relations) == pytest.approx(-np.log(2))
    assert losses.iraug_loss(relations, "iraug_sum") == 0
    assert losses.intra_loss(relations) == 0
    assert losses.inter_loss(case.mixed, case.v, TAU) == pytest.approx(0)


@pytest.mark.parametrize("tau", [0.01, 10.0])
def test_extreme_temperatures_stay_finite(case, tau):
    def total(v, w):
        how = Comparison(temperature=tau)
        relations = relate(v, w, case.candidates, tau, how)
        return losses.iraug_loss(relations) + 15 * losses.intra_loss(relations)

    value, grads = jax.value_and_grad(total, argnums=(0, 1))(
        jnp.asarray(case.v, jnp.float32), jnp.asarray(case.w, jnp.float32)
    )
    want = reference.instance_losses(case.bank, case.v, case.w, case.index, tau)[
        "iraug"
    ] + 15 * reference.intra(case.bank, case.v, case.w, tau)
    np.testing.assert_allclose(value, want, rtol=2e-5)
    assert all(np.isfinite(g).all() for g in grads)
