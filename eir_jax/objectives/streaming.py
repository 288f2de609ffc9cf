"""The softmax over all the bank's rows, streamed: no [batch, rows] array ever exists.

The rows pass by in blocks, once. An online softmax keeps, for each query u and the
probabilities p_j = softmax_j(u . m_j), the largest score, the sum of exponentials and
their weighted sum of rows, from which the mean row E_p[m] follows. That is all that
values and gradients need, so the backward pass reads no row again:

    d log-sum-exp / du = E_p[m]
    E_p[d . m] of a direction d: its derivative by d is E_p[m], and by u
    E_p[(d . m) m] - E_p[d . m] E_p[m]

A divergence of two views is made of these (see `relate` in relations.py). Where the
rows are split over devices each streams over its own; partial sums are combined by
a maximum and a sum over the devices, inside the hand-written rule: no differentiation
passes through a collective.

On a GPU or TPU the whole stream can be one kernel (fused.py).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from eir_jax.objectives.sums import LOWEST, NO_SCORE, Sums, put_together
from eir_jax.system import sharding
from eir_jax.system.errors import UserError

# Of 512 to 20,480 rows, batch 128, on 2 CPU cores (benchmarks/memory_bank.py --blocks).
BLOCK_ROWS = 2048
# On accelerators each block is some dozen kernels however small it is: scores of a view
# that are made at once, 16 MiB of them.
BLOCK_SCORES = 2**22


class OtherRows(NamedTuple):
    """What the queries find in all rows but the excluded ones."""

    log_sum: Float[Array, "views batch"]
    """Log-sum-exp of the scores; -1e20 where there is no row."""
    slope: Float[Array, "views batch"]
    """E_p[direction . m], the derivative of `log_sum` along the direction."""
    mean_score: Float[Array, "views batch"]
    """E_p[u . m]; no gradient."""
    ahead: Float[Array, " batch"]
    """Rows that the first view scores above the threshold; no gradient."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8, 9, 10, 11))
def other_rows(
    memory_bank: Float[Array, "rows dim"],
    query: Float[Array, "views batch dim"],
    direction: Float[Array, "batch dim"] | None,
    excluded: Int[Array, "batch excluded"],
    threshold: Float[Array, " batch"],
    num_examples: int,
    pair: tuple[int, int] = (0, 1),
    moving: tuple[int, ...] = (),
    multiples: tuple[float, ...] = (),
    mesh: Mesh | None = None,
    block_rows: int = 0,
    fused: bool = False,
    group: tuple[Int[Array, " rows"], Int[Array, " batch"]] | None = None,
) -> OtherRows:
    """Stream the softmax of each query's scores u . m_j over the rows.

    Scores are float32 (the queries' type) at the highest precision, whatever the rows'
    type. Memory: one block of scores for each view, and as much again for what is made
    of it; no gradient enters the bank.

    Args:
      memory_bank: split by rows over `mesh`; those from `num_examples` on take no part.
      query: u, views of each instance, each divided by its temperature.
      direction: query[a] - query[b] of the `pair` (a, b); only its scores' difference
        is looked at, so that it must be that. A gradient enters it. None: `slope` is 0.
      excluded: for each instance the rows that take no part.
      threshold: a score of the first view.
      num_examples: N.
      pair: the two views that are compared.
      moving: the views in which the slope's dependence on p is differentiated; in
        others p counts as fixed there.
      multiples: the last views are these multiples of the first ones, whose scores
        give theirs.
      mesh: devices along the axis 'data'; None: one device.
      block_rows: rows scored at once on each device; 0: `rows_at_once`.
      fused: by the kernel of fused.py, which chooses its own blocks; on a GPU products
        of three TF32 passes then. On a CPU it is interpreted, exactly and slowly.
      group: a number for each row, split as they are, and one for each instance: the
        first view then looks at the rows of its own number alone, the second one at
        the rest.

    Raises:
      UserError: `fused` of rows that the kernel cannot take, or with a JAX that cannot
        compile it.
    """
    return _forward(
        memory_bank, query, direction, excluded, threshold, num_examples, pair, (),
        multiples, mesh, block_rows, fused, group,
    )[0]  # fmt: skip


