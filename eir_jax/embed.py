"""Embed pictures by a trained encoder: `python -m eir_jax.embed --workdir=DIR`."""

import argparse
import sys

from eir_jax.system import cli, compilation_cache, files, processes
from eir_jax.system.errors import UserError
from eir_jax.system.words import counted

DESCRIPTION = """\
Restore a checkpoint, embed pictures, and write one .npz: `embedding` [n, 128] of unit
length, `feature` [n, 512] (before the head), `path` (relative to the folder) and
`folder`, or `index`, `label` where known, `size` (width, height), `hash` (SHA-256),
`grey` (16x16, by which copies are told), and `meta`, JSON that says what they are.
Where the .npz is there already, of the same weights and folder, new and changed
pictures are added to it and the others kept. A .csv, .parquet or .faiss holds as much
of it as it can; vectors.tsv gets beside it what TensorBoard's projector shows;
--embeddings makes these of an .npz that there is. But for --split it needs no data set,
and no TensorFlow. --config.evaluation_batch_size=N embeds N at a time. Instead of a
run, a file of weights serves, without training: what eir_jax.export wrote, or a
ResNet-18, 34 or 50 of another program, by torchvision's names; its embedding is the
feature, scaled to unit length, and --config.data.image_size and the like say how
pictures are prepared for it (default: as ImageNet's for a 7x7 first convolution).

  python -m eir_jax.embed --workdir=DIR --images=PICTURES --out=pictures.npz
  python -m eir_jax.embed --workdir=DIR --images=FILE.npz --out=arrays.npz
  python -m eir_jax.embed --workdir=DIR --split=test --out=test.npz
  python -m eir_jax.embed --weights=F.safetensors --images=PICTURES --out=pictures.npz
  python -m eir_jax.embed --embeddings=pictures.npz --out=pictures.parquet
"""


def main(argv: list[str]) -> int:
    """Parse the command line, embed and write; return the exit status."""
    from eir_jax.collection import flags
    from eir_jax.collection.formats import FORMS, check_form, written_whole
    from eir_jax.data.picture_files import SUFFIXES, is_picture

    parser = cli.Parser(prog="eir_jax.embed", description=DESCRIPTION)
    source = parser.add_mutually_exclusive_group(required=True)
    flags.add_run(parser, source, step="last")
    source.add_argument(
        "--weights",
        type=cli.path,
        help="a .safetensors, or a .pth where torch is",
    )
    source.add_argument(
        "--embeddings",
        type=cli.path,
        metavar="E.npz",
        help="write what this holds in another form",
    )
    parser.add_argument(
        "--images",
        type=cli.path,
        help=f"a folder, searched to the bottom for {' '.join(SUFFIXES)}; or an .npz "
        "with 'images' (or 'train_images', 'test_images') uint8 [n, size, size, 3]",
    )
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        help="of the run's own data; of the .npz where --images is one",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=cli.path,
        help=f"the file to write, whose suffix says its form: {' '.join(FORMS)}",
    )
    parser.add_argument(
        "--data_path",
        type=cli.path,
        help="where the run's own data lies now, for --split",
    )
    processes.add_flags(parser)
    args, overrides = parser.parse_known_args(argv)
    if args.embeddings is not None:
        return _write_again(parser, args)
    if args.images is None and args.split is None:
        parser.error("give --images=DIR, --images=FILE.npz or --split=train or test")
    if args.weights is not None and args.step != "last":
        parser.error("--step goes with --workdir, not with --weights")
    if args.data_path is not None and args.images is not None:
        parser.error("--data_path goes with --split, not with --images")
    flags.check_images(args.images)
    if args.images is not None and args.images.is_file() and is_picture(args.images):
        raise UserError(
            f"{args.images} is one picture (--images); give the folder that it lies in"
        )
    if args.split and args.images is not None and args.images.is_dir():
        raise UserError(f"{args.images} is a folder and has no --split={args.split}")

    check_form(args.out)
    files.check_not_read(args.out, [args.images] if args.images else [])
    processes.start(args)
    compilation_cache.keep_compiled()
    with written_whole(args.out) as write:  # refuses before the work, not after
        from eir_jax.collection import embed
        from eir_jax.evaluation.restore import restore_run, restore_weights

        data_path = args.data_path and str(args.data_path)
        paths = None
        if args.images is not None and args.images.is_dir():
            paths = embed.existing_pictures(args.images)
        if args.weights is not None:
            by, run = args.weights, restore_weights(args.weights, overrides)
        else:
            by, run = args.workdir, restore_run(args.workdir, args.step, overrides)
        if paths is not None:
            found = embed.embed_grown(run, by, args.images, paths, args.out)
            if any("/" in path for path in paths):
                print(
                    "no `label` is written: what a folder's name means is not known "
                    "here; it stands in `path`",
                    file=sys.stderr,
                )
        elif args.images is not None:
            found = embed.embed_file(run, by, args.images, args.split)
        else:
            found = embed.embed_split(run, by, args.split, data_path)
        write(found)
    rows, dim = found.embedding.shape
    skipped = found.meta.get("skipped", 0)
    which = f"step {found.meta['step']}" if args.weights is None else str(args.weights)
    print(
        f"{args.out}: {counted(rows, 'embedding')} of {dim} dimensions, by {which}"
        + (f"; {skipped:,} broken skipped" if skipped else "")
    )
    return 0


def _write_again(parser: cli.Parser, args: argparse.Namespace) -> int:
    """Write an .npz of embeddings in another form."""
    from eir_jax.collection.embeddings import read_embeddings
    from eir_jax.collection.formats import check_form, written_whole

    for flag in ("images", "split", "data_path"):
        if getattr(args, flag) is not None:
            parser.error(f"--{flag} goes with --workdir or --weights")
    check_form(args.out)
    files.check_not_read(args.out, [args.embeddings])
    with written_whole(args.out) as write:
        found = read_embeddings(args.embeddings)
        write(found)
    print(f"{args.out}: {counted(len(found.embedding), 'embedding')}")
    return 0


if __name__ == "__main__":
    cli.run(main)
