"""All runs beside the paper's numbers: `python -m eir_jax.results DIR`."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eir_jax import cli, paper
from eir_jax.config import flatten, load_config
from eir_jax.errors import UserError
from eir_jax.files import replacing
from eir_jax.run_record import Session, read_sessions
from eir_jax.runs import (
    NOT_RUN,
    PARTS,
    FinishedRun,
    best_words,
    main_number,
    markdown,
    percent,
    read_finished,
    summarise,
    title,
)

DESCRIPTION = """\
Collect the evaluations of all runs under DIR into tables: the paper's number, ours, the
difference, n seeds; then all other runs, and what each ran on. They replace what stands
in --out between the lines

  <!-- results:begin -->
  <!-- results:end -->

and nothing else of it. A run counts for a row of the paper where its settings are those
of the row's config file but for the seed, where the data lies, and what is recorded.
"""
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
# Settings that do not tell runs apart: they decide no number, or a number of the images
# and a protocol, compared as well, say what they decide.
INCIDENTAL = (
    *("seed", "bank.form", "paper.", "knn.k", "retrieval.", "linear."),
    *("evaluation_batch_size", "log_every_steps", "eval_every_epochs"),
    *("checkpoint_every_epochs", "keep_checkpoints", "skip_not_finite"),
    "profile_steps",
    *("data.source", "data.path", "data.pipeline", "data.placement", "data.keep"),
    *("data.broken", "data.expected", "data.class_list"),
    *("data.train_split", "data.test_split"),
)
CAPTION = (
    "Written by `python -m eir_jax.results`. Per cent, of the last epoch: mean ± "
    "standard deviation (n - 1) over n seeds; difference in points. Best: of the "
    "epochs evaluated while training, by test accuracy; no result."
)
Group = list[FinishedRun]
"""Runs that differ in the seed alone."""


def main(argv: list[str]) -> int:
    """Parse the command line and write the ledger; return the exit status."""
    parser = cli.Parser(prog="eir_jax.results", description=DESCRIPTION)
    parser.add_argument("runs", type=Path, metavar="DIR", help="runs, at any depth")
    parser.add_argument(
        "--out", type=Path, default=Path("RESULTS.md"), help="(default: RESULTS.md)"
    )
    args = parser.parse_args(argv)
    if not args.runs.is_dir():
        raise UserError(f"there is no folder {args.runs}")
    finished = []
    for workdir in find_workdirs(args.runs):
        if run := read_finished(workdir):
            finished.append(run)
        else:
            print(f"left out: {workdir} is not finished, or not evaluated there")
    replace_block(args.out, "\n".join(ledger(group_by_settings(finished), args.runs)))
    print(f"{len(finished)} runs: {args.out}")
    return 0


def find_workdirs(folder: Path) -> Iterator[Path]:
    """Yield the workdirs under `folder`, in the order of their names."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        if "config.json" in files:
            folders.clear()
            yield Path(path)


def group_by_settings(runs: Sequence[FinishedRun]) -> list[Group]:
    """Gather runs that differ in the seed alone, in the order given.

    Of two with the same seed the first one counts, which is said.

    Raises:
      UserError: runs of a group were evaluated by different rules.
    """
    groups: dict[str, Group] = {}
    for run in runs:
        group = groups.setdefault(str(sorted(telling(run).items())), [])
        seed = run.settings["seed"]
        same = [other for other in group if other.settings["seed"] == seed]
        if same:
            words = f"{same[0].workdir} and {run.workdir} have settings and seed"
            print(f"warning: {words} in common; the first counts", file=sys.stderr)
            continue
        _check_rules(run, group)
        group.append(run)
    return list(groups.values())


def telling(run: FinishedRun) -> dict[str, Any]:
    """Return what tells a run from others but for the seed: settings and images."""
    data = run.record["protocol"]["data"]
    settings = run.settings | {
        "data.train_images": data["train_images"],
        "data.test_images": data["test_images"],
    }
    if knn := run.record["protocol"].get("knn"):
        settings["knn.temperature"] = knn["temperature"]
    return {k: v for k, v in settings.items() if not k.startswith(INCIDENTAL)}


def asked(row: paper.Row) -> dict[str, Any]:
    """Return what `telling` says of a run that counts for a row of the paper."""
    config = flatten(load_config(f"configs/{row.config}.py"))
    train, test = config["data.expected"]
    settings = config | row.settings
    settings |= {"data.train_images": train, "data.test_images": test}
    return {k: v for k, v in settings.items() if not k.startswith(INCIDENTAL)}


def ledger(groups: list[Group], folder: Path) -> Iterator[str]:
    """Yield the lines of all tables.

    Args:
      groups: as `group_by_settings` returns them.
      folder: that the runs' names are relative to.
    """
    yield from (CAPTION, "")
    of_paper = []
    for table in paper.TABLES:
        main = main_number(table.numbers)
        numbers = " / ".join(map(title, table.numbers))
        head = [numbers, "paper", "ours", "difference", "n", f"best {title(str(main))}"]
        rows = [head]
        for row in table.rows:
            wanted = asked(row)
            group = next((g for g in groups if telling(g[0]) == wanted), [])
            of_paper.append(group)
            rows.append([row.label, *_beside_paper(table, row, group)])
        yield from (f"### {table.title}", "", *markdown(rows), "")
    others = [group for group in groups if group not in of_paper]
    sections: dict[str, list[Group]] = {}
    for group in others:
        sections.setdefault(_data_words(group[0]), []).append(group)
    for heading, members in sections.items():
        yield from (f"### Not in the paper: {heading}", "")
        yield from (*markdown(_other_rows(members, folder)), "")
    if groups:
        yield from ("### What each ran on", "")
        yield from (*markdown(_run_rows(groups, folder)), "")