def _forward(
    memory_bank, query, direction, excluded, threshold, num_examples, pair, moving,
    multiples, mesh, block_rows, fused, group,
):  # fmt: skip
    how = {
        "num_examples": num_examples,
        "pair": pair,
        "moving": moving,
        "multiples": multiples,
    }
    stream: Callable[..., Sums]
    if fused:
        stream = _make_fused(memory_bank, query, mesh, how)
    else:
        stream = functools.partial(
            _stream,
            block_rows=block_rows or rows_at_once(query.shape[1], mesh),
            careful=computed_in_float32(memory_bank, mesh),
            **how,
        )
    sums: Sums = sharding.map_rows(
        lambda axis, *arrays: _combine(axis, stream(axis, *arrays), moving),
        mesh,
        in_specs=(P("data"), P(), P(), P(), *((P("data"), P()) if group else ())),
        out_specs=P(),
    )(memory_bank, query, excluded, threshold, *(group or ()))
    # The row of the largest score contributes exp(0): where any row is, total >= 1.
    total = jnp.maximum(sums.total, 1)
    mean_row = sums.rows / total[..., None]
    if direction is None:
        slope = jnp.zeros_like(total)
    else:
        slope = jnp.sum(direction[None] * mean_row, axis=-1)
    found = OtherRows(
        log_sum=sums.top + jnp.log(total),
        slope=slope,
        mean_score=jnp.sum(query * mean_row, axis=-1),
        ahead=sums.ahead.astype(query.dtype),
    )
    places = jnp.array(moving, jnp.int32)
    turn = sums.sloped / total[places][..., None]  # d slope / du, less the mean's part
    turn = turn - slope[places][..., None] * mean_row[places]
    return found, (mean_row, turn, direction)


def _backward(
    num_examples, pair, moving, multiples, mesh, block_rows, fused, residuals,
    cotangent: OtherRows,
):  # fmt: skip
    mean_row, turn, direction = residuals
    query = cotangent.log_sum[..., None] * mean_row
    for place, view in enumerate(moving):
        query = query.at[view].add(cotangent.slope[view][:, None] * turn[place])
    if direction is not None:
        direction = jnp.sum(cotangent.slope[..., None] * mean_row, axis=0)
    return None, query, direction, None, None, None


other_rows.defvjp(_forward, _backward)


def _make_fused(
    memory_bank: Array, query: Array, mesh: Mesh | None, how: dict
) -> Callable[..., Sums]:
    """Return what streams over the rows of one device by one kernel."""
    platform = sharding.target_of(mesh).platform
    rows, dim = len(memory_bank) // (mesh.size if mesh else 1), memory_bank.shape[1]
    try:
        from eir_jax.objectives import fused
    except ImportError:
        raise UserError(
            f"bank.form=fused: jax {jax.__version__} compiles no such kernel any more; "
            "use bank.form=streamed"
        ) from None
    if not fused.fits(rows, dim):
        raise UserError(
            f"bank.form=fused: for {rows:,} x {dim} rows a device there is no such "
            "kernel (it is for rows of 16, 32, 64, 128 or 256 numbers, and at least "
            f"{fused.BLOCK} of them); use bank.form=streamed"
        )
    if platform != "cpu" and query.dtype != jnp.float32:
        raise UserError(
            f"bank.form=fused: its products are of float32, not {query.dtype}; use "
            "bank.form=streamed"
        )

    def stream(axis, *arrays) -> Sums:
        first = jnp.asarray(sharding.first_row(axis, rows), jnp.int32)
        return fused.stream_fused(
            first,
            *arrays,
            target="tpu" if platform == "tpu" else "gpu",
            interpret=platform == "cpu",
            **how,
        )

    return stream


