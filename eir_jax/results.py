"""All runs beside the paper's numbers: `python -m eir_jax.results DIR...`."""

from pathlib import Path
from typing import TYPE_CHECKING

from eir_jax.system import cli, files
from eir_jax.system.errors import UserError
from eir_jax.system.words import counted

if TYPE_CHECKING:
    from eir_jax.experiments.records import Record

DESCRIPTION = """\
Collect the evaluations of all runs in RUNS (folders of runs, ledgers, or folders of
ledgers) into tables: the paper's number, ours, the difference, n seeds; then all other
runs, and what each ran on. They replace what stands in --out between the lines

  <!-- results:begin -->
  <!-- results:end -->

and nothing else of it. A run counts for a row of the paper where its settings are those
of the row's config file but for the seed, where the data lies, and what is recorded;
for a linear probe, where that is judged as the file says. Of a run of several rounds
the first ones count as runs of their own where they were evaluated.

With --ledger=FILE.jsonl the records of all these runs are kept in that file instead, a
line each, beside those it holds; a run of the same settings, images and seed is
replaced. The folders are not needed after that. Absolute paths lose their folders: what
is left is the part from `runs/` on, or else the name.
"""


def main(argv: list[str]) -> int:
    """Parse the command line, write the tables or a ledger; return the exit status."""
    parser = cli.Parser(prog="eir_jax.results", description=DESCRIPTION)
    parser.add_argument(
        "runs",
        type=cli.path,
        nargs="+",
        metavar="RUNS",
        help="folders of runs, at any depth, or ledgers",
    )
    targets = parser.add_mutually_exclusive_group()
    targets.add_argument(
        "--out", type=cli.path, default=Path("RESULTS.md"), help="(default: RESULTS.md)"
    )
    targets.add_argument(
        "--ledger",
        type=cli.path,
        metavar="FILE.jsonl",
        help="keep the records there",
    )
    args = parser.parse_args(argv)
    target = args.ledger or args.out
    if target is args.out:
        files.check_suffix(target, (".md", ".markdown", ".txt"), "Markdown")
    files.check_writable(target)
    from eir_jax.experiments import ledger
    from eir_jax.experiments.runs import rounds_of
    from eir_jax.experiments.tables import all_tables, group_by_settings, replace_block

    records = [record for place in args.runs for record in _finished(place)]
    if not records:
        places = ", ".join(map(str, args.runs))
        raise UserError(
            f"there is no finished and evaluated run under {places}; {target} stays "
            "as it was"
        )
    if args.ledger:
        ledger.add(args.ledger, records)
        print(f"{counted(len(records), 'run')}: {args.ledger}")
        return 0
    finished = [run for record in records for run in rounds_of(record)]
    replace_block(args.out, "\n".join(all_tables(group_by_settings(finished))))
    print(f"{counted(len(finished), 'run')}: {args.out}")
    return 0


def _finished(place: Path) -> "list[Record]":
    """Return the runs of which at least a round is finished; say what is left out."""
    from eir_jax.experiments import ledger
    from eir_jax.experiments.runs import rounds_of

    records = []
    for path, record in ledger.find_records(place):
        found = rounds_of(record) if record else []
        if record and found:
            records.append(record)
        if not any(run.is_whole for run in found):
            count = [str(run.settings["num_rounds"]) for run in found]
            words = f" but for its rounds up to {' and '.join(count)}"
            print(
                f"left out: {path}{words if found else ''} is not finished, or not "
                "evaluated there"
            )
    return records


if __name__ == "__main__":
    cli.run(main)
