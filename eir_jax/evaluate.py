"""Evaluate a run from its checkpoint: `python -m eir_jax.evaluate --workdir=DIR`."""

import json
import os
from pathlib import Path
from typing import Any

from eir_jax import cli
from eir_jax.errors import UserError

TASKS = ("knn", "retrieval")
DESCRIPTION = """\
Restore a checkpoint, embed the training and test images once, print the numbers of
the paper's section 4 and write them to DIR/eval/step_N.json, with the protocol that
decides them, and DIR/figures/neighbours.png (Fig. 6).
"""


def main(argv: list[str]) -> int:
    """Parse the command line and evaluate; return the exit status."""
    parser = cli.Parser(prog="eir_jax.evaluate", description=DESCRIPTION)
    parser.add_argument(
        "--workdir", required=True, type=Path, help="folder of a run of eir_jax.main"
    )
    parser.add_argument(
        "--step",
        default="last",
        help="which checkpoint: its step, 'best' (by kNN while training) or 'last' "
        "(default)",
    )
    parser.add_argument(
        "--tasks",
        default=",".join(TASKS),
        help=f"any of {','.join(TASKS)} (default: all)",
    )
    parser.add_argument(
        "--data_path", help="where the data lies now, if not where training read it"
    )
    args = parser.parse_args(argv)
    tasks = tuple(args.tasks.split(","))
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"there is no task '{task}'; choose of {','.join(TASKS)}")
    record = evaluate(args.workdir, args.step, tasks, args.data_path)
    print_table(record)
    return 0


def evaluate(
    workdir: Path,
    step: str = "last",
    tasks: tuple[str, ...] = TASKS,
    data_path: str | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint and write `eval/step_N.json` and the figure.

    Args:
      workdir: the run's folder.
      step: a number, 'best' or 'last'.
      tasks: of `TASKS`.
      data_path: where the data lies now, instead of the settings' `data.path`.

    Returns what was written: `step`, `protocol` and a part for each task, accuracies
    as fractions in [0, 1].

    Raises:
      UserError: no checkpoint, no labels, or other data than the checkpoint's.
    """
    from eir_jax import figures
    from eir_jax.data import sources
    from eir_jax.evaluation.embed import EVALUATION_VIEW
    from eir_jax.evaluation.knn import knn_accuracy
    from eir_jax.evaluation.restore import restore_run
    from eir_jax.evaluation.retrieval import recall_at_k
    from eir_jax.metrics import ProgressLine

    config, state, meta, embed, mesh = restore_run(workdir, step)
    if data_path is not None:
        config.data.path = data_path
    dataset = sources.load(config.data)
    if dataset.train_hash != meta["train_hash"]:
        raise UserError(
            f"the training images of {dataset.name} are not those of the checkpoint "
            f"(content {dataset.train_hash[:12]}, there {meta['train_hash'][:12]}); "
            "give --data_path"
        )
    test = sources.labelled(dataset, "test")

    def embed_split(name: str, images):
        progress = ProgressLine(f"embedding {name}", len(images))
        try:
            return embed(state, images, progress.update).embedding
        finally:
            progress.close()

    test_embedding = embed_split("test", test.images)
    features = f"embedding, {config.model.embedding_dim}-d, unit length"
    record: dict[str, Any] = {"step": int(state.step)}
    protocol: dict[str, Any] = {
        "data": dataset.description
        | {
            "content_hash": dataset.content_hash,
            "train_images": len(dataset.train.images),
            "test_images": len(test.images),
        },
        "transform": EVALUATION_VIEW,
    }
    if "knn" in tasks:
        train = sources.labelled(dataset, "train")
        accuracy = knn_accuracy(
            test_embedding,
            test.labels,
            embed_split("train", train.images),
            train.labels,
            k=config.knn.k,
            temperature=config.knn.temperature,
            mesh=mesh,
        )
        record["knn"] = {str(k): float(value) for k, value in accuracy.items()}
        protocol["knn"] = {
            "k": list(config.knn.k),
            "temperature": config.knn.temperature,
            "weight": "exp(cosine / temperature)",
            "gallery": "train, embedded anew in evaluation mode",
            "query": "test",
            "features": features,
            "metric": "top-1 accuracy",
        }
    if "retrieval" in tasks:
        recall = recall_at_k(
            test_embedding, test.labels, k=config.retrieval.k, mesh=mesh
        )
        record["retrieval"] = {f"R@{k}": float(value) for k, value in recall.items()}
        protocol["retrieval"] = {
            "k": list(config.retrieval.k),
            "gallery": "test, without the query",
            "query": "test",
            "features": features,
            "metric": "share of queries with one of their class among the k nearest",
        }
        figures.draw_neighbours(
            test.images,
            test_embedding,
            test.labels,
            workdir / "figures" / "neighbours.png",
            class_names=dataset.class_names,
            mesh=mesh,
        )
    record["protocol"] = protocol
    write_json(record, workdir / "eval" / f"step_{record['step']}.json")
    return record


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a record whole or not at all.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None


def print_table(record: dict[str, Any]) -> None:
    """Print the numbers of a record."""
    from rich.console import Console
    from rich.table import Table

    data = record["protocol"]["data"]
    table = Table(title=f"{data['name']}, step {record['step']}")
    table.add_column("task")
    table.add_column("metric")
    table.add_column("%", justify="right")
    for task, names in (("knn", "k = {}"), ("retrieval", "{}")):
        for key, value in record.get(task, {}).items():
            title = {"knn": "kNN", "retrieval": "retrieval"}[task]
            table.add_row(title, names.format(key), f"{100 * value:.2f}")
    Console().print(table)


if __name__ == "__main__":
    cli.run(main)
