"""What a collection holds twice, or two collections share: exact and near copies."""

import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, redirect_stdout
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from eir_jax.collection.background import Background, background
from eir_jax.collection.copies import correlation_as_part, unit_greys
from eir_jax.collection.embeddings import Embeddings, names_of, one_field, rows_on
from eir_jax.collection.pairs import MOST_PAIRS, ROUNDING, similar_pairs
from eir_jax.system.errors import UserError
from eir_jax.system.words import counted

COPY, PART = 0.95, 0.91
"""Least correlation of the pixels of a copy, whole or mirrored, and of a crop."""
AGREES = 0.5
"""Of a pair with the pixels of a copy: share of random pairs as similar embedded."""
FALSE, CANDIDATES = 0.01, 3.0
"""Random pairs a picture that are taken for duplicates by the embedding alone; that
are looked at for crops."""
MOST_CANDIDATES = 10  # a picture, if the embedding is so collapsed that there are more
KINDS = np.array(["exact", "copy", "mirrored", "crop", "near"])
EXACT, SAME, MIRRORED, CROP, NEAR = range(len(KINDS))
NONE = -1


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Pairs of rows that show the same; of one set or, the second, of another."""

    pairs: Int[np.ndarray, "pair 2"]
    cosine: Float32[np.ndarray, " pair"]
    kind: np.ndarray
    """Of `KINDS`: by the file's content; by the pixels (copy, mirrored, crop); by the
    embedding alone."""
    threshold: float
    """Cosine of the last kind, or of those that were looked at for crops."""
    random: Background
    """How similar random pairs are."""
    compared: int
    """Pairs in all."""
    incomplete: bool = False
    """There were more pairs than the limit: the least similar ones are missing."""


def find_duplicates(
    gallery: Embeddings,
    against: Embeddings | None = None,
    *,
    threshold: float | None = None,
    on: str = "embedding",
    limit: int = MOST_PAIRS,
    progress: Callable[[str], Callable[[int, int], None]] | None = None,
) -> Duplicates:
    """Find the pairs of pictures of which one is made of the other.

    Exact copies have the same content. Others have the same pixels, at 16x16 and grey,
    as they are or mirrored (correlation >= `COPY`), and are no less similar by the
    embedding than `AGREES` of random pairs are; or are so similar by the embedding as
    random pairs seldom are (`CANDIDATES` a picture) and one has the pixels of a part
    of the other (>= `PART`). Where the pixels are not noted, or a cosine is given, the
    embedding alone decides: at the cosine, or where `FALSE` random pairs a picture are
    so similar.

    Args:
      gallery: the collection.
      against: another one; None: pairs within the first.
      threshold: a cosine, -1 .. 1; None: as said above.
      on: 'embedding' or 'feature'.
      limit: of the pairs.
      progress: given what is done, returns what is called with (done, in all).

    Raises:
      UserError: the threshold is no cosine, rows are zero or not finite, or the two
        sets differ in dimension.
    """
    from eir_jax.evaluation.knn import unit_rows

    if threshold is not None and not -1 <= threshold <= 1:
        raise UserError(f"--duplicates={threshold} must be a cosine, from -1 to 1")
    rows = unit_rows(rows_on(gallery, on), "the embeddings")
    other = None
    if against is not None:
        other = unit_rows(rows_on(against, on), "the embeddings of --against")
        if other.shape[1] != rows.shape[1]:
            raise UserError(
                f"the embeddings have {rows.shape[1]} dimensions, those of --against "
                f"{other.shape[1]}; embed both by one run"
            )
    second = gallery if against is None else against
    if len(rows) * len(second.embedding) < 2:
        raise UserError("there is one picture alone, and nothing to compare it with")
    random = background(rows, other)
    seen = threshold is None and gallery.grey is not None and second.grey is not None

    if threshold is None:
        most = len(rows) / 2 if against is None else len(second.embedding)
        threshold = random.cosine(min((CANDIDATES if seen else FALSE) / most, 0.5))
    said = progress or (lambda what: lambda done, total: None)
    parts = [_same_hash(gallery, second, against is None)]
    found, _, count = similar_pairs(
        rows,
        threshold,
        other,
        limit=min(limit, int(MOST_CANDIDATES * len(rows))) if seen else limit,
        progress=said("comparing pairs"),
    )
    parts.append(found)
    incomplete = not seen and count > len(found)
    if seen:
        assert gallery.grey is not None and second.grey is not None
        grey, others = unit_greys(gallery.grey), unit_greys(second.grey)
        for what, query, target in (
            ("comparing pixels", grey, None if against is None else others),
            ("comparing mirrored", unit_greys(gallery.grey, mirrored=True), others),
        ):
            found, _, count = similar_pairs(
                query, COPY, target, limit=limit, progress=said(what)
            )
            incomplete |= count > len(found)
            parts.append(found)
    pairs = np.concatenate(parts)
    if against is None:  # a mirrored pair is found from both sides, and each in itself
        pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    pairs = np.unique(pairs, axis=0)
    cosine = _products(rows, rows if other is None else other, pairs)
    kind = np.where(cosine >= threshold - ROUNDING, NEAR, NONE)
    if seen:
        crops = said("looking for crops")
        kind = _kinds_by_pixels(gallery.grey, second.grey, pairs, kind == NEAR, crops)
        kind[cosine < random.cosine(AGREES) - ROUNDING] = NONE
    if gallery.hash is not None and second.hash is not None:
        content = gallery.hash[pairs[:, 0]]
        kind[(content != b"") & (content == second.hash[pairs[:, 1]])] = EXACT
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -cosine))
    order = order[kind[order] != NONE]
    return Duplicates(
        pairs[order],
        cosine[order],
        KINDS[kind[order]],
        threshold,
        random,
        len(rows) * (len(rows) - 1) // 2 if other is None else len(rows) * len(other),
        incomplete,
    )


def _same_hash(gallery: Embeddings, second: Embeddings, within: bool):
    """Return each row of a content with the first row that has it, of the second set.

    Not every pair: of a thousand equal files there would be half a million.
    """
    if gallery.hash is None or second.hash is None:
        return np.empty((0, 2), np.int64)
    content, first = np.unique(second.hash, return_index=True)
    place = np.searchsorted(content, gallery.hash).clip(max=len(content) - 1)
    same = np.flatnonzero(content[place] == gallery.hash)
    same = same[content[place[same]] != b""]
    pairs = np.stack([same, first[place[same]]], axis=1)
    return pairs[pairs[:, 0] != pairs[:, 1]] if within else pairs


def _kinds_by_pixels(grey, others, pairs, similar, progress):
    """Return COPY, MIRRORED or CROP (of `similar` pairs) or NONE for each pair."""
    one, two = unit_greys(grey), unit_greys(others)
    copy = _products(one, two, pairs) >= COPY - ROUNDING
    mirrored = _products(unit_greys(grey, mirrored=True), two, pairs) >= COPY - ROUNDING
    kind = np.select([copy, mirrored], [SAME, MIRRORED], NONE)
    rest = np.flatnonzero(similar & (kind == NONE))
    part = correlation_as_part(grey, pairs[rest], others, progress) >= PART
    kind[rest[part]] = CROP
    return kind


def _products(rows, others, pairs):
    blocks = np.array_split(pairs, len(pairs) // 65536 + 1)
    return np.concatenate(
        [np.einsum("nd,nd->n", rows[p[:, 0]], others[p[:, 1]]) for p in blocks]
    )


class Copy(NamedTuple):
    """A picture and one that shows the same."""

    keep: int
    """The one to keep, of two sets the row of the first."""
    row: int
    cosine: float
    kind: str
    """Of `KINDS`: of this pair, or else of the copy and another of its group."""


def copies_of(
    found: Duplicates, gallery: Embeddings, on: str = "embedding"
) -> list[list[Copy]]:
    """Return the connected groups of pairs within one set, by their first row.

    Kept is the largest picture; of equal ones the first.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(found.pairs):
        return []
    rows, place = np.unique(found.pairs, return_inverse=True)
    one, two = place.reshape(-1, 2).T
    links = coo_array((np.ones(len(one)), (one, two)), shape=(len(rows),) * 2)
    _, group = connected_components(links, directed=False)
    area = np.zeros(len(rows), np.int64)
    if gallery.size is not None:
        area = gallery.size[rows].astype(np.int64).prod(axis=1)
    kinds: dict[Any, str] = {}
    for pair, kind in zip(found.pairs.tolist(), found.kind.tolist(), strict=True):
        kinds[tuple(pair)] = kind
        for row in pair:  # the most similar pair comes first
            kinds.setdefault(row, kind)
    vectors = rows_on(gallery, on)
    result = []
    ends = np.cumsum(np.bincount(group))[:-1]
    for members in np.split(np.argsort(group, kind="stable"), ends):
        keep = int(rows[members[np.argmax(area[members])]])
        others = [row for row in rows[members].tolist() if row != keep]
        cosines = _cosines(vectors[keep], vectors[others])
        result.append(
            [
                Copy(
                    keep, row, cosine, kinds.get((*sorted((keep, row)),)) or kinds[row]
                )
                for row, cosine in zip(others, cosines, strict=True)
            ]
        )
    return sorted(result, key=lambda group: min(group[0].keep, group[0].row))


