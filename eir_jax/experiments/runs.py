"""Finished runs: their numbers at the last epoch, their best, and what seeds say."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eir_jax.evaluation.scores import PARTS, accuracies, main_number
from eir_jax.run.record import Session, read_sessions
from eir_jax.run.workdir import RECORDING_KEYS
from eir_jax.system.config import flatten, read_config
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


class FinishedRun(NamedTuple):
    """A run, or its first rounds, that has taken the last step and is evaluated there.

    Of a run of three rounds the first two are, at the end of the second, a run of two.
    """

    workdir: Path
    settings: dict[str, Any]
    """{dotted key: value}; `num_rounds`: of those looked at."""
    record: dict[str, Any]
    """As `evaluate` wrote it."""
    numbers: dict[str, float]
    """{"knn.200": .876, "retrieval.R@1": .799, ...}, shares in [0, 1]."""
    best: tuple[float, float] | None
    """The largest `main_number` of those seen while training, and its epoch."""
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
    return next((run for run in read_rounds(workdir) if run.is_whole), None)


def read_rounds(workdir: Path) -> list[FinishedRun]:
    """Return the run in `workdir` after each round that is evaluated at its end.

    Raises:
      UserError: a file of it cannot be read.
    """
    files = {p.name: p for p in (workdir / "eval").glob("step_*.json")}
    if not files:
        return []
    settings = flatten(read_config(workdir / "config.json"))
    some = _read_record(next(iter(files.values())))
    images = some["protocol"]["data"]["train_images"]
    epochs = settings["num_epochs"]
    round_steps = epochs * (images // max(settings["batch_size"], 1))
    found = []
    rounds = settings["num_rounds"]
    for number in range(1, rounds + 1):
        if path := files.get(f"step_{number * round_steps}.json"):
            record = _read_record(path)
            numbers = accuracies(record)
            best = _best(
                workdir / "metrics.jsonl", main_number(numbers), number * epochs
            )
            of_round = settings | {"num_rounds": number}
            whole = number == rounds
            found.append(FinishedRun(workdir, of_round, record, numbers, best, whole))
    return found


def telling(run: FinishedRun) -> dict[str, Any]:
    """Return what tells a run from others but for the seed: settings and images.

    `data.content` is a hash of the images in their order, and of `model.dtype=auto` it
    is said what that was where the run trained, if it did and noted where.

    Raises:
      UserError: its run.json cannot be read.
    """
    data = run.record["protocol"]["data"]
    settings = run.settings | {
        "data.train_images": data["train_images"],
        "data.test_images": data["test_images"],
        "data.content": data["content_hash"][:12],
    }
    if knn := run.record["protocol"].get("knn"):
        settings["knn.temperature"] = knn["temperature"]
    devices = {session["device"] for session in sessions_of(run)}
    if settings["model.dtype"] == "auto" and devices and run.record["step"]:
        types = {"float32" if device == "cpu" else "bfloat16" for device in devices}
        settings["model.dtype"] = f"auto ({', '.join(sorted(types))})"
    return {k: v for k, v in settings.items() if not k.startswith(INCIDENTAL)}


def sessions_of(run: FinishedRun) -> list[Session]:
    """Return the starts of a run up to the step looked at, oldest first.

    Raises:
      UserError: its run.json cannot be read.
    """
    sessions = read_sessions(run.workdir)
    step = run.record["step"]
    return [s for s in sessions if s["from_step"] < step or s is sessions[0]]


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
        names = f"{runs[0].workdir} and {run.workdir}"
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
                    f"{judged[0][0].workdir} and {run.workdir} have different "
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
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _best(
    path: Path, number: str | None, last_epoch: int
) -> tuple[float, float] | None:
    if number is None or not path.exists():
        return None
    part, _, key = number.partition(".")
    found = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            found.append((float(record[part][key]), float(record["epoch"])))
        except (ValueError, KeyError, TypeError):  # cut short, or of another kind
            continue
    found = [pair for pair in found if math.isfinite(pair[0]) and pair[1] <= last_epoch]
    return max(found, key=lambda pair: pair[0], default=None)


def _read_record(path: Path) -> dict[str, Any]:
    """Return an evaluation, of which all that tables need is there.

    Raises:
      UserError: it is none, or a number in it is not finite.
    """
    try:
        record = json.loads(path.read_text())
        protocol = record["protocol"]
        record["step"], protocol["transform"], record.get("refused", {}).keys()
        data = ("train_images", "test_images", "content_hash")
        train, test, content = (protocol["data"][key] for key in data)
        train + test, content[:12]
        for part in record.keys() & set(PARTS):
            protocol.get(part, {}).items()
            if not all(math.isfinite(value) for value in record[part].values()):
                raise ValueError(f"a number of {part} is not finite")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no evaluation ({type(error).__name__}: {error}); remove it and "
            "run `python -m eir_jax.evaluate` again"
        ) from None
    return record
