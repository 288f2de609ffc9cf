"""Draw a number of several runs against one of their settings (Fig. 3 and 4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eir_jax import cli
from eir_jax.config import read_config
from eir_jax.errors import UserError
from eir_jax.runs import FinishedRun, check_rules, read_finished, telling

DESCRIPTION = """\
Draw a number of evaluated runs against one of their settings, as the paper's Fig. 3 and
4: a mean over seeds with its standard deviation, one line for each group. The runs are
finished, and differ in the two settings and the seed alone. E.g.

  python -m eir_jax.coefficients --x=lambda_intra --y=knn.200 --out=fig4.png runs/l*
  python -m eir_jax.coefficients --x=interpolation.alpha --group=interpolation.kind \\
      --out=fig3.png runs/a*
"""


def main(argv: list[str]) -> int:
    """Parse the command line and draw; return the exit status."""
    parser = cli.Parser(prog="eir_jax.coefficients", description=DESCRIPTION)
    parser.add_argument("workdirs", nargs="+", type=Path, help="evaluated runs")
    parser.add_argument("--x", required=True, help="a setting, e.g. lambda_intra")
    parser.add_argument(
        "--y", default="knn.200", help="a number, e.g. retrieval.R@1 (default: knn.200)"
    )
    parser.add_argument("--group", help="a setting: a line for each of its values")
    parser.add_argument(
        "--baseline", type=Path, help="an evaluated run, drawn as a dashed line"
    )
    parser.add_argument("--out", required=True, type=Path, help="the PNG to write")
    args = parser.parse_args(argv)
    settings = [key for key in (args.x, args.group) if key]
    runs = [finished(workdir) for workdir in args.workdirs]
    check_comparable(runs, settings)
    rows = [row_of(run, settings, args.y) for run in runs]
    baseline = None
    if args.baseline:
        run = finished(args.baseline)
        check_rules([runs[0], run])
        baseline = row_of(run, [], args.y)[args.y]

    from eir_jax.curves import draw_coefficient_curves

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
    print(f"{len(rows)} runs: {args.out}")
    return 0


def finished(workdir: Path) -> FinishedRun:
    """Return the finished run in `workdir`.

    Raises:
      UserError: there is none.
    """
    read_config(workdir / "config.json")  # says where there is no run at all
    if run := read_finished(workdir):
        return run
    raise UserError(
        f"{workdir} is not finished, or not evaluated there; run `python -m "
        f"eir_jax.evaluate --workdir={workdir}`"
    )


def check_comparable(runs: Sequence[FinishedRun], settings: Sequence[str]) -> None:
    """Check that runs differ in `settings` or the seed, and in these alone.

    Raises:
      UserError: naming another setting that two of them differ in, or two that differ
        in none.
    """
    first = telling(runs[0])
    for run in runs[1:]:
        other = telling(run)
        for key in sorted((first.keys() | other.keys()) - {*settings}):
            if first.get(key) != other.get(key):
                known = run.settings.get(key) != runs[0].settings.get(key)
                way = f", or give --group={key}" if known else ""
                raise UserError(
                    f"{runs[0].workdir} and {run.workdir} differ in {key} too "
                    f"({first.get(key)}, {other.get(key)}); leave one out{way}"
                )
    seen: dict[tuple, Path] = {}
    for run in runs:
        point = tuple(run.settings.get(key) for key in (*settings, "seed"))
        if point in seen:
            raise UserError(
                f"{seen[point]} and {run.workdir} have settings and seed in common; "
                "leave one out"
            )
        seen[point] = run.workdir
    check_rules(runs)


def row_of(run: FinishedRun, settings: Sequence[str], number: str) -> dict[str, Any]:
    """Return {key: value} of a run's settings and of a number of its evaluation.

    Args:
      run: finished.
      settings: dotted keys of the settings.
      number: part and key of the record, e.g. 'retrieval.R@1'.

    Raises:
      UserError: no such setting or number in it.
    """
    for key in settings:
        if key not in run.settings:
            raise UserError(f"{run.workdir} has no setting {key}; see configs/base.py")
    if number not in run.numbers:
        known = ", ".join(run.numbers)
        raise UserError(f"{run.workdir} holds no {number}; it holds {known}")
    return {key: run.settings[key] for key in settings} | {number: run.numbers[number]}


if __name__ == "__main__":
    cli.run(main)
