"""DeepCluster (Caron et al., 2018): k-means of the features gives the labels."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array
from ml_collections import ConfigDict

from eir_jax.data.order import HEADS
from eir_jax.data.views import Slot
from eir_jax.objectives import losses
from eir_jax.objectives.k_means import first_centres, k_means, whiten
from eir_jax.objectives.memory_bank import padded_rows
from eir_jax.objectives.objective import Batch, Memory, Objective, Outputs, Scalars

HEAD_STD = 0.01


def make_deepcluster_objective(
    config: ConfigDict, num_examples: int, mesh: Mesh | None = None
) -> Objective:
    """Return 'deepcluster': cross-entropy with pseudo-labels, view 1.

    The memory is `cluster`, a number for each instance (and 0 for padding). Before each
    epoch, the first one too, it is found anew: the features of all images, whitened to
    `clusters.components` and of unit length, by k-means. Then the classifier begins
    anew, as cluster numbers mean nothing from one epoch to the next: N(0, .01), biases
    0; its optimiser has no momentum and a constant rate (run/optimizer.py). An epoch
    draws its instances uniformly over the clusters.

    The features are the last stage's. As with 'supervised' the classifier sits on the
    head's output, so that the embedding is trained; a linear layer further than in the
    release.
    """
    settings = config.clusters

    def init(key: Array, params: Any) -> Memory:
        rows = padded_rows(num_examples, mesh.size if mesh else 1)
        return {"cluster": jnp.zeros(rows, jnp.int32)}

    def terms(outputs: Outputs, memory: Memory, batch: Batch) -> Scalars:
        logits = outputs["view1"].logits
        assert logits is not None  # model.num_classes, as `problems` asks for
        label = memory["cluster"][batch["index"]]
        found = {"loss_class": losses.cross_entropy_loss(logits, label)}
        return found | {"accuracy": (logits.argmax(axis=1) == label).mean()}

    def refresh(memory: Memory, period: Array, features: Array) -> Memory:
        rows = features
        if settings.components:
            rows = whiten(features, num_examples, settings.components, mesh)
        start = first_centres(rows, config.seed, period, settings.count, num_examples)
        how = (num_examples, settings.iterations, mesh)
        return {"cluster": k_means(rows, start, *how, split=True)}

    def renew(params: Any, period: Array) -> Any:
        chance = jax.random.fold_in(jax.random.key(config.seed), HEADS)
        chance = jax.random.fold_in(chance, period)
        before = params["classifier"]
        kernel = before["kernel"]
        drawn = HEAD_STD * jax.random.normal(chance, kernel.shape, kernel.dtype)
        anew = {"kernel": drawn, "bias": jnp.zeros_like(before["bias"])}
        return {**params, "classifier": anew}

    return Objective(
        slots=(Slot("view1"),),
        init=init,
        specs={"cluster": P("data")},
        weights=lambda step: {"loss_class": 1.0},
        terms=terms,
        update=lambda memory, outputs, batch, params, finite: (memory, {}),
        refresh=refresh,
        every="epoch",
        looks_at_all=True,
        renew=renew,
        uniform_over="cluster",
    )
