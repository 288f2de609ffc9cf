"""How the views of a batch relate to a set of candidates (Eq. 1-6).

Notation: v -> view1, v^ -> view2, m_j -> candidates.rows[j], tau -> temperature. The
candidates are the rows of a memory bank, of a queue, or of the batch itself. Each
instance has a score of its own beside them: of its own row, or of its key.

The relations come in several forms, with the same numbers: 'dense' holds [batch, rows]
arrays, 'streamed' (streaming.py) looks at a block of rows at a time, 'fused' (fused.py)
does so within one kernel. With a mesh the rows are split over it, and the whole batch
is on every device.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from eir_jax.objectives.memory_bank import read_rows
from eir_jax.objectives.streaming import other_rows
from eir_jax.objectives.sums import NO_SCORE
from eir_jax.system.sharding import target_of

Form = Literal["auto", "dense", "streamed", "fused"]
Own = Float[Array, "views batch"] | None

STREAMED_FROM = 8192  # rows a device, on a CPU: measured, see benchmarks/README.md
# On accelerators, scores of a batch a device: 64 MiB of them for each view. By counts
# alone (benchmarks/NOTES.md): up to there fewer kernels, and not more bytes.
STREAMED_FROM_SCORES = 2**24


class Candidates(NamedTuple):
    """What each instance of a batch is told from; no gradient enters it."""

    rows: Float[Array, "rows dim"]
    """Unit length; those from `num_rows` on are padding."""
    excluded: Int[Array, "batch excluded"]
    """For each instance the rows that are none of its candidates; -1: no row."""
    num_rows: int


class Comparison(NamedTuple):
    """How the two views' distributions are compared (Eq. 4-6)."""

    temperature: float = 1.0
    """Of both distributions. Eq. 4-5 print bare cosines: 1."""
    target_temperature: float = 0.0
    """Of view 1's, the target p; 0: `temperature`."""
    own_row: bool = True
    """Whether the own score takes part, as Eq. 4-5 sum over i = 1..N."""
    stop_gradient: bool = False
    """Hold p fixed."""
    symmetric: bool = False
    """The mean of KL(p || q) and KL(q || p)."""


class Relations(NamedTuple):
    """How a batch's two views relate to the candidates."""

    log_p: Float[Array, " batch"]
    """log P(i | v), Eq. 1: view 1 finds its own among all."""
    log_q: Float[Array, " batch"]
    """log P(i | v^): view 2 does."""
    divergence: Float[Array, " batch"] | None
    """KL(p || q) summed over all rows, Eq. 4-6, in nats; None: not asked for."""
    entropy_p: Float[Array, " batch"]
    """Of view 1's distribution, in [0, log N] nats; no gradient, as the two below."""
    entropy_q: Float[Array, " batch"]
    """Of view 2's distribution."""
    rank: Float[Array, " batch"]
    """Of the own score among all by view 1's similarity, from 1 on."""


def bank_candidates(
    memory_bank: Float[Array, "rows dim"], index: Int[Array, " batch"], count: int
) -> Candidates:
    """Return all `count` rows of a bank; the first excluded is an instance's own."""
    return Candidates(jax.lax.stop_gradient(memory_bank), index[:, None], count)


def streams(form: Form, rows: Array, batch: int, mesh: Mesh | None) -> bool:
    """Return whether rows are streamed for a batch: 'auto' by the rows a device."""
    if form != "auto":
        return form != "dense"
    share = len(rows) // (mesh.size if mesh else 1)
    if target_of(mesh).platform == "cpu":
        return share >= STREAMED_FROM
    return share * batch >= STREAMED_FROM_SCORES


def similarities(
    rows: Float[Array, "rows dim"], embedding: Float[Array, "batch dim"], count: int
) -> Float[Array, "batch rows"]:
    """Return the cosine to every row, a huge negative number at padding (Eq. 4-5)."""
    embedding = jnp.asarray(embedding)
    rows = rows.astype(embedding.dtype)
    cosine = jnp.matmul(embedding, rows.T, precision=jax.lax.Precision.HIGHEST)
    real = jnp.arange(len(rows)) < count
    return jnp.where(real[None], cosine, NO_SCORE)


def log_probability(
    view: Float[Array, "batch dim"],
    candidates: Candidates,
    temperature: float,
    own: Float[Array, " batch"] | None = None,
    *,
    form: Form = "auto",
    mesh: Mesh | None = None,
) -> Float[Array, " batch"]:
    """Eq. 1: return log P(i | v), the log-softmax of each instance's own score.

    Args:
      view: v, unit length.
      candidates: all but the excluded rows stand against the own score.
      temperature: tau.
      own: cosine of each view with its own; None: with its first excluded row.
      form: 'dense', 'streamed', 'fused', or 'auto' by the rows a device.
      mesh: over which the rows are split; None: one device.
    """
    rows, excluded, count = candidates
    if not streams(form, rows, len(view), mesh):
        scores, place = _scores(candidates, view, own)
        below, log_sum = _below_largest(scores, temperature)
        return value_at(below, place) - log_sum
    query = view / temperature
    if own is None:
        score = jnp.sum(query * read_rows(rows, excluded[:, 0], mesh), axis=1)
    else:
        score = own / temperature
    others = other_rows(
        jax.lax.stop_gradient(rows), query[None], None, excluded, score, count,
        mesh=mesh, fused=form == "fused",
    )  # fmt: skip
    return log_share(score, others.log_sum[0])


