"""Runs as points of a curve of a number over a coefficient (Fig. 3 and 4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eir_jax.experiments.ledger import SUFFIX, read_run
from eir_jax.experiments.runs import FinishedRun, check_rules, telling, whole_run
from eir_jax.system.config import read_config
from eir_jax.system.errors import UserError


def finished(path: Path) -> FinishedRun:
    """Return the finished run in a workdir, or of a ledger by FILE.jsonl/NAME.

    Raises:
      UserError: there is none.
    """
    if path.suffix == SUFFIX and path.is_file():
        raise UserError(f"{path} is a ledger; name a run of it, as {path}/NAME")
    record = read_run(path)
    if record is None:
        read_config(path / "config.json")  # says where there is no run at all
    elif run := whole_run(record):
        return run
    raise UserError(
        f"{path} is not finished, or not evaluated there; run `python -m "
        f"eir_jax.evaluate --workdir={path}`"
    )


def check_comparable(runs: Sequence[FinishedRun], settings: Sequence[str]) -> None:
    """Check that runs differ in `settings` or the seed, and in these alone.

    Raises:
      UserError: naming another setting that two of them differ in, or two that differ
        in none.
    """
    first: dict[str, FinishedRun] = {}  # that a setting decides something of
    for run in runs:
        found = telling(run)
        for key in sorted(found.keys() - {*settings}):
            other = first.setdefault(key, run)
            value = telling(other)[key]
            if value != found[key]:
                known = run.settings.get(key) != other.settings.get(key)
                way = f", or give --group={key}" if known else ""
                raise UserError(
                    f"{other.path} and {run.path} differ in {key} too "
                    f"({value}, {found[key]}); leave one out{way}"
                )
    seen: dict[tuple, Path] = {}
    for run in runs:
        point = tuple(run.settings.get(key) for key in (*settings, "seed"))
        if point in seen:
            raise UserError(
                f"{seen[point]} and {run.path} have settings and seed in common; "
                "leave one out"
            )
        seen[point] = run.path
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
            raise UserError(f"{run.path} has no setting {key}; see configs/base.py")
    if number not in run.numbers:
        known = ", ".join(run.numbers)
        raise UserError(f"{run.path} holds no {number}; it holds {known}")
    return {key: run.settings[key] for key in settings} | {number: run.numbers[number]}
