"""What each system makes of its views, its memory and the step, by float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from small import small_config

from eir_jax.data.order import NOISE
from eir_jax.models.encoder import EncoderOutput
from eir_jax.objectives.batch import draw_partners
from eir_jax.objectives.systems import SYSTEMS, make_objective

BATCH, DIM, NUM, TAU = 4, 16, 8, 0.1
INDEX = np.array([6, 0, 3, 7])
STEP = 5


def unit(rows, seed):
    return reference.unit(np.random.default_rng(seed).normal(size=(rows, DIM)))


VIEW1, VIEW2, BANK = unit(BATCH, 1), unit(BATCH, 2), unit(NUM, 3)


def terms(name, memory=None, logits=None, **changes):
    config = small_config(**{"objective": name, "model.embedding_dim": DIM} | changes)
    objective = make_objective(config, NUM)
    outputs = {
        slot: EncoderOutput(*[jnp.asarray(x, jnp.float32)] * 2, logits)
        for slot, x in (("view1", VIEW1), ("view2", VIEW2))
    }
    batch = {"index": INDEX, "step": np.int32(STEP), "label": np.array([1, 0, 2, 2])}
    memory = {key: jnp.asarray(x) for key, x in (memory or {}).items()}
    return objective.terms(outputs, memory, jax.tree.map(jnp.asarray, batch))


def test_isif():
    both = np.concatenate([VIEW1, VIEW2])
    found = terms("isif")["loss_instance"]
    assert found == pytest.approx(reference.isif(both, both, TAU), rel=1e-5)


def test_simclr():
    both = np.concatenate([VIEW1, VIEW2])
    found = terms("simclr", temperature=0.5)["loss_instance"]
    assert found == pytest.approx(reference.nt_xent(both, 0.5), rel=1e-5)


def test_isif_augmented_has_other_partners_each_step():
    both = np.concatenate([VIEW1, VIEW2])
    chance = jax.random.fold_in(jax.random.key(small_config().seed), NOISE)
    partner, earlier = (
        np.asarray(draw_partners(jax.random.fold_in(chance, step), BATCH))
        for step in (STEP, STEP - 1)
    )
    assert not np.array_equal(partner, earlier)
    wanted = reference.isif_augmented(both, both, TAU, partner, 0.5, 0.5)
    found = terms("isif_augmented")["loss_instance"]
    assert found == pytest.approx(wanted, rel=1e-5)


def test_neighbourhoods():
    """Of 6 and 3, that have neighbours, either row counts as its own."""
    neighbour = np.array([0, 1, 2, 5, 4, 5, 1, 7], np.int32)
    p = reference.softmax(VIEW1 @ BANK.T / TAU)
    own = np.stack([p[range(BATCH), INDEX], p[range(BATCH), neighbour[INDEX]]])
    sums = np.where(neighbour[INDEX] == INDEX, own[0], own.sum(0))
    memory = {"bank": BANK.astype(np.float32), "neighbour": neighbour}
    found = terms("and", memory, num_rounds=2)
    assert found["loss_instance"] == pytest.approx(-np.log(sums).mean(), rel=1e-5)
    assert found["anchors"] == 0.5


@pytest.mark.parametrize("name", ["supervised", "deepcluster"])
def test_classifiers(name):
    """Cross-entropy with the labels, or with the instances' clusters."""
    logits = np.random.default_rng(4).normal(size=(BATCH, 3))
    cluster = np.array([2, 1, 1, 0, 1, 0, 0, 2], np.int32)
    label = [1, 0, 2, 2] if name == "supervised" else cluster[INDEX]
    how = {"model.num_classes": 3, "clusters.count": 3}
    found = terms(name, {"cluster": cluster}, jnp.asarray(logits, jnp.float32), **how)
    wanted = reference.cross_entropy(logits, np.array(label))
    assert found["loss_class"] == pytest.approx(wanted, rel=1e-5)
    assert found["accuracy"] == np.mean(logits.argmax(1) == label)


# Of no memory, or of one that a step never writes.
WITHOUT = {"supervised", "isif", "simclr", "isif_augmented", "deepcluster"}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_that_is_not_finite_writes_nothing(name):
    changes = {
        "cmc": {"model.towers": "lab"},
        "deepcluster": {"model.num_classes": 3, "clusters.count": 3},
        "and": {"num_rounds": 2},
    }
    config = small_config(
        objective=name,
        **{"queue.size": 8, "model.embedding_dim": DIM, **changes.get(name, {})},
    )
    objective = make_objective(config, NUM)
    params = {"w": jnp.ones(3)}
    memory = objective.init(jax.random.key(0), params)
    outputs = {
        slot.name: EncoderOutput(*[jnp.asarray(VIEW1, jnp.float32)] * 2, None)
        for slot in objective.slots
    }
    batch = {"index": jnp.asarray(INDEX), "step": jnp.int32(STEP)}
    new = jax.tree.map(lambda x: x + 1, params)
    for finite in (False, True):
        written, _ = objective.update(memory, outputs, batch, new, jnp.array(finite))
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), memory, written)
        assert all(jax.tree.leaves(same)) == (not finite or name in WITHOUT)
