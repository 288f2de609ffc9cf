"""MoCo's loss, queue and key encoder by hand, and EIR's terms on top of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from small import small_config

from eir_jax.models.encoder import EncoderOutput
from eir_jax.objectives.queue import enqueue
from eir_jax.objectives.relations import Comparison, bank_candidates, relate
from eir_jax.objectives.systems import make_objective

BATCH, DIM, SIZE = 3, 5, 6
PARTNER, RATIO = np.array([1, 2, 0]), np.full(BATCH, 0.3)


class Case:
    """Random unit vectors, in float64."""

    def __init__(self):
        rng = np.random.default_rng(0)
        unit = lambda n: reference.unit(rng.normal(size=(n, DIM)))  # noqa: E731
        self.queue, self.weak_queue = unit(SIZE), unit(SIZE)
        self.q, self.k, self.weak, self.mixed = (unit(BATCH) for _ in range(4))

    def memory(self):
        queues = {"queue": self.queue, "weak_queue": self.weak_queue}
        queues = {name: jnp.asarray(x, jnp.float32) for name, x in queues.items()}
        return {"key": {"w": jnp.ones(2)}, "pointer": jnp.int32(4), **queues}

    def terms(self, name, q=None, k=None, mixed=None, **changes):
        """Return one term and its gradients by q, k and mixed."""
        config = small_config(**{"objective": "moco", "queue.size": SIZE} | changes)
        objective = make_objective(config, 100)
        batch = {"index": jnp.arange(BATCH), "partner": PARTNER, "ratio": RATIO}
        batch = {name: jnp.asarray(x) for name, x in batch.items()}

        def term(q, k, mixed):
            views = {"view1": q, "view2": k, "mixed": mixed}
            views["weak"] = jnp.asarray(self.weak, jnp.float32)
            outputs = {name: EncoderOutput(x, x) for name, x in views.items()}
            return objective.terms(outputs, self.memory(), batch)[name]

        given = [
            jnp.asarray(own if x is None else x, jnp.float32)
            for x, own in ((q, self.q), (k, self.k), (mixed, self.mixed))
        ]
        return jax.jit(jax.value_and_grad(term, (0, 1, 2)))(*given)


@pytest.fixture(scope="module")
def case():
    return Case()


def assert_close(found, wanted):
    wanted = np.asarray(wanted)
    scale = max(np.abs(wanted).max(), 1e-3)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("form", ["dense", "streamed"])
def test_info_nce(case, form):
    value, (by_q, by_k, _) = case.terms("loss_instance", **{"bank.form": form})

    def wanted(q):
        return reference.info_nce(q, case.k, case.queue, 0.1)

    assert_close(value, wanted(case.q))
    assert_close(by_q, reference.gradient(wanted, case.q))
    assert not np.any(by_k)


def test_equal_rows_have_the_closed_form(case):
    """All alike: log(K + 1)."""
    one = np.zeros((BATCH, DIM))
    one[:, 0] = 1
    alike = Case()
    alike.queue = np.repeat(one[:1], SIZE, axis=0)
    value, _ = alike.terms("loss_instance", one, one)
    assert value == pytest.approx(np.log(SIZE + 1), rel=1e-6)


@pytest.mark.parametrize("form", ["dense", "streamed"])
def test_intra_on_top(case, form):
    """KL from the key's to the query's distribution over the queue alone."""
    how = {"on_top": True, "bank.form": form, "intra.temperature": 0.2}
    value, (by_q, _, _) = case.terms("loss_intra", **how)

    def wanted(q):
        return reference.divergence(lambda _: case.queue, case.k, q, 0.2, 0.2)

    assert_close(value, wanted(case.q))
    assert_close(by_q, reference.gradient(wanted, case.q))


def test_intra_is_that_of_a_bank_which_holds_the_queues_rows(case):
    """The bank has each instance's own row besides, which takes no part."""
    own = reference.unit(np.random.default_rng(7).normal(size=(BATCH, DIM)))
    value, _ = case.terms("loss_intra", on_top=True)
    for i in range(BATCH):
        bank = jnp.asarray(np.concatenate([case.queue, own[i : i + 1]]), jnp.float32)
        one = lambda x, i=i: jnp.asarray(x[i : i + 1], jnp.float32)  # noqa: E731
        candidates = bank_candidates(bank, jnp.array([SIZE]), SIZE + 1)
        found = relate(
            one(case.k), one(case.q), candidates, 0.1, Comparison(own_row=False)
        )
        value = value - found.divergence[0] / BATCH
    assert value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("negatives", ["batch", "bank"])
