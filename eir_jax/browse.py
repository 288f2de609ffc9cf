"""A page to look through: `python -m eir_jax.browse --embeddings=E.npz --out=F`."""

import sys
from contextlib import redirect_stdout

from eir_jax.system import cli, compilation_cache, files

DESCRIPTION = """\
Write one HTML page, for any browser and without a network, of what eir_jax.embed wrote:
a map of the pictures to pan and zoom, clusters, each picture's neighbours with their
cosine, duplicates, and outliers.

  python -m eir_jax.browse --embeddings=E.npz --out=gallery.html
  python -m eir_jax.browse --embeddings=E.npz --out=50.html --clusters=50 --map=umap
"""


def main(argv: list[str]) -> int:
    """Parse the command line, work out the page and write it; return the status."""
    from eir_jax.collection import flags
    from eir_jax.collection.embeddings import read_embeddings, rows_on
    from eir_jax.collection.gallery import MAPS, browse, check_map

    parser = cli.Parser(prog="eir_jax.browse", description=DESCRIPTION)
    flags.add_embeddings(parser, "look through")
    parser.add_argument(
        "--out", required=True, type=cli.path, help="the page to write, an .html"
    )
    parser.add_argument(
        "--map",
        choices=MAPS,
        default="tsne",
        help="what places the pictures (default tsne; umap needs umap-learn)",
    )
    parser.add_argument(
        "--clusters",
        type=int,
        metavar="K",
        help="of k-means (default: the square root of a tenth of the pictures)",
    )
    parser.add_argument(
        "--k", type=int, default=24, help="neighbours a picture (default 24)"
    )
    parser.add_argument(
        "--most",
        type=int,
        default=10_000,
        metavar="N",
        help="of more pictures so many are shown, drawn at random (default 10000)",
    )
    parser.add_argument(
        "--on",
        choices=("embedding", "feature"),
        default="embedding",
        help="what is compared (default embedding; feature: before the head)",
    )
    args = parser.parse_args(argv)
    files.check_suffix(args.out, (".html",), "a page")
    flags.check_images(args.images)
    check_map(args.map)
    found = read_embeddings(args.embeddings)
    rows_on(found, args.on)
    files.check_writable(args.out)
    compilation_cache.keep_compiled()
    with redirect_stdout(sys.stderr):  # progress
        line = browse(
            found,
            args.out,
            images=args.images,
            most=args.most,
            on=args.on,
            map_by=args.map,
            clusters=args.clusters,
            k=args.k,
        )
    print(line)
    return 0


if __name__ == "__main__":
    cli.run(main)
