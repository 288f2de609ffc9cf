"""AND: neighbours of instances whose neighbourhoods are the surest count as own."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from eir_jax.objectives import losses
from eir_jax.objectives.bank import make_grouped_objective, own_numbers
from eir_jax.objectives.memory_bank import read_rows
from eir_jax.objectives.objective import Batch, Memory, Objective, Outputs, Scalars
from eir_jax.objectives.relations import Candidates, log_probability
from eir_jax.objectives.sums import NO_SCORE
from eir_jax.system import sharding

ROWS_AT_ONCE = 256


def make_neighbourhood_objective(
    config: ConfigDict, num_examples: int, mesh: Mesh | None = None
) -> Objective:
    """Return 'and' (Huang et al., 2019): view 1 and a bank, neighbours by rounds.

    The memory is the bank and `neighbour`, a number for each row: its own where the
    instance has none. Round 0 is IR. At the start of round r the share
    `neighbours.share` * r of the instances, those whose similarities to all rows have
    the least entropy, are given their nearest other row.
    """
    tau, share = config.temperature, config.neighbours.share
    how = {"form": config.bank.form, "mesh": mesh}
    counts = [
        min(int(share * r * num_examples), num_examples)
        for r in range(config.num_rounds)
    ]

    def terms(outputs: Outputs, memory: Memory, batch: Batch) -> Scalars:
        view1, index = outputs["view1"].embedding, batch["index"]
        neighbour = memory["neighbour"][index]
        found = neighbourhood_log_probability(
            view1, memory["bank"], index, neighbour, tau, num_examples, **how
        )
        anchors = jnp.mean(neighbour != index)
        return {"loss_instance": losses.ir_loss(found), "anchors": anchors}

    def find(rows: Array, period: Array) -> Array:
        entropy, nearest = neighbourhoods(rows, num_examples, tau, mesh)
        count = jnp.array(counts)[period]
        return choose_anchors(entropy, nearest, count, num_examples)

    return make_grouped_objective(
        config, num_examples, mesh, "neighbour", terms, find, "round"
    )


def neighbourhood_log_probability(
    view: Float[Array, "batch dim"],
    bank: Float[Array, "rows dim"],
    index: Int[Array, " batch"],
    neighbour: Int[Array, " batch"],
    temperature: float,
    num_examples: int,
    *,
    form="auto",
    mesh: Mesh | None = None,
) -> Float[Array, " batch"]:
    """Return log(p_i + p_n(i)), and log p_i where the neighbour is the row itself."""
    own, other = (
        jnp.sum(view * read_rows(bank, rows, mesh), axis=1)
        for rows in (index, neighbour)
    )
    both = temperature * jnp.logaddexp(own / temperature, other / temperature)
    score = jnp.where(neighbour != index, both, own)
    excluded = jnp.stack([index, neighbour], axis=1)
    candidates = Candidates(bank, excluded, num_examples)
    return log_probability(view, candidates, temperature, score, form=form, mesh=mesh)


def neighbourhoods(
    bank: Float[Array, "rows dim"],
    num_examples: int,
    temperature: float,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, " rows"], Int[Array, " rows"]]:
    """Return of each row the entropy of its neighbourhood, and the nearest other row.

    The entropy, in nats, is that of the softmax of its similarities to all rows, itself
    among them. Of equally near rows the first is meant. Each device looks for its own
    rows, some hundreds at a time, at all rows.
    """

    def look(axis, rows):
        every = rows if axis is None else jax.lax.all_gather(rows, axis, tiled=True)
        every = every.astype(jnp.promote_types(every.dtype, jnp.float32))
        place = jnp.arange(len(every))

        def at(row):
            number, own = row
            cosine = jnp.matmul(every, own, precision=jax.lax.Precision.HIGHEST)
            cosine = jnp.where(place < num_examples, cosine, NO_SCORE)
            log_p = jax.nn.log_softmax(cosine / temperature)
            others = jnp.where(place == number, NO_SCORE, cosine)
            nearest = jnp.argmax(others).astype(jnp.int32)
            return -jnp.sum(jnp.exp(log_p) * log_p), nearest

        numbers = sharding.first_row(axis, len(rows)) + jnp.arange(len(rows))
        own = rows.astype(every.dtype)
        return jax.lax.map(at, (numbers, own), batch_size=ROWS_AT_ONCE)

    found: tuple[Array, Array] = sharding.map_rows(
        look, mesh, in_specs=P("data"), out_specs=(P("data"), P("data"))
    )(bank)
    return found


def choose_anchors(
    entropy: Float[Array, " rows"],
    nearest: Int[Array, " rows"],
    count: Int[Array, ""] | int,
    num_examples: int,
) -> Int[Array, " rows"]:
    """Give the `count` rows of least entropy their nearest, and others themselves.

    Of equal entropies the first counts as the least.
    """
    rows = len(entropy)
    place = jnp.arange(rows)
    order = jnp.argsort(jnp.where(place < num_examples, entropy, jnp.inf), stable=True)
    rank = jnp.zeros(rows, jnp.int32).at[order].set(place.astype(jnp.int32))
    return jnp.where(rank < count, nearest, own_numbers(rows, num_examples))
