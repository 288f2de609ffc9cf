"""All runs in tables, the paper's numbers beside ours."""

import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eir_jax.evaluation.scores import main_number
from eir_jax.experiments import paper
from eir_jax.experiments.runs import (
    NOT_RUN,
    FinishedRun,
    best_words,
    cell,
    check_rules,
    deciding,
    judged_by,
    markdown,
    percent,
    summarise,
    telling,
    title,
    values_of,
)
from eir_jax.run.record import Session
from eir_jax.system.config import flatten, load_config
from eir_jax.system.errors import UserError
from eir_jax.system.files import replacing

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
CAPTION = (
    "Written by `python -m eir_jax.results`. Per cent, of the last epoch: mean ± "
    "standard deviation (n - 1) over n seeds; difference in points. Best: of the "
    "epochs evaluated while training, by test accuracy; no result. Wall time: of "
    "training, without the evaluation after it."
)
UNTRAINED = ("num_epochs", "model.", "data.")  # all that an untrained encoder is of
QUOTED = "quoted"  # of a system that nothing here runs
NOT_WATCHED = "not evaluated while training"
Group = list[FinishedRun]
"""Runs of the same settings on the same images, of different seeds."""


def group_by_settings(runs: Sequence[FinishedRun]) -> list[Group]:
    """Gather runs that `telling` does not tell apart, in the order given.

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
            words = f"{same[0].path} and {run.path} have settings and seed"
            print(f"warning: {words} in common; the first counts", file=sys.stderr)
            continue
        group.append(run)
    for group in groups.values():
        check_rules(group)
    return list(groups.values())


def asked(row: paper.Row) -> dict[str, Any]:
    """Return what `telling` says of a run that counts for a row of the paper."""
    config = flatten(load_config(f"configs/{row.config}.py"))
    train, test = config["data.expected"]
    assert row.settings is not None
    settings = config | row.settings
    settings |= {"data.train_images": train, "data.test_images": test}
    return deciding(settings)


def counts_for(row: paper.Row, groups: Sequence[Group]) -> Group:
    """Return the group that counts for a row of the paper; none: an empty one.

    Nothing counts for a row that is quoted.

    Of several, on copies of the images in another order or on other devices, the
    largest, of equal ones the first.
    """
    if row.settings is None:
        return []
    wanted = asked(row)

    def counting(settings: dict[str, Any]) -> dict[str, Any]:
        if wanted["num_epochs"]:
            return settings
        return {k: v for k, v in settings.items() if k.startswith(UNTRAINED)}

    def is_asked(run: FinishedRun) -> bool:
        found = telling(run) | {"model.dtype": run.settings["model.dtype"]}
        del found["data.content"]
        return counting(found) == counting(wanted)

    return max((g for g in groups if is_asked(g[0])), key=len, default=[])


def all_tables(groups: list[Group]) -> Iterator[str]:
    """Yield the lines of all tables, of what `group_by_settings` returns."""
    yield from (CAPTION, "")
    of_paper = []
    for table in paper.TABLES:
        main = main_number(table.numbers)
        numbers = " / ".join(map(title, table.numbers))
        head = [numbers, "paper", "ours", "difference", "n", f"best {title(str(main))}"]
        rows = [head]
        for row in table.rows:
            group = counts_for(row, groups)
            of_paper.append(group)
            rows.append([row.label, *_beside_paper(table, row, group)])
        yield from (f"### {table.title}", "", *markdown(rows), "")
    others = [group for group in groups if group not in of_paper]
    sections: dict[str, list[Group]] = {}
    for group in others:
        sections.setdefault(_data_words(group[0]), []).append(group)
    for heading, members in sections.items():
        yield from (f"### Other runs: {heading}", "")
        usual = _usual([telling(group[0]) for group in members])
        if usual:
            words = ", ".join(f"{key}={value}" for key, value in usual.items())
            yield from (f"Where a row does not say otherwise: {words}.", "")
        yield from (*markdown(_other_rows(members, usual)), "")
    if groups:
        yield from ("### What each ran on", "")
        yield from (*markdown(_run_rows(groups)), "")


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
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be written: {error}") from None


def _beside_paper(table: paper.Table, row: paper.Row, group: Group) -> list[str]:
    theirs, ours, differences, counts = [], [], [], []
    for number, value in zip(table.numbers, row.values, strict=True):
        found = values_of(group, number)
        if number.startswith("linear."):
            judged = _probe_of(row.config)
            found = values_of([r for r in group if _probe(r) == judged], number)
        theirs.append(f"{value:.1f}")
        counts.append(str(len(found)))
        ours.append(percent(summarise(found)) if found else NOT_RUN)
        if found:
            differences.append(f"{100 * summarise(found).mean - value:+.2f}")
        else:
            differences.append("")
    if set(counts) == {"0"}:
        words = QUOTED if row.settings is None else NOT_RUN
        return [" / ".join(theirs), words, "", "0", ""]
    watched = main_number(table.numbers) == main_number(group[0].numbers)
    best = (best_words(group) if watched else "") or NOT_WATCHED
    columns = [" / ".join(words) for words in (theirs, ours, differences)]
    n = counts[0] if len(set(counts)) == 1 else " / ".join(counts)
    return [*columns, n, best]


@functools.cache
def _probe_of(config: str) -> dict[str, Any]:
    settings = flatten(load_config(f"configs/{config}.py"))
    linear = {k: v for k, v in settings.items() if k.startswith("linear.")}
    return json.loads(json.dumps(linear))


def _probe(run: FinishedRun) -> dict[str, Any]:
    return {k: v for k, v in judged_by(run).items() if k.startswith("linear.")}


def _usual(settings: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that are not all alike, at their most frequent value."""
    every = dict.fromkeys(key for setting in settings for key in setting)
    values = {key: [s[key] for s in settings if key in s] for key in every}
    return {k: max(v, key=v.count) for k, v in values.items() if v.count(v[0]) < len(v)}


