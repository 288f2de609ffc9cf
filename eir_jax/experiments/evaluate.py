"""A checkpoint judged: by which tasks, and what is written of it."""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eir_jax.system import processes
from eir_jax.system.errors import UserError, enough_memory
from eir_jax.system.files import check_folder, check_writable, write_json

if TYPE_CHECKING:
    from eir_jax.evaluation.restore import Run
    from eir_jax.experiments.elsewhere import Judged

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
    "figures": "figures",
}
PLAIN_NUMBERS = ("health", "learning_rate", "weight_decay")  # the rest: per cent
EVALUATION_KEYS = ("knn.", "retrieval.", "linear.", "evaluation_batch_size")
Tell = Callable[[str, dict[str, Any]], None]


def evaluate(
    workdir: Path,
    step: str = "last",
    tasks: Sequence[str] = (),
    data_path: str | None = None,
    compare: Path | None = None,
    overrides: Sequence[str] = (),
    tell: Tell | None = None,
    out: Path | None = None,
    judged: "Judged | None" = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint and write `eval/step_N.json`, pictures and report.

    The record is written after each task: one that fails loses nothing of the others.

    Args:
      workdir: the run's folder.
      step: a number, 'best' or 'last'.
      tasks: of `task_names()`; empty: all that the data allows.
      data_path: where the data lies now, instead of the settings' `data.path`.
      compare: workdir of another run on images of the same size, set beside this one.
      overrides: words `--config.key=value`, for `EVALUATION_KEYS`.
      tell: called with each task and the record so far, as soon as it is done.
      out: folder to write to; the workdir where it is left out.
      judged: what is judged instead of the run in `workdir`, written to `out`.

    What other tasks found of the same checkpoint on the same data before stays.

    Returns what is written: `step`, `checkpoint` (a hash of its arrays), `skipped` (the
    steps whose batch was left out as not finite), `notes` (what to know of the data and
    the numbers), `refused` (where all tasks were asked for: those that the data does
    not allow, and why), `protocol`, and parts for each task; accuracies are fractions
    in [0, 1], None where there is nothing to take the mean of.

    Raises:
      UserError: no checkpoint, other data than the checkpoint's, or an output that
        cannot be written; and, once all else is done and written, a task that was asked
        for by name and is not allowed, or one that failed.
    """
    from eir_jax.evaluation import protocol
    from eir_jax.evaluation import tasks as all_tasks
    from eir_jax.evaluation.allowed import refused_tasks, remarks
    from eir_jax.evaluation.restore import load_data, restore_run
    from eir_jax.figures.report import write_report
    from eir_jax.run.record import made_by
    from eir_jax.system.config import flatten

    says: dict[str, Any] = {}
    if judged is None:
        run = restore_run(workdir, step, overrides, EVALUATION_KEYS)
    else:
        run, dataset, says = judged.run, judged.dataset, dict(judged.says)
    target = processes.output(out or workdir)
    path = target / "eval" / f"step_{int(run.state.step)}.json"
    check_outputs(target, path, not tasks or "figures" in tasks)
    check_no_other_run(out or workdir, None if judged else workdir)
    made = made_by(workdir)
    beside = None
    if compare is not None:
        other_run = check_comparable(compare, restore_run(compare), run)
        beside = compare, other_run
    if judged is None:
        dataset = load_data(run, data_path)
    refused = refused_tasks(dataset, run.config)
    if judged is not None and judged.subject is not None:
        refused["figures"] = "embeddings hold no pictures"
    asked = tuple(tasks) or task_names()
    wanted = [task for task in asked if task not in refused]
    failed = {task: refused[task] for task in tasks if task in refused}
    if tasks and not wanted:
        raise UserError(failed[asked[0]])
    notes = remarks(dataset, run.config)
    for note in notes:
        print(note)
    for task in (task for task in asked if task in refused):
        print(f"without {TITLES.get(task, task)}: {refused[task]}")
    subject = (judged and judged.subject) or all_tasks.embed_subject(
        run, dataset, with_gallery=bool({"knn", "linear"} & set(wanted))
    )

    reached = int(run.state.step)
    skipped = run.meta.get("skipped", ())  # checkpoints of before have none
    features = {"features": says.pop("features")} if "features" in says else {}
    shared = all_tasks.shared_protocol(dataset, run.config) | says
    record: dict[str, Any] = {
        "step": reached,
        "checkpoint": protocol.short_hash(run.meta["checksums"]),
        "skipped": [number for number in skipped if number <= reached],
        "notes": [*dataset.notes, *notes],
        "protocol": dict(shared),
    }
    if not tasks:
        record["refused"] = refused
    if judged is None and run.meta["num_examples"] != shared["data"]["train_images"]:
        record["trained_images"] = run.meta["num_examples"]  # the labelled ones
    before = read_before(record, path)
    merged = with_other_tasks(record, before)
    for task in (task for task in wanted if task in all_tasks.TASKS):
        try:
            parts, decides = _run_task(
                all_tasks.TASKS[task], TITLES.get(task, task), subject
            )
        except UserError as error:
            failed[task] = str(error)
            print(f"without {TITLES.get(task, task)}: {error}")
            continue
        record |= parts
        record["protocol"][task] = protocol.tag(decides | features, shared)
        merged = with_other_tasks(record, before)
        if tell:
            tell(task, merged)
        write_json(merged, path)
    if not tasks:  # where the data allows none, the reasons
        write_json(merged, path)

    other = None
    if compare is not None:
        again = tuple(tasks and wanted)
        other = evaluate(
            compare,
            tasks=again,
            data_path=data_path,
            overrides=overrides,
            out=out and out / "compared",
        )
        other["label"] = str(compare)
    pictures = {}
    if "figures" in wanted:
        try:
            pictures = draw(workdir, target / "figures", subject, beside)
        except UserError as error:
            failed["figures"] = str(error)
            print(f"without figures: {error}")
    write_report(
        merged,
        flatten(run.config),
        pictures,
        target / "report.html",
        made=made,
        paper=run.config.paper.to_dict() or None,
        compare=other,
    )
    if failed:
        raise UserError(
            "; ".join(f"no {TITLES.get(t, t)}: {why}" for t, why in failed.items())
        )
    return merged


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
            f"{error}; give --out=DIR, another folder, to write the evaluation there"
        ) from None


def task_names() -> tuple[str, ...]:
    """Return what a checkpoint can be judged by."""
    from eir_jax.evaluation.tasks import TASKS

    return (*TASKS, "figures")


def check_tasks(tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks, of which each is one that there is.

    Raises:
      UserError: naming one that there is not.
    """
    for task in tasks:
        if task not in task_names():
            names = ",".join(task_names())
            raise UserError(f"there is no task '{task}'; choose of {names}")
    return tuple(tasks)


def check_no_other_run(target: Path, workdir: Path | None) -> None:
    """Refuse to write into the workdir of a run what is not that run's evaluation.

    Raises:
      UserError: naming the folder.
    """
    is_run = (target / "checkpoints").exists() or (target / "run.json").exists()
    if is_run and (workdir is None or target.resolve() != workdir.resolve()):
        raise UserError(
            f"{target} is the workdir of a run, whose own evaluation would be lost; "
            "give --out=DIR, another folder"
        )


def check_comparable(workdir: Path, other: "Run", run: "Run") -> "Run":
    """Return the run to be set beside another, where it looks at images of one size.

    Raises:
      UserError: it does not.
    """
    theirs, ours = (x.config.data.image_size for x in (other, run))
    if theirs != ours:
        raise UserError(
            f"--compare={workdir} is a run on images of {theirs} px, and this one is "
            f"on {ours} px; compare runs on images of the same size"
        )
    return other


def _run_task(task: Callable, title: str, subject) -> tuple[dict[str, Any], Any]:
    from eir_jax.system.progress import ProgressLine

    lower = "lower evaluation_batch_size or linear.batch_size (--config.KEY=N)"
    with closing(ProgressLine(title, 1)) as bar, enough_memory(lower):
        return task(subject, bar.update)


def read_before(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what `path` holds of the record's checkpoint, data and transform.

    Nothing where it is of others; a file that cannot be read as a record is said.
    """
    if not path.exists():
        return {}
    try:
        before = json.loads(path.read_text())
        same = before.get("checkpoint") == record["checkpoint"] and all(
            before["protocol"].get(key) == record["protocol"].get(key)
            for key in ("data", "transform", "encoder")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"warning: {path} is no evaluation ({error!r}), and is replaced")
        return {}
    return before if same else {}


def with_other_tasks(record: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return the record with what was found before of tasks that it does not hold."""
    kept = {
        part: value
        for part, value in before.items()
        if part != "protocol" and part.split("_")[0] not in record["protocol"]
    }
    if "health" in record["protocol"]:
        kept.pop("warnings", None)
    protocol = before.get("protocol", {}) | record["protocol"]
    return kept | record | {"protocol": protocol}


def draw(
    workdir: Path,
    folder: Path,
    subject,
    beside: "tuple[Path, Run] | None",
) -> dict[str, Path]:
    """Draw the pictures of a run into `folder`; return {title: file}.

    Those for which there are too few images, or no curves, are left out, with a line.

    Args:
      workdir: of the run.
      folder: to draw into.
      subject: the run's embeddings.
      beside: another run and its workdir, whose neighbours are drawn beside the run's.
    """
    from eir_jax.evaluation.allowed import judged_split
    from eir_jax.figures.curves import draw_training_curves
    from eir_jax.figures.neighbours import draw_neighbours
    from eir_jax.figures.tsne import LEAST_POINTS, draw_tsne

    query, names = subject.query, subject.dataset.class_names
    split = judged_split(subject.dataset)
    count = len(query.embedding)
    pictures = {}
    if count < 2:
        print(f"without a picture of neighbours: there is {count} {split} image")
    else:
        rows = {"": query.embedding}
        if beside is not None:
            compare, other = beside
            ours, theirs = workdir.name, compare.name
            if ours == theirs:  # a/digits and b/digits: each keeps its row
                ours, theirs = str(workdir), str(compare)
            rows = {
                theirs: other.embed(other.state, query.images).embedding,
                ours: query.embedding,
            }
        drawn = pictures[f"Nearest neighbours in the {split} set"] = (
            folder / "neighbours.png"
        )
        draw_neighbours(
            query.images,
            rows,
            query.labels,
            drawn,
            class_names=names,
            mesh=subject.run.mesh,
        )
    if count < LEAST_POINTS:
        print(f"without t-SNE: it needs {LEAST_POINTS} images, and {split} has {count}")
    else:
        title = {"test": "Test", "train": "Training"}[split]
        drawn = pictures[f"{title} embedding, t-SNE"] = folder / "tsne.png"
        draw_tsne(query.embedding, query.labels, drawn, class_names=names)
    metrics = workdir / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        try:
            draw_training_curves(metrics, folder / "training.png")
            pictures["Training"] = folder / "training.png"
        except UserError as error:
            print(f"without curves of training: {error}")
    return pictures


def print_task(task: str, record: dict[str, Any]) -> None:
    """Print the numbers that a task found."""
    from rich.console import Console
    from rich.table import Table

    name = record["protocol"]["data"]["name"]
    title = f"{TITLES.get(task, task)} of {name}, step {record['step']}"
    table = Table(title=title, show_header=False)
    table.add_column(min_width=27)
    table.add_column(min_width=13)
    table.add_column(min_width=9, justify="right")
    names = dict.fromkeys((*TITLES, task))
    for part in (p for p in names if p in record and p.split("_")[0] == task):
        for key, value in record[part].items():
            plain = part in PLAIN_NUMBERS or key in PLAIN_NUMBERS
            row = TITLES.get(part, part), f"k = {key}" if key.isdecimal() else key
            table.add_row(*row, number_in_words(value, plain))
    Console().print(table)


def number_in_words(value: float | None, plain: bool) -> str:
    """Return a number as it is, or as per cent; a dash where there is none."""
    if value is None:
        return "—"
    return f"{value:.4g}" if plain else f"{100 * value:.2f} %"


def print_remarks(record: dict[str, Any]) -> None:
    """Print what a record warns of."""
    from rich.console import Console

    if skipped := record["skipped"]:
        print(f"batches left out of training, as not finite: steps {skipped}")
    for warning in record.get("warnings", ()):
        Console().print(f"warning: {warning}", style="bold red", highlight=False)
