"""Draw a number of several runs against one of their settings (Fig. 3 and 4)."""

import json
from pathlib import Path
from typing import Any

from eir_jax import cli
from eir_jax.errors import UserError

DESCRIPTION = """\
Draw a number of evaluated runs against one of their settings, as the paper's Fig. 3 and
4: a mean over seeds with its standard deviation, one line for each group. E.g.

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
    rows = [read_row(workdir, settings, args.y) for workdir in args.workdirs]
    baseline = args.baseline and read_row(args.baseline, [], args.y)[args.y]

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


def read_row(workdir: Path, settings: list[str], number: str) -> dict[str, Any]:
    """Return {key: value} of a run's settings and of a number of its last evaluation.

    Args:
      workdir: of an evaluated run.
      settings: dotted keys of the settings.
      number: part and key of the record, e.g. 'retrieval.R@1'.

    Raises:
      UserError: no run, no evaluation, or no such setting or number in it.
    """
    from eir_jax.config import flatten, read_config

    config = flatten(read_config(workdir / "config.json"))
    for key in settings:
        if key not in config:
            raise UserError(f"{workdir} has no setting {key}; see configs/base.py")
    files = sorted(
        (workdir / "eval").glob("step_*.json"), key=lambda p: int(p.stem[5:])
    )
    if not files:
        raise UserError(
            f"{workdir} is not evaluated yet; run `python -m eir_jax.evaluate "
            f"--workdir={workdir}`"
        )
    record = json.loads(files[-1].read_text())
    part, _, key = number.partition(".")
    if key not in record.get(part, {}):
        known = [
            f"{p}.{k}"
            for p, v in record.items()
            if p != "protocol" and isinstance(v, dict)
            for k in v
        ]
        raise UserError(f"{files[-1]} holds no {number}; it holds {', '.join(known)}")
    return {key: config[key] for key in settings} | {number: record[part][key]}


if __name__ == "__main__":
    cli.run(main)
