"""Pairs of pictures that are nearly the same."""

import sys
from collections.abc import Callable
from contextlib import closing, redirect_stdout

import numpy as np
from jaxtyping import Float, Float32, Int

from eir_jax.collection.embeddings import Embeddings, names_of, one_field
from eir_jax.system.errors import UserError
from eir_jax.system.words import counted

MOST_PAIRS = 1000
MOST_IN_ALL = 20_000_000  # pairs without a limit: some 500 MB
ROUNDING = 1e-6  # of the cosine of two equal rows in float32


def near_duplicates(
    embedding: Float[np.ndarray, "row dim"],
    threshold: float,
    limit: int | None = MOST_PAIRS,
    progress: Callable[[int, int], None] | None = None,
    row_block: int = 512,
    column_block: int = 4096,
) -> tuple[Int[np.ndarray, "pair 2"], Float32[np.ndarray, " pair"], int]:
    """Find the pairs of rows of cosine >= threshold (but for rounding).

    Memory holds one block of cosines, and the pairs: at most `limit` of them.

    Returns:
        The pairs (lower row first), the most similar first; their cosines; and how
        many there are in all, beyond the limit too.

    Raises:
        UserError: the threshold is no cosine, rows are zero or not finite, or there is
            no limit and more pairs than memory should hold.
    """
    from eir_jax.evaluation.knn import unit_rows

    if not -1 <= threshold <= 1:
        raise UserError(f"--duplicates={threshold} must be a cosine, from -1 to 1")
    rows = unit_rows(embedding, "the embeddings")
    bound = np.float32(threshold - ROUNDING)
    pairs, cosines = np.empty((0, 2), np.int64), np.empty(0, np.float32)
    parts, count, floor = [], 0, bound
    for start in range(0, len(rows), row_block):
        block = rows[start : start + row_block]
        for first in range(start, len(rows), column_block):
            cosine = block @ rows[first : first + column_block].T
            if first < start + len(block):  # each pair once, and no row with itself
                row, column = np.ogrid[: cosine.shape[0], : cosine.shape[1]]
                cosine[first + column <= start + row] = -2
            hits = np.count_nonzero(cosine >= bound)
            if not hits:
                continue
            count += int(hits)
            if limit is None and count > MOST_IN_ALL:
                raise UserError(
                    f"more than {MOST_IN_ALL:,} pairs have a cosine >= {threshold:g}; "
                    "give a larger one, or leave out --all"
                )
            i, j = np.nonzero(cosine >= floor)
            parts.append((np.stack([start + i, first + j], axis=1), cosine[i, j]))
            if limit is not None:
                pairs, cosines = _most_similar(pairs, cosines, parts, limit)
                parts = []
                if len(pairs) == limit:  # from here on only what is more similar
                    floor = np.nextafter(cosines[-1], np.float32(2))
        if progress:
            left = max(len(rows) - start - row_block, 0)
            pairs_of = [n * (n - 1) // 2 for n in (len(rows), left)]
            progress(pairs_of[0] - pairs_of[1], pairs_of[0])
    pairs, cosines = _most_similar(pairs, cosines, parts, limit)
    return pairs, cosines, count


def print_duplicates(
    gallery: Embeddings, threshold: float, limit: int | None = MOST_PAIRS
) -> None:
    """Print the pairs of near-duplicates, and on stderr how many there are."""
    from eir_jax.system.progress import ProgressLine

    with (
        redirect_stdout(sys.stderr),
        closing(ProgressLine("comparing pairs", 1)) as bar,
    ):
        pairs, cosines, count = near_duplicates(
            gallery.embedding, threshold, limit, bar.update
        )
    names = names_of(gallery)
    for (one, other), cosine in zip(pairs, cosines, strict=True):
        print(one_field(names[one]), one_field(names[other]), f"{cosine:.4f}", sep="\t")
    some = f"; the {len(pairs):,} most similar are listed, --all lists the rest"
    words = f"{counted(count, 'pair')} of cosine >= {threshold:g}"
    print(words + some * (len(pairs) < count), file=sys.stderr)


def _most_similar(pairs, cosines, parts, limit):
    """Merge parts of (pairs, cosines) into those before, sorted, up to a limit."""
    pairs = np.concatenate([pairs, *(part[0] for part in parts)])
    cosines = np.concatenate([cosines, *(part[1] for part in parts)])
    if limit is not None and len(cosines) > limit:
        least = -np.partition(-cosines, limit - 1)[limit - 1]
        # Of those as similar as the last, the first: sorting all could take for ever.
        above, last = np.flatnonzero(cosines > least), np.flatnonzero(cosines == least)
        keep = np.concatenate([above, last[: limit - len(above)]])
        pairs, cosines = pairs[keep], cosines[keep]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -cosines))
    return pairs[order], cosines[order]