def test_inter_on_top(case, negatives):
    """The target is made of queries and their partners' keys."""
    how = {"on_top": True, "inter.negatives": negatives}
    value, (by_q, by_k, by_mixed) = case.terms("loss_inter", **how)

    def wanted(q, mixed):
        target = reference.unit(0.3 * q + 0.7 * case.k[PARTNER])
        if negatives == "batch":
            return reference.inter(mixed, target, 0.1)
        return reference.info_nce(target, mixed, case.queue, 0.1)

    assert_close(value, wanted(case.q, case.mixed))
    assert_close(by_q, reference.gradient(lambda q: wanted(q, case.mixed), case.q))
    assert_close(by_mixed, reference.gradient(lambda m: wanted(case.q, m), case.mixed))
    assert not np.any(by_k)


def test_release_of_2022(case):
    """Its two terms; temperatures of .04 and .1; the mixed image looks for its own."""
    how = {"objective": "eir_moco", "temperature": 0.2}
    intra, (by_q, _, _) = case.terms("loss_intra", **how)

    def wanted(q):
        rows_of = lambda _: case.weak_queue  # noqa: E731
        return reference.divergence(rows_of, case.weak, q, 0.04, 0.1)

    assert_close(intra, wanted(case.q))
    assert_close(by_q, reference.gradient(wanted, case.q))
    inter, (by_q, _, by_mixed) = case.terms("loss_inter", **how)
    target = reference.unit(0.3 * case.q + 0.7 * case.k[PARTNER])

    def found_by(mixed):
        return reference.info_nce(mixed, target, case.queue, 0.2)

    assert_close(inter, found_by(case.mixed))
    assert_close(by_mixed, reference.gradient(found_by, case.mixed))
    assert not np.any(by_q)
    objective = make_objective(small_config(objective="eir_moco"), 100)
    assert objective.weights(0) == {
        "loss_instance": 1.0,
        "loss_intra": 1.0,
        "loss_inter": 2.0,
    }


def test_queue_wraps_around():
    """K = 4, B = 2, 3 steps; and K = 4, B = 3, where a batch is cut in two."""
    rows = jnp.arange(1.0, 7.0)[:, None]
    queue, pointer = jnp.zeros((4, 1)), 0
    for step in range(3):
        batch = rows[2 * step : 2 * step + 2]
        queue = enqueue(queue, batch, jnp.int32(pointer), jnp.array(True))
        pointer = (pointer + 2) % 4
    np.testing.assert_array_equal(queue[:, 0], [5, 6, 3, 4])
    queue = enqueue(jnp.zeros((4, 1)), rows[:3], jnp.int32(3), jnp.array(True))
    np.testing.assert_array_equal(queue[:, 0], [2, 3, 0, 1])
    # K = 5, B = 2, 6 steps: each key takes the oldest one's row, whatever the batch.
    queue, pointer, wanted = jnp.zeros((5, 1)), 0, [0.0] * 5
    for step in range(6):
        batch = jnp.arange(2 * step + 1.0, 2 * step + 3.0)[:, None]
        queue = enqueue(queue, batch, jnp.int32(pointer), jnp.array(True))
        for key in (2 * step + 1, 2 * step + 2):
            wanted[(key - 1) % 5] = key
        pointer = (pointer + 2) % 5
        np.testing.assert_array_equal(queue[:, 0], wanted)
    np.testing.assert_array_equal(queue[:, 0], [11, 12, 8, 9, 10])
    # More keys than rows: the last ones stay, in their places.
    queue = enqueue(jnp.zeros((4, 1)), rows, jnp.int32(3), jnp.array(True))
    np.testing.assert_array_equal(queue[:, 0], [6, 3, 4, 5])
    queue = enqueue(jnp.zeros((4, 1)), rows, jnp.int32(3), jnp.array(False))
    assert not queue.any()


@pytest.mark.parametrize("finite", [True, False])
def test_keys_follow_the_parameters(finite):
    """EMA after two steps; a step whose loss is not finite writes nothing at all."""
    case = Case()
    config = small_config(
        **{"objective": "eir_moco", "queue.size": SIZE, "queue.key_momentum": 0.9}
    )
    objective = make_objective(config, 100)
    rows = jnp.asarray(case.k, jnp.float32)
    outputs = {name: EncoderOutput(rows, rows) for name in ("view2", "weak")}
    before = memory = case.memory()
    params = {"w": jnp.array([3.0, jnp.inf if not finite else 5.0])}
    for _ in range(2):
        memory, _ = objective.update(
            memory, outputs, {"index": jnp.arange(BATCH)}, params, jnp.array(finite)
        )
    if not finite:
        jax.tree.map(np.testing.assert_array_equal, memory, before)
        return
    np.testing.assert_allclose(
        memory["key"]["w"], [0.81 + 0.19 * 3, 0.81 + 0.19 * 5], rtol=1e-6
    )
    assert memory["pointer"] == (4 + 2 * BATCH) % SIZE
    for queue, old in (("queue", case.queue), ("weak_queue", case.weak_queue)):
        wanted = np.roll(np.concatenate([case.k, case.k]), 4, axis=0)
        np.testing.assert_allclose(memory[queue], wanted, rtol=1e-6)
        assert not np.allclose(memory[queue], old)
