"""Clusters of the bank's rows, found anew each epoch: an image must find its own.

This is the system of the paper's Table 5 ("contrastive loss under 1000 clusters"), not
DeepCluster with its pseudo-labels (deepcluster.py).
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from eir_jax.data.order import steps_per_epoch
from eir_jax.objectives import losses
from eir_jax.objectives.bank import make_grouped_objective
from eir_jax.objectives.k_means import first_centres, k_means
from eir_jax.objectives.objective import (
    Batch,
    Memory,
    Objective,
    Outputs,
    Scalars,
    share_statistics,
)
from eir_jax.objectives.relations import Form, log_share, similarities, streams
from eir_jax.objectives.streaming import other_rows
from eir_jax.objectives.sums import NO_SCORE

SHARES = 0.2, 0.5
"""Of the clusters' loss beside ISIF's, at first and in the end (PCP's code)."""


def make_cluster_objective(
    config: ConfigDict, num_examples: int, mesh: Mesh | None = None
) -> Objective:
    """Return 'clusters': view 1 and a bank, whose rows k-means divides each epoch.

    The memory is the bank and `cluster`, a number for each row. In the first epoch,
    whose bank is random, each row is a cluster: that is IR. For the first
    `clusters.isif_epochs` view 2 is encoded too, and ISIF's loss stands beside that of
    the clusters, as in the code of PCP, the authors' system before EIR.
    """
    settings, how = config.clusters, {"form": config.bank.form, "mesh": mesh}
    until = settings.isif_epochs * steps_per_epoch(num_examples, config.batch_size)

    def terms(outputs: Outputs, memory: Memory, batch: Batch) -> Scalars:
        view1 = outputs["view1"].embedding
        loss = cluster_loss(
            *(view1, memory["bank"], memory["cluster"], batch["index"]),
            *(config.temperature, num_examples),
            **how,
        )
        found = {"loss_instance": loss}
        if until:
            view2 = outputs["view2"].embedding
            found["loss_isif"] = losses.isif_loss(view1, view2, config.temperature)
        return found

    def weights(step) -> dict[str, Array]:
        first, last = SHARES
        grown = first + (last - first) * step / until
        share = jnp.where(step < until, grown, 1.0)
        return {"loss_instance": share, "loss_isif": 1 - share}

    def find(rows: Array, period: Array) -> Array:
        start = first_centres(rows, config.seed, period, settings.count, num_examples)
        return k_means(rows, start, num_examples, settings.iterations, mesh)

    found = make_grouped_objective(
        config, num_examples, mesh, "cluster", terms, find, "epoch"
    )
    if not until:
        return found
    slots = share_statistics(["view1", "view2"], config.batch_norm.sharing)
    return found._replace(slots=slots, weights=weights)


def cluster_loss(
    view: Float[Array, "batch dim"],
    bank: Float[Array, "rows dim"],
    cluster: Int[Array, " rows"],
    index: Int[Array, " batch"],
    temperature: float,
    num_examples: int,
    *,
    form: Form = "auto",
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Return the mean of -log of the sum of p_ij over the rows j of i's cluster.

    Args:
      view: view 1, unit length.
      bank: no gradient enters it.
      cluster: of each row, split as the bank.
      index: the instances of the batch.
      temperature: tau.
      num_examples: N; rows from there on are padding.
      form: 'dense', 'streamed', 'fused', or 'auto' by the rows a device.
      mesh: over which the rows are split; None: one device.
    """
    bank, own = jax.lax.stop_gradient(bank), cluster[index]
    if streams(form, bank, len(view), mesh):
        query = view / temperature
        none = jnp.zeros((len(view), 0), jnp.int32)
        found = other_rows(
            *(bank, jnp.stack([query, query]), None, none, jnp.zeros_like(query[:, 0])),
            *(num_examples, (0, 1), (), (1.0,), mesh),
            fused=form == "fused",
            group=(cluster, own),
        )
        return -log_share(found.log_sum[0], found.log_sum[1]).mean()
    scores = similarities(bank, view, num_examples)
    log_p = jax.nn.log_softmax(scores / temperature)
    members = cluster[None] == own[:, None]
    members &= (jnp.arange(len(bank)) < num_examples)[None]
    return -jax.nn.logsumexp(jnp.where(members, log_p, NO_SCORE), axis=1).mean()