def relate(
    view1: Float[Array, "batch dim"],
    view2: Float[Array, "batch dim"],
    candidates: Candidates,
    temperature: float,
    comparison: Comparison | None = None,
    own: Own = None,
    *,
    form: Form = "auto",
    mesh: Mesh | None = None,
) -> Relations:
    """Eq. 1-6: relate both views to all candidates.

    Args:
      view1: v, unit length.
      view2: v^, unit length.
      candidates: no gradient enters them.
      temperature: tau of `log_p` and `log_q`.
      comparison: of the two distributions; None: they are not compared.
      own: cosine of each view with its own; None: with its first excluded row.
      form: 'dense', 'streamed', 'fused', or 'auto' by the rows a device.
      mesh: over which the rows are split; None: one device.
    """
    candidates = candidates._replace(rows=jax.lax.stop_gradient(candidates.rows))
    arguments = view1, view2, candidates, temperature, comparison, own
    if streams(form, candidates.rows, len(view1), mesh):
        found = _relate_streamed(*arguments, mesh, form == "fused")
    else:
        found = _relate_dense(*arguments)
    watched = ("entropy_p", "entropy_q", "rank")
    return found._replace(
        **{name: jax.lax.stop_gradient(getattr(found, name)) for name in watched}
    )


def _temperatures(comparison: Comparison) -> tuple[float, float]:
    """Return those of p and of q."""
    tau = comparison.temperature
    return comparison.target_temperature or tau, tau


def _relate_dense(
    view1, view2, candidates: Candidates, temperature, comparison, own
) -> Relations:
    own1, own2 = (None, None) if own is None else own
    scores1, place = _scores(candidates, view1, own1)
    scores2, _ = _scores(candidates, view2, own2)
    below1, log_sum1 = _below_largest(scores1, temperature)
    below2, log_sum2 = _below_largest(scores2, temperature)
    own_p = value_at(below1, place) - log_sum1
    own_q = value_at(below2, place) - log_sum2
    ahead = jnp.sum(
        scores1 > value_at(scores1, place)[:, None], axis=1, dtype=jnp.float32
    )
    entropies = _entropy(below1, log_sum1), _entropy(below2, log_sum2)
    watched = (*entropies, 1 + ahead)
    if comparison is None:
        return Relations(own_p, own_q, None, *watched)
    taus = _temperatures(comparison)
    if not comparison.own_row:
        columns = jnp.arange(scores1.shape[1])
        other = columns[None] != place[:, None]
        scores1, scores2 = (jnp.where(other, x, NO_SCORE) for x in (scores1, scores2))
    if taus != (temperature, temperature) or not comparison.own_row:
        below1, log_sum1 = _below_largest(scores1, taus[0])
        below2, log_sum2 = _below_largest(scores2, taus[1])
    if comparison.stop_gradient:
        below1, log_sum1 = jax.lax.stop_gradient((below1, log_sum1))
    # KL(p || q) = E_p[s_1 - s_2] - (L_1 - L_2), L the log-sum-exp of the scores.
    apart = jnp.where(scores1 > NO_SCORE, below1 - below2, 0)
    log_sums_apart = log_sum1 - log_sum2
    p = jnp.exp(below1 - log_sum1[:, None])
    divergence = jnp.sum(p * apart, axis=1) - log_sums_apart
    if comparison.symmetric:
        q = jnp.exp(below2 - log_sum2[:, None])
        backward = log_sums_apart - jnp.sum(q * apart, axis=1)
        divergence = (divergence + backward) / 2
    return Relations(own_p, own_q, divergence, *watched)


