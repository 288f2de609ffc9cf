"""All runs beside the paper's numbers: `python -m eir_jax.results DIR...`."""

from pathlib import Path

from eir_jax.system import cli, files
from eir_jax.system.errors import UserError
from eir_jax.system.words import counted

DESCRIPTION = """\
Collect the evaluations of all runs under the folders DIR into tables: the paper's
number, ours, the difference, n seeds; then all other runs, and what each ran on. They
replace what stands in --out between the lines

  <!-- results:begin -->
  <!-- results:end -->

and nothing else of it. A run counts for a row of the paper where its settings are those
of the row's config file but for the seed, where the data lies, and what is recorded;
for a linear probe, where that is judged as the file says. Of a run of several rounds
the first ones count as runs of their own where they were evaluated.
"""


def main(argv: list[str]) -> int:
    """Parse the command line and write the ledger; return the exit status."""
    parser = cli.Parser(prog="eir_jax.results", description=DESCRIPTION)
    parser.add_argument(
        "runs",
        type=cli.path,
        nargs="+",
        metavar="DIR",
        help="folders of runs, at any depth",
    )
    parser.add_argument(
        "--out", type=cli.path, default=Path("RESULTS.md"), help="(default: RESULTS.md)"
    )
    args = parser.parse_args(argv)
    files.check_suffix(args.out, (".md", ".markdown", ".txt"), "Markdown")
    files.check_writable(args.out)
    from eir_jax.experiments.runs import read_rounds
    from eir_jax.experiments.tables import (
        find_workdirs,
        group_by_settings,
        ledger,
        replace_block,
    )

    finished = []
    for folder in args.runs:
        if not folder.is_dir():
            raise UserError(f"there is no folder {files.in_words(folder)}")
        for workdir in find_workdirs(folder):
            found = read_rounds(workdir)
            finished += found
            if not any(run.is_whole for run in found):
                count = [str(run.settings["num_rounds"]) for run in found]
                words = f" but for its rounds up to {' and '.join(count)}"
                print(
                    f"left out: {workdir}{words if found else ''} is not finished, or "
                    "not evaluated there"
                )
    if not finished:
        folders = ", ".join(map(str, args.runs))
        raise UserError(
            f"there is no finished and evaluated run under {folders}; {args.out} stays "
            "as it was"
        )
    text = "\n".join(ledger(group_by_settings(finished), args.runs))
    replace_block(args.out, text)
    print(f"{counted(len(finished), 'run')}: {args.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
