"""The memory bank: one unit vector for each training image (section 3.1).

Notation: v_j -> memory_bank[j], v -> view1, v^ -> view2, tau -> temperature.
Rows past `num_examples` are padding, so that the rows split evenly over devices: they
are zero, take no part in any softmax and are never written.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from eir_jax.models.encoder import l2_normalize

ROW_MULTIPLE = 512
NO_SIMILARITY = -1e30  # of a row that takes no part; finite, so that 0 * it stays 0


class Relations(NamedTuple):
    """How a batch's two views relate to all N instances."""

    log_p: Float[Array, " batch"]
    """log P(i | v), Eq. 1: view 1 finds its own row."""
    log_q: Float[Array, " batch"]
    """log P(i | v^): view 2 does."""
    divergence: Float[Array, " batch"]
    """KL(p || q) over all N rows, Eq. 4-6; in nats."""
    entropy_p: Float[Array, " batch"]
    """Of view 1's distribution, in [0, log N] nats; no gradient, as the two below."""
    entropy_q: Float[Array, " batch"]
    """Of view 2's distribution."""
    rank: Float[Array, " batch"]
    """Of the own row among all N by view 1's similarity, from 1 on."""


def padded_rows(num_examples: int, num_devices: int = 1) -> int:
    """Return the rows to allocate: a multiple of 512 and of the device count."""
    multiple = math.lcm(ROW_MULTIPLE, num_devices)
    return -(-num_examples // multiple) * multiple


def create_memory_bank(
    key: Array, num_examples: int, embedding_dim: int, rows: int
) -> Float[Array, "rows dim"]:
    """Return random unit rows, zero beyond `num_examples`; independent of `rows`."""
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
    values = jax.vmap(lambda k: jax.random.normal(k, (embedding_dim,)))(keys)
    real = jnp.arange(rows) < num_examples
    return jnp.where(real[:, None], l2_normalize(values), 0)


def update_memory_bank(
    memory_bank: Float[Array, "rows dim"],
    index: Int[Array, " batch"],
    embedding: Float[Array, "batch dim"],
    momentum: float,
) -> Float[Array, "rows dim"]:
    """Set each named row to l2((1 - m) * embedding + m * row).

    Args:
      memory_bank: the rows before the step.
      index: the instances of the batch. Where one is repeated, its last place in the
        batch counts, on every kind of device.
      embedding: view 1, before the optimiser's step.
      momentum: m, in [0, 1).
    """
    place = jnp.arange(len(index))
    repeated_later = (index[:, None] == index[None]) & (place[None] > place[:, None])
    target = jnp.where(repeated_later.any(1), len(memory_bank), index)
    rows = l2_normalize((1 - momentum) * embedding + momentum * memory_bank[index])
    return memory_bank.at[target].set(jax.lax.stop_gradient(rows), mode="drop")


def similarities(
    memory_bank: Float[Array, "rows dim"],
    embedding: Float[Array, "batch dim"],
    num_examples: int,
) -> Float[Array, "batch rows"]:
    """Return the cosine to every row, a huge negative number at padding (Eq. 4-5)."""
    cosine = jnp.matmul(embedding, memory_bank.T, precision=jax.lax.Precision.HIGHEST)
    real = jnp.arange(len(memory_bank)) < num_examples
    return jnp.where(real[None], cosine, NO_SIMILARITY)


def relate_view(
    memory_bank: Float[Array, "rows dim"],
    view: Float[Array, "batch dim"],
    index: Int[Array, " batch"],
    num_examples: int,
    temperature: float,
) -> Float[Array, " batch"]:
    """Eq. 1: return log P(i | v), each image's probability of its own row."""
    cosine = similarities(jax.lax.stop_gradient(memory_bank), view, num_examples)
    return _own(jax.nn.log_softmax(cosine / temperature), index)


def relate_views(
    memory_bank: Float[Array, "rows dim"],
    view1: Float[Array, "batch dim"],
    view2: Float[Array, "batch dim"],
    index: Int[Array, " batch"],
    num_examples: int,
    temperature: float,
    *,
    divergence_temperature: float = 0.0,
    stop_gradient: bool = False,
    symmetric: bool = False,
) -> Relations:
    """Eq. 1-6: relate both views to all N rows of the bank.

    Args:
      memory_bank: no gradient enters it.
      view1: v, unit length.
      view2: v^, unit length.
      index: each instance's own row i.
      num_examples: N.
      temperature: tau.
      divergence_temperature: tau of the two distributions compared; 0: `temperature`.
      stop_gradient: hold view 1's distribution fixed in the divergence.
      symmetric: take the mean of KL(p || q) and KL(q || p).
    """
    bank = jax.lax.stop_gradient(memory_bank)
    cosine1 = similarities(bank, view1, num_examples)
    cosine2 = similarities(bank, view2, num_examples)
    log_p = jax.nn.log_softmax(cosine1 / temperature)
    log_q = jax.nn.log_softmax(cosine2 / temperature)
    own_p, own_q = _own(log_p, index), _own(log_q, index)
    ahead = jnp.sum(log_p > own_p[:, None], axis=1, dtype=jnp.float32)
    watched = (_entropy(log_p), _entropy(log_q), 1 + ahead)
    if divergence_temperature not in (0, temperature):
        log_p = jax.nn.log_softmax(cosine1 / divergence_temperature)
        log_q = jax.nn.log_softmax(cosine2 / divergence_temperature)
    if stop_gradient:
        log_p = jax.lax.stop_gradient(log_p)
    real = (jnp.arange(len(bank)) < num_examples)[None]
    difference = jnp.where(real, log_p - log_q, 0)
    divergence = jnp.sum(jnp.exp(log_p) * difference, axis=1)
    if symmetric:
        backward = -jnp.sum(jnp.exp(log_q) * difference, axis=1)
        divergence = (divergence + backward) / 2
    return Relations(own_p, own_q, divergence, *map(jax.lax.stop_gradient, watched))


def _entropy(log_probability: Float[Array, "batch rows"]) -> Float[Array, " batch"]:
    return -jnp.sum(jnp.exp(log_probability) * log_probability, axis=1)


def _own(
    log_probability: Float[Array, "batch rows"], index: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    return jnp.take_along_axis(log_probability, index[:, None], axis=1)[:, 0]