def _relate_streamed(
    view1, view2, candidates: Candidates, temperature, comparison, own, mesh, fused
) -> Relations:
    """Put each view's own score together with the streamed others.

    Of equal cosines the rank may count some that rounding sets apart, since the own
    one is no part of the stream's product; the own row itself is never counted.
    """
    rows, excluded, count = candidates
    views = jnp.stack([view1, view2])
    own_rows = read_rows(rows, excluded[:, 0], mesh) if own is None else None

    def own_score(query, taus):
        if own_rows is not None:
            return jnp.sum(query * own_rows[None], axis=-1)
        return own / jnp.asarray(taus, own.dtype)[:, None]

    query, pair = views / temperature, (0, 1)
    moving: tuple[int, ...] = ()
    multiples: tuple[float, ...] = ()
    own_scores = own_score(query, (temperature, temperature))
    direction = None
    if comparison is not None:
        taus, compared, own_compared = _temperatures(comparison), query, own_scores
        if taus != (temperature, temperature):
            pair = (2, 3)
            compared = jnp.stack([view1 / taus[0], view2 / taus[1]])
            own_compared = own_score(compared, taus)
            query = jnp.concatenate([query, compared])
            multiples = (temperature / taus[0], temperature / taus[1])
        held = compared[0]
        if comparison.stop_gradient:
            held = jax.lax.stop_gradient(held)
        direction = held - compared[1]
        moves = (not comparison.stop_gradient, comparison.symmetric)
        moving = tuple(view for view, does in zip(pair, moves, strict=True) if does)
    others = other_rows(
        *(rows, query, direction, excluded, own_scores[0], count),
        *(pair, moving, multiples, mesh),
        fused=fused,
    )
    log_own = log_share(own_scores, others.log_sum[:2])
    mean_score = others.mean_score[:2]
    entropy = -log_own - jnp.expm1(log_own) * (own_scores - mean_score)
    watched = (entropy[0], entropy[1], 1 + others.ahead)
    if comparison is None:
        return Relations(log_own[0], log_own[1], None, *watched)

    first, second = pair
    slope = others.slope[first], others.slope[second]
    log_sum = jnp.stack([others.log_sum[first], others.log_sum[second]])
    if not comparison.own_row:
        # KL(p || q) = E_p[s_1 - s_2] - (L_1 - L_2), L the log-sum-exp of the scores.
        if comparison.stop_gradient:
            log_sum = log_sum.at[0].set(jax.lax.stop_gradient(log_sum[0]))
        apart = log_sum[0] - log_sum[1]
        divergence = slope[0] - apart
        backward = apart - slope[1]
    else:
        # KL(p || q) = log p_i - log q_i + (1 - p_i) (E[s_1 - s_2] - (s_1 - s_2)_i),
        # E over the other rows by p, s_1 and s_2 the scores of the two views.
        log_both = log_share(own_compared, log_sum)
        if comparison.stop_gradient:
            log_both = log_both.at[0].set(jax.lax.stop_gradient(log_both[0]))
        if own_rows is not None:
            own_slope = jnp.sum((held - compared[1]) * own_rows, axis=1)
        else:
            fixed = jax.lax.stop_gradient if comparison.stop_gradient else (lambda x: x)
            own_slope = fixed(own_compared[0]) - own_compared[1]
        gap = -jnp.expm1(log_both) * (jnp.stack(slope) - own_slope[None])
        divergence = log_both[0] - log_both[1] + gap[0]
        backward = log_both[1] - log_both[0] - gap[1]
    if comparison.symmetric:
        divergence = (divergence + backward) / 2
    return Relations(log_own[0], log_own[1], divergence, *watched)


def _scores(
    candidates: Candidates,
    view: Float[Array, "batch dim"],
    own: Float[Array, " batch"] | None,
) -> tuple[Float[Array, "batch columns"], Int[Array, " batch"]]:
    """Return the cosines of all candidates and the own one, and the column of that."""
    rows, excluded, count = candidates
    cosine = similarities(jax.lax.stop_gradient(rows), view, count)
    if own is None:
        return _without(cosine, excluded[:, 1:]), excluded[:, 0]
    scores = jnp.concatenate([own[:, None], _without(cosine, excluded)], axis=1)
    return scores, jnp.zeros(len(scores), jnp.int32)


def _without(
    cosine: Float[Array, "batch rows"], excluded: Int[Array, "batch excluded"]
) -> Float[Array, "batch rows"]:
    if not excluded.shape[1]:
        return cosine
    taken: Bool[Array, "batch excluded rows"] = (
        jnp.arange(cosine.shape[1])[None, None] == excluded[..., None]
    )
    return jnp.where(taken.any(1), NO_SCORE, cosine)


def _below_largest(scores: Float[Array, "batch columns"], temperature: float):
    """Return how far scores / temperature are below the largest, and their log-sum-exp.

    By the largest score itself, which is found once for several temperatures.
    """
    largest = jax.lax.stop_gradient(scores.max(axis=1, keepdims=True))
    below = (scores - largest) / temperature
    return below, jnp.log(jnp.sum(jnp.exp(below), axis=1))


def log_share(own: Array, log_sum: Array) -> Array:
    """Return log(e^own / (e^own + e^log_sum)), its gradient accurate to rounding.

    That of `jax.nn.log_sigmoid` is off by the value's rounding, 1e-6 at -10: too much
    where the terms of a small divergence cancel.
    """
    ahead = own - log_sum
    return jnp.minimum(ahead, 0) - jnp.log1p(jnp.exp(-jnp.abs(ahead)))


def _entropy(below: Float[Array, "batch rows"], log_sum: Float[Array, " batch"]):
    log_p = below - log_sum[:, None]
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=1)


@jax.custom_vjp
def value_at(
    value: Float[Array, "batch columns"], place: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Return each row's value at its place.

    Its gradient is a choice in each column; that of an index would be added into zeros
    by itself.
    """
    return jnp.take_along_axis(value, place[:, None], axis=1)[:, 0]


def _value_at(value, place):
    return value_at(value, place), (place, value.shape[1])


def _value_at_backward(kept, gradient):
    place, columns = kept
    chosen = jnp.arange(columns)[None] == place[:, None]
    return jnp.where(chosen, gradient[:, None], 0), None


value_at.defvjp(_value_at, _value_at_backward)
