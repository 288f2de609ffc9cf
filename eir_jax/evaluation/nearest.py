"""Exact nearest neighbours by inner product, streamed over blocks of the gallery."""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int, Int32

from eir_jax.system import sharding
from eir_jax.system.errors import UserError

QUERY_BLOCK = 512  # queries multiplied at once
GALLERY_BLOCK = 65536  # rows
CPU_BLOCK = 16384  # rows of whose similarities a CPU's cache holds more
FEW = 32  # neighbours, up to which looking at more blocks costs less than that gains
MOST_THREADS = 4  # of a CPU; each holds similarities of its own


def nearest(
    queries: Float[np.ndarray, "query dim"],
    gallery: Float[np.ndarray, "row dim"],
    k: int,
    *,
    exclude: Int[np.ndarray, " query"] | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
    query_block: int = QUERY_BLOCK,
    gallery_block: int | None = None,
) -> tuple[Float32[np.ndarray, "query k"], Int32[np.ndarray, "query k"]]:
    """Find each query's k gallery rows of largest inner product, largest first.

    Rows of equal similarity come in the gallery's order, across blocks and devices too,
    and the result is the same on any number of devices. Products are float32 at the
    highest matmul precision. Beyond the arguments and the result, memory holds
    `query_block * gallery_block` similarities a device and two blocks of the gallery,
    however large that is (other dtypes are copied to float32).

    Args:
        queries: rows to look up, of any norm.
        gallery: rows to find, of any norm.
        k: neighbours a query, from 1 to the rows that it may find.
        exclude: for each query the gallery row, 0 .. row - 1, that it may not find:
            `np.arange(n)` when a set is searched in itself.
        mesh: devices along the axis 'data', over which the gallery's rows are split;
            this process's first device when left out.
        progress: called with (steps done, steps in all) after each step.
        query_block: queries multiplied at once.
        gallery_block: gallery rows held at once on each device, rounded up to 64s;
            left out: as many as are fast.

    Returns:
        Similarity, and the row's index in the gallery.

    Raises:
        UserError: an array is empty, not finite or of another dimension than the
            other, or k is out of range.
    """
    queries, gallery = check_rows(queries, "queries"), check_rows(gallery, "gallery")
    _check_request(queries, gallery, k, exclude)
    if mesh is None:
        mesh = sharding.make_mesh(jax.local_devices()[:1])
    # A query's own row can push out no more than the last of k + 1 neighbours.
    kept = k if exclude is None else k + 1
    threads = _threads(mesh)
    chunks, chunk, query_block = plan_chunks(len(queries), threads, query_block)
    similarity = np.empty((len(queries), kept), np.float32)
    index = np.empty((len(queries), kept), np.int32)
    report = progress and _Report(progress, chunks)

    def search(i: int) -> None:
        start, stop = i * chunk, min((i + 1) * chunk, len(queries))
        found = _search(
            _slice(queries, start, stop, chunk),
            gallery,
            kept,
            mesh,
            query_block,
            gallery_block,
            report,
        )
        similarity[start:stop], index[start:stop] = (x[: stop - start] for x in found)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(search, range(chunks)):
            pass  # raises what a search raised
    if exclude is None:
        return similarity, index
    return _without(similarity, index, np.asarray(exclude))


def _search(queries, gallery, k, mesh, query_block, gallery_block, progress):
    """Pass the gallery by one chunk of queries; NumPy [query, k] twice."""
    search = plan_search(
        len(queries), len(gallery), k, mesh, query_block, gallery_block
    )
    shards, per_shard, block = mesh.size, search.per_shard, search.block
    split = sharding.split_rows(mesh)
    queries = sharding.put_everywhere(queries, mesh)
    best = jnp.full((shards, len(queries), k), -jnp.inf, jnp.float32, device=split)
    index = jnp.zeros((shards, len(queries), k), jnp.int32, device=split)
    for i in reversed(range(search.steps)):
        rows = jax.make_array_from_callback(
            (shards * block, gallery.shape[1]),
            split,
            functools.partial(_rows_of_shard, gallery, per_shard, i * block, block),
        )
        limits = np.asarray([i * block, per_shard, len(gallery)], np.int32)
        before = best
        best, index = search.step(best, index, queries, rows, limits)
        before.block_until_ready()  # one step ahead, and no more blocks in memory
        if progress:
            progress(search.steps)
    return [np.asarray(x) for x in make_merge(mesh)(best, index)]


class Search(NamedTuple):
    """How the gallery passes by a chunk of queries."""

    step: Any
    """The jitted (best, index, queries, rows, limits) -> best, index."""
    steps: int
    block: int
    """Rows that a device looks at in each."""
    per_shard: int
    """Rows of the gallery a device, over all steps."""
    queries: int
    k: int
    mesh: Mesh

    def arguments(self, dim: int) -> list[jax.ShapeDtypeStruct]:
        """Return the step's: shapes, types and shardings."""
        split, whole = sharding.split_rows(self.mesh), sharding.replicated(self.mesh)
        found = (self.mesh.size, self.queries, self.k)
        rows = (self.mesh.size * self.block, dim)
        return [
            jax.ShapeDtypeStruct(found, jnp.float32, sharding=split),
            jax.ShapeDtypeStruct(found, jnp.int32, sharding=split),
            jax.ShapeDtypeStruct((self.queries, dim), jnp.float32, sharding=whole),
            jax.ShapeDtypeStruct(rows, jnp.float32, sharding=split),
            jax.ShapeDtypeStruct((3,), jnp.int32, sharding=whole),
        ]


