"""Schedule and SGD against the protocol and a hand-written reference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from eir_jax.run.optimizer import OPTIMIZERS, make_optimizer, make_schedule
from eir_jax.run.state import TrainState
from eir_jax.training.step import skip_step


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


@pytest.mark.parametrize("objective", ["iraug", "deepcluster"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_left_out_counts_for_the_rate(name, objective):
    """Of two trainings of 4 steps one leaves the second out: the 4th has one rate."""
    config = base.get_config()
    config.objective, config.optimizer.name = objective, name
    config.optimizer.milestones = (3,)
    config.optimizer.factors = (0.1,)
    config.optimizer.momentum = config.optimizer.weight_decay = 0.0
    tx = make_optimizer(config, steps_per_epoch=1)
    gradient = params = {"w": jnp.ones(3), "classifier": jnp.ones(2)}

    def moved(left_out):
        state = TrainState(jnp.zeros((), jnp.int32), params, {}, tx.init(params), {})
        for step in range(4):
            if step in left_out:
                state = skip_step(state)
                continue
            updates, opt_state = tx.update(gradient, state.opt_state, params)
            state = state.replace(step=state.step + 1, opt_state=opt_state)
        assert int(state.step) == 4
        return updates

    whole, less = moved([]), moved([1])
    np.testing.assert_allclose(whole["w"], -0.003, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, whole, less)


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


def test_cosine_falls_to_zero_after_a_warm_up_in_each_round():
    """Against NumPy: linear from 0 over one epoch of 4 steps, then half a cosine."""
    config = base.get_config()
    config.num_epochs, config.num_rounds = 5, 2
    config.optimizer.update(schedule="cosine", warmup_epochs=1)
    schedule = make_schedule(config, steps_per_epoch=4)
    step = np.arange(40) % 20
    falling = 0.015 * (1 + np.cos(np.pi * (step - 4) / 16))
    expected = np.where(step < 4, 0.03 * step / 4, falling)
    np.testing.assert_allclose([schedule(s) for s in range(40)], expected, atol=1e-8)
    config.optimizer.warmup_epochs = 0
    schedule = make_schedule(config, steps_per_epoch=4)
    assert schedule(0) == np.float32(0.03)
    np.testing.assert_allclose(schedule(10), 0.015, rtol=1e-6)


def test_warm_up_comes_before_milestones_too():
    config = base.get_config()
    config.num_epochs = 4
    config.optimizer.milestones, config.optimizer.factors = (3,), (0.1,)
    config.optimizer.warmup_epochs = 2
    schedule = make_schedule(config, steps_per_epoch=2)
    rates = [schedule(s) for s in range(8)]
    expected = [0, 0.0075, 0.015, 0.0225, 0.03, 0.03, 0.003, 0.003]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def take_two_steps(config, params, gradient):
    """Return the parameters after two steps of the same gradient."""
    tx = make_optimizer(config, steps_per_epoch=4)
    opt_state = tx.init(params)
    for _ in range(2):
        updates, opt_state = tx.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_nesterov_is_pytorchs():
    config = base.get_config()
    config.optimizer.nesterov = True
    rng = np.random.default_rng(0)
    param, gradient = rng.normal(size=(2, 5))
    found = take_two_steps(
        config, {"w": jnp.asarray(param)}, {"w": jnp.asarray(gradient)}
    )
    buffer = np.zeros(5)
    for _ in range(2):
        decayed = gradient + 5e-4 * param
        buffer = 0.9 * buffer + decayed
        param = param - 0.03 * (decayed + 0.9 * buffer)
    np.testing.assert_allclose(found["w"], param, rtol=1e-5)


def test_lars_scales_kernels_alone():
    """By 0.001 |w| / |g + decay w|; a bias takes plain steps, without decay."""
    config = base.get_config()
    config.optimizer.name = "lars"
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 4)), rng.normal(size=4)
    gradient = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4)}
    params = {"w": jnp.asarray(kernel), "b": jnp.asarray(bias)}
    found = take_two_steps(config, params, jax.tree.map(jnp.asarray, gradient))
    buffers = {"w": np.zeros((3, 4)), "b": np.zeros(4)}
    for _ in range(2):
        decayed = gradient["w"] + 5e-4 * kernel
        ratio = 0.001 * np.linalg.norm(kernel) / np.linalg.norm(decayed)
        buffers["w"] = 0.9 * buffers["w"] + 0.03 * ratio * decayed
        buffers["b"] = 0.9 * buffers["b"] + 0.03 * gradient["b"]
        kernel, bias = kernel - buffers["w"], bias - buffers["b"]
    np.testing.assert_allclose(found["w"], kernel, rtol=1e-5)
    np.testing.assert_allclose(found["b"], bias, rtol=1e-5)
