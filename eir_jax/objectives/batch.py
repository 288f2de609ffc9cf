"""ISIF and SimCLR: each image is told from the others of its batch. No memory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from eir_jax.data.order import NOISE
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
from eir_jax.objectives.relations import Candidates, relate


def make_batch_objective(config: ConfigDict) -> Objective:
    """Return 'isif' or 'simclr', with the terms of EIR that `on_top` asks for.

    Their candidates are the views of the batch's other instances, without gradient.
    'isif_augmented', after aISIF, has no such terms.
    """
    tau = config.temperature
    intra, inter = lambdas_on_top(config)
    names = ["view1", "view2"] + ["mixed"] * bool(inter)
    # An instance's own score is the cosine of its views: for both of them the same.
    comparison = make_comparison(config)._replace(own_row=False)

    def instance_loss(view1: Array, view2: Array, step: Array) -> Array:
        match config.objective:
            case "isif":
                return losses.isif_loss(view1, view2, tau)
            case "simclr":
                return losses.nt_xent_loss(view1, view2, tau)
        chance = jax.random.fold_in(jax.random.key(config.seed), NOISE)
        partner = draw_partners(jax.random.fold_in(chance, step), len(view1))
        return losses.isif_augmented_loss(
            view1, view2, tau, partner, **config.isif_augmented
        )

    def terms(outputs: Outputs, memory: Memory, batch: Batch) -> Scalars:
        view1, view2 = (outputs[name].embedding for name in ("view1", "view2"))
        found = {"loss_instance": instance_loss(view1, view2, batch["step"])}
        if intra:
            candidates, own = batch_candidates(view1, view2)
            relations = relate(
                view1, view2, candidates, tau, comparison, own, form="dense"
            )
            found["loss_intra"] = losses.intra_loss(relations)
            found["positive_rank"] = relations.rank.mean()
            found["entropy_p"] = relations.entropy_p.mean()
            found["entropy_q"] = relations.entropy_q.mean()
        if inter:
            found["loss_inter"] = inter_term(config, outputs, batch)
        return found

    return Objective(
        slots=share_statistics(names, config.batch_norm.sharing),
        init=lambda key, params: {},
        specs={},
        weights=make_weights(config, intra, inter),
        terms=terms,
        update=lambda memory, outputs, batch, params, finite: (memory, {}),
    )


def draw_partners(key: Array, batch: int) -> Int[Array, " views"]:
    """Return a permutation of both views of all instances; none stays its instance's.

    The instances form one random ring: each one's partner is a view of the next, the
    same or the other.
    """
    ring_key, swap_key = jax.random.split(key)
    ring = jax.random.permutation(ring_key, batch)
    following = jnp.zeros(batch, ring.dtype).at[ring].set(jnp.roll(ring, -1))
    swapped = jax.random.bernoulli(swap_key, shape=(batch,))
    first = jnp.where(swapped, following + batch, following)
    return jnp.concatenate([first, (first + batch) % (2 * batch)])


def batch_candidates(
    view1: Float[Array, "batch dim"], view2: Float[Array, "batch dim"]
) -> tuple[Candidates, Float[Array, "2 batch"]]:
    """Return both views of all other instances, and each view's own score."""
    batch = len(view1)
    place = jnp.arange(batch)
    own_rows = jnp.stack([place, place + batch], axis=1)
    rows = jnp.concatenate([view1, view2])
    own = jnp.sum(view1 * view2, axis=1)
    return Candidates(rows, own_rows, 2 * batch), jnp.stack([own, own])
