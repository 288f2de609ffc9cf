"""The streamed softmax of streaming.py as one kernel (Pallas, for NVIDIA's GPUs).

XLA writes each block's scores to memory and reads them again for each thing that is
made of them. Here a program of the kernel holds them in registers, for a tile of the
queries and a part of the rows, and only its sums leave it (as Dao et al., 2022, do for
attention). The parts' sums are then put together as those of several devices are.

Products are of float32 by three passes of TF32, whose error is some 1e-6 of a score.
What the compiler makes of it is in benchmarks/NOTES.md; on a GPU it has not run yet.
JAX 0.11 says that Pallas will lose its way through Triton, so that nothing imports this
module but where the kernel is asked for.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from eir_jax.objectives.sums import LOWEST, NO_SCORE, Sums, put_together

# Queries of a program, rows scored at once, and warps of 32 threads. The sums, [views,
# TILE, dim], are to stay in registers: of four views of 128 numbers, one of which
# moves, they do so for sm_90 at the largest of these numbers alone
# (benchmarks/NOTES.md).
TILE, BLOCK, WARPS = 16, 32, 8
PROGRAMS = 264  # at least, where there are rows enough: two for each of 132 processors


def fits(rows: int, dim: int) -> bool:
    """Tell whether the kernel can take so many rows of so many numbers."""
    return rows >= BLOCK and dim in (16, 32, 64, 128, 256)


def stream_fused(
    first: Int[Array, ""],
    memory_bank: Float[Array, "rows dim"],
    query: Float[Array, "views batch dim"],
    excluded: Int[Array, "batch excluded"],
    threshold: Float[Array, " batch"],
    *group: Array,
    num_examples: int,
    pair: tuple[int, int],
    moving: tuple[int, ...],
    multiples: tuple[float, ...],
    interpret: bool,
) -> Sums:
    """Return the sums over the rows of one device, the first of which is `first`.

    The rest of the arguments are those of `streaming.other_rows`. `interpret`: run it
    as JAX's own operations, on any device, slowly and in exact float32.
    """
    views, batch, dim = query.shape
    rows = len(memory_bank)
    tiles = pl.cdiv(batch, TILE)
    blocks = pl.cdiv(rows, BLOCK)
    parts = min(pl.cdiv(PROGRAMS, tiles), blocks)
    spare = tiles * TILE - batch

    def tiled(array, axis):
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, spare)
        return jnp.pad(array, widths)

    arrays = [
        first[None],
        memory_bank,
        tiled(query[: views - len(multiples)], 1),
        tiled(threshold, 0),
    ]
    if excluded.size:
        arrays.append(tiled(excluded.T, 1))
    if group:
        number, own = group
        arrays += [number, tiled(own, 0)]

    def shape(*sizes, dtype=query.dtype):
        return jax.ShapeDtypeStruct((parts, *sizes), dtype)

    padded = tiles * TILE
    shapes = [shape(views, padded)] * 2 + [shape(views, padded, dim)]
    if moving:
        shapes.append(shape(len(moving), padded, dim))
    shapes.append(shape(padded, dtype=jnp.int32))
    precision: Any = jax.lax.Precision.HIGHEST
    if not interpret:
        precision = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    top, total, summed, *sloped, ahead = pl.pallas_call(
        functools.partial(
            _kernel,
            num_examples=num_examples,
            blocks=pl.cdiv(blocks, parts),
            excludes=excluded.size > 0,
            pair=pair,
            moving=moving,
            multiples=multiples,
            precision=precision,
        ),
        grid=(tiles, parts),
        out_shape=shapes,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="other_rows",
    )(*arrays)
    nothing = jnp.zeros((parts, 0, batch, dim), query.dtype)
    sums = Sums(
        top=top[:, :, :batch],
        total=total[:, :, :batch],
        rows=summed[:, :, :batch],
        sloped=sloped[0][:, :, :batch] if sloped else nothing,
        ahead=ahead[:, :batch],
    )
    return put_together(sums, moving)


def _kernel(
    *refs: Any, num_examples, blocks, excludes, pair, moving, multiples, precision
):
    outputs = 4 + bool(moving)
    first, bank, query, threshold, *rest = refs[:-outputs]
    out = refs[-outputs:]
    excluded, group = rest[:excludes], rest[excludes:]
    top_out, total_out, rows_out, *sloped_out, ahead_out = out
    tile, part = pl.program_id(0), pl.program_id(1)
    mine = pl.ds(tile * TILE, TILE)
    given, _, dim = query.shape
    views, rows = given + len(multiples), bank.shape[0]
    queries = [query[view, mine, :] for view in range(given)]
    columns = [ref[n, mine] for ref in excluded for n in range(ref.shape[0])]
    limit = threshold[mine]
    offset = first[0]
    dtype = queries[0].dtype

    def product(a, b, b_axis):
        contracted = (((1,), (b_axis,)), ((), ()))
        return jax.lax.dot_general(
            a, b, contracted, precision=precision, preferred_element_type=dtype
        )

    def add_block(i, sums):
        tops, totals, summed, sloped, ahead = sums
        # The last block begins early where the rows are ragged: some come again.
        begin = (part * blocks + i) * BLOCK
        start = jnp.minimum(begin, rows - BLOCK)
        block = bank[pl.ds(start, BLOCK), :].astype(dtype)
        place = start + jax.lax.iota(jnp.int32, BLOCK)
        fresh = (place >= begin) & (offset + place < num_examples)
        taken = jnp.broadcast_to(fresh[None], (TILE, BLOCK))
        for column in columns:
            taken &= (offset + place)[None] != column[:, None]
        all_taken = [taken] * views
        if group:
            number, own = group
            member = number[pl.ds(start, BLOCK)][None] == own[mine][:, None]
            all_taken = [taken & member, taken & ~member]
        scores = [product(one, block, 1) for one in queries]
        scores += [scores[view] * times for view, times in enumerate(multiples)]
        scores = [
            jnp.where(one, score, NO_SCORE)
            for one, score in zip(all_taken, scores, strict=True)
        ]
        new_tops = [
            jnp.maximum(top, score.max(axis=1))
            for top, score in zip(tops, scores, strict=True)
        ]
        weights = [
            jnp.exp(score - top[:, None])
            for score, top in zip(scores, new_tops, strict=True)
        ]
        shrinks = [jnp.exp(a - b) for a, b in zip(tops, new_tops, strict=True)]
        totals = [
            total * shrink + weight.sum(axis=1)
            for total, shrink, weight in zip(totals, shrinks, weights, strict=True)
        ]
        summed = [
            x * shrink[:, None] + product(weight, block, 0)
            for x, shrink, weight in zip(summed, shrinks, weights, strict=True)
        ]
        slope = scores[pair[0]] - scores[pair[1]] if moving else None
        sloped = [
            x * shrinks[view][:, None] + product(weights[view] * slope, block, 0)
            for x, view in zip(sloped, moving, strict=True)
        ]
        ahead += jnp.sum(scores[0] > limit[:, None], axis=1, dtype=jnp.int32)
        return new_tops, totals, summed, sloped, ahead

    tops, totals, summed, sloped, ahead = jax.lax.fori_loop(
        0,
        blocks,
        add_block,
        (
            [jnp.full(TILE, LOWEST, dtype)] * views,
            [jnp.zeros(TILE, dtype)] * views,
            [jnp.zeros((TILE, dim), dtype)] * views,
            [jnp.zeros((TILE, dim), dtype)] * len(moving),
            jnp.zeros(TILE, jnp.int32),
        ),
    )
    for view in range(views):
        top_out[part, view, mine] = tops[view]
        total_out[part, view, mine] = totals[view]
        rows_out[part, view, mine, :] = summed[view]
    for place, x in enumerate(sloped):
        sloped_out[0][part, place, mine, :] = x
    ahead_out[part, mine] = ahead
