"""CMC: an image's lightness must find its colours among all, and the reverse."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from eir_jax.data.views import Slot
from eir_jax.models.encoder import l2_normalize
from eir_jax.objectives import losses
from eir_jax.objectives.memory_bank import (
    create_memory_bank,
    padded_rows,
    update_memory_bank,
)
from eir_jax.objectives.objective import Batch, Memory, Objective, Outputs, Scalars
from eir_jax.objectives.relations import bank_candidates, log_probability


def make_cmc_objective(
    config: ConfigDict, num_examples: int, mesh: Mesh | None = None
) -> Objective:
    """Return 'cmc' (Tian et al., 2020) of two towers, by the softmax over all rows.

    The memory is a bank of each tower, `lightness` and `colour`, written by its own
    view and read by the other's. (The release draws noise instead, as 'ir_nce' does;
    its author advises the softmax for small data sets.)
    """
    tau, how = config.temperature, {"form": config.bank.form, "mesh": mesh}

    def init(key, params) -> Memory:
        rows = padded_rows(num_examples, mesh.size if mesh else 1)
        size = (num_examples, config.model.embedding_dim // 2, rows)
        return {
            name: create_memory_bank(
                jax.random.fold_in(key, number), *size, config.bank.dtype, mesh
            )
            for number, name in enumerate(("lightness", "colour"))
        }

    def terms(outputs: Outputs, memory: Memory, batch: Batch) -> Scalars:
        views = tower_views(outputs["view1"].embedding)
        found = {}
        for own, other in (("lightness", "colour"), ("colour", "lightness")):
            candidates = bank_candidates(memory[other], batch["index"], num_examples)
            log_p = log_probability(views[own], candidates, tau, **how)
            found[f"loss_{own}"] = losses.ir_loss(log_p)
        return found

    def update(memory: Memory, outputs: Outputs, batch: Batch, params, finite):
        written = jnp.where(finite, batch["index"], -1)
        views, m = tower_views(outputs["view1"].embedding), config.bank_momentum
        new = {
            name: update_memory_bank(memory[name], written, view, m, mesh)
            for name, view in views.items()
        }
        return new, {}

    return Objective(
        slots=(Slot("view1"),),
        init=init,
        specs={"lightness": P("data"), "colour": P("data")},
        weights=lambda step: {"loss_lightness": 1.0, "loss_colour": 1.0},
        terms=terms,
        update=update,
    )


def tower_views(
    embedding: Float[Array, "batch dim"],
) -> dict[str, Float[Array, "batch half"]]:
    """Return the two halves of an embedding, each of unit length again."""
    lightness, colour = jnp.split(embedding, 2, axis=1)
    return {"lightness": l2_normalize(lightness), "colour": l2_normalize(colour)}
