"""The memory bank: one unit vector for each training image (section 3.1).

Notation: v_j -> memory_bank[j], v -> view1, v^ -> view2, tau -> temperature.
Rows past `num_examples` are padding, so that the rows split evenly over devices: they
are zero, take no part in any softmax and are never written. Rows may be stored in
bfloat16; all that is computed of them is float32, the embeddings' type.

The relations come in two forms, with the same numbers: 'dense' holds [batch, rows]
arrays, 'streamed' (relations.py) looks at a block of rows at a time. A function given a
mesh takes a bank whose rows are split over it, and the whole batch on every device.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from eir_jax.models.encoder import l2_normalize
from eir_jax.objectives.relations import NO_SCORE, computed_in_float32, other_rows
from eir_jax.system import sharding

Form = Literal["auto", "dense", "streamed"]

ROW_MULTIPLE = 512
CREATED_AT_ONCE = 8192  # rows a device
STREAMED_FROM = 8192  # rows a device: measured, see benchmarks/README.md


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

    def write(axis, share, index, last, embedding):
        local, here = _find(axis, share, index)
        before = share[local].astype(embedding.dtype)
        rows = l2_normalize((1 - momentum) * embedding + momentum * before)
        # Dropped: a place past the end. (-1 would be the last row.)
        target = jnp.where(here & last, local, len(share))
        return _write_rows(share, target, rows.astype(share.dtype))

    specs = (P("data"), P(), P(), P())
    return sharding.map_rows(write, mesh, in_specs=specs, out_specs=P("data"))(
        memory_bank, index, last, jax.lax.stop_gradient(embedding)
    )


def _find(axis: str | None, share: Array, index: Array) -> tuple[Array, Array]:
    """Return each index among this device's rows (0 where absent), and if it is."""
    local = index - sharding.first_row(axis, len(share))
    here = (local >= 0) & (local < len(share))
    return jnp.where(here, local, 0), here


def _write_rows(share: Array, target: Array, rows: Array) -> Array:
    if not computed_in_float32(share):
        return share.at[target].set(rows, mode="drop")
    bits, rows = share.view(jnp.uint16), rows.view(jnp.uint16)  # these it writes as is
    return bits.at[target].set(rows, mode="drop").view(share.dtype)


def streams(form: Form, memory_bank: Array, mesh: Mesh | None) -> bool:
    """Return whether the bank is streamed: 'auto' asks for the rows a device."""
    if form == "auto":
        return len(memory_bank) // (mesh.size if mesh else 1) >= STREAMED_FROM
    return form == "streamed"


def similarities(
    memory_bank: Float[Array, "rows dim"],
    embedding: Float[Array, "batch dim"],
    num_examples: int,
) -> Float[Array, "batch rows"]:
    """Return the cosine to every row, a huge negative number at padding (Eq. 4-5)."""
    embedding = jnp.asarray(embedding)
    rows = memory_bank.astype(embedding.dtype)
    cosine = jnp.matmul(embedding, rows.T, precision=jax.lax.Precision.HIGHEST)
    real = jnp.arange(len(rows)) < num_examples
    return jnp.where(real[None], cosine, NO_SCORE)


def log_probability(
    own: Float[Array, " batch"],
    query: Float[Array, "batch dim"],
    memory_bank: Float[Array, "rows dim"],
    excluded: Int[Array, "batch excluded"],
    num_examples: int,
    mesh: Mesh | None = None,
) -> Float[Array, " batch"]:
    """Return the log of own's softmax among it and the other rows' scores, streamed.

    Args:
      own: a score of each instance.
      query: u; the score of a row is u . m_j.
      memory_bank: no gradient enters it.
      excluded: for each instance the rows that are not counted.
      num_examples: N.
      mesh: over which the rows are split; None: one device.
    """
    others = other_rows(
        jax.lax.stop_gradient(memory_bank), query[None], None, excluded, own,
        num_examples, (), mesh,
    )  # fmt: skip
    return _log_share(own, others.log_sum[0])


