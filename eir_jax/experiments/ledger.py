"""Ledgers: the records of a study's runs in one file, a line of JSON each.

The first line holds the settings of the config file that the runs were of, whole and as
they were then, and the protocol of the first run's evaluation. Every other line is a
run; of its settings and protocols it holds what differs from those, as a JSON merge
patch (RFC 7386: objects are merged, null takes a key away, all else replaces). A
setting that neither holds came later, and is read as that of an older config.json is.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eir_jax.evaluation.scores import PARTS
from eir_jax.experiments.records import (
    Record,
    check_evaluation,
    check_sessions,
    read_workdir,
)
from eir_jax.experiments.runs import rounds_of, telling
from eir_jax.system.config import complete, load_config
from eir_jax.system.errors import UserError
from eir_jax.system.files import in_words, refuse_unreadable, replacing

SUFFIX = ".jsonl"
ABOUT = "eir_jax ledger: settings and protocol; what differs in each run stands below"
# What a workdir holds besides runs of its own.
PARTS_OF_A_RUN = {"checkpoints", "damaged", "eval", "figures", "profile", "tensorboard"}
DIGITS = 5  # significant ones, kept of losses and the uniformity on the way
Line = dict[str, Any]


def find_records(place: Path) -> Iterator[tuple[Path, Record | None]]:
    """Yield the runs in a ledger, or in the workdirs and ledgers under a folder.

    In the order of their names; None where a workdir's run is not finished or not
    evaluated. Links are followed, each folder is looked at once, and a workdir may lie
    in another.

    Raises:
      UserError: there is no such file or folder, or one in it cannot be read.
    """
    if place.is_file():
        yield from _of_ledger(place, place.parent)
        return
    if not place.is_dir():
        raise UserError(f"there is no folder or ledger {in_words(place)}")
    seen = set()
    walk = os.walk(place, followlinks=True, onerror=refuse_unreadable)
    for path, folders, files in walk:
        if (real := os.path.realpath(path)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        here = Path(path)
        if "config.json" not in files:
            for file in sorted({f for f in files if f.endswith(SUFFIX)}):
                if file != "metrics.jsonl":
                    yield from _of_ledger(here / file, place)
            continue
        folders[:] = [name for name in folders if name not in PARTS_OF_A_RUN]
        record = read_workdir(here)
        if record and here != place:
            record = record._replace(name=str(here.relative_to(place)))
        yield here, record


def read_run(path: Path) -> Record | None:
    """Return the run in a workdir, or one of a ledger by FILE.jsonl/NAME.

    None where no end of a round is evaluated.

    Raises:
      UserError: it cannot be read, or the ledger has none of this name.
    """
    for file in path.parents:
        if file.suffix == SUFFIX and file.is_file():
            for record in read_ledger(file):
                if record.path == path:
                    return record
            raise UserError(f"{file} holds no run {path.relative_to(file)}")
    return read_workdir(path)


def read_ledger(file: Path) -> list[Record]:
    """Return the runs of a ledger.

    Raises:
      UserError: the file cannot be read, or a line of it is none of ours.
    """
    return [record for _, record in _read(file)[1]]


def add(file: Path, new: list[Record]) -> None:
    """Write runs into a ledger, beside those that it holds; say which they replace.

    A run with the settings, images and seed of another takes its place, as one of more
    rounds does. Absolute folders are left out, as `without_folders` has it.

    Raises:
      UserError: the file cannot be read or written, or a run has the name of another.
    """
    if file.suffix != SUFFIX or file.name == "metrics.jsonl":
        raise UserError(f"{file} is no name for a ledger; end it in {SUFFIX}")
    head, old = _read(file) if file.exists() else (_head(new[0]), [])
    lines = {line["run"]: line for line, _ in old}
    known = {line["run"]: _identity(record) for line, record in old}
    for record in new:
        name = without_folders(record.name)
        identity = _identity(record)
        for other in [other for other, found in known.items() if found == identity]:
            print(f"replaced in {file}: {other}" + f" by {name}" * (name != other))
            del known[other], lines[other]
        if name in known:
            found = known[name]
            keys = found.keys() | identity.keys()
            differ = (
                f"{key}: {found.get(key)} there, {identity.get(key)} here"
                for key in sorted(keys)
                if found.get(key) != identity.get(key)
            )
            raise UserError(
                f"{file} has another run {name} ({'; '.join(differ)}); rename the "
                f"folder {record.path}"
            )
        known[name] = identity
        lines[name] = _line(head, name, record)
    ordered = sorted(lines.values(), key=lambda line: Path(line["run"]).parts)
    try:
        with replacing(file) as part:
            part.write_text("".join(json.dumps(x) + "\n" for x in (head, *ordered)))
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error}") from None


def merge(base: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def difference(base: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """Return the patch that makes `value` of `base`; `value` holds no null."""
    patch: dict[str, Any] = dict.fromkeys(base.keys() - value.keys())
    for key, item in value.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(item, dict):
            if inner := difference(old, item):
                patch[key] = inner
        elif key not in base or repr(old) != repr(item):  # 1, 1.0 and True differ
            patch[key] = item
    return patch


def without_folders(path: str) -> str:
    """Cut a path that leads out of the current folder.

    To the part from its first folder `runs` on; where there is none, to the name.
    """
    parts = Path(path).parts
    if not path.startswith(("/", "..", "~")):
        return path
    return "/".join(parts[parts.index("runs") :]) if "runs" in parts else parts[-1]


def _of_ledger(file: Path, place: Path) -> Iterator[tuple[Path, Record]]:
    """Yield its runs, named as if the file were a folder under `place`."""
    for record in read_ledger(file):
        study = file.relative_to(place).with_suffix("")
        yield record.path, record._replace(name=str(study / record.name))


def _read(file: Path) -> tuple[Line, list[tuple[Line, Record]]]:
    """Return the first line, and each other one with what it says."""
    try:
        texts = file.read_bytes().rstrip().split(b"\n")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    with _line_named(file, 1, "first line of a ledger"):
        head = json.loads(texts[0])
        head["about"], head["protocol"].items(), head["settings"].items()
    found: dict[str, tuple[Line, Record]] = {}
    for number, text in enumerate(texts[1:], start=2):
        with _line_named(file, number, "record of a run"):
            line = json.loads(text)
            record = _record(file, head, line)
            if record.name in found:
                raise ValueError(f"a line before is of {record.name} too")
            found[record.name] = line, record
    return head, list(found.values())


@contextmanager
def _line_named(file: Path, number: int, what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}, line {number}, is no {what} ({type(error).__name__}: {error}); "
            "put the line right, or take it out"
        ) from None


def _record(file: Path, head: Line, line: Line) -> Record:
    """Return what a line says.

    Raises:
      ValueError, KeyError, TypeError, AttributeError: it is no record of a run.
    """
    evaluations = []
    for evaluation in line["evaluations"]:
        protocol = merge(head["protocol"], evaluation["protocol"])
        evaluations.append(evaluation | {"protocol": protocol})
        check_evaluation(evaluations[-1])
    for watched in (*line["watched"], line["losses"]):
        watched.items()
    check_sessions(line["sessions"])
    record = Record(
        file / line["run"],
        line["run"],
        complete(merge(head["settings"], line["settings"])),
        evaluations,
        line["watched"],
        line["losses"],
        line["sessions"],
    )
    if not record.name or not rounds_of(record):
        raise ValueError("it has no name, or no evaluation of a round's end")
    return record


def _head(record: Record) -> Line:
    """Return the first line of a new ledger.

    The settings are of the config file that the run's command names, or else its own.
    """
    command = record.sessions[0]["command"] if record.sessions else ""
    named = re.search(r"--config[= ](\S+)", command)
    of_file = named and Path(named[1]).is_file()
    config = load_config(named[1]) if named and of_file else record.config
    about = {"about": ABOUT} | ({"config": named[1]} if named and of_file else {})
    protocol = record.evaluations[-1]["protocol"]
    return about | {"settings": _settings(config.to_dict()), "protocol": protocol}


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return them as JSON has them, without folders of this machine."""
    data = settings["data"]
    paths = {key: without_folders(data[key]) for key in ("path", "class_list")}
    return json.loads(json.dumps(settings | {"data": data | paths}))


