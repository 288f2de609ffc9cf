"""IR and IRaug over a memory bank, and with the relations on top of them EIR."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from eir_jax.data.views import Slot
from eir_jax.objectives import losses
from eir_jax.objectives.memory_bank import (
    create_memory_bank,
    padded_rows,
    read_rows,
    update_memory_bank,
)
from eir_jax.objectives.objective import (
    Batch,
    Memory,
    Objective,
    Outputs,
    Scalars,
    share_statistics,
)
from eir_jax.objectives.on_top import inter_term, make_comparison, make_weights
from eir_jax.objectives.relations import bank_candidates, log_probability, relate


def make_bank_objective(
    config: ConfigDict, num_examples: int, mesh: Mesh | None = None
) -> Objective:
    """Return 'ir', 'iraug' or 'iraug_sum', each with the terms that lambda asks for.

    The memory is `bank`, a row for each of `num_examples` images (section 3.1), and
    zero rows, so that they split evenly over the devices of `mesh`.
    """
    form, tau = config.objective, config.temperature
    alone = form == "ir" and not config.lambda_intra
    names = ["view1"] if alone and not config.lambda_inter else ["view1", "view2"]
    if config.lambda_inter:
        names.append("mixed")
    comparison = make_comparison(config) if config.lambda_intra else None
    how = {"form": config.bank.form, "mesh": mesh}
    bank = make_bank(config, num_examples, mesh)

    def terms(outputs: Outputs, memory: Memory, batch: Batch) -> Scalars:
        view1 = outputs["view1"].embedding
        candidates = bank_candidates(memory["bank"], batch["index"], num_examples)
        found: Scalars = {}
        if alone:
            log_p = log_probability(view1, candidates, tau, **how)
            found["loss_instance"] = losses.ir_loss(log_p)
        else:
            view2 = outputs["view2"].embedding
            relations = relate(view1, view2, candidates, tau, comparison, **how)
            if form == "ir":
                found["loss_instance"] = losses.ir_loss(relations.log_p)
            else:
                found["loss_instance"] = losses.iraug_loss(relations, form)
            if comparison:
                found["loss_intra"] = losses.intra_loss(relations)
            found["positive_rank"] = relations.rank.mean()
            found["entropy_p"] = relations.entropy_p.mean()
            found["entropy_q"] = relations.entropy_q.mean()
        if config.lambda_inter:
            index = batch["index"]
            both = jnp.stack([index, index[batch["partner"]]], axis=1)
            others = candidates._replace(excluded=both)
            found["loss_inter"] = inter_term(config, outputs, batch, others, **how)
        return found

    return Objective(
        slots=share_statistics(names, config.batch_norm.sharing),
        init=lambda key, params: bank.init(key),
        specs={"bank": P("data")},
        weights=make_weights(config, config.lambda_intra, config.lambda_inter),
        terms=terms,
        update=lambda memory, outputs, batch, params, finite: bank.update(
            memory, outputs, batch, finite
        ),
    )


class Bank(NamedTuple):
    """What a bank is at first, and how a step writes it."""

    init: Callable[[Array], Memory]
    update: Callable[[Memory, Outputs, Batch, Array], tuple[Memory, Scalars]]
    """(memory, outputs, batch, finite) -> the bank, and what is watched of it."""


def make_bank(config: ConfigDict, num_examples: int, mesh: Mesh | None) -> Bank:
    """Return a bank that view 1 writes (section 3.1)."""

    def init(key: Array) -> Memory:
        rows = padded_rows(num_examples, mesh.size if mesh else 1)
        size = (num_examples, config.model.embedding_dim, rows)
        return {"bank": create_memory_bank(key, *size, config.bank.dtype, mesh)}

    def update(memory: Memory, outputs: Outputs, batch: Batch, finite: Array):
        index, bank = batch["index"], memory["bank"]
        before = read_rows(bank, index, mesh)
        # A step that is not finite writes no row. And, as writing waits for the loss
        # and for the rows read above, all that reads the old ones is done: XLA need
        # not copy the bank to keep them.
        written = jnp.where(finite, index, -1)
        written, before = jax.lax.optimization_barrier((written, before))
        view1 = outputs["view1"].embedding
        bank = update_memory_bank(bank, written, view1, config.bank_momentum, mesh)
        drift = 1 - (read_rows(bank, index, mesh) * before).sum(1).mean()
        return {"bank": bank}, {"bank_drift": drift}

    return Bank(init, update)


def make_grouped_objective(
    config: ConfigDict,
    num_examples: int,
    mesh: Mesh | None,
    name: str,
    terms: Callable[[Outputs, Memory, Batch], Scalars],
    find: Callable[[Array, Array], Array],
    every: Literal["epoch", "round"],
) -> Objective:
    """Return a system of view 1 and a bank, beside whose rows a number for each stands.

    It says which other row, or which group of rows, counts as an instance's own. In
    period 0, whose bank is random, that is the row alone: such a period is IR.

    Args:
      config: all settings.
      num_examples: N, training images.
      mesh: devices along the axis 'data'; None: one device.
      name: of the numbers in the memory.
      terms: of the loss.
      find: (bank, period) -> the numbers of a later period, int32 [rows].
      every: the period.
    """
    bank = make_bank(config, num_examples, mesh)

    def init(key: Array, params: Any) -> Memory:
        memory = bank.init(key)
        return memory | {name: own_numbers(len(memory["bank"]), num_examples)}

    def update(memory: Memory, outputs: Outputs, batch: Batch, params, finite):
        written, watched = bank.update(memory, outputs, batch, finite)
        return memory | written, watched

    def refresh(memory: Memory, period: Array) -> Memory:
        rows = memory["bank"]

        def own():
            return own_numbers(len(rows), num_examples)

        found = jax.lax.cond(period > 0, lambda: find(rows, period), own)
        return memory | {name: found}

    return Objective(
        slots=(Slot("view1"),),
        init=init,
        specs={"bank": P("data"), name: P("data")},
        weights=lambda step: {"loss_instance": 1.0},
        terms=terms,
        update=update,
        refresh=refresh,
        every=every,
    )


def own_numbers(rows: int, num_examples: int) -> Int[Array, " rows"]:
    """Return each row's number, and 0 for padding."""
    place = jnp.arange(rows, dtype=jnp.int32)
    return jnp.where(place < num_examples, place, 0)