def replace_block(path: Path, text: str) -> None:
    """Put `text` between the two marks of a file, or make the file of it alone.

    Raises:
      UserError: the marks are not there once each, or the file cannot be written.
    """
    try:
        old = path.read_text() if path.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
        if (
            old.count(BEGIN) != 1
            or old.count(END) != 1
            or old.find(END) < old.find(BEGIN)
        ):
            raise UserError(
                f"{path} must hold the line {BEGIN} once and {END} once after it; what "
                "stands between them is replaced"
            )
        before, after = old.split(BEGIN)[0], old.split(END)[1]
        with replacing(path) as part:
            part.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None


def _beside_paper(table: paper.Table, row: paper.Row, group: Group) -> list[str]:
    theirs, ours, differences = [], [], []
    for number, value in zip(table.numbers, row.values, strict=True):
        theirs.append(f"{value:.1f}")
        found = [run.numbers[number] for run in group if number in run.numbers]
        ours.append(percent(summarise(found)) if found else NOT_RUN)
        if found:
            differences.append(f"{100 * summarise(found).mean - value:+.2f}")
        else:
            differences.append("")
    if not any(number in run.numbers for run in group for number in table.numbers):
        return [" / ".join(theirs), NOT_RUN, "", "0", ""]
    best = best_words(group) if main_number(table.numbers) == _main(group) else ""
    columns = [" / ".join(words) for words in (theirs, ours, differences)]
    return [*columns, str(len(group)), best]


def _other_rows(groups: list[Group], folder: Path) -> list[list[str]]:
    settings = [telling(group[0]) for group in groups]
    keys = [k for k in settings[0] if any(s[k] != settings[0][k] for s in settings)]
    wanted = ("knn.", "linear.top-1", "retrieval.R@1")
    found = (number for group in groups for run in group for number in run.numbers)
    columns = [n for n in dict.fromkeys(found) if n.startswith(wanted)]
    rows = [["", "settings", "n", *map(title, columns), "best"]]
    for group, setting in zip(groups, settings, strict=True):
        cells = []
        for column in columns:
            values = [run.numbers[column] for run in group if column in run.numbers]
            cells.append(percent(summarise(values)) if values else NOT_RUN)
        words = ", ".join(f"{key}={setting[key]}" for key in keys)
        best = best_words(group)
        if best:
            best = f"{title(str(_main(group)))}: {best}"
        rows.append([_name(group, folder), words, str(len(group)), *cells, best])
    return rows


def _run_rows(groups: list[Group], folder: Path) -> list[list[str]]:
    rows = [["run", "seed", "steps", "commit", "hardware", "wall time", "command"]]
    for run in (run for group in groups for run in group):
        sessions = read_sessions(run.workdir)
        rows.append(
            [
                str(run.workdir.relative_to(folder)),
                str(run.settings["seed"]),
                f"{run.record['step']:,}",
                *_ran_on(sessions),
            ]
        )
    return rows


def _ran_on(sessions: list[Session]) -> list[str]:
    if not sessions:
        return ["not recorded"] * 4
    commits = dict.fromkeys(s["commit"] or "not a checkout" for s in sessions)
    hardware = dict.fromkeys(f"{_hardware(s)}, jax {s['jax']}" for s in sessions)
    minutes, seconds = divmod(round(sum(s["seconds"] for s in sessions)), 60)
    hours, minutes = divmod(minutes, 60)
    starts = f" ({len(sessions)} starts)" if len(sessions) > 1 else ""
    command = sessions[0]["command"].replace("|", "\\|")
    return [
        ", ".join(commits),
        "; ".join(hardware),
        f"{hours}:{minutes:02}:{seconds:02}{starts}",
        f"`{command}`",
    ]


def _hardware(session: Session) -> str:
    words = f"{session['num_devices']} x {session['device']}"
    if session["device"] == "cpu":
        words = session["machine"]
    if session["num_processes"] > 1:
        words += f", {session['num_processes']} processes"
    return words


def _check_rules(run: FinishedRun, group: Group) -> None:
    for part in PARTS:
        rule = _rule(run, part)
        for other in group:
            if rule and _rule(other, part) not in (None, rule):
                raise UserError(
                    f"{other.workdir} and {run.workdir} have different protocols of "
                    f"{part}; evaluate both again in the same way"
                )


def _rule(run: FinishedRun, part: str) -> tuple | None:
    protocol = run.record["protocol"]
    if part not in protocol:
        return None
    decides = {key: value for key, value in protocol[part].items() if key != "hash"}
    return decides, protocol["transform"], protocol["data"]["content_hash"]


def _data_words(run: FinishedRun) -> str:
    data, size = run.record["protocol"]["data"], run.settings["data.image_size"]
    return (
        f"{run.settings['data.name']}, {size} px, {data['train_images']:,} training "
        f"and {data['test_images']:,} test images"
    )


def _name(group: Group, folder: Path) -> str:
    path = group[0].workdir.relative_to(folder)
    seed = f"seed{group[0].settings['seed']}"
    return str(path.parent if path.name == seed else path)


def _main(group: Group) -> str | None:
    return main_number(group[0].numbers)


if __name__ == "__main__":
    cli.run(main)
