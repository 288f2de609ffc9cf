"""The streamed softmax of streaming.py as one kernel (Pallas), for GPUs and TPUs.

XLA writes each block's scores to memory and reads them again for each thing that is
made of them. Here they stay on the chip, for a tile of the queries, and only the sums
leave it (as Dao et al., 2022, do for attention). On a GPU each program of the kernel
has a part of the rows, and the parts' sums are put together as those of several devices
are; a TPU takes the rows' blocks one after another.

Products are of float32: on a GPU by three passes of TF32, whose error is some 1e-6 of a
score, on a TPU as exact as it can. What the compilers make of it is in
benchmarks/NOTES.md; it has run on neither. JAX 0.11 says that Pallas will lose its way
to GPUs through Triton, so that nothing imports this module but where the kernel is
asked for.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton
from jaxtyping import Array, Float, Int

from eir_jax.objectives.sums import LOWEST, NO_SCORE, Sums, put_together

# Of a GPU: queries of a program, rows scored at once, and warps of 32 threads. The
# sums, [views, TILE, dim], are to stay in registers: of four views of 128 numbers, one
# of which moves, all but 8 bytes do so for sm_90, and at none that are larger
# (benchmarks/NOTES.md).
TILE, BLOCK, WARPS = 16, 32, 8
PROGRAMS = 264  # at least, where there are rows enough: two for each of 132 processors
# Of a TPU: all is held in its vector memory, some 6 MiB of 16.
TPU_TILE, TPU_BLOCK = 128, 512
Target = Literal["gpu", "tpu"]


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
    target: Target = "gpu",
    interpret: bool = False,
) -> Sums:
    """Return the sums over the rows of one device, the first of which is `first`.

    The rest of the arguments are those of `streaming.other_rows`. `interpret`: run the
    target's kernel as JAX's own operations, on any device, slowly and exactly.
    """
    views, batch, dim = query.shape
    tile = TILE if target == "gpu" else min(TPU_TILE, pl.cdiv(batch, 8) * 8)
    padded = pl.cdiv(batch, tile) * tile

    def tiled(array, axis):
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, padded - batch)
        return jnp.pad(array, widths)

    # One number a query is a column: what is compared with it lies along the rows.
    arrays = [
        first[None],
        memory_bank,
        tiled(query[: views - len(multiples)], 1),
        tiled(threshold, 0)[:, None],
    ]
    if excluded.size:
        arrays.append(tiled(excluded.T, 1)[..., None])
    if group:
        number, own = group
        arrays += [number[None], tiled(own, 0)[:, None]]
    precision: Any = jax.lax.Precision.HIGHEST
    if target == "gpu" and not interpret:
        precision = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    how = {
        "num_examples": num_examples,
        "excludes": excluded.size > 0,
        "pair": pair,
        "moving": moving,
        "multiples": multiples,
        "precision": precision,
    }
    call = _on_gpu if target == "gpu" else _on_tpu
    top, total, summed, *sloped, ahead = call(arrays, tile, how, interpret)
    parts = len(top)
    nothing = jnp.zeros((parts, 0, batch, dim), query.dtype)
    sums = Sums(
        top=top[:, :, :batch, 0],
        total=total[:, :, :batch, 0],
        rows=summed[:, :, :batch],
        sloped=sloped[0][:, :, :batch] if sloped else nothing,
        ahead=ahead[:, 0, :batch, 0],
    )
    return put_together(sums, moving)


def _shapes(arrays: list[Array], parts: int, how: dict) -> list[jax.ShapeDtypeStruct]:
    """Return what the kernel writes: sums of each part of the rows."""
    given, padded, dim = arrays[2].shape
    views, moving = given + len(how["multiples"]), len(how["moving"])
    sizes = [(views, 1)] * 2 + [(views, dim)] + [(moving, dim)] * bool(moving)
    shapes = [
        jax.ShapeDtypeStruct((parts, n, padded, width), arrays[2].dtype)
        for n, width in sizes
    ]
    return [*shapes, jax.ShapeDtypeStruct((parts, 1, padded, 1), jnp.int32)]


def _on_gpu(arrays: list[Array], tile: int, how: dict, interpret: bool) -> list[Array]:
    tiles = arrays[2].shape[1] // tile
    blocks = pl.cdiv(len(arrays[1]), BLOCK)
    parts = min(pl.cdiv(PROGRAMS, tiles), blocks)
    found: list[Array] = pl.pallas_call(
        functools.partial(_gpu_kernel, blocks=pl.cdiv(blocks, parts), how=how),
        grid=(tiles, parts),
        out_shape=_shapes(arrays, parts, how),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="other_rows",
    )(*arrays)
    return found


def _gpu_kernel(*refs: Any, blocks: int, how: dict) -> None:
    """Sum a tile of the queries over a part of the rows."""
    first, bank, query, threshold, columns, group, outputs = _split(refs, how)
    tile, part = pl.program_id(0), pl.program_id(1)
    mine = pl.ds(tile * TILE, TILE)
    queries = [query[view, mine, :] for view in range(query.shape[0])]
    own_columns = [ref[n, mine, :] for ref in columns for n in range(ref.shape[0])]
    own = [group[1][mine, :]] if group else []
    limit, offset, rows = threshold[mine, :], first[0], bank.shape[0]

    def add_block(i, sums):
        # The last block begins early where the rows are ragged: some come again.
        begin = (part * blocks + i) * BLOCK
        start = jnp.minimum(begin, rows - BLOCK)
        place = start + jax.lax.broadcasted_iota(jnp.int32, (1, BLOCK), 1)
        numbers = [group[0][:, pl.ds(start, BLOCK)]] if group else []
        block = bank[pl.ds(start, BLOCK), :].astype(queries[0].dtype)
        taken = _taken(place >= begin, offset + place, own_columns, numbers, own, how)
        return _add(sums, block, queries, taken, limit, how)

    sums = _nothing(queries, how)
    sums = jax.lax.fori_loop(0, blocks, add_block, sums)
    _write(outputs, sums, lambda n: (part, n, mine, slice(None)))


def _on_tpu(arrays: list[Array], tile: int, how: dict, interpret: bool) -> list[Array]:
    given, padded, dim = arrays[2].shape
    rows = len(arrays[1])
    block = min(TPU_BLOCK, pl.cdiv(rows, 128) * 128)
    shapes = _shapes(arrays, 1, how)
    specs = [
        pl.BlockSpec(memory_space=tpu.SMEM),
        pl.BlockSpec((block, dim), lambda i, j: (j, 0)),
        pl.BlockSpec((given, tile, dim), lambda i, j: (0, i, 0)),
        pl.BlockSpec((tile, 1), lambda i, j: (i, 0)),
    ]
    if how["excludes"]:
        columns = len(arrays[4])
        specs.append(pl.BlockSpec((columns, tile, 1), lambda i, j: (0, i, 0)))
    if len(arrays) > len(specs):
        specs.append(pl.BlockSpec((1, block), lambda i, j: (0, j)))
        specs.append(pl.BlockSpec((tile, 1), lambda i, j: (i, 0)))
    found: list[Array] = pl.pallas_call(
        functools.partial(_tpu_kernel, rows=rows, how=how),
        grid=(padded // tile, pl.cdiv(rows, block)),
        in_specs=specs,
        out_specs=[
            pl.BlockSpec((1, x.shape[1], tile, x.shape[3]), lambda i, j: (0, 0, i, 0))
            for x in shapes
        ],
        out_shape=shapes,
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary")
        ),
        interpret=interpret,
        name="other_rows",
    )(*arrays)
    return found


def _tpu_kernel(*refs: Any, rows: int, how: dict) -> None:
    """Add a block of the rows to a tile's sums, which stay for the next one."""
    first, bank, query, threshold, columns, group, outputs = _split(refs, how)
    number = pl.program_id(1)
    queries = [query[view] for view in range(query.shape[0])]
    size = bank.shape[0]

    @pl.when(number == 0)
    def _():
        _write(outputs, _nothing(queries, how), lambda n: (0, n))

    # What lies behind the last row is anything, also none of a number.
    start = number * size
    there = start + jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0) < rows
    block = jnp.where(there, bank[...].astype(queries[0].dtype), 0)
    place = start + jax.lax.broadcasted_iota(jnp.int32, (1, size), 1)
    own_columns = [ref[n] for ref in columns for n in range(ref.shape[0])]
    numbers, own = ([group[0][...]], [group[1][...]]) if group else ([], [])
    taken = _taken(place < rows, first[0] + place, own_columns, numbers, own, how)
    tops, totals, summed, *sloped, ahead = (
        [ref[0, n] for n in range(ref.shape[1])] for ref in outputs
    )
    sums = (tops, totals, summed, sloped[0] if sloped else [], ahead[0])
    sums = _add(sums, block, queries, taken, threshold[...], how)
    _write(outputs, sums, lambda n: (0, n))