def relate_view(
    memory_bank: Float[Array, "rows dim"],
    view: Float[Array, "batch dim"],
    index: Int[Array, " batch"],
    num_examples: int,
    temperature: float,
    *,
    form: Form = "auto",
    mesh: Mesh | None = None,
) -> Float[Array, " batch"]:
    """Eq. 1: return log P(i | v), each image's probability of its own row."""
    if streams(form, memory_bank, mesh):
        query = view / temperature
        own = jnp.sum(query * read_rows(memory_bank, index, mesh), axis=1)
        return log_probability(
            own, query, memory_bank, index[:, None], num_examples, mesh
        )
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
    form: Form = "auto",
    mesh: Mesh | None = None,
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
      form: 'dense', 'streamed', or 'auto' by the rows a device.
      mesh: over which the rows are split; None: one device.
    """
    relate = _relate_streamed if streams(form, memory_bank, mesh) else _relate_dense
    relations = relate(
        jax.lax.stop_gradient(memory_bank),
        view1,
        view2,
        index,
        num_examples,
        temperature,
        divergence_temperature or temperature,
        stop_gradient,
        symmetric,
        mesh,
    )
    watched = ("entropy_p", "entropy_q", "rank")
    return relations._replace(
        **{name: jax.lax.stop_gradient(getattr(relations, name)) for name in watched}
    )


def _relate_dense(
    bank, view1, view2, index, num_examples, temperature, divergence_temperature,
    stop_gradient, symmetric, mesh,
) -> Relations:  # fmt: skip
    cosine1 = similarities(bank, view1, num_examples)
    cosine2 = similarities(bank, view2, num_examples)
    log_p = jax.nn.log_softmax(cosine1 / temperature)
    log_q = jax.nn.log_softmax(cosine2 / temperature)
    own_p, own_q = _own(log_p, index), _own(log_q, index)
    ahead = jnp.sum(cosine1 > _own(cosine1, index)[:, None], axis=1, dtype=jnp.float32)
    watched = (_entropy(log_p), _entropy(log_q), 1 + ahead)
    if divergence_temperature != temperature:
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
    return Relations(own_p, own_q, divergence, *watched)


def _relate_streamed(
    bank, view1, view2, index, num_examples, temperature, divergence_temperature,
    stop_gradient, symmetric, mesh,
) -> Relations:  # fmt: skip
    """Put each view's own row, looked up, together with the streamed others.

    Of equal cosines the rank may count some that rounding sets apart, since the own
    one is no part of the stream's product; the own row itself is never counted.
    """
    own_rows = read_rows(bank, index, mesh)

    def relate(tau: float, moving: tuple[int, ...]):
        query = jnp.stack([view1, view2]) / tau
        held = jax.lax.stop_gradient(query[0]) if stop_gradient else query[0]
        direction = held - query[1]
        own = jnp.sum(query * own_rows[None], axis=-1)
        others = other_rows(
            bank, query, direction, index[:, None], own[0], num_examples, moving, mesh
        )
        log_own = _log_share(own, others.log_sum)
        return own, jnp.sum(direction * own_rows, axis=1), others, log_own

    moving = (() if stop_gradient else (0,)) + ((1,) if symmetric else ())
    same = divergence_temperature == temperature
    own, own_slope, others, log_own = relate(temperature, moving if same else ())
    entropy = -log_own - jnp.expm1(log_own) * (own - others.mean_score)
    watched = (*entropy, 1 + others.ahead)
    log_p, log_q = log_own
    if not same:
        _, own_slope, others, log_own = relate(divergence_temperature, moving)
    if stop_gradient:
        log_own = log_own.at[0].set(jax.lax.stop_gradient(log_own[0]))
    # KL(p || q) = log p_i - log q_i + (1 - p_i) (E[s_1 - s_2] - (s_1 - s_2)_i), where
    # E is over the other rows by p, and s_1, s_2 are the scores of the two views.
    gap = -jnp.expm1(log_own) * (others.slope - own_slope[None])
    divergence = log_own[0] - log_own[1] + gap[0]
    if symmetric:
        divergence = (divergence + (log_own[1] - log_own[0] - gap[1])) / 2
    return Relations(log_p, log_q, divergence, *watched)


def _log_share(own: Array, log_sum: Array) -> Array:
    """Return log(e^own / (e^own + e^log_sum)), its gradient accurate to rounding.

    That of `jax.nn.log_sigmoid` is off by the value's rounding, 1e-6 at -10: too much
    where the terms of a small divergence cancel.
    """
    ahead = own - log_sum
    return jnp.minimum(ahead, 0) - jnp.log1p(jnp.exp(-jnp.abs(ahead)))


def _entropy(log_probability: Float[Array, "batch rows"]) -> Float[Array, " batch"]:
    return -jnp.sum(jnp.exp(log_probability) * log_probability, axis=1)


def _own(
    log_probability: Float[Array, "batch rows"], index: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    return jnp.take_along_axis(log_probability, index[:, None], axis=1)[:, 0]