def plan_chunks(
    queries: int, threads: int = 1, query_block: int = QUERY_BLOCK
) -> tuple[int, int, int]:
    """Return in how many chunks queries travel, their rows, and those of a block.

    For each chunk the gallery passes by once. There is one thread but on a CPU.
    """
    query_block = min(max(query_block // threads, 64), query_block, queries)
    most = min(8192, -(-queries // threads))
    return *_split(queries, max(most, query_block), query_block), query_block


def plan_search(
    queries: int,
    gallery: int,
    k: int,
    mesh: Mesh,
    query_block: int = QUERY_BLOCK,
    gallery_block: int | None = None,
) -> Search:
    """Return how `gallery` rows pass by a chunk of so many queries, see `nearest`."""
    if gallery_block is None:
        cached = k <= FEW and _on_cpu(mesh)
        gallery_block = CPU_BLOCK if cached else GALLERY_BLOCK
    per_shard = -(-gallery // mesh.size)
    # Groups of about sqrt(block / k) rows leave top_k the fewest elements.
    group = 1 << (min(per_shard, gallery_block) // k).bit_length() // 2
    group = group if group >= 4 else 1
    # Multiples of 64: on a CPU, XLA rounds the products of other shapes in other ways.
    steps, block = _split(per_shard, gallery_block, max(group, 64))
    step = _make_step(mesh, query_block, group)
    return Search(step, steps, block, per_shard, queries, k, mesh)


@functools.cache
def _make_step(mesh: Mesh, query_block: int, group: int):
    """Make the jitted step that folds a block of rows into the best so far."""

    def fold(best, index, queries, rows, limits):
        start, per_shard, num_rows = limits
        first = jax.lax.axis_index("data") * per_shard + start
        valid = jnp.minimum(per_shard - start, num_rows - first)

        def fold_queries(part):
            best, index, queries = part
            similarity = jnp.dot(queries, rows.T, precision="highest")
            return _fold_block(best, index, similarity, first, valid, group)

        parts = (best[0], index[0], queries)
        parts = tuple(x.reshape(-1, query_block, x.shape[-1]) for x in parts)
        folded = jax.lax.map(fold_queries, parts)
        return tuple(x.reshape(best.shape) for x in folded)

    split, whole = P("data"), P()
    specs = (split, split, whole, split, whole)
    return jax.jit(
        jax.shard_map(fold, mesh=mesh, in_specs=specs, out_specs=(split, split))
    )


def _fold_block(
    best: Float[Array, "query k"],
    index: Int[Array, "query k"],
    similarity: Float[Array, "query column"],
    first: Int[Array, ""],
    valid: Int[Array, ""],
    group: int,
) -> tuple[Float[Array, "query k"], Int[Array, "query k"]]:
    """Select the top k of best and similarity[:, :valid], whose rows begin at first.

    The rows of `best` come later. The top k lie within best and the k groups of columns
    with the largest maxima, so only these are searched: were one in another group, each
    of the k would hold an element that goes before it.
    """
    queries, columns = similarity.shape
    k = best.shape[1]
    column = jnp.arange(columns)[None]
    bound = best[:, -1:]
    if group > 1:
        grouped = similarity.reshape(queries, columns // group, group)
        # Exact in a half valid group too, since its other columns repeat a valid one.
        maxima = grouped.max(axis=2)
        maxima = _masked(maxima, (column[:, ::group] < valid) & (maxima >= bound))
        maxima, chosen = jax.lax.top_k(_without_the_small(maxima, k), k)
        chosen = jnp.sort(chosen, axis=1)[:, :, None]  # equal elements: in row order
        similarity = jnp.take_along_axis(grouped, chosen, axis=1).reshape(queries, -1)
        column = (chosen * group + jnp.arange(group)[None, None]).reshape(queries, -1)
        # Spares top_k what cannot win. By min: a slice of top_k's result would make XLA
        # sort whole rows instead (the selection took nine times as long on a CPU).
        bound = jnp.maximum(bound, maxima.min(axis=1, keepdims=True))
    similarity = _masked(similarity, (column < valid) & (similarity >= bound))
    looked_at = similarity.shape[1]
    best, place = jax.lax.top_k(jnp.concatenate([similarity, best], axis=1), k)
    among = jnp.minimum(place, looked_at - 1)
    if group > 1:
        chosen = jnp.take_along_axis(chosen[:, :, 0], among // group, axis=1)
        among = chosen * group + among % group
    later = jnp.take_along_axis(index, jnp.maximum(place - looked_at, 0), axis=1)
    return best, jnp.where(place < looked_at, first + among, later)


def _without_the_small(
    x: Float[Array, "query column"], k: int
) -> Float[Array, "query column"]:
    """Put -inf for most of what is below the k-th largest: it spares top_k on a CPU.

    A value that k disjoint parts of a row reach is no more than the k-th largest; it is
    found by halving.
    """
    parts = x.shape[1] // 4
    if parts < k:
        return x
    maxima = x[:, : 4 * parts].reshape(len(x), 4, parts).max(axis=1)

    def halve(_, limits):
        reached, not_reached = limits
        middle = (reached + not_reached) / 2
        enough = (maxima >= middle).sum(axis=1, keepdims=True) >= k
        reached = jnp.where(enough, middle, reached)
        return reached, jnp.where(enough, not_reached, middle)

    limits = [f(maxima, axis=1, keepdims=True) for f in (jnp.min, jnp.max)]
    reached, _ = jax.lax.fori_loop(0, 6, halve, tuple(limits))
    return jnp.where(x >= reached, x, -jnp.inf)


def _masked(x, mask):
    """Put -inf where the mask is not, and 0 for -0: top_k would rank 0 before -0."""
    return jnp.where(mask, jnp.where(x == 0, 0.0, x), -jnp.inf)


@functools.cache
def make_merge(mesh: Mesh):
    """Return the jitted merge of the devices' [shard, query, k] into [query, k]."""

    def merge(best, index):
        if len(best) == 1:
            return best[0], index[0]
        k = best.shape[2]
        best, index = (x.swapaxes(0, 1).reshape(x.shape[1], -1) for x in (best, index))
        best, place = jax.lax.top_k(best, k)
        return best, jnp.take_along_axis(index, place, axis=1)

    return jax.jit(merge, out_shardings=sharding.replicated(mesh))


def _rows_of_shard(gallery, per_shard, start, block, where):
    """Slice rows start to start + block of the share of the device that asks where."""
    shard = (where[0].start or 0) // block
    end = min((shard + 1) * per_shard, len(gallery))
    first = min(shard * per_shard + start, end - 1)
    return _slice(gallery, first, min(first + block, end), block)


def _slice(x, start, stop, rows):
    """Slice start to stop, the last row repeated to fill up to a number of rows."""
    if stop - start == rows:
        return x[start:stop]
    return x[np.minimum(np.arange(start, start + rows), stop - 1)]


def _split(total: int, at_most: int, multiple: int) -> tuple[int, int]:
    """Split total evenly: the number of parts, and their size, a multiple of one."""
    size = -(-total // -(-total // at_most))
    size += -size % multiple
    return -(-total // size), size


def _without(similarity, index, exclude):
    """Drop the excluded row where it was found, else the last neighbour."""
    k = index.shape[1] - 1
    hit = index == exclude[:, None]
    place = np.where(hit.any(axis=1), hit.argmax(axis=1), k)
    kept = np.arange(k)[None] + (np.arange(k)[None] >= place[:, None])
    return [np.take_along_axis(x, kept, axis=1) for x in (similarity, index)]


def _threads(mesh: Mesh) -> int:
    """Return how many searches go on at once.

    On a CPU XLA's top_k is of one thread, beside which the others would wait: they
    multiply for the next queries. Accelerators need no such help.
    """
    alone = mesh.size == 1 and _on_cpu(mesh)
    return min(os.cpu_count() or 1, MOST_THREADS) if alone else 1


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


class _Report:
    """Tell the steps done of all chunks, of whichever thread."""

    def __init__(self, progress: Callable[[int, int], None], chunks: int):
        self._progress, self._chunks, self._done = progress, chunks, 0
        self._lock = threading.Lock()

    def __call__(self, steps: int) -> None:
        """Count one more, of so many a chunk."""
        with self._lock:
            self._done += 1
            self._progress(self._done, self._chunks * steps)


def check_rows(
    x: Float[np.ndarray, "row dim"], name: str
) -> Float32[np.ndarray, "row dim"]:
    """Return the rows as float32, of which no inner product can overflow.

    Raises:
        UserError: there are none, or some are not finite or larger than about 1e19.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.asarray(x, np.float32)
        if x.ndim != 2 or not x.size:
            raise UserError(f"{name} must be [row, dim] and not empty, not {x.shape}")
        bad = np.count_nonzero(~np.isfinite(np.einsum("nd,nd->n", x, x)))
    if bad:
        raise UserError(
            f"{bad} of {len(x)} rows of {name} hold NaN, infinity or values too large "
            "for float32: the training that made them has diverged"
        )
    return x


def _check_request(queries, gallery, k, exclude):
    """Raise where the arguments of nearest do not go together."""
    if queries.shape[1] != gallery.shape[1]:
        raise UserError(
            f"queries {queries.shape} and gallery {gallery.shape} differ in dimension"
        )
    if exclude is not None and np.shape(exclude) != (len(queries),):
        raise UserError(f"exclude {np.shape(exclude)} must be ({len(queries)},)")
    found = len(gallery) - (exclude is not None)
    if not found:
        raise UserError("the gallery is the query alone: it has no neighbours")
    if not 1 <= k <= found:
        own = "" if exclude is None else ", the query itself excluded"
        raise UserError(f"k={k} must be from 1 to {found}, the gallery's rows{own}")
