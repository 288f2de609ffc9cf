"""Schedule and SGD against the protocol and a hand-written reference."""

import jax.numpy as jnp
import numpy as np
import optax

from configs import base
from eir_jax.run.optimizer import make_optimizer, make_schedule


def test_schedule_is_the_papers():
    schedule = make_schedule(base.get_config(), steps_per_epoch=390)
    for epoch, rate in [(0, 0.03), (119, 0.03), (120, 0.003), (159, 0.003)]:
        for step in (390 * epoch, 390 * epoch + 389):
            assert schedule(step) == np.float32(rate)
    for epoch in (160, 199):
        np.testing.assert_allclose(schedule(390 * epoch), 0.0003, rtol=1e-6)


def test_steps_are_pytorchs_sgd():
    config = base.get_config()
    config.optimizer.milestones = (1, 2)
    tx = make_optimizer(config, steps_per_epoch=4)
    rng = np.random.default_rng(0)
    param = rng.normal(size=5)
    params = {"w": jnp.asarray(param, jnp.float32)}
    opt_state = tx.init(params)
    buffer = np.zeros(5)
    for step in range(12):
        gradient = rng.normal(size=5)
        updates, opt_state = tx.update(
            {"w": jnp.asarray(gradient, jnp.float32)}, opt_state, params
        )
        params = optax.apply_updates(params, updates)
        buffer = 0.9 * buffer + gradient + 5e-4 * param
        param = param - 0.03 * (1, 0.1, 0.01)[step // 4] * buffer
        np.testing.assert_allclose(params["w"], param, rtol=1e-5, atol=1e-6)


def test_rounds_start_at_the_initial_rate_anew():
    """Against NumPy; the milestone beyond a round's end (9) never comes."""
    config = base.get_config()
    config.num_epochs, config.num_rounds = 5, 3
    config.optimizer.milestones = (2, 4, 9)
    config.optimizer.factors = (0.1, 0.01, 0.5)
    schedule = make_schedule(config, steps_per_epoch=4)
    epoch = np.arange(60) // 4 % 5
    expected = 0.03 * np.select([epoch < 2, epoch < 4], [1, 0.1], 0.01)
    np.testing.assert_allclose([schedule(s) for s in range(60)], expected, rtol=1e-6)


def test_momentum_stays_over_rounds():
    """Two rounds of PyTorch's SGD: the rate starts anew, the buffer goes on."""
    config = base.get_config()
    config.num_epochs, config.num_rounds = 2, 2
    config.optimizer.milestones, config.optimizer.factors = (1,), (0.1,)
    tx = make_optimizer(config, steps_per_epoch=2)
    params = {"w": jnp.ones(3)}
    opt_state = tx.init(params)
    param, buffer = np.ones(3), np.zeros(3)
    for step in range(8):
        updates, opt_state = tx.update({"w": jnp.ones(3)}, opt_state, params)
        params = optax.apply_updates(params, updates)
        buffer = 0.9 * buffer + 1 + 5e-4 * param
        param = param - 0.03 * (1, 0.1)[step // 2 % 2] * buffer
        np.testing.assert_allclose(params["w"], param, rtol=1e-5)
