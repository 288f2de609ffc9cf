"""Take the weights of a run elsewhere: `python -m eir_jax.export --workdir=DIR`."""

from eir_jax.system import cli, compilation_cache

DESCRIPTION = """\
Write the encoder of a checkpoint in the form that the suffix of --to names, with what
is needed to use it (settings, preparation of the images, numbers, commit, SHA-256):

  F.safetensors   arrays by torchvision's names, in its layouts; for PyTorch, and for
                  --config.model.weights and eir_jax.embed --weights
  F.onnx          images uint8 [n, size, size, 3] -> embedding, feature; any n
  F.stablehlo     the same for jax.export.deserialize; the notes are in F.stablehlo.json

  python -m eir_jax.export --workdir=DIR --to=F.safetensors
"""


def main(argv: list[str]) -> int:
    """Parse the command line and export; return the exit status."""
    parser = cli.Parser(prog="eir_jax.export", description=DESCRIPTION)
    parser.add_argument(
        "--workdir",
        required=True,
        type=cli.path,
        help="folder of a run of eir_jax.main",
    )
    parser.add_argument(
        "--step",
        default="last",
        help="checkpoint: its step, 'best' or 'last' (default)",
    )
    parser.add_argument("--to", required=True, type=cli.path, help="the file to write")
    args = parser.parse_args(argv)
    compilation_cache.keep_compiled()
    from eir_jax.evaluation.export import check_target, export
    from eir_jax.evaluation.restore import restore_run

    check_target(args.to)  # before the work, not after
    run = restore_run(args.workdir, args.step)
    export(run, args.workdir, args.to)
    size = args.to.stat().st_size / 1e6
    print(f"{args.to}: step {int(run.state.step)}, {size:,.1f} MB")
    return 0


if __name__ == "__main__":
    cli.run(main)
