"""The bank's invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from eir_jax.models.encoder import l2_normalize
from eir_jax.objectives.memory_bank import (
    CREATED_AT_ONCE,
    create_memory_bank,
    padded_rows,
    read_rows,
    update_memory_bank,
)
from eir_jax.system import sharding


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


def test_each_row_is_drawn_by_its_number():
    """Whatever the blocks, devices and padding, as if each were made alone."""
    key, n = jax.random.key(3), 2 * CREATED_AT_ONCE + 100
    bank = np.asarray(create_memory_bank(key, n, 8, padded_rows(n)))
    for row in (0, 1, CREATED_AT_ONCE - 1, CREATED_AT_ONCE, n - 1):
        alone = l2_normalize(jax.random.normal(jax.random.fold_in(key, row), (8,)))
        np.testing.assert_allclose(bank[row], alone, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("devices", [8, 3])
def test_devices_hold_their_share_and_the_same_rows(dtype, devices):
    rows, mesh = padded_rows(20, devices), sharding.make_mesh(jax.devices()[:devices])
    key, itemsize = jax.random.key(0), jnp.dtype(dtype).itemsize
    split = jax.jit(
        lambda: create_memory_bank(key, 20, 8, rows, dtype, mesh),
        out_shardings=sharding.split_rows(mesh),
    )()
    shares = {shard.device: shard.data.nbytes for shard in split.addressable_shards}
    assert shares == dict.fromkeys(mesh.devices.flat, rows * 8 * itemsize // devices)
    whole = create_memory_bank(key, 20, 8, rows, dtype)
    assert whole.dtype == split.dtype == dtype
    ulp = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float32(whole), np.float32(split), atol=ulp)

    index = np.array([3, 0, 19, 3, 12], np.int32)
    new = jnp.asarray(reference.unit(np.random.default_rng(0).normal(size=(5, 8))))
    update = jax.jit(
        lambda bank: update_memory_bank(bank, index, new, 0.5, mesh),
        out_shardings=sharding.split_rows(mesh),
    )
    whole, split = update_memory_bank(whole, index, new, 0.5), update(split)
    np.testing.assert_allclose(np.float32(whole), np.float32(split), atol=ulp)
    read = jax.jit(lambda bank: read_rows(bank, index, mesh))(split)
    assert read.dtype == jnp.float32
    np.testing.assert_array_equal(read, np.float32(split)[index])


def test_rows_of_bfloat16_are_computed_in_float32(bank):
    rng = np.random.default_rng(1)
    index = np.array([4, 9, 2], np.int32)
    new = jnp.asarray(reference.unit(rng.normal(size=(3, 8))), jnp.float32)
    stored = bank.astype(jnp.bfloat16)
    updated = update_memory_bank(stored, index, new, 0.5)
    assert updated.dtype == jnp.bfloat16
    exact = update_memory_bank(stored.astype(jnp.float32), index, new, 0.5)
    np.testing.assert_array_equal(updated, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("devices", [1, 8])
def test_index_minus_one_writes_nothing(bank, devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    index, new = jnp.full(4, -1), jnp.ones((4, 8))
    updated = jax.jit(lambda b: update_memory_bank(b, index, new, 0.5, mesh))(bank)
    np.testing.assert_array_equal(updated, bank)


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
