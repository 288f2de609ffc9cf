"""The loss terms: one function for each numbered equation; means over the batch."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from eir_jax.models.encoder import l2_normalize
from eir_jax.objectives.relations import (
    NO_SCORE,
    Candidates,
    Form,
    Relations,
    log_probability,
    value_at,
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
    other: Float[Array, "batch dim"] | None = None,
) -> Float[Array, "batch dim"]:
    """Eq. 8: l2(r * f(x_i) + (1 - r) * f(x_j)), j = partner[i].

    f(x_j) is view 1's, or of the `other` embeddings: with MoCo the keys.
    """
    ratio = ratio[:, None]
    partners = (view1 if other is None else other)[partner]
    return l2_normalize(ratio * view1 + (1 - ratio) * partners)


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
    own = value_at(jax.nn.log_softmax(logits), jnp.arange(len(target)))
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


def isif_loss(
    view1: Float[Array, "batch dim"],
    view2: Float[Array, "batch dim"],
    temperature: float,
) -> Float[Array, ""]:
    """ISIF (Ye et al., 2019), as released: a softmax of each view over all others.

    With x = [v; v^] and p_ij = softmax over j != i of x_i . x_j / tau, it is the mean
    over i of -log p_ii' - sum over j of log(1 - p_ij): i' is the other view of i, j
    all that is neither. A row has its gradient as x_i alone, none as an x_j. (The
    paper has the first views alone as x_j.)
    """
    x = jnp.concatenate([view1, view2])
    scores = _matmul(x, jax.lax.stop_gradient(x).T) / temperature
    return _isif(scores, jnp.zeros((len(x), 0)))


def isif_augmented_loss(
    view1: Float[Array, "batch dim"],
    view2: Float[Array, "batch dim"],
    temperature: float,
    partner: Int[Array, " views"],
    interpolation: float,
    extrapolation: float,
) -> Float[Array, ""]:
    """ISIF with positives and negatives made of features, after aISIF (2020).

    Each view's positive is l2(x_i' + extrapolation * (x_i' - x_i)). Negatives besides
    are l2(interpolation * x_j + (1 - interpolation) * x_partner[j]) of all pairs that
    hold no view of the instance itself. Neither has a gradient. How aISIF draws its
    coefficients is not public: these are ours.
    """
    x = jnp.concatenate([view1, view2])
    held, place, batch = jax.lax.stop_gradient(x), jnp.arange(len(x)), len(view1)
    other = (place + batch) % len(x)
    positive = l2_normalize(held[other] + extrapolation * (held[other] - held))
    mixed = l2_normalize(interpolation * held + (1 - interpolation) * held[partner])
    scores = _matmul(x, held.T) / temperature
    own = jnp.sum(x * positive, axis=1) / temperature
    scores = jnp.where(place[None] == other[:, None], own[:, None], scores)
    instance = (place % batch)[:, None]
    shared = (instance == (place % batch)[None]) | (instance == (partner % batch)[None])
    more = jnp.where(shared, NO_SCORE, _matmul(x, mixed.T) / temperature)
    return _isif(scores, more)


def _isif(
    scores: Float[Array, "views views"], more: Float[Array, "views more"]
) -> Float[Array, ""]:
    """Return ISIF's loss of the scores of all views and of negatives besides."""
    views = len(scores)
    place, column = jnp.arange(views), jnp.arange(views + more.shape[1])
    other = (place + views // 2) % views
    scores = jnp.where(place[None] == place[:, None], NO_SCORE, scores)
    log_p = jax.nn.log_softmax(jnp.concatenate([scores, more], axis=1))
    positive = value_at(log_p, other)
    negative = (column[None] != place[:, None]) & (column[None] != other[:, None])
    # log(1 - p); p = 1 would be an infinite loss, and 1e-7 below it is still told.
    log_p = jnp.minimum(jnp.where(negative, log_p, -1.0), -1e-7)
    small = log_p < -0.7
    log_not_p = jnp.where(
        small,
        jnp.log1p(-jnp.exp(jnp.where(small, log_p, -1.0))),
        jnp.log(-jnp.expm1(jnp.where(small, -1.0, log_p))),
    )
    return -(positive + jnp.where(negative, log_not_p, 0).sum(axis=1)).mean()


def nt_xent_loss(
    view1: Float[Array, "batch dim"],
    view2: Float[Array, "batch dim"],
    temperature: float,
) -> Float[Array, ""]:
    """SimCLR's NT-Xent (Chen et al., 2020, Eq. 1), the mean over all 2 * batch views.

    Each must find its other view among all views of the batch but itself. All have a
    gradient.
    """
    x = jnp.concatenate([view1, view2])
    place = jnp.arange(len(x))
    scores = _matmul(x, x.T) / temperature
    scores = jnp.where(place[None] == place[:, None], NO_SCORE, scores)
    log_p = jax.nn.log_softmax(scores)
    other = (place + len(view1)) % len(x)
    return -value_at(log_p, other).mean()


def cross_entropy_loss(
    logits: Float[Array, "batch class"], label: Int[Array, " batch"]
) -> Float[Array, ""]:
    """Return the mean of -log softmax(logits) at the label; labels from 0 on."""
    log_p = jax.nn.log_softmax(logits)
    return -value_at(log_p, label).mean()


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
