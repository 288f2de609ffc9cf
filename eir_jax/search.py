"""Search embeddings by picture: `python -m eir_jax.search --embeddings=E.npz`."""

import dataclasses
import functools
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from eir_jax import cli, compilation_cache
from eir_jax.data.pictures import BrokenPicture, read_picture
from eir_jax.embed import (
    Embeddings,
    describe,
    embed_pictures,
    existing_pictures,
    read_embeddings,
    read_images,
)
from eir_jax.errors import UserError

MOST_PAIRS = 1000
ROUNDING = 1e-6  # of the cosine of two equal rows in float32
FIGURE_QUERIES, FIGURE_COLUMNS, FIGURE_SIZE = 16, 16, 160
DESCRIPTION = """\
Search what eir_jax.embed wrote. Each neighbour is a line `query, rank, neighbour,
cosine` (and its label where known), each pair of near-duplicates a line `one, other,
cosine`; between them are tabs, and all else goes to stderr.

  python -m eir_jax.search --embeddings=E.npz --query=PICTURE --k=8 --figure=F.png
  python -m eir_jax.search --embeddings=E.npz --duplicates=0.98
"""


def main(argv: list[str]) -> int:
    """Parse the command line, search and print; return the exit status."""
    parser = cli.Parser(prog="eir_jax.search", description=DESCRIPTION)
    parser.add_argument(
        "--embeddings", required=True, type=Path, help="the .npz to search"
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument(
        "--query", type=Path, help="a picture, a folder of pictures, or another .npz"
    )
    task.add_argument(
        "--duplicates",
        type=float,
        metavar="COSINE",
        help="list the pairs at least so similar instead, the most similar first",
    )
    parser.add_argument(
        "--all", action="store_true", help=f"pairs, also beyond {MOST_PAIRS:,}"
    )
    parser.add_argument("--k", type=int, default=8, help="neighbours (default 8)")
    parser.add_argument(
        "--workdir",
        type=Path,
        help="run that embeds the query pictures (default: as noted in the .npz)",
    )
    parser.add_argument("--step", help="its checkpoint (default: as noted in the .npz)")
    parser.add_argument("--figure", type=Path, help="a PNG of queries and neighbours")
    parser.add_argument(
        "--images", type=Path, help="where the embedded pictures lie now, for --figure"
    )
    args = parser.parse_args(argv)
    if args.query is None and (args.figure or args.images or args.workdir):
        parser.error("--figure, --images and --workdir go with --query")

    compilation_cache.keep_compiled()
    # File names of other encodings go out as the bytes that they are.
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    gallery = read_embeddings(args.embeddings)
    if args.images is not None:
        source = {"source": str(args.images.resolve())}
        gallery = dataclasses.replace(gallery, meta=gallery.meta | source)
    if args.query is None:
        print_duplicates(gallery, args.duplicates, None if args.all else MOST_PAIRS)
    else:
        with redirect_stdout(sys.stderr):  # progress
            query = embed_query(args.query, gallery, args.workdir, args.step)
            cosine, index = search(query, gallery, args.k)
        if args.figure is not None:  # before the lines, which may end in `| head`
            draw(query, gallery, cosine, index, args.figure)
            print(f"figure: {args.figure}", file=sys.stderr)
        print_neighbours(query, gallery, cosine, index)
    return 0


def embed_query(
    query: Path, gallery: Embeddings, workdir: Path | None, step: str | None
) -> Embeddings:
    """Embed a picture or a folder as the gallery was; or read another .npz.

    Raises:
      UserError: it is missing or broken, there is no run to embed it by, or that or
        the .npz is not of the gallery's checkpoint.
    """
    if not query.exists():
        raise UserError(f"there is no picture, folder or file {query} (--query)")
    if query.suffix == ".npz":
        found = read_embeddings(query)
        _check_same_checkpoint(found.meta, gallery.meta, f"the rows of {query}")
        return found
    if workdir is None:
        noted = gallery.meta.get("workdir")
        if noted is None:
            raise UserError("the embeddings note no workdir; give --workdir")
        workdir = Path(noted)
        if not workdir.is_dir():
            raise UserError(
                f"the workdir that the embeddings note, {noted}, does not exist here; "
                "give --workdir"
            )
    if query.is_dir():
        folder, paths = query, existing_pictures(query)
    else:
        folder, paths = Path.cwd(), [str(query)]
        _read(query, 1)  # a broken one need not wait for the checkpoint
    from eir_jax.evaluation.restore import restore_run

    run = restore_run(workdir, step or str(gallery.meta.get("step", "last")))
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
    from eir_jax.metrics import ProgressLine

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
        UserError: the threshold is no cosine, or rows are zero or not finite.
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
            i, j = np.nonzero(cosine >= floor)
            parts.append((np.stack([start + i, first + j], axis=1), cosine[i, j]))
            if limit is not None:
                pairs, cosines = _most_similar(pairs, cosines, parts, limit)
                parts = []
                if len(pairs) == limit:  # from here on only what is more similar
                    floor = np.nextafter(cosines[-1], np.float32(2))
        if progress:
            progress(min(start + row_block, len(rows)), len(rows))
    pairs, cosines = _most_similar(pairs, cosines, parts, limit)
    return pairs, cosines, count


def print_duplicates(
    gallery: Embeddings, threshold: float, limit: int | None = MOST_PAIRS
) -> None:
    """Print the pairs of near-duplicates, and on stderr how many there are."""
    from eir_jax.metrics import ProgressLine

    with redirect_stdout(sys.stderr), closing(ProgressLine("comparing", 1)) as bar:
        pairs, cosines, count = near_duplicates(
            gallery.embedding, threshold, limit, bar.update
        )
    names = _names(gallery)
    for (one, other), cosine in zip(pairs, cosines, strict=True):
        print(_field(names[one]), _field(names[other]), f"{cosine:.4f}", sep="\t")
    some = f"; the {len(pairs):,} most similar are listed, --all lists the rest"
    print(
        f"{count:,} pairs of cosine >= {threshold:g}{some * (len(pairs) < count)}",
        file=sys.stderr,
    )


def print_neighbours(
    query: Embeddings,
    gallery: Embeddings,
    cosine: Float32[np.ndarray, "query k"],
    index: Int[np.ndarray, "query k"],
) -> None:
    """Print a line for each query's each neighbour."""
    queries, names = _names(query), _names(gallery)
    for i, name in enumerate(queries):
        for rank, (value, row) in enumerate(
            zip(cosine[i], index[i], strict=True), start=1
        ):
            words = [_field(name), str(rank), _field(names[row]), f"{value:.4f}"]
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
    from eir_jax.figures import neighbour_grid

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
    names = [_field(os.path.basename(name)) for name in _names(query)]
    names = [name.encode(errors="replace").decode() for name in names]
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
                row_names=[names[i] for i in shown],
                class_names=gallery.meta.get("class_names"),
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written: {error}") from None


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


def _names(embeddings: Embeddings) -> list[str]:
    """Return each row's path or index."""
    column = embeddings.index if embeddings.path is None else embeddings.path
    assert column is not None
    return [str(name) for name in column]


def _identities(embeddings: Embeddings) -> list[str]:
    """Return for each row what tells that two are of the same picture."""
    source = embeddings.meta["source"]
    if embeddings.path is None:
        which = f"{source}:{embeddings.meta.get('split', '')}:"
        return [which + name for name in _names(embeddings)]
    real = functools.cache(os.path.realpath)
    paths = (os.path.join(source, name) for name in _names(embeddings))
    return [os.path.join(real(os.path.dirname(p)), os.path.basename(p)) for p in paths]


def _check_same_checkpoint(meta: dict, other: dict, whose: str) -> None:
    """Refuse to compare what different networks say: their cosines mean nothing."""
    one, two = meta.get("checkpoint"), other.get("checkpoint")
    if one and two and one != two:
        raise UserError(
            f"{whose}: step {meta.get('step')} is not the checkpoint that made the "
            f"embeddings (step {other.get('step')} of {other.get('workdir')})"
        )


def _field(name: str) -> str:
    """Keep a file name within its column and line."""
    return name.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


if __name__ == "__main__":
    cli.run(main)
