"""Curves of a number over a coefficient: `python -m eir_jax.coefficients DIR...`."""

from eir_jax.system import cli, files
from eir_jax.system.words import counted

DESCRIPTION = """\
Draw a number of evaluated runs against one of their settings, as the paper's Fig. 3 and
4: a mean over seeds with its standard deviation, one line for each group. The runs are
finished, and differ in the two settings and the seed alone. Each is a workdir, or a
FILE.jsonl/NAME of a ledger. E.g.

  python -m eir_jax.coefficients --x=lambda_intra --y=knn.200 --out=fig4.png runs/l*
  python -m eir_jax.coefficients --x=interpolation.alpha --group=interpolation.kind \\
      --out=fig3.png runs/a*
"""


def main(argv: list[str]) -> int:
    """Parse the command line and draw; return the exit status."""
    parser = cli.Parser(prog="eir_jax.coefficients", description=DESCRIPTION)
    parser.add_argument(
        "runs", nargs="+", type=cli.path, metavar="RUN", help="an evaluated run"
    )
    parser.add_argument("--x", required=True, help="a setting, e.g. lambda_intra")
    parser.add_argument(
        "--y", default="knn.200", help="a number, e.g. retrieval.R@1 (default: knn.200)"
    )
    parser.add_argument("--group", help="a setting: a line for each of its values")
    parser.add_argument(
        "--baseline", type=cli.path, help="an evaluated run, drawn as a dashed line"
    )
    parser.add_argument("--out", required=True, type=cli.path, help="the PNG to write")
    args = parser.parse_args(argv)
    files.check_suffix(args.out, (".png",), "a PNG picture")
    files.check_writable(args.out)
    from eir_jax.experiments.coefficients import check_comparable, finished, row_of
    from eir_jax.experiments.runs import check_rules

    settings = [key for key in (args.x, args.group) if key]
    runs = [finished(run) for run in args.runs]
    check_comparable(runs, settings)
    rows = [row_of(run, settings, args.y) for run in runs]
    baseline = None
    if args.baseline:
        run = finished(args.baseline)
        check_rules([runs[0], run])
        baseline = row_of(run, [], args.y)[args.y]

    from eir_jax.figures.curves import draw_coefficient_curves

    draw_coefficient_curves(
        rows,
        args.out,
        x=args.x,
        y=args.y,
        group=args.group,
        baseline=baseline,
        xlabel=args.x,
        ylabel=args.y,
    )
    print(f"{counted(len(rows), 'run')}: {args.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