def _line(head: Line, name: str, record: Record) -> Line:
    """Return the line of a run."""
    settings = difference(head["settings"], _settings(record.config.to_dict()))
    evaluations = [
        evaluation | {"protocol": difference(head["protocol"], evaluation["protocol"])}
        for evaluation in record.evaluations
    ]
    sessions = [s | {"command": _command(s["command"])} for s in record.sessions]
    return {
        "run": name,
        "settings": settings,
        "sessions": sessions,
        "evaluations": evaluations,
        "watched": [_watched(line) for line in record.watched],
        "losses": _shortened(record.losses),
    }


def _watched(line: Line) -> Line:
    """Return the accuracies of a line of metrics.jsonl, and one number of health."""
    kept = {key: line[key] for key in ("step", "epoch", *PARTS) if key in line}
    health = line.get("health")
    if isinstance(health, dict) and "uniformity" in health:
        kept["health"] = _shortened({"uniformity": health["uniformity"]})
    return kept


def _shortened(numbers: dict[str, Any]) -> dict[str, Any]:
    return {
        key: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for key, value in numbers.items()
    }


def _command(command: str) -> str:
    """Return a command whose paths lead nowhere out of its folder."""
    words = []
    for word in shlex.split(command):
        flag, equals, value = word.partition("=")
        if not equals:
            flag, value = "", word
        words.append(f"{flag}{equals}{without_folders(value)}")
    return shlex.join(words)


def _identity(record: Record) -> dict[str, Any]:
    """Return what no other run of a ledger has in common; however many rounds."""
    run = rounds_of(record)[-1]
    found = telling(run) | {"seed": run.settings["seed"]}
    return {key: value for key, value in found.items() if key != "num_rounds"}
