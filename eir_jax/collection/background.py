"""How similar pictures of a collection are that have nothing to do with each other.

A cosine by itself says nothing: where an embedding is not spread out, .98 may join any
two pictures. What counts is how many random pairs reach it.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32

MOST_SAMPLED = 1_000_000  # pairs
TAIL, BODY = 0.01, 0.1  # shares of the pairs, from which the rarer ones are reckoned


@dataclasses.dataclass(frozen=True)
class Background:
    """Angles of random pairs, in radians, ascending; `background` makes it.

    The share of the pairs within a small angle grows as a power of it, whose exponent
    is the embedding's local dimension (Amsaleg et al. 2015); below the nearest 1 % the
    share follows that power, as there real duplicates would count as background.
    """

    angles: Float[np.ndarray, " pair"]

    def rate(self, cosine: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
        """Return the share of random pairs that are at least so similar, 0 .. 1."""
        angle = np.arccos(np.clip(np.asarray(cosine, np.float64), -1, 1))
        counted = np.searchsorted(self.angles, angle, side="right") / len(self.angles)
        tail, corner, power = self._tail()
        if not corner or not np.isfinite(power):
            return counted
        with np.errstate(divide="ignore"):
            reckoned = tail * (angle / corner) ** power
        return np.where(angle < corner, reckoned, counted)

    def cosine(self, rate: float) -> float:
        """Return the cosine that the share `rate`, 0 .. 1, of random pairs reaches."""
        tail, corner, power = self._tail()
        if rate >= tail or not corner or not np.isfinite(power):
            return float(np.cos(np.quantile(self.angles, rate)))
        return float(np.cos(corner * (rate / tail) ** (1 / power)))

    def in_words(self) -> str:
        """Return a line of the median and some quantiles of the cosine."""
        median, *few = (f"{self.cosine(rate):.3f}" for rate in (0.5, 0.01, 0.001))
        return (
            f"of random pairs half have a cosine above {median}, 1 % above {few[0]}, "
            f"0.1 % above {few[1]}"
        )

    def _tail(self) -> tuple[float, float, float]:
        """Return a share, its angle, and the power by which rarer ones fall."""
        tail = min(max(TAIL, 10 / len(self.angles)), 0.25)
        body = min(BODY / TAIL * tail, 0.5)
        corner, outer = np.quantile(self.angles, [tail, body])
        if corner <= 0 or outer <= corner:
            return tail, float(corner), np.inf
        return tail, float(corner), float(np.log(body / tail) / np.log(outer / corner))


def background(
    rows: Float32[np.ndarray, "row dim"],
    other: Float32[np.ndarray, "other dim"] | None = None,
    seed: int = 0,
) -> Background:
    """Measure the angles of random pairs of rows, or of all where there are few.

    Args:
      rows: of unit length, two or more.
      other: rows of a second set, of unit length: then pairs are of one of each.
      seed: of the choice among more than a million pairs.
    """
    n, m = len(rows), len(rows if other is None else other)
    pairs = n * (n - 1) // 2 if other is None else n * m
    if pairs <= MOST_SAMPLED:
        cosine = rows @ (rows if other is None else other).T
        cosine = cosine.ravel() if other is not None else cosine[np.triu_indices(n, 1)]
    else:
        rng = np.random.default_rng(seed)
        i = rng.integers(0, n, MOST_SAMPLED)
        j = rng.integers(0, m, MOST_SAMPLED)
        if other is None:
            i, j = i[i != j], j[i != j]
        cosine = np.concatenate(
            [
                np.einsum("nd,nd->n", rows[a], (rows if other is None else other)[b])
                for a, b in zip(
                    np.array_split(i, 16), np.array_split(j, 16), strict=True
                )
            ]
        )
    return Background(np.sort(np.arccos(np.clip(cosine.astype(np.float64), -1, 1))))