def _cosines(row, others) -> list[float]:
    row, others = (np.asarray(x, np.float64) for x in (row, others))
    norms = np.linalg.norm(others, axis=1) * np.linalg.norm(row)
    return (others @ row / norms).tolist()


def print_duplicates(
    gallery: Embeddings,
    against: Embeddings | None,
    threshold: float | None,
    on: str = "embedding",
) -> None:
    """Find duplicates and print a line for each: one to keep, its copy, cosine, kind.

    Between two sets: a row of the first and one of the second. On stderr: what random
    pairs reach, and how many duplicates there are of each kind.
    """
    from eir_jax.system.progress import ProgressLine

    with redirect_stdout(sys.stderr), ExitStack() as bars:

        def progress(what):
            return bars.enter_context(closing(ProgressLine(what, 1))).update

        found = find_duplicates(
            gallery, against, threshold=threshold, on=on, progress=progress
        )
    if against is None:
        groups = copies_of(found, gallery, on)
        copies = [copy for group in groups for copy in group]
        number = counted(len(copies), "copy", "copies")
        number += f" in {counted(len(groups), 'group')}"
    else:
        pairs = zip(found.pairs.tolist(), found.cosine, found.kind, strict=True)
        copies = [Copy(one, two, float(c), kind) for (one, two), c, kind in pairs]
        number = f"{counted(len(copies), 'pair')} that both hold"
    names, others = names_of(gallery), names_of(against or gallery)
    for keep, row, cosine, kind in copies:
        words = one_field(names[keep]), one_field(others[row]), f"{cosine:.4f}", kind
        print(*words, sep="\t")
    tell = functools.partial(print, file=sys.stderr)
    tell(found.random.in_words())
    kinds = Counter(copy.kind for copy in copies)
    each = ", ".join(f"{kinds[kind]:,} {kind}" for kind in KINDS if kinds[kind])
    tell(number + f": {each}" * bool(copies))
    if threshold is not None:
        by_chance = float(found.random.rate(np.array(threshold))) * found.compared
        tell(
            f"of cosine >= {threshold:g} are about {by_chance:,.0f} pairs by chance "
            f"alone; leave the number away, and the pixels are looked at too"
        )
    if found.incomplete:
        tell(
            f"there are more than {MOST_PAIRS:,} pairs: the most similar ones alone "
            "are counted; give a larger cosine"
        )
