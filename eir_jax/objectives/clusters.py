"""Clusters of the bank's rows, found anew each epoch: an image must find its own.

This is the system of the paper's Table 5 ("contrastive loss under 1000 clusters"), not
DeepCluster with its pseudo-labels.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from eir_jax.data.order import CLUSTERS
from eir_jax.objectives.bank import make_grouped_objective
from eir_jax.objectives.objective import Batch, Memory, Objective, Outputs, Scalars
from eir_jax.objectives.relations import similarities
from eir_jax.objectives.streaming import NO_SCORE
from eir_jax.system import sharding

ROWS_AT_ONCE = 2048


def make_cluster_objective(
    config: ConfigDict, num_examples: int, mesh: Mesh | None = None
) -> Objective:
    """Return 'clusters': view 1 and a bank, whose rows k-means divides each epoch.

    The memory is the bank and `cluster`, a number for each row. In the first epoch,
    whose bank is random, each row is a cluster: that is IR.
    """
    settings = config.clusters

    def terms(outputs: Outputs, memory: Memory, batch: Batch) -> Scalars:
        loss = cluster_loss(
            *(outputs["view1"].embedding, memory["bank"], memory["cluster"]),
            *(batch["index"], config.temperature, num_examples),
        )
        return {"loss_instance": loss}

    def find(rows: Array, period: Array) -> Array:
        chance = jax.random.fold_in(jax.random.key(config.seed), CLUSTERS)
        drawn = jax.random.permutation(jax.random.fold_in(chance, period), num_examples)
        start = rows[drawn[: settings.count]]
        return k_means(rows, start, num_examples, settings.iterations, mesh)

    return make_grouped_objective(
        config, num_examples, mesh, "cluster", terms, find, "epoch"
    )


def cluster_loss(
    view: Float[Array, "batch dim"],
    bank: Float[Array, "rows dim"],
    cluster: Int[Array, " rows"],
    index: Int[Array, " batch"],
    temperature: float,
    num_examples: int,
) -> Float[Array, ""]:
    """Return the mean of -log of the sum of p_ij over the rows j of i's cluster."""
    scores = similarities(jax.lax.stop_gradient(bank), view, num_examples)
    log_p = jax.nn.log_softmax(scores / temperature)
    members = cluster[None] == cluster[index][:, None]
    members &= (jnp.arange(len(bank)) < num_examples)[None]
    return -jax.nn.logsumexp(jnp.where(members, log_p, NO_SCORE), axis=1).mean()


def k_means(
    rows: Float[Array, "rows dim"],
    centres: Float[Array, "clusters dim"],
    num_rows: int,
    iterations: int,
    mesh: Mesh | None = None,
) -> Int[Array, " rows"]:
    """Return the cluster of each row, 0 for those from `num_rows` on (Lloyd, 1982).

    Of equally near centres the first one counts. A cluster without rows keeps its
    centre. Each device looks at its own rows; sums over a cluster are products with
    zeros and ones, as scattered additions have no fixed order on a GPU.

    Args:
      rows: split over the mesh.
      centres: to start from.
      num_rows: those after them are padding.
      iterations: how often the centres move.
      mesh: devices along the axis 'data'; None: one device.
    """

    def run(axis, share, centres):
        dtype = jnp.promote_types(share.dtype, jnp.float32)
        size = math.gcd(len(share), ROWS_AT_ONCE)
        blocks = share.astype(dtype).reshape(-1, size, share.shape[1])
        number = sharding.first_row(axis, len(share)) + jnp.arange(len(share))
        real = (number < num_rows).reshape(-1, size)

        def nearest(block, centres):
            score = _matmul(block, centres.T) - jnp.square(centres).sum(1)[None] / 2
            return jnp.argmax(score, axis=1)

        def move(_, centres):
            def add(sums, part):
                block, real = part
                own = nearest(block, centres)[:, None] == jnp.arange(len(centres))[None]
                own = (own & real[:, None]).astype(dtype)
                total, count = sums
                return (total + _matmul(own.T, block), count + own.sum(0)), None

            zeros = jnp.zeros_like(centres), jnp.zeros(len(centres), dtype)
            sums, _ = jax.lax.scan(add, zeros, (blocks, real))
            total, count = sums if axis is None else jax.lax.psum(sums, axis)
            mean = total / jnp.maximum(count, 1)[:, None]
            return jnp.where(count[:, None] > 0, mean, centres)

        centres = jax.lax.fori_loop(0, iterations, move, centres.astype(dtype))
        found = jax.lax.map(lambda block: nearest(block, centres), blocks)
        return jnp.where(real, found, 0).reshape(-1).astype(jnp.int32)

    labels: Array = sharding.map_rows(
        run, mesh, in_specs=(P("data"), P()), out_specs=P("data")
    )(rows, centres)
    return labels


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
