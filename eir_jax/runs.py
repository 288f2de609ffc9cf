"""Finished runs: their numbers at the last epoch, their best, and what seeds say."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eir_jax.config import flatten, read_config
from eir_jax.errors import UserError

PARTS = ("knn", "linear", "retrieval")  # of an evaluation: accuracies, in [0, 1]
NOT_RUN = "not run"


class FinishedRun(NamedTuple):
    """A run that has taken its last step and is evaluated there."""

    workdir: Path
    settings: dict[str, Any]
    """{dotted key: value}"""
    record: dict[str, Any]
    """As `evaluate` wrote it."""
    numbers: dict[str, float]
    """{"knn.200": .876, "retrieval.R@1": .799, ...}, shares in [0, 1]."""
    best: tuple[float, float] | None
    """The largest `main_number` of those seen while training, and its epoch."""


class Summary(NamedTuple):
    """A number over the seeds of one setting."""

    mean: float
    deviation: float | None
    """The sample's (n - 1); None of a single seed."""
    values: list[float]


def read_finished(workdir: Path) -> FinishedRun | None:
    """Return the run in `workdir`; None where it is not finished or not evaluated.

    Raises:
      UserError: a file of it cannot be read.
    """
    files = {p.name: p for p in (workdir / "eval").glob("step_*.json")}
    if not files:
        return None
    settings = flatten(read_config(workdir / "config.json"))
    some = _read_json(next(iter(files.values())))
    num_examples = some["protocol"]["data"]["train_images"]
    last = _last_step(settings, num_examples)
    if f"step_{last}.json" not in files:
        return None
    record = _read_json(files[f"step_{last}.json"])
    numbers = accuracies(record)
    best = _best(workdir / "metrics.jsonl", main_number(numbers))
    return FinishedRun(workdir, settings, record, numbers, best)


def accuracies(record: dict[str, Any]) -> dict[str, float]:
    """Return the accuracies of an evaluation: {"knn.200": .876, ...}."""
    return {
        f"{part}.{key}": value
        for part in PARTS
        for key, value in record.get(part, {}).items()
        if key not in ("learning_rate", "weight_decay")
    }


def main_number(numbers: Iterable[str]) -> str | None:
    """Return what judges a run: kNN with the largest k, else R@K with the least."""
    names = list(numbers)
    knn = [name for name in names if name.startswith("knn.")]
    if knn:
        return max(knn, key=lambda name: int(name[4:]))
    return next((name for name in names if name.startswith("retrieval.R@")), None)


def summarise(values: Sequence[float]) -> Summary:
    """Return mean and deviation of one value or more."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), deviation, list(values))


def percent(summary: Summary) -> str:
    """Write a mean, and its deviation where there is one, in per cent."""
    mean = f"{100 * summary.mean:.2f}"
    if summary.deviation is None:
        return mean
    return f"{mean} ± {100 * summary.deviation:.2f}"


def best_words(runs: Sequence[FinishedRun]) -> str:
    """Write the best of the epochs that training looked at, and which they were."""
    found = [run.best for run in runs if run.best]
    if not found:
        return ""
    epochs = sorted({epoch for _, epoch in found})
    words = ", ".join(f"{epoch:g}" for epoch in epochs)
    return f"{percent(summarise([v for v, _ in found]))} (epoch {words})"


def title(number: str) -> str:
    """Return a number's name for a table: 'knn.200' is 'kNN k = 200'."""
    part, _, key = number.partition(".")
    return {"knn": f"kNN k = {key}", "linear": f"linear {key}"}.get(part, key)


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _last_step(settings: dict[str, Any], num_examples: int) -> int:
    epochs = settings["num_rounds"] * settings["num_epochs"]
    return epochs * (num_examples // settings["batch_size"])


def _best(path: Path, number: str | None) -> tuple[float, float] | None:
    if number is None or not path.exists():
        return None
    part, _, key = number.partition(".")
    found = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
            found.append((record[part][key], record["epoch"]))
        except (ValueError, KeyError, TypeError):  # cut short, or of another kind
            continue
    return max(found, key=lambda pair: pair[0], default=None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        record["step"], record["protocol"]["data"]["train_images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no evaluation ({type(error).__name__}: {error}); remove it and "
            "run `python -m eir_jax.evaluate` again"
        ) from None
    return record
