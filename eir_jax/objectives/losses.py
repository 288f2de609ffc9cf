"""The loss terms: one function for each numbered equation; means over the batch."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from eir_jax.models.encoder import l2_normalize
from eir_jax.objectives.relations import (
    Candidates,
    Form,
    Relations,
    log_probability,
)


def ir_loss(log_p: Float[Array, " batch"]) -> Float[Array, ""]:
    """Eq. 1 (IR, Wu et al., 2018): -log p_i for view 1 alone; >= 0."""
    return -log_p.mean()


def iraug_loss(
    relations: Relations, form: Literal["iraug", "iraug_sum"] = "iraug"
) -> Float[Array, ""]:
    """Eq. 2-3 (IRaug): either view must find its own row.

    'iraug' is the letter, -log(p_i + q_i), in [-log 2, inf); 'iraug_sum' is
    -log p_i - log q_i, in [0, inf).
    """
    if form == "iraug_sum":
        return -(relations.log_p + relations.log_q).mean()
    return -jnp.logaddexp(relations.log_p, relations.log_q).mean()


def intra_loss(relations: Relations) -> Float[Array, ""]:
    """Eq. 6: KL(p || q), summed over the candidates; >= 0.

    Eq. 4-5 print the distances as bare cosines, so that their softmax has temperature
    1 (`Comparison`). Paper: a sum over instances too. We: the mean over the batch, as
    its other terms are computed in all code that followed it.
    """
    assert relations.divergence is not None  # asked for by a `Comparison`
    return relations.divergence.mean()


def mixed_target(
    view1: Float[Array, "batch dim"],
    partner: Int[Array, " batch"],
    ratio: Float[Array, " batch"],
) -> Float[Array, "batch dim"]:
    """Eq. 8: l2(r * f(x_i) + (1 - r) * f(x_j)), j = partner[i]."""
    ratio = ratio[:, None]
    return l2_normalize(ratio * view1 + (1 - ratio) * view1[partner])


def inter_loss(
    mixed: Float[Array, "batch dim"],
    target: Float[Array, "batch dim"],
    temperature: float,
    *,
    literal: bool = False,
) -> Float[Array, ""]:
    """Eq. 9: each target must find its mixed image among the batch's.

    Notation: v^k -> mixed[k], v~^k -> target[k]. Paper: the sum over k stands inside
    the log (`literal`). We: the mean of -log, which has a gradient for every k.
    """
    logits = _matmul(target, mixed.T) / temperature
    own = jnp.diagonal(jax.nn.log_softmax(logits))
    return -jax.nn.logsumexp(own) if literal else -own.mean()


def inter_candidates_loss(
    mixed: Float[Array, "batch dim"],
    target: Float[Array, "batch dim"],
    candidates: Candidates,
    temperature: float,
    *,
    literal: bool = False,
    form: Form = "auto",
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """Eq. 9 with rows as negatives (as in the authors' MoCo-based release).

    Each target must find its mixed image among that image and all candidates, from
    which those of the two instances that were mixed are excluded.
    """
    positive = jnp.sum(target * mixed, axis=1)
    own = log_probability(
        target, candidates, temperature, positive, form=form, mesh=mesh
    )
    return -jax.nn.logsumexp(own) if literal else -own.mean()


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
