"""Search a collection: `python -m eir_jax.search --embeddings=E.npz ...`."""

import dataclasses
import io
import sys
from contextlib import redirect_stdout

from eir_jax.system import cli, compilation_cache, files
from eir_jax.system.errors import UserError

DESCRIPTION = """\
Search what eir_jax.embed wrote. Each neighbour is a line `query, rank, neighbour,
cosine` (and its label where known), each duplicate a line `the one to keep, its copy,
cosine, kind`; between them are tabs, and all else goes to stderr.

  python -m eir_jax.search --embeddings=E.npz --query=PICTURE --k=8 --figure=F.png
  python -m eir_jax.search --embeddings=E.npz --query=A.jpg --query=B.jpg --together
  python -m eir_jax.search --embeddings=E.npz --duplicates
  python -m eir_jax.search --embeddings=TEST.npz --duplicates --against=TRAIN.npz

Kinds of duplicates: `exact` (the same file), `copy`, `mirrored` and `crop` (the same
pixels, looked at grey and small, and alike embedded), `near` (alike embedded, where the
pixels are not noted or --duplicates=COSINE says how alike).
"""


def main(argv: list[str]) -> int:
    """Parse the command line, search and print; return the exit status."""
    from eir_jax.collection import flags

    parser = cli.Parser(prog="eir_jax.search", description=DESCRIPTION)
    flags.add_embeddings(parser, "search")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument(
        "--query",
        type=cli.path,
        action="append",
        help="a picture, which may be repeated; a folder of them; or another .npz",
    )
    task.add_argument(
        "--duplicates",
        type=float,
        nargs="?",
        const=None,
        default=(),
        metavar="COSINE",
        help="list duplicates instead, in groups; with a number: all pairs at least so "
        "similar, whatever their pixels are",
    )
    parser.add_argument(
        "--against",
        type=cli.path,
        metavar="E2.npz",
        help="duplicates that another collection holds as well",
    )
    parser.add_argument("--k", type=int, default=8, help="neighbours (default 8)")
    parser.add_argument(
        "--least", type=float, metavar="COSINE", help="of neighbours that are listed"
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="search what is like all queries, by the mean of their directions",
    )
    parser.add_argument(
        "--on",
        choices=("embedding", "feature"),
        default="embedding",
        help="what is compared (default embedding; feature: before the head)",
    )
    flags.add_run(parser, otherwise=" (default: as noted in the .npz)")
    parser.add_argument(
        "--figure", type=cli.path, help="a PNG of queries and neighbours"
    )
    args = parser.parse_args(argv)
    by_query = args.query is not None
    for flag in ("figure", "images", "workdir", "step", "least", "together"):
        if getattr(args, flag) and not by_query:
            parser.error(f"--{flag} goes with --query")
    if args.against is not None and by_query:
        parser.error("--against goes with --duplicates")
    if args.least is not None and not -1 <= args.least <= 1:
        raise UserError(f"--least={args.least:g} must be a cosine, from -1 to 1")

    flags.check_images(args.images)
    if args.figure is not None:
        files.check_suffix(args.figure, (".png",), "a PNG picture")
        files.check_not_read(args.figure, args.query)
        files.check_writable(args.figure)
    from eir_jax.collection.embeddings import read_embeddings, rows_on

    compilation_cache.keep_compiled()
    # File names of other encodings go out as the bytes that they are.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    gallery = read_embeddings(args.embeddings)
    rows_on(gallery, args.on)
    if args.images is not None:
        source = {"source": str(args.images.resolve())}
        gallery = dataclasses.replace(gallery, meta=gallery.meta | source)
    if not by_query:
        from eir_jax.collection.duplicates import print_duplicates
        from eir_jax.collection.search import check_same_checkpoint

        against = None
        if args.against is not None:
            against = read_embeddings(args.against)
            check_same_checkpoint(against.meta, gallery.meta, str(args.against))
        print_duplicates(gallery, against, args.duplicates, args.on)
        return 0
    from eir_jax.collection.figure import draw
    from eir_jax.collection.search import embed_query, print_neighbours, search

    with redirect_stdout(sys.stderr):  # progress
        query = embed_query(args.query, gallery, args.workdir, args.step)
        found = search(
            query,
            gallery,
            args.k,
            on=args.on,
            together=args.together,
            least=-1 if args.least is None else args.least,
        )
    if args.figure is not None:  # before the lines, which may end in `| head`
        draw(query, gallery, found, args.figure)
        print(f"figure: {args.figure}", file=sys.stderr)
    print_neighbours(gallery, found)
    return 0


if __name__ == "__main__":
    cli.run(main)