def _split(refs: tuple[Any, ...], how: dict) -> tuple[Any, ...]:
    """Return the kernel's first four references, and lists of the others."""
    outputs = 4 + bool(how["moving"])
    first, bank, query, threshold, *rest = refs[:-outputs]
    columns, group = rest[: how["excludes"]], rest[how["excludes"] :]
    return first, bank, query, threshold, columns, group, refs[-outputs:]


def _nothing(queries: list[Array], how: dict) -> tuple[Any, ...]:
    """Return the sums over no rows."""
    views, shape = len(queries) + len(how["multiples"]), queries[0].shape
    column, dtype = (shape[0], 1), queries[0].dtype
    return (
        [jnp.full(column, LOWEST, dtype)] * views,
        [jnp.zeros(column, dtype)] * views,
        [jnp.zeros(shape, dtype)] * views,
        [jnp.zeros(shape, dtype)] * len(how["moving"]),
        jnp.zeros(column, jnp.int32),
    )


def _write(outputs: tuple[Any, ...], sums: tuple[Any, ...], place: Any) -> None:
    """Write the sums to the outputs, the n-th of each kind at `place(n)`."""
    tops, totals, summed, sloped, ahead = sums
    kinds = [tops, totals, summed, *([sloped] if sloped else []), [ahead]]
    for ref, values in zip(outputs, kinds, strict=True):
        for n, value in enumerate(values):
            ref[place(n)] = value


