"""A checkpoint judged: by which tasks, and what is written of it."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from eir_jax.system import processes
from eir_jax.system.errors import UserError
from eir_jax.system.files import check_folder, check_writable, write_json

TASKS = ("knn", "linear", "retrieval", "health", "figures")
TITLES = {
    "knn": "kNN",
    "knn_top5": "kNN, top-5",
    "knn_feature": "kNN on the feature",
    "knn_feature_top5": "kNN on the feature, top-5",
    "knn_bank": "kNN, bank as gallery",
    "knn_bank_top5": "kNN, bank as gallery, top-5",
    "linear": "linear probe",
    "retrieval": "retrieval",
    "health": "health",
}
PLAIN_NUMBERS = ("health", "learning_rate", "weight_decay")  # the rest: per cent
EVALUATION_KEYS = ("knn.", "retrieval.", "linear.", "evaluation_batch_size")


def evaluate(
    workdir: Path,
    step: str = "last",
    tasks: tuple[str, ...] = (),
    data_path: str | None = None,
    compare: Path | None = None,
    overrides: Sequence[str] = (),
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint and write `eval/step_N.json`, pictures and report.

    Args:
      workdir: the run's folder.
      step: a number, 'best' or 'last'.
      tasks: of `TASKS`; empty: all that the data allows.
      data_path: where the data lies now, instead of the settings' `data.path`.
      compare: workdir of another run on images of the same size, set beside this one.
      overrides: words `--config.key=value`, for `EVALUATION_KEYS`.
      out: folder to write to; the workdir where it is left out.

    What other tasks found of the same checkpoint on the same data before stays.

    Returns what is written: `step`, `checkpoint` (a hash of its arrays), `skipped` (the
    steps whose batch was left out as not finite), `refused` (where all tasks were asked
    for: those that the data does not allow, and why), `protocol`, and parts for each
    task; accuracies are fractions in [0, 1].

    Raises:
      UserError: no checkpoint, no labels, other data than the checkpoint's, or an
        output that cannot be written.
    """
    from eir_jax.evaluation import protocol
    from eir_jax.evaluation import tasks as all_tasks
    from eir_jax.evaluation.restore import load_data, restore_run
    from eir_jax.figures.report import write_report
    from eir_jax.run.record import made_by
    from eir_jax.system.config import flatten
    from eir_jax.system.progress import ProgressLine

    run = restore_run(workdir, step, overrides, EVALUATION_KEYS)
    target = processes.output(out or workdir)
    path = target / "eval" / f"step_{int(run.state.step)}.json"
    check_outputs(target, path, not tasks or "figures" in tasks)
    dataset = load_data(run, data_path)
    refused = None
    if not tasks:
        refused = all_tasks.refused_tasks(dataset)
        for task, why in refused.items():
            print(f"without {TITLES[task]}: {why}")
        tasks = tuple(task for task in TASKS if task not in refused)
    subject = all_tasks.embed_subject(
        run, dataset, with_train=bool({"knn", "linear"} & set(tasks))
    )

    checkpoint = protocol.short_hash(run.meta["checksums"])
    reached = int(run.state.step)
    skipped = run.meta.get("skipped", ())  # checkpoints of before have none
    record: dict[str, Any] = {
        "step": reached,
        "checkpoint": checkpoint,
        "skipped": [number for number in skipped if number <= reached],
    }
    if refused is not None:
        record["refused"] = refused
    shared = all_tasks.shared_protocol(dataset, run.config)
    protocols: dict[str, Any] = dict(shared)
    for task in (task for task in tasks if task in all_tasks.TASKS):
        with closing(ProgressLine(TITLES[task], 1)) as bar:
            parts, decides = all_tasks.TASKS[task](subject, bar.update)
        record |= parts
        protocols[task] = protocol.tag(decides, shared)
    record["protocol"] = protocols
    record = keep_other_tasks(record, path)

    other = None
    if compare is not None:
        other = evaluate(
            compare,
            tasks=tasks,
            data_path=data_path,
            overrides=overrides,
            out=out and out / "compared",
        )
        other["label"] = str(compare)
    try:
        if any(task in record for task in all_tasks.TASKS):
            write_json(record, path)
        pictures = {}
        if "figures" in tasks:
            pictures = draw(workdir, target / "figures", subject, compare)
        write_report(
            record,
            flatten(run.config),
            pictures,
            target / "report.html",
            made=made_by(workdir),
            paper=run.config.paper.to_dict() or None,
            compare=other,
        )
    except (UserError, OSError):  # a disk that became full: the work is not lost
        print_table(record)
        raise
    return record


