"""Search a collection: `python -m eir_jax.search --embeddings=E.npz ...`."""

import dataclasses
import sys
from contextlib import redirect_stdout

from eir_jax.system import cli, compilation_cache, files

DESCRIPTION = """\
Search what eir_jax.embed wrote. Each neighbour is a line `query, rank, neighbour,
cosine` (and its label where known), each pair of near-duplicates a line `one, other,
cosine`; between them are tabs, and all else goes to stderr.

  python -m eir_jax.search --embeddings=E.npz --query=PICTURE --k=8 --figure=F.png
  python -m eir_jax.search --embeddings=E.npz --duplicates=0.98
"""


def main(argv: list[str]) -> int:
    """Parse the command line, search and print; return the exit status."""
    from eir_jax.collection.duplicates import MOST_PAIRS, print_duplicates

    parser = cli.Parser(prog="eir_jax.search", description=DESCRIPTION)
    parser.add_argument(
        "--embeddings", required=True, type=cli.path, help="the .npz to search"
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument(
        "--query",
        type=cli.path,
        help="a picture, a folder of pictures, or another .npz",
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
        type=cli.path,
        help="run that embeds the query pictures (default: as noted in the .npz)",
    )
    parser.add_argument("--step", help="its checkpoint (default: as noted in the .npz)")
    parser.add_argument(
        "--figure", type=cli.path, help="a PNG of queries and neighbours"
    )
    parser.add_argument(
        "--images",
        type=cli.path,
        help="where the embedded pictures lie now, for --figure",
    )
    args = parser.parse_args(argv)
    if args.query is None and (args.figure or args.images or args.workdir):
        parser.error("--figure, --images and --workdir go with --query")

    if args.figure is not None:
        files.check_suffix(args.figure, (".png",), "a PNG picture")
        files.check_writable(args.figure)
    from eir_jax.collection.embeddings import read_embeddings
    from eir_jax.collection.search import draw, embed_query, print_neighbours, search

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


if __name__ == "__main__":
    cli.run(main)