def _other_rows(groups: list[Group], usual: dict[str, Any]) -> list[list[str]]:
    wanted = ("knn.", "linear.top-1", "retrieval.R@1")
    found = (number for group in groups for run in group for number in run.numbers)
    columns = [n for n in dict.fromkeys(found) if n.startswith(wanted)]
    rows = [["", "settings", "n", *map(title, columns), "best"]]
    for group in groups:
        cells = [cell(values_of(group, column), len(group)) for column in columns]
        own = telling(group[0])
        others = {k: own[k] for k in usual if k in own and own[k] != usual[k]}
        words = ", ".join(f"{key}={value}" for key, value in others.items())
        best = best_words(group)
        if best:
            best = f"{title(str(main_number(group[0].numbers)))}: {best}"
        rows.append([_name(group), words, str(len(group)), *cells, best])
    return rows


def _run_rows(groups: list[Group]) -> list[list[str]]:
    rows = [["run", "seed", "steps", "commit", "hardware", "wall time", "command"]]
    for run in (run for group in groups for run in group):
        step = run.record["step"]
        rows.append(
            [
                run.name,
                str(run.settings["seed"]),
                f"{step:,}{_left_out(run)}",
                *_ran_on(run.sessions, step),
            ]
        )
    return rows


def _left_out(run: FinishedRun) -> str:
    count = len(run.record.get("skipped", ()))
    return f" ({count} left out as not finite)" if count else ""


def _ran_on(sessions: list[Session], step: int) -> list[str]:
    """Return commit, hardware, wall time and command of the starts up to `step`."""
    if not sessions:
        return ["not recorded"] * 4
    commits = dict.fromkeys(s["commit"] or "not a checkout" for s in sessions)
    hardware = dict.fromkeys(f"{_hardware(s)}, jax {s['jax']}" for s in sessions)
    minutes, seconds = divmod(round(sum(s["seconds"] for s in sessions)), 60)
    hours, minutes = divmod(minutes, 60)
    end = sessions[-1]["to_step"]
    notes = [f"{len(sessions)} starts"] if len(sessions) > 1 else []
    notes += [f"to step {end:,}"] if end > step else []
    commands = dict.fromkeys(s["command"] for s in sessions)
    return [
        ", ".join(commits),
        "; ".join(hardware),
        f"{hours}:{minutes:02}:{seconds:02}"
        + (f" ({', '.join(notes)})" if notes else ""),
        "; then ".join(f"`{command}`" for command in commands),
    ]


def _hardware(session: Session) -> str:
    words = f"{session['num_devices']} x {session['device']}"
    if session["device"] == "cpu":
        words = session["machine"]
    if session["num_processes"] > 1:
        words += f", {session['num_processes']} processes"
    return words


def _data_words(run: FinishedRun) -> str:
    data, size = run.record["protocol"]["data"], run.settings["data.image_size"]
    return (
        f"{run.settings['data.name']}, {size} px, {data['train_images']:,} training "
        f"and {data['test_images']:,} test images"
    )


def _name(group: Group) -> str:
    name = group[0].name
    return name.removesuffix(f"/seed{group[0].settings['seed']}")