def _stream(
    axis, memory_bank, query, excluded, threshold, *group, num_examples, pair, moving,
    multiples, block_rows, careful,
) -> Sums:  # fmt: skip
    """Stream over the rows of one device."""
    views, batch, dim = query.shape
    rows = len(memory_bank)
    first = sharding.first_row(axis, rows)
    block_rows = min(block_rows, rows)

    def add_block(i, sums: Sums) -> Sums:
        # The last block begins early where the rows are ragged: some come again.
        start = jnp.minimum(i * block_rows, rows - block_rows)
        block = _take_block(memory_bank, start, block_rows, query.dtype, careful)
        place = start + jax.lax.iota(jnp.int32, block_rows)
        fresh = (place >= i * block_rows) & (first + place < num_examples)
        other = (first + place)[None, None] != excluded[..., None]
        taken = (fresh[None] & other.all(1))[None]
        if group:
            number, own = group
            number = jax.lax.dynamic_slice_in_dim(number, start, block_rows)
            member = number[None] == own[:, None]
            taken = taken & jnp.stack([member, ~member])
        return _add(sums, block, query, taken, threshold, pair, moving, multiples)

    zeros = functools.partial(jnp.zeros, dtype=query.dtype)
    return jax.lax.fori_loop(
        0,
        -(-rows // block_rows),
        add_block,
        Sums(
            top=jnp.full((views, batch), LOWEST, query.dtype),
            total=zeros((views, batch)),
            rows=zeros((views, batch, dim)),
            sloped=zeros((len(moving), batch, dim)),
            ahead=jnp.zeros(batch, jnp.int32),
        ),
    )


def _add(
    sums: Sums,
    block: Float[Array, "block dim"],
    query: Float[Array, "views batch dim"],
    taken: Bool[Array, "#views batch block"],
    threshold: Float[Array, " batch"],
    pair: tuple[int, int],
    moving: tuple[int, ...],
    multiples: tuple[float, ...],
) -> Sums:
    """Add a block of rows."""
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    score = product("vbd,nd->vbn", query[: len(query) - len(multiples)], block)
    more = [score[view] * times for view, times in enumerate(multiples)]
    score = jnp.concatenate([score, *(x[None] for x in more)])
    score = jnp.where(taken, score, NO_SCORE)
    top = jnp.maximum(sums.top, score.max(axis=-1))
    weight = jnp.exp(score - top[..., None])
    weights = [weight]
    if moving:
        slope = score[pair[0]] - score[pair[1]]
        weights.append(jnp.stack([weight[view] * slope for view in moving]))
    shrink = jnp.exp(sums.top - top)
    places = jnp.array(moving, jnp.int32)
    # One product for all, of which a row counts views * batch, then moving * batch.
    summed = product("vbn,nd->vbd", jnp.concatenate(weights), block)
    views = len(query)
    return Sums(
        top=top,
        total=sums.total * shrink + weight.sum(axis=-1),
        rows=sums.rows * shrink[..., None] + summed[:views],
        sloped=sums.sloped * shrink[places][..., None] + summed[views:],
        ahead=sums.ahead + jnp.sum(score[0] > threshold[:, None], 1, dtype=jnp.int32),
    )


def rows_at_once(batch: int, mesh: Mesh | None) -> int:
    """Return the rows of a block: on accelerators the fewer the larger the batch."""
    if sharding.target_of(mesh).platform == "cpu":
        return BLOCK_ROWS
    return max(BLOCK_ROWS, BLOCK_SCORES // batch // 512 * 512)


def computed_in_float32(rows: Array, mesh: Mesh | None) -> bool:
    """Return whether XLA computes the rows' type in float32: bfloat16 on a CPU.

    It then converts whole arrays where a few rows are meant.
    """
    return rows.dtype == jnp.bfloat16 and sharding.target_of(mesh).platform == "cpu"


def _take_block(rows: Array, start: Array, count: int, dtype, careful: bool) -> Array:
    def take():
        return jax.lax.dynamic_slice_in_dim(rows, start, count).astype(dtype)

    if not careful:
        return take()
    # XLA would convert all rows before the loop; but it moves nothing out of a branch.
    nothing = jnp.zeros((count, rows.shape[1]), dtype)
    return jax.lax.cond(start >= 0, take, lambda: nothing)


def _combine(axis: str | None, sums: Sums, moving: tuple[int, ...]) -> Sums:
    """Combine this device's sums with the other devices'."""
    if axis is None:
        return sums
    return put_together(
        sums,
        moving,
        maximum=lambda x: jax.lax.pmax(x, axis),
        total=lambda arrays: jax.lax.psum(arrays, axis),
    )
