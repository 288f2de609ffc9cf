"""IR by noise-contrastive estimation: value, gradient, and its constant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from small import small_config

from eir_jax.models.encoder import EncoderOutput
from eir_jax.objectives.noise import drawn_scores, nce_loss
from eir_jax.objectives.systems import make_objective

NUM = 5


def test_loss_and_gradient():
    """N = 5, K = 3, fixed rows, the own one among them once, and a fixed Z."""
    rng = np.random.default_rng(0)
    bank, view = (reference.unit(rng.normal(size=(n, 4))) for n in (NUM, 2))
    numbers = np.array([[3, 0, 3, 1], [2, 4, 4, 0]])

    def wanted(view):
        scores = np.stack([view[i] @ bank[numbers[i]].T for i in range(2)]) / 0.1
        return reference.nce(scores, 40.0, NUM)

    def loss(view):
        rows = jnp.asarray(bank, jnp.float32)
        scores = drawn_scores(view, rows, jnp.asarray(numbers), 0.1)
        return nce_loss(scores, jnp.float32(40.0), NUM)

    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(view, jnp.float32))
    assert value == pytest.approx(wanted(view), rel=1e-5)
    want = reference.gradient(wanted, view)
    np.testing.assert_allclose(grad, want, atol=1e-5 * np.abs(want).max())


def test_equal_rows_have_the_closed_form():
    """P = 1/N: -log(1 / (1 + K)) - K log(K / (1 + K))."""
    loss = nce_loss(jnp.full((2, 4), 10.0), NUM * jnp.exp(10.0), NUM)
    assert loss == pytest.approx(np.log(4) - 3 * np.log(3 / 4), rel=1e-5)


@pytest.mark.parametrize("finite", [True, False])
def test_z_is_the_first_batchs(finite):
    """And stays; a step whose loss is not finite does not set it."""
    config = small_config(objective="ir_nce", **{"nce.negatives": 3})
    objective = make_objective(config, NUM)
    memory = objective.init(jax.random.key(0), {})
    assert memory["z"] == -1
    rows = memory["bank"][:2]
    outputs = {"view1": EncoderOutput(rows, rows)}
    batch = {"index": jnp.array([0, 1]), "step": jnp.int32(0)}
    first, _ = objective.update(memory, outputs, batch, {}, jnp.array(finite))
    if not finite:
        assert first["z"] == -1
        np.testing.assert_array_equal(first["bank"], memory["bank"])
        return
    own = np.exp(10.0)  # of a row with itself; what is drawn comes on top
    assert NUM * own / 4 <= first["z"] * (1 + 1e-5) and first["z"] <= NUM * own
    # With Z as it is then, the terms are those of the loss by that Z.
    value = objective.terms(outputs, memory, batch)["loss_instance"]
    after = objective.terms(outputs, memory | {"z": first["z"]}, batch)
    assert value == after["loss_instance"]
    batch["step"] = jnp.int32(1)
    second, _ = objective.update(first, outputs, batch, {}, jnp.array(True))
    assert second["z"] == first["z"]
    config.nce.z_momentum = 0.75
    averaging = make_objective(config, NUM)
    third, alone = (
        float(averaging.update(x, outputs, batch, {}, jnp.array(True))[0]["z"])
        for x in (first, first | {"z": -jnp.ones(())})
    )
    before = float(first["z"])
    assert third == pytest.approx(0.75 * before + 0.25 * alone, rel=1e-6)
    assert alone != pytest.approx(before, rel=1e-3)
