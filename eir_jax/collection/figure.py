"""A figure of queries and what they found."""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from eir_jax.collection.embeddings import Embeddings, names_of, one_field
from eir_jax.collection.pictures import squares
from eir_jax.collection.search import Neighbours
from eir_jax.system.errors import UserError

FIGURE_QUERIES, FIGURE_COLUMNS, FIGURE_SIZE = 16, 16, 160


def draw(query: Embeddings, gallery: Embeddings, found: Neighbours, path: Path) -> None:
    """Draw the first queries and neighbours, their pictures read anew.

    Where all queries were looked up together, the first four share a square.

    Raises:
      UserError: a picture is not where it was, or the figure cannot be written.
    """
    from eir_jax.figures.neighbours import neighbour_grid

    index, cosine = (
        x[:FIGURE_QUERIES, :FIGURE_COLUMNS] for x in (found.row, found.cosine)
    )
    rows, place = np.unique(index[index >= 0], return_inverse=True)
    neighbours = np.full(index.shape, -1)
    neighbours[index >= 0] = place
    shown = np.arange(len(index))
    if len(found.names) == len(query.embedding):
        asked, label = squares(query, shown, FIGURE_SIZE), query.label
    else:
        asked, label = _montage(query)[None], None
    images = np.concatenate([squares(gallery, rows, FIGURE_SIZE), asked])
    labels = [
        np.full(len(which), -1) if of is None else of[which]
        for of, which in ((gallery.label, rows), (label, shown))
    ]
    if len(shown) < len(found.names):
        print(f"the figure shows the first {len(shown)} queries", file=sys.stderr)
    queries = _shown_names([found.names[i] for i in shown])
    names = names_of(gallery)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # signs that the font does not have
            neighbour_grid(
                images,
                neighbours,
                len(rows) + shown,
                np.concatenate(labels),
                path,
                cosine,
                row_names=queries,
                image_names=_shown_names([names[row] for row in rows]) + queries,
                class_names=gallery.meta.get("class_names"),
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written: {error}") from None


def _montage(query: Embeddings) -> UInt8[np.ndarray, "size size 3"]:
    """Return up to four pictures of a query in one square, on white."""
    rows = np.arange(min(len(query.embedding), 4))
    if len(rows) == 1:
        return squares(query, rows, FIGURE_SIZE)[0]
    half = FIGURE_SIZE // 2
    canvas = np.full((FIGURE_SIZE, FIGURE_SIZE, 3), 255, np.uint8)
    for i, image in enumerate(squares(query, rows, half)):
        top, left = i // 2 * half, i % 2 * half
        canvas[top : top + half, left : left + half] = image
    return canvas


def _shown_names(names: Sequence[str]) -> list[str]:
    """Return the files' own names, without their folders, as a font can draw them."""
    shown = (one_field(os.path.basename(name)) for name in names)
    return [name.encode(errors="replace").decode() for name in shown]
