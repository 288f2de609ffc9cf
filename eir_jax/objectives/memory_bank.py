"""The memory bank: one unit vector for each training image (section 3.1).

Notation: v_j -> memory_bank[j], v -> view1, v^ -> view2, tau -> temperature.
Rows past `num_examples` are padding, so that the rows split evenly over devices: they
are zero, take no part in any softmax and are never written. Rows may be stored in
bfloat16; all that is computed of them is float32, the embeddings' type.

A function given a mesh takes a bank whose rows are split over it, and the whole batch
on every device.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from eir_jax.models.encoder import l2_normalize
from eir_jax.objectives.streaming import computed_in_float32
from eir_jax.system import sharding

ROW_MULTIPLE = 512
CREATED_AT_ONCE = 8192  # rows a device


def padded_rows(num_examples: int, num_devices: int = 1) -> int:
    """Return the rows to allocate: a multiple of 512 and of the device count."""
    multiple = math.lcm(ROW_MULTIPLE, num_devices)
    return -(-num_examples // multiple) * multiple


def create_memory_bank(
    key: Array,
    num_examples: int,
    embedding_dim: int,
    rows: int,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> Float[Array, "rows dim"]:
    """Return random unit rows, zero beyond `num_examples`.

    Each device makes its own rows, some thousands at a time. A row depends on `key` and
    its number alone.
    """

    def row(number):
        value = jax.random.normal(jax.random.fold_in(key, number), (embedding_dim,))
        return jnp.where(number < num_examples, l2_normalize(value), 0).astype(dtype)

    def create(axis):
        share = rows // (1 if axis is None else jax.lax.axis_size(axis))
        block = min(share, CREATED_AT_ONCE)
        first = sharding.first_row(axis, share)

        def fill(i, bank):
            start = jnp.minimum(i * block, share - block)  # some rows are made again
            numbers = first + start + jax.lax.iota(jnp.int32, block)
            made = jax.vmap(row)(numbers)
            return jax.lax.dynamic_update_slice_in_dim(bank, made, start, 0)

        bank = jnp.zeros((share, embedding_dim), dtype)
        return jax.lax.fori_loop(0, -(-share // block), fill, bank)

    return sharding.map_rows(create, mesh, in_specs=(), out_specs=P("data"))()


def read_rows(
    memory_bank: Float[Array, "rows dim"],
    index: Int[Array, " batch"],
    mesh: Mesh | None = None,
) -> Float[Array, "batch dim"]:
    """Return the named rows, at least in float32, on every device; no gradient."""

    def read(axis, share, index):
        local, here = _find(axis, share, index)
        rows = share[local].astype(jnp.promote_types(share.dtype, jnp.float32))
        if axis is None:
            return rows
        return jax.lax.psum(jnp.where(here[:, None], rows, 0), axis)

    return sharding.map_rows(read, mesh, in_specs=(P("data"), P()), out_specs=P())(
        jax.lax.stop_gradient(memory_bank), index
    )


def update_memory_bank(
    memory_bank: Float[Array, "rows dim"],
    index: Int[Array, " batch"],
    embedding: Float[Array, "batch dim"],
    momentum: float,
    mesh: Mesh | None = None,
) -> Float[Array, "rows dim"]:
    """Set each named row to l2((1 - m) * embedding + m * row).

    Args:
      memory_bank: the rows before the step; each device writes its own.
      index: the instances of the batch; -1 writes nothing. Where one is repeated, its
        last place in the batch counts, on every kind of device.
      embedding: view 1, before the optimiser's step; no gradient passes.
      momentum: m, in [0, 1).
      mesh: over which the rows are split; None: one device.
    """
    place = jnp.arange(len(index))
    repeated_later = (index[:, None] == index[None]) & (place[None] > place[:, None])
    last = ~repeated_later.any(1)
    careful = computed_in_float32(memory_bank, mesh)

    def write(axis, share, index, last, embedding):
        local, here = _find(axis, share, index)
        before = share[local].astype(embedding.dtype)
        rows = l2_normalize((1 - momentum) * embedding + momentum * before)
        # Dropped: a place past the end. (-1 would be the last row.)
        target = jnp.where(here & last, local, len(share))
        return _write_rows(share, target, rows.astype(share.dtype), careful)

    specs = (P("data"), P(), P(), P())
    return sharding.map_rows(write, mesh, in_specs=specs, out_specs=P("data"))(
        memory_bank, index, last, jax.lax.stop_gradient(embedding)
    )


def _find(axis: str | None, share: Array, index: Array) -> tuple[Array, Array]:
    """Return each index among this device's rows (0 where absent), and if it is."""
    local = index - sharding.first_row(axis, len(share))
    here = (local >= 0) & (local < len(share))
    return jnp.where(here, local, 0), here


def _write_rows(share: Array, target: Array, rows: Array, careful: bool) -> Array:
    if not careful:
        return share.at[target].set(rows, mode="drop")
    bits, rows = share.view(jnp.uint16), rows.view(jnp.uint16)  # these it writes as is
    return bits.at[target].set(rows, mode="drop").view(share.dtype)
