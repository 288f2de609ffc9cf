"""Label-free health of an embedding: is it spread out, or has it collapsed?"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from eir_jax.evaluation.nearest import check_rows

COLLAPSED_STD = 0.1
"""`embedding_std` below which an embedding is called collapsed; spread out it is 1."""
MAX_ROWS = 4096  # of a split: more change a spectrum or a mean of pairs very little


def measure(embedding: Float[np.ndarray, "row dim"]) -> dict[str, float]:
    """Return `rank_me`, `embedding_std` and `uniformity` of the first `MAX_ROWS` rows.

    Of fewer than two rows nothing: they have no spread.

    Raises:
        UserError: a row is not finite.
    """
    if len(embedding) < 2:
        return {}
    rows = jnp.asarray(check_rows(embedding[:MAX_ROWS], "the embedding"))
    return {
        "rank_me": float(rank_me(rows)),
        "embedding_std": float(embedding_std(rows)),
        "uniformity": float(uniformity(rows)),
    }


def embedding_std(embedding: Float[Array, "row dim"]) -> Float[Array, ""]:
    """Return the standard deviation over rows, root-summed over dimensions; in [0, 1].

    1 for unit vectors whose mean is zero, 0 where all are equal.
    """
    return jnp.sqrt(jnp.sum(jnp.var(embedding, axis=0)))


def rank_me(embedding: Float[Array, "row dim"]) -> Float[Array, ""]:
    """Return the effective rank, in [1, dim]: exp of the singular values' entropy.

    RankMe (Garrido et al., 2023), Eq. 1.
    """
    values = jnp.linalg.svd(embedding, compute_uv=False)
    share = values / jnp.sum(values) + 1e-7
    return jnp.exp(-jnp.sum(share * jnp.log(share)))


def alignment(
    view1: Float[Array, "row dim"], view2: Float[Array, "row dim"]
) -> Float[Array, ""]:
    """Return the mean squared distance of two views, in [0, 4]; lower is closer.

    Wang and Isola (2020), with alpha = 2.
    """
    return jnp.mean(jnp.sum(jnp.square(view1 - view2), axis=1))


def of_batch(embedding: dict[str, Float[Array, "row dim"]]) -> dict[str, Array]:
    """Return the health of a training batch, whose images have names.

    `embedding_std` of the first, and where there are two views their `alignment`.
    """
    found = {"embedding_std": embedding_std(next(iter(embedding.values())))}
    if {"view1", "view2"} <= embedding.keys():
        found["alignment"] = alignment(embedding["view1"], embedding["view2"])
    return found


def uniformity(embedding: Float[Array, "row dim"]) -> Float[Array, ""]:
    """Return log of the mean of exp(-2 d^2) over pairs, in [-8, 0]; lower is wider.

    Wang and Isola (2020), with t = 2. Rows must have unit length; a row is not paired
    with itself.
    """
    rows = len(embedding)
    cosine = jnp.matmul(embedding, embedding.T, precision=jax.lax.Precision.HIGHEST)
    exponent = jnp.where(jnp.eye(rows, dtype=bool), -jnp.inf, 4 * cosine - 4)
    return jax.nn.logsumexp(exponent) - jnp.log(rows * (rows - 1))


def collapse_warning(std: float) -> str:
    """Return what a user should know when `embedding_std` is below COLLAPSED_STD."""
    return (
        f"the embedding has collapsed: its standard deviation is {std:.4f} (1 when "
        "spread out); all images look alike to it; lower optimizer.learning_rate or "
        "lambda_intra"
    )
