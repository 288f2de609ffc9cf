"""What a sweep consists of, and what of it is finished."""

import argparse
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from eir_jax.evaluation.scores import main_number
from eir_jax.experiments.grid import Grid
from eir_jax.experiments.runs import FinishedRun, judged_by, read_finished, title
from eir_jax.run.workdir import RECORDING_KEYS
from eir_jax.system.config import OVERRIDE, flatten, load_config
from eir_jax.system.errors import UserError

TASKS = ("knn", "linear", "retrieval", "health")


class Planned(NamedTuple):
    """A run of the sweep."""

    name: str
    seed: int
    workdir: Path
    flags: list[str]
    """Of `eir_jax.main`, without --workdir."""
    config: ConfigDict

    @property
    def log(self) -> Path:
        """The file of all that the run prints."""
        return self.workdir.with_suffix(".log")


def plan(
    args: argparse.Namespace, grid: Grid, overrides: list[str], seeds: list[int]
) -> list[Planned]:
    """Return all runs, all settings of the first seed first, their settings checked.

    Args:
      args: with `config` and `workdir`.
      grid: the settings.
      overrides: words `--config.key=value` for every run.
      seeds: each for every setting.

    Raises:
      UserError: a setting is unknown, impossible, or given twice.
    """
    from eir_jax.run.validate import validate  # it imports what it knows of

    # What is wrong of these is not the grid's.
    known = flatten(load_config(args.config, overrides))
    for file, figure in grid.figures.items():
        for key in (figure["x"], figure.get("lines", "seed")):
            if key not in known:
                raise UserError(
                    f"{grid.path}: {file} asks for the setting {key}, which there is "
                    "not; see configs/base.py"
                )
        if type(known[figure["x"]]) not in (int, float):
            raise UserError(
                f"{grid.path}: {file} has x={figure['x']}, which is no number"
            )
    for word in overrides:
        match = OVERRIDE.fullmatch(word)
        key = match[1] if match else ""
        if key == "seed":
            raise UserError("config.seed is the sweep's; give --seeds")
        if any(key in setting for setting in grid.settings.values()):
            raise UserError(
                f"config.{key} is set by {grid.path}; change it there, or in a copy"
            )
    runs = []
    for seed in seeds:
        for name, setting in grid.settings.items():
            words = [f"--config.{key}={value}" for key, value in setting.items()]
            words = [*overrides, *words, f"--config.seed={seed}"]
            try:
                config = load_config(args.config, words)
                validate(config)
            except UserError as error:
                raise UserError(f"'{name}' of {grid.path}: {error}") from None
            flags = [f"--config={args.config}", *words]
            workdir = args.workdir / name / f"seed{seed}"
            runs.append(Planned(name, seed, workdir, flags, config))
    return runs


def is_finished(run: Planned, tasks: tuple[str, ...]) -> bool:
    """Tell whether the last step is evaluated by all `tasks`, under these settings.

    But for the tasks that the data does not allow.
    """
    found = read_planned(run)
    return found is not None and is_evaluated(found, tasks)


def read_planned(run: Planned) -> FinishedRun | None:
    """Return a run that is finished under its settings, None of any other.

    Settings of what is recorded may differ. What cannot be read is not finished. The
    parts of the evaluation that were judged by other rules are left out: training,
    begun again, notes the rules that are wanted now before it is evaluated by them.
    """
    try:
        found = read_finished(run.workdir)
    except UserError:
        return None
    wanted = flatten(run.config)
    if found is None or any(
        found.settings.get(key) != wanted.get(key)
        for key in found.settings.keys() | wanted.keys()
        if not key.startswith(RECORDING_KEYS)
    ):
        return None
    as_json = json.loads(json.dumps(wanted))
    wrong = {
        key.partition(".")[0]
        for key, rule in judged_by(found).items()
        if rule != as_json[key]
    }

    def less(parts: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in parts.items() if k.partition(".")[0] not in wrong}

    record = less(found.record) | {"protocol": less(found.record["protocol"])}
    numbers = less(found.numbers)
    is_judge = main_number(numbers) == main_number(found.numbers)
    best = found.best if is_judge else None
    return found._replace(record=record, numbers=numbers, best=best)


def progress_of(run: Planned, tasks: tuple[str, ...]) -> str:
    """Return 'finished', 'begun' or 'new'."""
    if is_finished(run, tasks or TASKS):
        return "finished"
    return "begun" if (run.workdir / "config.json").exists() else "new"


def result_of(run: Planned) -> str:
    """Return the main number of a finished run, in words."""
    found = read_finished(run.workdir)
    assert found is not None
    number = main_number(found.numbers)
    if number is None:
        return "evaluated"
    return f"{title(number)} {100 * found.numbers[number]:.2f} %"


def is_evaluated(run: FinishedRun, tasks: tuple[str, ...]) -> bool:
    """Tell whether all `tasks` were done that the data allows."""
    refused = run.record.get("refused", {})
    return all(task in run.record or task in refused for task in tasks)


def seeds_in(workdir: Path, grid: Grid) -> set[int]:
    """Return the seeds of all runs that a sweep left there; of no other folders."""
    folders = (path for name in grid.settings for path in (workdir / name).glob("*"))
    matches = (re.fullmatch(r"seed(\d+)", path.name) for path in folders)
    return {int(match[1]) for match in matches if match and int(match[1]) < 2**31}
