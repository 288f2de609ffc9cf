"""Whether one picture is a copy of another: a second opinion, by the pixels.

An embedding says that two pictures are alike; two takes of one scene are alike as well.
Compared here is the picture itself, grey and at 16x16, by the correlation of its values
(no matter how bright or contrasty it is): whole, mirrored, or a part of the other.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int, UInt8

SMALLEST_PART = 0.7  # of a picture's side, that is known as a crop of it
Greys = UInt8[np.ndarray, "row side side"]
Units = Float32[np.ndarray, "row pixel"]


def unit_greys(grey: Greys, mirrored: bool = False) -> Units:
    """Return rows whose inner product is the pictures' correlation, -1 .. 1.

    A picture of (nearly) one value has none: its row is zero.
    """
    values = grey[:, :, ::-1] if mirrored else grey
    return _unit(values.reshape(len(grey), -1).astype(np.float32))


def correlation_as_part(
    grey: Greys,
    pairs: Int[np.ndarray, "pair 2"],
    other: Greys | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float32[np.ndarray, " pair"]:
    """Return each pair's largest correlation, one being a part of the other or whole.

    Parts are of the same shape, from `SMALLEST_PART` of the sides on, at any place.

    Args:
      grey: the thumbnails that the first of each pair is a row of.
      pairs: of rows.
      other: the thumbnails that the second is of; None: of the same ones.
      progress: called with (pairs compared, pairs in all).
    """
    sides = grey, grey if other is None else other
    best = np.full(len(pairs), -1, np.float32)
    for start in range(0, len(pairs), 1024):
        part = slice(start, start + 1024)
        for one, two in ((0, 1), (1, 0)):
            whole = unit_greys(sides[two][pairs[part, two]])
            parts = _parts(sides[one][pairs[part, one]])
            found = np.einsum("nwp,np->nw", parts, whole).max(axis=1)
            best[part] = np.maximum(best[part], found)
        if progress:
            progress(min(start + 1024, len(pairs)), len(pairs))
    return best


def _parts(grey: Greys) -> Float32[np.ndarray, "row part pixel"]:
    """Return each thumbnail's parts, enlarged to the whole size, as unit rows."""
    matrices = _resampling(grey.shape[-1])
    values = grey.astype(np.float32)
    parts = [down @ values @ across.T for down, across in matrices]
    return _unit(np.stack(parts, axis=1).reshape(len(grey), len(parts), -1))


@functools.cache
def _resampling(side: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each part the matrices that enlarge it, linearly, down and across."""

    def matrix(first: int, width: int) -> np.ndarray:
        place = first + (np.arange(side) + 0.5) * width / side - 0.5
        place = np.clip(place, 0, side - 1)
        low = np.minimum(np.floor(place).astype(int), side - 2)
        found = np.zeros((side, side), np.float32)
        found[np.arange(side), low] = 1 - (place - low)
        found[np.arange(side), low + 1] += place - low
        return found

    return [
        (matrix(top, width), matrix(left, width))
        for width in range(round(SMALLEST_PART * side), side + 1)
        for top in range(side - width + 1)
        for left in range(side - width + 1)
    ]


def _unit(values: Float32[np.ndarray, "*rows pixel"]) -> np.ndarray:
    values = values - values.mean(axis=-1, keepdims=True)
    norm = np.linalg.norm(values, axis=-1, keepdims=True)
    flat = norm < values.shape[-1] ** 0.5  # spread over less than one grey value
    return np.where(flat, 0, values / np.maximum(norm, 1e-12)).astype(np.float32)
