"""The nearest pictures of a collection to a query."""

import functools
import os
import sys
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, UInt8

from eir_jax.collection.embed import describe, embed_pictures, existing_pictures
from eir_jax.collection.embeddings import (
    Embeddings,
    names_of,
    one_field,
    read_embeddings,
    read_images,
)
from eir_jax.data.pictures import BrokenPicture, read_picture
from eir_jax.system.errors import UserError
from eir_jax.system.files import in_words

FIGURE_QUERIES, FIGURE_COLUMNS, FIGURE_SIZE = 16, 16, 160


def embed_query(
    query: Path, gallery: Embeddings, workdir: Path | None, step: str | None
) -> Embeddings:
    """Embed a picture or a folder as the gallery was; or read another .npz.

    Raises:
      UserError: it is missing or broken, there is no run to embed it by, or that or
        the .npz is not of the gallery's checkpoint.
    """
    if not query.exists():
        raise UserError(
            f"there is no picture, folder or file {in_words(query)} (--query)"
        )
    if query.suffix == ".npz":
        found = read_embeddings(query)
        _check_same_checkpoint(found.meta, gallery.meta, f"the rows of {query}")
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
    if query.is_dir():
        folder, paths = query, existing_pictures(query)
    else:
        folder, paths = Path.cwd(), [str(query)]
        _read(query, 1)  # a broken one need not wait for the checkpoint
    from eir_jax.evaluation.restore import restore

    run = restore(workdir, step or str(gallery.meta.get("step", "last")))
    _check_same_checkpoint(describe(run, workdir), gallery.meta, str(workdir))
    return embed_pictures(run, workdir, folder, paths)


def search(
    query: Embeddings, gallery: Embeddings, k: int
) -> tuple[Float32[np.ndarray, "query k"], Int[np.ndarray, "query k"]]:
    """Find each query's k most similar rows: cosine and row, the nearest first.

    A query that is in the gallery itself, by its path, does not find itself.

    Raises:
      UserError: k is out of range, or the rows are not finite or of other dimensions.
    """
    from eir_jax.evaluation.knn import unit_rows
    from eir_jax.evaluation.nearest import nearest
    from eir_jax.system.progress import ProgressLine

    rows = unit_rows(gallery.embedding, "the embeddings")
    queries = unit_rows(query.embedding, "the query")
    place = {identity: row for row, identity in enumerate(_identities(gallery))}
    own = np.array([place.get(identity, -1) for identity in _identities(query)])
    cosine = np.empty((len(queries), max(k, 0)), np.float32)
    index = np.empty(cosine.shape, np.int32)
    for is_own in (own >= 0, own < 0):
        if not is_own.any():
            continue
        exclude = own[is_own] if own[is_own][0] >= 0 else None
        with closing(ProgressLine("searching", 1)) as bar:
            found = nearest(
                queries[is_own], rows, k, exclude=exclude, progress=bar.update
            )
        cosine[is_own], index[is_own] = found
    return cosine, index


def print_neighbours(
    query: Embeddings,
    gallery: Embeddings,
    cosine: Float32[np.ndarray, "query k"],
    index: Int[np.ndarray, "query k"],
) -> None:
    """Print a line for each query's each neighbour."""
    queries, names = names_of(query), names_of(gallery)
    for i, name in enumerate(queries):
        for rank, (value, row) in enumerate(
            zip(cosine[i], index[i], strict=True), start=1
        ):
            words = [one_field(name), str(rank), one_field(names[row]), f"{value:.4f}"]
            if gallery.label is not None:
                words.append(str(gallery.label[row]))
            print(*words, sep="\t")


def draw(
    query: Embeddings,
    gallery: Embeddings,
    cosine: Float32[np.ndarray, "query k"],
    index: Int[np.ndarray, "query k"],
    path: Path,
) -> None:
    """Draw the first queries and neighbours, their pictures read anew.

    Raises:
      UserError: a picture is not where it was, or the figure cannot be written.
    """
    from eir_jax.figures.neighbours import neighbour_grid

    index, cosine = (x[:FIGURE_QUERIES, :FIGURE_COLUMNS] for x in (index, cosine))
    rows, place = np.unique(index, return_inverse=True)
    shown = np.arange(len(index))
    images = [_pictures(gallery, rows), _pictures(query, shown)]
    labels = [
        np.full(len(which), -1) if of.label is None else of.label[which]
        for of, which in ((gallery, rows), (query, shown))
    ]
    if len(shown) < len(query.embedding):
        print(f"the figure shows the first {len(shown)} queries", file=sys.stderr)
    queries, neighbours = _shown_names(query), _shown_names(gallery)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # signs that the font does not have
            neighbour_grid(
                np.concatenate(images),
                place.reshape(index.shape),
                len(rows) + shown,
                np.concatenate(labels),
                path,
                cosine,
                row_names=[queries[i] for i in shown],
                image_names=[neighbours[row] for row in rows]
                + [queries[i] for i in shown],
                class_names=gallery.meta.get("class_names"),
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written: {error}") from None


def _shown_names(embeddings: Embeddings) -> list[str]:
    """Return the files' own names, without their folders, as a font can draw them."""
    names = (one_field(os.path.basename(name)) for name in names_of(embeddings))
    return [name.encode(errors="replace").decode() for name in names]


def _pictures(
    embeddings: Embeddings, rows: Int[np.ndarray, " row"]
) -> UInt8[np.ndarray, "row size size 3"]:
    """Read the pictures that rows were made of, at the figure's size."""
    from PIL import Image

    source = Path(embeddings.meta["source"])
    if embeddings.path is not None:
        return np.stack(
            [_read(source / str(embeddings.path[row]), FIGURE_SIZE) for row in rows]
        )
    if not source.is_file():
        raise UserError(
            f"the figure needs the pictures, and {source} is no file here; give "
            "--images=FILE.npz with those embedded"
        )
    assert embeddings.index is not None
    images, _ = read_images(source, embeddings.meta.get("split") or None)
    rows = embeddings.index[rows]
    if rows.min() < 0 or rows.max() >= len(images):
        raise UserError(
            f"{source} holds {len(images)} images and the embeddings are of row "
            f"{rows.max()}; give --images=FILE.npz with those embedded"
        )
    size, method = (FIGURE_SIZE, FIGURE_SIZE), Image.Resampling.NEAREST
    return np.stack(
        [np.asarray(Image.fromarray(images[row]).resize(size, method)) for row in rows]
    )


def _read(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    try:
        return read_picture(path, size)
    except BrokenPicture as error:
        raise UserError(
            f"{path} cannot be read as a picture: {error}"
            + ("; give --images=DIR" if not path.exists() else "")
        ) from None


def _identities(embeddings: Embeddings) -> list[str]:
    """Return for each row what tells that two are of the same picture."""
    source = embeddings.meta["source"]
    if embeddings.path is None:
        which = f"{source}:{embeddings.meta.get('split', '')}:"
        return [which + name for name in names_of(embeddings)]
    real = functools.cache(os.path.realpath)
    paths = (os.path.join(source, name) for name in names_of(embeddings))
    return [os.path.join(real(os.path.dirname(p)), os.path.basename(p)) for p in paths]


def _check_same_checkpoint(meta: dict, other: dict, whose: str) -> None:
    """Refuse to compare what different networks say: their cosines mean nothing."""
    one, two = meta.get("checkpoint"), other.get("checkpoint")
    if one and two and one != two:
        raise UserError(
            f"{whose}: step {meta.get('step')} is not the checkpoint that made the "
            f"embeddings (step {other.get('step')} of {other.get('workdir')})"
        )
