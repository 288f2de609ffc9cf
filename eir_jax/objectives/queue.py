"""MoCo: a queue of keys, which a moving average of the encoder makes.

Notation (He et al., 2020): q = view 1 of the encoder, k = view 2 of the key encoder,
Q = queue. Gradient enters q alone. With EIR's terms on top, or as the authors of EIR
released them in 2022: there a third view, without colour jitter, has a queue of its
own.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from eir_jax.data.views import Slot
from eir_jax.models.encoder import l2_normalize
from eir_jax.objectives import losses
from eir_jax.objectives.objective import (
    Batch,
    Memory,
    Objective,
    Outputs,
    Scalars,
    share_statistics,
)
from eir_jax.objectives.on_top import (
    inter_term,
    lambdas_on_top,
    make_comparison,
    make_weights,
)
from eir_jax.objectives.relations import (
    Candidates,
    Comparison,
    log_probability,
    relate,
)

# The release of 2022: its weights, and temperatures .04 of the weak keys' distribution
# and .1 of the queries'; only over other images' keys.
RELEASED_LAMBDAS = (1.0, 2.0)
RELEASED = Comparison(
    temperature=0.1, target_temperature=0.04, own_row=False, stop_gradient=True
)


def make_queue_objective(config: ConfigDict) -> Objective:
    """Return 'moco', with the terms of EIR that `on_top` asks for, or 'eir_moco'.

    The memory is `key`, the key encoder's parameters; `queue`, unit rows; `pointer`,
    the row written next; and for 'eir_moco' `weak_queue`.
    """
    released, tau = config.objective == "eir_moco", config.temperature
    intra, inter = RELEASED_LAMBDAS if released else lambdas_on_top(config)
    names = ["view1"] + ["mixed"] * bool(inter)
    online = share_statistics(names, config.batch_norm.sharing)
    keys = [Slot("view2", encoder="key")]
    if released:
        keys.append(Slot("weak", encoder="key"))
    # The own score, q . k, is the same for both distributions.
    comparison = make_comparison(config)._replace(own_row=False)
    how = {"form": config.bank.form}
    size = config.queue.size

    def init(key, params) -> Memory:
        def rows(number):
            shape = (size, config.model.embedding_dim)
            return l2_normalize(
                jax.random.normal(jax.random.fold_in(key, number), shape)
            )

        memory = {"key": params, "queue": rows(0), "pointer": jnp.zeros((), jnp.int32)}
        return memory | ({"weak_queue": rows(1)} if released else {})

    def terms(outputs: Outputs, memory: Memory, batch: Batch) -> Scalars:
        held = {slot.name: outputs[slot.name] for slot in keys}
        outputs = outputs | jax.lax.stop_gradient(held)
        query, key = (outputs[name].embedding for name in ("view1", "view2"))
        candidates = queue_candidates(memory["queue"], len(query))
        compared = comparison if intra and not released else None
        # The key's distribution is the target; only the query's has a gradient.
        relations = relate(
            key, query, candidates, tau, compared, own_scores(key, query), **how
        )
        found: Scalars = {"loss_instance": losses.ir_loss(relations.log_q)}
        if released:
            weak = outputs["weak"].embedding
            others = queue_candidates(memory["weak_queue"], len(query))
            seen = relate(
                weak, query, others, tau, RELEASED, own_scores(weak, query), **how
            )
            found["loss_intra"] = losses.intra_loss(seen)
            found["loss_inter"] = released_inter(outputs, batch, candidates)
        else:
            if intra:
                found["loss_intra"] = losses.intra_loss(relations)
            if inter:
                found["loss_inter"] = inter_term(
                    config, outputs, batch, candidates, key, **how
                )
        found["positive_rank"] = relations.rank.mean()
        found["entropy_p"] = relations.entropy_p.mean()
        found["entropy_q"] = relations.entropy_q.mean()
        return found

    def released_inter(outputs: Outputs, batch: Batch, candidates: Candidates):
        """Each mixed image must find its target among that and the queue."""
        query, key, mixed = (
            outputs[name].embedding for name in ("view1", "view2", "mixed")
        )
        target = losses.mixed_target(query, batch["partner"], batch["ratio"], key)
        positive = jnp.sum(mixed * jax.lax.stop_gradient(target), axis=1)
        return losses.ir_loss(log_probability(mixed, candidates, tau, positive, **how))

    def update(memory: Memory, outputs: Outputs, batch: Batch, params, finite):
        moved = optax.incremental_update(
            params, memory["key"], 1 - config.queue.key_momentum
        )
        pointer = memory["pointer"]
        new = {
            "key": jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), moved, memory["key"]
            )
        }
        for queue, slot in (("queue", "view2"), ("weak_queue", "weak")):
            if queue in memory:
                rows = outputs[slot].embedding
                new[queue] = enqueue(memory[queue], rows, pointer, finite)
        following = (pointer + len(batch["index"])) % size
        new["pointer"] = jnp.where(finite, following, pointer)
        return new, {}

    return Objective(
        slots=(online[0], *keys, *online[1:]),
        init=init,
        specs={"key": P(), "queue": P(), "pointer": P()}
        | ({"weak_queue": P()} if released else {}),
        weights=make_weights(config, intra, inter),
        terms=terms,
        update=update,
    )


def queue_candidates(queue: Float[Array, "rows dim"], batch: int) -> Candidates:
    """Return all keys of a queue; it holds none of the batch's own."""
    return Candidates(queue, jnp.zeros((batch, 0), jnp.int32), len(queue))


def own_scores(
    key: Float[Array, "batch dim"], query: Float[Array, "batch dim"]
) -> Float[Array, "2 batch"]:
    """Return the cosine of each query with its key, once for either view."""
    own = jnp.sum(key * query, axis=1)
    return jnp.stack([own, own])


def enqueue(
    queue: Float[Array, "rows dim"],
    keys: Float[Array, "batch dim"],
    pointer: Int[Array, ""],
    finite: Array,
) -> Float[Array, "rows dim"]:
    """Write the keys from row `pointer` on, and at the end from row 0 on again.

    Of more keys than rows the last ones stay.
    """
    number = jnp.arange(len(keys))
    stays = finite & (number >= len(keys) - len(queue))
    # Past the end: dropped. Written twice, a row would hold either key.
    place = jnp.where(stays, (pointer + number) % len(queue), len(queue))
    return queue.at[place].set(keys, mode="drop")
