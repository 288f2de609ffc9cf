"""Finished runs: their numbers at the last epoch, their best, and what seeds say."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eir_jax.evaluation.scores import PARTS, accuracies, main_number
from eir_jax.experiments.records import Record, read_workdir, round_ends
from eir_jax.run.record import Session
from eir_jax.run.workdir import RECORDING_KEYS
from eir_jax.system.config import flatten
from eir_jax.system.errors import UserError

NOT_RUN = "not run"
# Settings that do not tell runs apart: they decide no number, or a number of the images
# and a protocol, compared as well, say what they decide.
INCIDENTAL = (
    *RECORDING_KEYS,
    *("seed", "bank.form", "skip_not_finite", "knn.k", "retrieval.", "linear."),
    *("data.source", "data.path", "data.pipeline", "data.placement"),
    *("data.broken", "data.expected", "data.class_list"),
    *("data.train_split", "data.test_split"),
)


# Settings that decide nothing of an untrained encoder.
OF_TRAINING = (
    *("batch_size", "objective", "temperature", "lambda_", "intra."),
    *("inter.", "views."),
    *("interpolation.", "bank_momentum", "batch_norm.", "optimizer."),
)


class FinishedRun(NamedTuple):
    """A run, or its first rounds, that has taken the last step and is evaluated there.

    Of a run of three rounds the first two are, at the end of the second, a run of two.
    """

    path: Path
    """Of its `Record`, as is `name`."""
    name: str
    settings: dict[str, Any]
    """{dotted key: value}; `num_rounds`: of those looked at."""
    record: dict[str, Any]
    """As `evaluate` wrote it."""
    numbers: dict[str, float]
    """{"knn.200": .876, "retrieval.R@1": .799, ...}, shares in [0, 1]."""
    best: tuple[float, float] | None
    """The largest `main_number` of those seen while training, and its epoch."""
    sessions: list[Session]
    """The starts up to the step looked at, oldest first."""
    is_whole: bool
    """Whether no round of the run is missing."""


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
    record = read_workdir(workdir)
    return whole_run(record) if record else None


def whole_run(record: Record) -> FinishedRun | None:
    """Return a run with all its rounds; None where the last is not evaluated."""
    return next((run for run in rounds_of(record) if run.is_whole), None)


def rounds_of(record: Record) -> list[FinishedRun]:
    """Return a run after each of its rounds that is evaluated at its end."""
    settings = flatten(record.config)
    evaluations = {found["step"]: found for found in record.evaluations}
    ends = round_ends(record.config, record.evaluations[-1]) if evaluations else []
    runs = []
    for number, step in enumerate(ends, start=1):
        if step not in evaluations:
            continue
        numbers = accuracies(evaluations[step])
        epochs = number * settings["num_epochs"]
        sessions = record.sessions
        run = FinishedRun(
            record.path,
            record.name,
            settings | {"num_rounds": number},
            evaluations[step],
            numbers,
            _best(record.watched, main_number(numbers), epochs),
            [s for s in sessions if s["from_step"] < step or s is sessions[0]],
            number == len(ends),
        )
        runs.append(run)
    return runs


def telling(run: FinishedRun) -> dict[str, Any]:
    """Return what tells a run from others but for the seed: settings and images.

    `data.content` is a hash of the images in their order, and of `model.dtype=auto` it
    is said what that was where the run trained, if it did and noted where.
    """
    data = run.record["protocol"]["data"]
    settings = run.settings | {
        "data.train_images": data["train_images"],
        "data.test_images": data["test_images"],
        "data.content": data["content_hash"][:12],
    }
    if knn := run.record["protocol"].get("knn"):
        settings["knn.temperature"] = knn["temperature"]
    devices = {session["device"] for session in run.sessions}
    if settings["model.dtype"] == "auto" and devices and run.record["step"]:
        types = {"float32" if device == "cpu" else "bfloat16" for device in devices}
        settings["model.dtype"] = f"auto ({', '.join(sorted(types))})"
    return deciding(settings)


def deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without those that decide no number of this run.

    Besides what is `INCIDENTAL`: those of a term that is left out, and of an untrained
    encoder all of training's.
    """
    idle: tuple[str, ...] = INCIDENTAL
    if not settings["num_epochs"]:
        idle += OF_TRAINING
    if not settings["lambda_intra"]:
        idle += ("intra.",)
    if not settings["lambda_inter"]:
        idle += ("inter.", "interpolation.")
    return {k: v for k, v in settings.items() if not k.startswith(idle)}


def judged_by(run: FinishedRun) -> dict[str, Any]:
    """Return the settings that a run's evaluation was made by, JSON's lists.

    `knn.*`, `linear.*` and `retrieval.*`, as far as there are such parts.
    """
    protocols = run.record["protocol"]
    found = {}
    for part in PARTS:
        for key, value in protocols.get(part, {}).items():
            if f"{part}.{key}" in run.settings:
                found[f"{part}.{key}"] = value
    if linear := protocols.get("linear"):
        pooled_map = str(linear.get("features")).startswith("last map")
        augment = str(linear.get("trained_on")).startswith("augmented")
        found |= {"linear.pooled_map": pooled_map, "linear.augment": augment}
    return found


def check_rules(runs: Sequence[FinishedRun]) -> None:
    """Check that numbers which are to be averaged were found by the same rules.

    Raises:
      UserError: two runs were evaluated by different ones, or on different images.
    """
    for run in runs[1:]:
        names = f"{runs[0].path} and {run.path}"
        one, other = (
            each.record["protocol"]["data"]["content_hash"] for each in (runs[0], run)
        )
        if one != other:
            raise UserError(
                f"{names} were evaluated on different images (content {one[:12]}, "
                f"{other[:12]}); leave one out"
            )
    for part in PARTS:
        judged = [(run, rule) for run in runs if (rule := _rule(run, part))]
        for run, rule in judged[1:]:
            if rule != judged[0][1]:
                raise UserError(
                    f"{judged[0][0].path} and {run.path} have different "
                    f"protocols of {part}; evaluate both again in the same way"
                )


def _rule(run: FinishedRun, part: str) -> tuple | None:
    protocol = run.record["protocol"]
    if part not in protocol:
        return None
    decides = {key: value for key, value in protocol[part].items() if key != "hash"}
    return decides, protocol["transform"]


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


def values_of(runs: Sequence[FinishedRun], number: str) -> list[float]:
    """Return a number of the runs that have it."""
    return [run.numbers[number] for run in runs if number in run.numbers]


def cell(values: Sequence[float], seeds: int) -> str:
    """Write a number for a table, and of how many of the `seeds` where not of all."""
    if not values:
        return NOT_RUN
    few = f" (n = {len(values)})" if len(values) < seeds else ""
    return percent(summarise(values)) + few


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
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _best(
    watched: Sequence[dict[str, Any]], number: str | None, last_epoch: int
) -> tuple[float, float] | None:
    if number is None:
        return None
    part, _, key = number.partition(".")
    found = []
    for line in watched:
        try:
            found.append((float(line[part][key]), float(line["epoch"])))
        except (ValueError, KeyError, TypeError):  # of another kind
            continue
    found = [pair for pair in found if math.isfinite(pair[0]) and pair[1] <= last_epoch]
    return max(found, key=lambda pair: pair[0], default=None)
