"""The nearest pictures of a collection to a query."""

import functools
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int

from eir_jax.collection.embed import describe, embed_pictures, existing_pictures
from eir_jax.collection.embeddings import (
    Embeddings,
    names_of,
    one_field,
    read_embeddings,
    rows_on,
)
from eir_jax.collection.pictures import read_square
from eir_jax.system.errors import UserError
from eir_jax.system.files import in_words


class Neighbours(NamedTuple):
    """What each query found, the nearest first."""

    cosine: Float32[np.ndarray, "query k"]
    row: Int[np.ndarray, "query k"]
    """Of the gallery; -1: less similar than was asked for."""
    names: list[str]
    """Of the queries."""


def embed_query(
    query: Sequence[Path], gallery: Embeddings, workdir: Path | None, step: str | None
) -> Embeddings:
    """Embed pictures or a folder as the gallery was; or read another .npz.

    Raises:
      UserError: it is missing or broken, there is no run to embed it by, or that or
        the .npz is not of the gallery's checkpoint; or there are several folders.
    """
    for path in query:
        if not path.exists():
            raise UserError(
                f"there is no picture, folder or file {in_words(path)} (--query)"
            )
        if len(query) > 1 and (path.is_dir() or path.suffix == ".npz"):
            raise UserError(f"{path} is no picture; give it as the only --query")
    if query[0].suffix == ".npz":
        found = read_embeddings(query[0])
        check_same_checkpoint(found.meta, gallery.meta, f"the rows of {query[0]}")
        return found
    if workdir is None:
        noted = gallery.meta.get("workdir")
        if noted is None:
            raise UserError("the embeddings note no workdir; give --workdir")
        workdir = Path(noted)
        if not workdir.exists():
            raise UserError(
                f"the workdir that the embeddings note, {noted}, does not exist here; "
                "give --workdir"
            )
    if query[0].is_dir():
        folder, paths = query[0], existing_pictures(query[0])
    else:
        folder, paths = Path.cwd(), [str(path) for path in query]
        for path in query:
            read_square(path, 1)  # a broken one need not wait for the checkpoint
    from eir_jax.evaluation.restore import restore

    settings = gallery.meta.get("settings")
    words = [
        f"--config.{key}={value}"
        for key, value in (settings if isinstance(settings, dict) else {}).items()
        if workdir.is_file()  # a run's own are settled
    ]
    run = restore(workdir, step or str(gallery.meta.get("step", "last")), words)
    check_same_checkpoint(describe(run, workdir), gallery.meta, str(workdir))
    return embed_pictures(run, workdir, folder, paths)


def search(
    query: Embeddings,
    gallery: Embeddings,
    k: int,
    *,
    on: str = "embedding",
    together: bool = False,
    least: float = -1.0,
) -> Neighbours:
    """Find each query's k most similar rows, or those of all queries together.

    A query that is in the gallery itself, by its path, does not find itself.

    Args:
      query: what to look up.
      gallery: what is found.
      k: neighbours a query.
      on: 'embedding' or 'feature'.
      together: look up one query, the mean of their directions.
      least: cosine of a neighbour, -1 .. 1.

    Raises:
      UserError: k is out of range, the rows are not finite or of other dimensions, or
        the queries' mean has no direction.
    """
    from eir_jax.evaluation.knn import unit_rows
    from eir_jax.evaluation.nearest import nearest
    from eir_jax.system.progress import ProgressLine

    rows = unit_rows(rows_on(gallery, on), "the embeddings")
    queries = unit_rows(rows_on(query, on), "the query")
    names = names_of(query)
    own = _own_rows(query, gallery)

    def found_by(which, more=0, exclude=None):
        with closing(ProgressLine("searching", 1)) as bar:
            return nearest(which, rows, k + more, exclude=exclude, progress=bar.update)

    if together:
        own = np.unique(own[own >= 0])
        if not 1 <= k <= len(rows) - len(own):
            raise UserError(
                f"k={k} must be from 1 to {len(rows) - len(own)}, the rows that are "
                "no queries"
            )
        mean = unit_rows(queries.mean(axis=0, keepdims=True), "the queries' mean")
        cosine, row = found_by(mean, len(own))
        other = ~np.isin(row[0], own)
        cosine, row = cosine[:, other][:, :k], row[:, other][:, :k]
        names = [f"{len(names)} together"]
    else:
        cosine = np.empty((len(queries), max(k, 0)), np.float32)
        row = np.empty(cosine.shape, np.int32)
        for which in (own >= 0, own < 0):
            if which.any():
                exclude = own[which] if own[which][0] >= 0 else None
                cosine[which], row[which] = found_by(queries[which], 0, exclude)
    return Neighbours(cosine, np.where(cosine >= least - 1e-6, row, -1), names)


def print_neighbours(gallery: Embeddings, found: Neighbours) -> None:
    """Print a line for each query's each neighbour."""
    names = gallery.path if gallery.path is not None else gallery.index
    assert names is not None
    for i, name in enumerate(found.names):
        for rank, (value, row) in enumerate(
            zip(found.cosine[i], found.row[i], strict=True), start=1
        ):
            if row < 0:
                break
            shown = one_field(str(names[row]))
            words = [one_field(name), str(rank), shown, f"{value:.4f}"]
            if gallery.label is not None:
                words.append(str(gallery.label[row]))
            print(*words, sep="\t")


def _own_rows(query: Embeddings, gallery: Embeddings) -> Int[np.ndarray, " query"]:
    """Return the gallery's row of each query that is in it, else -1."""
    wanted = _identities(query, names_of(query))
    if gallery.path is None:
        candidates = np.arange(len(gallery.embedding))
    else:  # of a million paths few are looked at: those of a query's own name
        ends = {os.path.basename(name) for name in wanted}
        candidates = np.flatnonzero(_ends_with(gallery.path, ends))
    column = gallery.index if gallery.path is None else gallery.path
    assert column is not None
    found = _identities(gallery, [str(name) for name in column[candidates]])
    place = {name: int(row) for name, row in zip(found, candidates, strict=True)}
    return np.array([place.get(name, -1) for name in wanted])


def _ends_with(paths: np.ndarray, ends: set[str]) -> Bool[np.ndarray, " row"]:
    if len(ends) > 20:
        return np.array([os.path.basename(path) in ends for path in paths.tolist()])
    masks = [np.char.endswith(paths, end) for end in ends]
    return np.logical_or.reduce(masks)


def _identities(embeddings: Embeddings, names: Sequence[str]) -> list[str]:
    """Return for each row what tells that two are of the same picture."""
    source = embeddings.meta["source"]
    if embeddings.path is None:
        which = f"{source}:{embeddings.meta.get('split', '')}:"
        return [which + name for name in names]
    real = functools.cache(os.path.realpath)
    paths = (os.path.join(source, name) for name in names)
    return [os.path.join(real(os.path.dirname(p)), os.path.basename(p)) for p in paths]


def check_same_checkpoint(meta: dict, other: dict, whose: str) -> None:
    """Refuse to compare what different networks say, or of images prepared otherwise.

    Their cosines mean nothing.
    """
    one, two = meta.get("checkpoint"), other.get("checkpoint")
    if one and two and one != two:
        raise UserError(
            f"{whose}: step {meta.get('step')} is not the checkpoint that made the "
            f"embeddings (step {other.get('step')} of {other.get('workdir')})"
        )
    for key in ("image_size", "transform"):
        one, two = meta.get(key), other.get(key)
        if one and two and one != two:
            raise UserError(
                f"{whose}: {key} {one}, where the embeddings have {two}; embed both "
                "with the same --config.data settings"
            )
