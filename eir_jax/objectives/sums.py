"""The sums of an online softmax over rows, and how those of several parts combine."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NO_SCORE = -1e30  # of a row that takes no part; finite, so that 0 * it stays 0
LOWEST = -1e20  # the maximum before any row: exp(NO_SCORE - LOWEST) is 0


class Sums(NamedTuple):
    """The online softmax: sums of exp(score - top), up to some row."""

    top: Float[Array, "*parts views batch"]
    total: Float[Array, "*parts views batch"]
    rows: Float[Array, "*parts views batch dim"]
    sloped: Float[Array, "*parts moving batch dim"]
    """Of exp(score - top) * (direction . m) * m, for the views that move."""
    ahead: Int[Array, "*parts batch"]


def put_together(sums: Sums, moving: tuple[int, ...], maximum=None, total=None) -> Sums:
    """Combine the sums of several parts of the rows: along the first axis."""
    maximum = maximum or functools.partial(jnp.max, axis=0)
    total = total or (lambda arrays: jax.tree.map(lambda x: x.sum(axis=0), arrays))
    top = maximum(sums.top)
    shrink = jnp.exp(sums.top - jnp.broadcast_to(top, sums.top.shape))
    places = jnp.array(moving, jnp.int32)
    scaled = (
        sums.total * shrink,
        sums.rows * shrink[..., None],
        sums.sloped * jnp.take(shrink, places, axis=-2)[..., None],
        sums.ahead,
    )
    return Sums(top, *total(scaled))
