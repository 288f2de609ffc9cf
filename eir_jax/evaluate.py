"""Evaluate a run from its checkpoint: `python -m eir_jax.evaluate --workdir=DIR`."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eir_jax import cli
from eir_jax.errors import UserError

if TYPE_CHECKING:  # imports of JAX wait until --help has had its say
    from ml_collections import ConfigDict

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
        "--step", type=int, default=-1, help="step of the checkpoint (default: newest)"
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
    from eir_jax.config import read_config

    config = read_config(args.workdir / "config.json")
    if args.data_path is not None:
        config.data.path = args.data_path
    record = evaluate(config, args.workdir, args.step, tasks)
    print_table(record)
    return 0


def evaluate(
    config: "ConfigDict", workdir: Path, step: int = -1, tasks: tuple[str, ...] = TASKS
) -> dict[str, Any]:
    """Evaluate a checkpoint and write `eval/step_N.json` and the figure.

    Args:
      config: the run's settings.
      workdir: the run's folder.
      step: which checkpoint; -1 for the newest whole one.
      tasks: of `TASKS`.

    Returns what was written: `step`, `protocol` and a part for each task, accuracies
    as fractions in [0, 1].

    Raises:
      UserError: no checkpoint, no labels, or other data than the checkpoint's.
    """
    from eir_jax import figures, sharding
    from eir_jax.data import sources
    from eir_jax.evaluation.embed import EVALUATION_VIEW, make_embed
    from eir_jax.evaluation.knn import knn_accuracy
    from eir_jax.evaluation.retrieval import recall_at_k
    from eir_jax.metrics import ProgressLine
    from eir_jax.models.encoder import make_encoder

    mesh = sharding.make_mesh()
    encoder = make_encoder(config)
    state, meta = restore(config, encoder, workdir, step, mesh)
    dataset = sources.load(config.data)
    if dataset.train_hash != meta["train_hash"]:
        raise UserError(
            f"the training images of {dataset.name} are not those of the checkpoint "
            f"(content {dataset.train_hash[:12]}, there {meta['train_hash'][:12]}); "
            "give --data_path"
        )
    test = sources.labelled(dataset, "test")
    embed = make_embed(config, encoder, mesh)

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


def restore(config: "ConfigDict", encoder, workdir: Path, step: int, mesh):
    """Return the (state, meta) of a checkpoint.

    Args:
      config: the run's settings.
      encoder: as `make_encoder(config)` builds it.
      workdir: the run's folder.
      step: which checkpoint; -1 for the newest whole one.
      mesh: the devices to restore to.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    from eir_jax.checkpoint import Checkpoints, DamagedCheckpoint
    from eir_jax.optimizer import make_optimizer
    from eir_jax.train_state import abstract_train_state

    directory = workdir / "checkpoints"
    if not directory.is_dir():
        raise UserError(
            f"{workdir} holds no checkpoint yet; train with `python -m eir_jax.main`"
        )
    checkpoints = Checkpoints(directory, read_only=True)
    steps = checkpoints.steps
    if not steps:
        raise UserError(
            f"{workdir} holds no checkpoint yet; train with `python -m eir_jax.main`"
        )
    if step != -1 and step not in steps:
        raise UserError(
            f"{workdir} has no checkpoint of step {step}; there are "
            f"{', '.join(map(str, sorted(steps)))}"
        )

    def abstract(meta):
        # The schedule's length does not enter the state's shapes: any will do.
        tx = make_optimizer(config, steps_per_epoch=1)
        return abstract_train_state(config, encoder, tx, meta["num_examples"], mesh)

    if step == -1:
        found = checkpoints.restore_newest(abstract)
        if found is None:
            raise UserError(f"every checkpoint in {directory} is damaged")
        return found
    try:
        meta = checkpoints.read_meta(step)
        return checkpoints.restore(step, abstract(meta)), meta
    except DamagedCheckpoint as damage:
        raise UserError(
            f"checkpoint {step} is damaged: {damage}; there are "
            f"{', '.join(map(str, sorted(steps)))}"
        ) from None


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
