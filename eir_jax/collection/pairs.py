"""Pairs of rows that are similar, of one set or of two."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int

MOST_PAIRS = 1_000_000
ROUNDING = 1e-6  # of the cosine of two equal rows in float32

Pairs = tuple[Int[np.ndarray, "pair 2"], Float32[np.ndarray, " pair"], int]


def similar_pairs(
    rows: Float32[np.ndarray, "row dim"],
    threshold: float,
    other: Float32[np.ndarray, "other dim"] | None = None,
    *,
    limit: int = MOST_PAIRS,
    progress: Callable[[int, int], None] | None = None,
    row_block: int = 512,
    column_block: int = 4096,
) -> Pairs:
    """Find the pairs of cosine >= threshold (but for rounding).

    Memory holds one block of cosines, and the pairs: at most `limit` of them, the most
    similar.

    Args:
        rows: of unit length, or zero: these are similar to none.
        threshold: a cosine, -1 .. 1.
        other: a second set; None: pairs are of two different rows, the lower one first.
        limit: of the pairs that are returned.
        progress: called with (pairs compared, pairs in all).
        row_block: rows compared at once,
        column_block: with so many others.

    Returns:
        The pairs, the most similar first; their cosines; and how many there are in all,
        beyond the limit too.
    """
    columns = rows if other is None else other
    bound = np.float32(threshold - ROUNDING)
    pairs, cosines = np.empty((0, 2), np.int64), np.empty(0, np.float32)
    parts, waiting, count, floor = [], 0, 0, bound
    for start in range(0, len(rows), row_block):
        block = rows[start : start + row_block]
        for first in range(start if other is None else 0, len(columns), column_block):
            cosine = block @ columns[first : first + column_block].T
            if other is None and first < start + len(block):  # each pair once
                row, column = np.ogrid[: cosine.shape[0], : cosine.shape[1]]
                cosine[first + column <= start + row] = -2
            hits = np.count_nonzero(cosine >= bound)
            if not hits:
                continue
            count += int(hits)
            i, j = np.nonzero(cosine >= floor)
            parts.append((np.stack([start + i, first + j], axis=1), cosine[i, j]))
            waiting += len(i)
            if waiting > limit:
                pairs, cosines = _most_similar(pairs, cosines, parts, limit)
                parts, waiting = [], 0
                if len(pairs) == limit:  # from here on only what is more similar
                    floor = np.nextafter(cosines[-1], np.float32(2))
        if progress:
            if other is None:
                left = max(len(rows) - start - row_block, 0)
                all_pairs, to_do = (n * (n - 1) // 2 for n in (len(rows), left))
                progress(all_pairs - to_do, all_pairs)
            else:
                done = min(start + row_block, len(rows))
                progress(done * len(columns), len(rows) * len(columns))
    pairs, cosines = _most_similar(pairs, cosines, parts, limit)
    return pairs, cosines, count


def _most_similar(pairs, cosines, parts, limit):
    """Merge parts of (pairs, cosines) into those before, sorted, up to a limit."""
    pairs = np.concatenate([pairs, *(part[0] for part in parts)])
    cosines = np.concatenate([cosines, *(part[1] for part in parts)])
    if len(cosines) > limit:
        least = -np.partition(-cosines, limit - 1)[limit - 1]
        # Of those as similar as the last, the first: sorting all could take for ever.
        above, last = np.flatnonzero(cosines > least), np.flatnonzero(cosines == least)
        keep = np.concatenate([above, last[: limit - len(above)]])
        pairs, cosines = pairs[keep], cosines[keep]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -cosines))
    return pairs[order], cosines[order]
