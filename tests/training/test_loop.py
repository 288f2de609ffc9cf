"""What the loop says of steps that the devices still work on."""

import jax
import jax.numpy as jnp

from eir_jax.training.loop import _finished


def test_dispatched_steps_are_not_taken_for_finished():
    """A chain of products, dispatched at once, is done step by step."""

    @jax.jit
    def slow(matrix):
        for _ in range(4):
            matrix = jnp.tanh(matrix @ matrix)
        return matrix

    matrix = jnp.ones((1500, 1500)) / 1500
    slow(matrix).block_until_ready()
    pending, last = [], matrix
    for step in range(1, 6):
        last = slow(last)
        pending.append((step, {"loss": last}))
    early = _finished(pending, 5)
    pending[2][1]["loss"].block_until_ready()
    later = _finished(pending, 5)
    last.block_until_ready()
    assert early < 5 and later >= 3 and _finished(pending, 5) == 5


def test_fetched_steps_are_finished():
    assert _finished([], 50) == 50
