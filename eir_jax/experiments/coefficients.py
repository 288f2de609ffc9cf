"""Runs as points of a curve of a number over a coefficient (Fig. 3 and 4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eir_jax.experiments.runs import FinishedRun, check_rules, read_finished, telling
from eir_jax.system.config import read_config
from eir_jax.system.errors import UserError


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
