"""What a run leaves: settings, evaluations, what it saw on the way, its starts."""

import json
import math
import operator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from eir_jax.evaluation.scores import PARTS
from eir_jax.run.record import KEYS, Session, read_sessions
from eir_jax.system.config import read_config
from eir_jax.system.errors import UserError

WATCHED = {*PARTS, "health"}


class Record(NamedTuple):
    """What a run left, read from its workdir or from a line of a ledger."""

    path: Path
    """Its workdir, or FILE.jsonl/NAME of a ledger."""
    name: str
    """For tables and ledgers."""
    config: ConfigDict
    """Complete."""
    evaluations: list[dict[str, Any]]
    """As `evaluate` wrote them, of the ends of rounds, the first round first."""
    watched: list[dict[str, Any]]
    """Lines of metrics.jsonl: what was evaluated while training, in `WATCHED`."""
    losses: dict[str, Any]
    """The last line of metrics.jsonl that holds losses; {}: there is none."""
    sessions: list[Session]
    """The starts, oldest first; none of a run that noted none."""


def read_workdir(workdir: Path) -> Record | None:
    """Return what a run left; None where no end of a round is evaluated.

    Raises:
      UserError: a file of it cannot be read.
    """
    files = {p.name: p for p in (workdir / "eval").glob("step_*.json")}
    if not files:
        return None
    config = read_config(workdir / "config.json")
    some = _read_evaluation(next(iter(files.values())))
    names = (f"step_{step}.json" for step in round_ends(config, some))
    evaluations = [_read_evaluation(files[name]) for name in names if name in files]
    if not evaluations:
        return None
    watched, losses = _read_metrics(workdir / "metrics.jsonl")
    sessions = read_sessions(workdir)
    try:
        check_sessions(sessions)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{workdir / 'run.json'} cannot be read ({type(error).__name__}: {error}); "
            "move it away to go on without it"
        ) from None
    return Record(workdir, str(workdir), config, evaluations, watched, losses, sessions)


def round_ends(config: ConfigDict, evaluation: dict[str, Any]) -> list[int]:
    """Return the step that each round ends at.

    Args:
      config: of the run.
      evaluation: of any of its steps, which knows the number of images.
    """
    images = evaluation.get(
        "trained_images", evaluation["protocol"]["data"]["train_images"]
    )
    steps = config.num_epochs * (images // max(config.batch_size, 1))
    return [number * steps for number in range(1, config.num_rounds + 1)]


def check_evaluation(record: dict[str, Any]) -> None:
    """Check that an evaluation holds all that tables need.

    Raises:
      ValueError, KeyError, TypeError, AttributeError: it does not, or a number in it
        is not finite.
    """
    protocol = record["protocol"]
    protocol["transform"], record.get("refused", {}).keys()
    data = protocol["data"]
    for count in (record["step"], data["train_images"], data["test_images"]):
        operator.index(count)
    data["content_hash"][:12], len(record.get("skipped", ()))
    if "knn" in protocol:
        math.isfinite(protocol["knn"]["temperature"])
    for part in record.keys() & set(PARTS):
        protocol.get(part, {}).items()
        found = (value for value in record[part].values() if value is not None)
        if not all(map(math.isfinite, found)):
            raise ValueError(f"a number of {part} is not finite")
        if part.startswith("knn"):
            [int(k) for k in record[part]]


def check_sessions(sessions: list[Session]) -> None:
    """Check that the starts of a run hold what tables need.

    Raises:
      ValueError, KeyError, TypeError: they do not.
    """
    for session in sessions:
        for key in KEYS:
            value = session[key]
            if key in ("command", "commit", "jax", "device", "machine"):
                if not isinstance(value, str):
                    raise TypeError(f"{key} is no text")
            elif not math.isfinite(value):
                raise ValueError(f"{key} is not finite")


def _read_evaluation(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        check_evaluation(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no evaluation ({type(error).__name__}: {error}); remove it and "
            "run `python -m eir_jax.evaluate` again"
        ) from None
    return record


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the lines with evaluations, and the last one with losses."""
    watched: list[dict[str, Any]] = []
    losses: dict[str, Any] = {}
    if not path.exists():
        return watched, losses
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # cut short by a kill
            continue
        if isinstance(line, dict) and line.keys() & WATCHED:
            watched.append(line)
        elif isinstance(line, dict) and "loss" in line:
            losses = line
    return watched, losses