def check_outputs(target: Path, record: Path, with_figures: bool) -> None:
    """Refuse a folder that cannot be written to before the work, not after it.

    Raises:
      UserError: naming what cannot be written.
    """
    try:
        check_folder(target)
        check_writable(record)
        check_writable(target / "report.html")
        if with_figures:
            check_folder(target / "figures")
    except UserError as error:
        raise UserError(
            f"{error}; give --out=DIR to write the evaluation elsewhere"
        ) from None


def keep_other_tasks(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the record with what `path` holds of tasks that were not run now.

    Only of the same checkpoint, data and transform; a file that cannot be read as a
    record is said, and replaced.
    """
    if not path.exists():
        return record
    try:
        before = json.loads(path.read_text())
        same = before.get("checkpoint") == record["checkpoint"] and all(
            before["protocol"][key] == record["protocol"][key]
            for key in ("data", "transform")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"warning: {path} is no evaluation ({error!r}), and is replaced")
        return record
    if not same:
        return record
    kept = {
        part: value
        for part, value in before.items()
        if part != "protocol" and part.split("_")[0] not in record["protocol"]
    }
    if "health" in record["protocol"]:
        kept.pop("warnings", None)
    protocol = before["protocol"] | record["protocol"]
    return kept | record | {"protocol": protocol}


def draw(workdir: Path, folder: Path, subject, compare: Path | None) -> dict[str, Path]:
    """Draw the pictures of a run into `folder`; return {title: file}."""
    from eir_jax.evaluation.restore import restore_run
    from eir_jax.figures.curves import draw_training_curves
    from eir_jax.figures.neighbours import draw_neighbours
    from eir_jax.figures.tsne import draw_tsne

    test, names = subject.test, subject.dataset.class_names
    mesh = subject.run.mesh
    pictures = {"Nearest neighbours in the test set": folder / "neighbours.png"}
    rows = {"": test.embedding}
    if compare is not None:
        other = restore_run(compare)
        ours, theirs = workdir.name, compare.name
        if ours == theirs:  # a/digits and b/digits: each keeps its row
            ours, theirs = str(workdir), str(compare)
        rows = {
            theirs: other.embed(other.state, test.images).embedding,
            ours: test.embedding,
        }
    draw_neighbours(
        test.images,
        rows,
        test.labels,
        folder / "neighbours.png",
        class_names=names,
        mesh=mesh,
    )
    pictures["Test embedding, t-SNE"] = folder / "tsne.png"
    draw_tsne(test.embedding, test.labels, folder / "tsne.png", class_names=names)
    if (workdir / "metrics.jsonl").exists():
        pictures["Training"] = folder / "training.png"
        draw_training_curves(workdir / "metrics.jsonl", folder / "training.png")
    return pictures


def print_table(record: dict[str, Any]) -> None:
    """Print the numbers of a record."""
    from rich.console import Console
    from rich.table import Table

    name = record["protocol"]["data"]["name"]
    table = Table("", "", title=f"{name}, step {record['step']}")
    table.add_column("%", justify="right")
    for part in (part for part in TITLES if part in record):
        for key, value in record[part].items():
            plain = part in PLAIN_NUMBERS or key in PLAIN_NUMBERS
            row = TITLES[part], f"k = {key}" if key.isdecimal() else key
            table.add_row(*row, f"{value:.4g}" if plain else f"{100 * value:.2f}")
        table.add_section()
    console = Console()
    if table.row_count:
        console.print(table)
    if skipped := record["skipped"]:
        print(f"batches left out of training, as not finite: steps {skipped}")
    for warning in record.get("warnings", ()):
        console.print(f"warning: {warning}", style="bold red", highlight=False)
