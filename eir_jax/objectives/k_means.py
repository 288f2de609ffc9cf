"""k-means of rows that are split over the devices, and what is done to them before."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from eir_jax.data.order import CLUSTERS
from eir_jax.models.encoder import l2_normalize
from eir_jax.system import sharding

ROWS_AT_ONCE = 2048
SPLIT = 1 / 1024  # by which FAISS moves the halves of a cluster apart


def first_centres(
    rows: Float[Array, "rows dim"], seed: int, period: Array, count: int, num_rows: int
) -> Float[Array, "clusters dim"]:
    """Return `count` different ones of the first `num_rows` rows, by seed and period.

    Args:
      rows: split over the devices, or not.
      seed: of the run.
      period: from 0 on.
      count: at most `num_rows`.
      num_rows: rows after them are padding.
    """
    chance = jax.random.fold_in(jax.random.key(seed), CLUSTERS)
    drawn = jax.random.permutation(jax.random.fold_in(chance, period), num_rows)
    return rows[drawn[:count]]


def k_means(
    rows: Float[Array, "rows dim"],
    centres: Float[Array, "clusters dim"],
    num_rows: int,
    iterations: int,
    mesh: Mesh | None = None,
    split: bool = False,
) -> Int[Array, " rows"]:
    """Return the cluster of each row, 0 for those from `num_rows` on (Lloyd, 1982).

    Of equally near centres the first one counts. A cluster without rows keeps its
    centre, or with `split` takes half of the largest. Each device looks at its own
    rows; sums over a cluster are products with zeros and ones, as scattered additions
    have no fixed order on a GPU.

    Args:
      rows: split over the mesh.
      centres: to start from.
      num_rows: those after them are padding; at least as many as centres.
      iterations: how often the centres move.
      mesh: devices along the axis 'data'; None: one device.
      split: after each move `split_largest`.
    """

    def run(axis, share, centres):
        dtype = jnp.promote_types(share.dtype, jnp.float32)
        size = math.gcd(len(share), ROWS_AT_ONCE)
        blocks = share.astype(dtype).reshape(-1, size, share.shape[1])
        number = sharding.first_row(axis, len(share)) + jnp.arange(len(share))
        real = (number < num_rows).reshape(-1, size)

        def nearest(block, centres):
            score = _matmul(block, centres.T) - jnp.square(centres).sum(1)[None] / 2
            return jnp.argmax(score, axis=1)

        def move(_, centres):
            def add(sums, part):
                block, real = part
                own = nearest(block, centres)[:, None] == jnp.arange(len(centres))[None]
                own = (own & real[:, None]).astype(dtype)
                total, count = sums
                return (total + _matmul(own.T, block), count + own.sum(0)), None

            zeros = jnp.zeros_like(centres), jnp.zeros(len(centres), dtype)
            sums, _ = jax.lax.scan(add, zeros, (blocks, real))
            total, count = sums if axis is None else jax.lax.psum(sums, axis)
            mean = total / jnp.maximum(count, 1)[:, None]
            moved = jnp.where(count[:, None] > 0, mean, centres)
            return split_largest(moved, count.astype(jnp.int32)) if split else moved

        centres = jax.lax.fori_loop(0, iterations, move, centres.astype(dtype))
        found = jax.lax.map(lambda block: nearest(block, centres), blocks)
        return jnp.where(real, found, 0).reshape(-1).astype(jnp.int32)

    labels: Array = sharding.map_rows(
        run, mesh, in_specs=(P("data"), P()), out_specs=P("data")
    )(rows, centres)
    return labels


def split_largest(
    centres: Float[Array, "clusters dim"], count: Int[Array, " clusters"]
) -> Float[Array, "clusters dim"]:
    """Give each cluster without rows half of the largest one, as FAISS does.

    Both centres are the largest one's, a 1,024th longer in every other direction and
    shorter in the rest, one of them the other way round. FAISS draws the cluster that
    is halved by its size; here it is the largest, the first of several.

    Args:
      centres: of the clusters.
      count: rows of each, at least as many in all as there are clusters.
    """
    up = jnp.where(jnp.arange(centres.shape[1]) % 2 == 0, 1 + SPLIT, 1 - SPLIT)
    up = up.astype(centres.dtype)

    def halve(carry):
        centres, count = carry
        empty, largest = jnp.argmin(count), jnp.argmax(count)
        centre, rows = centres[largest], count[largest]
        centres = centres.at[empty].set(centre * up)
        centres = centres.at[largest].set(centre * (2 - up))
        count = count.at[empty].set(rows // 2).at[largest].set(rows - rows // 2)
        return centres, count

    # Where one is empty and the rows are enough, the largest has two or more.
    still = lambda carry: (carry[1].min() == 0) & (carry[1].max() > 1)  # noqa: E731
    halved: tuple[Array, Array] = jax.lax.while_loop(still, halve, (centres, count))
    return halved[0]


def whiten(
    rows: Float[Array, "rows dim"],
    num_rows: int,
    components: int,
    mesh: Mesh | None = None,
) -> Float[Array, "rows components"]:
    """Return the rows' first principal components, each of variance 1, to unit length.

    Directions in which the rows do not vary but for rounding are left out: zeros stand
    for them. So stand they for the padding.

    Args:
      rows: split over the mesh.
      num_rows: those after them are padding.
      components: at most; as many as `dim` where that is less.
      mesh: devices along the axis 'data'; None: one device.
    """

    def run(axis, share):
        share = share.astype(jnp.promote_types(share.dtype, jnp.float32))
        number = sharding.first_row(axis, len(share)) + jnp.arange(len(share))
        real = (number < num_rows)[:, None]

        def total(x):
            return x if axis is None else jax.lax.psum(x, axis)

        mean = total(jnp.where(real, share, 0).sum(0)) / num_rows
        apart = jnp.where(real, share - mean[None], 0)
        covariance = total(_matmul(apart.T, apart)) / num_rows
        variance, directions = jnp.linalg.eigh(covariance)  # from the least on
        first = jnp.arange(len(variance))[::-1][:components]
        variance, directions = variance[first], directions[:, first]
        rounding = jnp.finfo(share.dtype).eps * len(mean) * variance[0]
        varies = variance > jnp.maximum(rounding, 0)
        scale = jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1)), 0)
        return l2_normalize(_matmul(apart, directions * scale[None]))

    found: Array = sharding.map_rows(
        run, mesh, in_specs=P("data"), out_specs=P("data")
    )(rows)
    return found


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
