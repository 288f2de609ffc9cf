"""The bank's invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from eir_jax.memory_bank import (
    create_memory_bank,
    padded_rows,
    update_memory_bank,
)


@pytest.fixture
def bank():
    return create_memory_bank(jax.random.key(0), 20, 8, padded_rows(20))


def test_rows_are_unit_and_padding_is_zero(bank):
    np.testing.assert_allclose(np.linalg.norm(bank[:20], axis=1), 1, rtol=1e-6)
    assert bank.shape == (512, 8)
    assert not bank[20:].any()


def test_rows_are_random_directions():
    bank = np.asarray(create_memory_bank(jax.random.key(1), 4000, 16, 4096))[:4000]
    assert np.abs(bank.mean(0)).max() < 0.02  # std of a mean: .25 / sqrt(4000) = .004
    np.testing.assert_allclose(bank.T @ bank / 4000, np.eye(16) / 16, atol=0.01)


def test_rows_do_not_depend_on_padding(bank):
    other = create_memory_bank(jax.random.key(0), 20, 8, 1024)
    np.testing.assert_array_equal(bank[:20], other[:20])


@pytest.mark.parametrize("devices", range(1, 9))
def test_padded_rows_split_over_devices(devices):
    for n in (1, 511, 512, 513, 50_000):
        rows = padded_rows(n, devices)
        assert rows >= n and rows % devices == 0 and rows % 512 == 0
        assert rows - n < 512 * devices


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_update_is_the_papers(bank, momentum):
    rng = np.random.default_rng(0)
    index = np.array([3, 0, 19], np.int32)
    new = reference.unit(rng.normal(size=(3, 8)))
    updated = update_memory_bank(bank, index, jnp.asarray(new, jnp.float32), momentum)
    want = reference.unit((1 - momentum) * new + momentum * np.float64(bank)[index])
    np.testing.assert_allclose(updated[index], want, atol=1e-6)
    untouched = np.setdiff1d(np.arange(512), index)
    np.testing.assert_array_equal(updated[untouched], bank[untouched])
    np.testing.assert_allclose(np.linalg.norm(updated[:20], axis=1), 1, rtol=1e-6)


def test_repeated_index_takes_its_last_place(bank):
    new = jnp.eye(8)[:4]
    index = np.array([5, 7, 5, 5], np.int32)
    updated = update_memory_bank(bank, index, new, 0.5)
    alone = update_memory_bank(bank, index[[1, 3]], new[jnp.array([1, 3])], 0.5)
    np.testing.assert_array_equal(updated, alone)