def _taken(fresh, row, columns, numbers, own, how: dict) -> list[Array]:
    """Return for each view which rows [1, block] take part, for each query."""
    taken = fresh & (row < how["num_examples"])
    for column in columns:
        taken = taken & (row != column)
    if not own:
        return [taken]
    member = numbers[0] == own[0]
    return [taken & member, taken & ~member]


def _add(
    sums: tuple[Any, ...],
    block: Float[Array, "block dim"],
    queries: list[Float[Array, "tile dim"]],
    taken: list[Array],
    limit: Float[Array, "tile 1"],
    how: dict,
) -> tuple[Any, ...]:
    """Add a block of rows; a column [tile, 1] for each number of a query."""
    tops, totals, summed, sloped, ahead = sums

    def product(a, b, b_axis):
        return jax.lax.dot_general(
            *(a, b, (((1,), (b_axis,)), ((), ()))),
            precision=how["precision"],
            preferred_element_type=block.dtype,
        )

    scores = [product(one, block, 1) for one in queries]
    scores += [scores[view] * times for view, times in enumerate(how["multiples"])]
    each = taken * (len(scores) // len(taken))
    scores = [jnp.where(one, x, NO_SCORE) for one, x in zip(each, scores, strict=True)]
    new = [
        jnp.maximum(top, x.max(axis=1, keepdims=True))
        for top, x in zip(tops, scores, strict=True)
    ]
    weights = [jnp.exp(x - top) for x, top in zip(scores, new, strict=True)]
    shrinks = [jnp.exp(a - b) for a, b in zip(tops, new, strict=True)]
    totals = [
        total * shrink + weight.sum(axis=1, keepdims=True)
        for total, shrink, weight in zip(totals, shrinks, weights, strict=True)
    ]
    summed = [
        x * shrink + product(weight, block, 0)
        for x, shrink, weight in zip(summed, shrinks, weights, strict=True)
    ]
    if sloped:
        slope = scores[how["pair"][0]] - scores[how["pair"][1]]
        sloped = [
            x * shrinks[view] + product(weights[view] * slope, block, 0)
            for x, view in zip(sloped, how["moving"], strict=True)
        ]
    before = (scores[0] > limit).astype(jnp.int32)
    ahead = ahead + before.sum(axis=1, keepdims=True, dtype=jnp.int32)
    return new, totals, summed, sloped, ahead
