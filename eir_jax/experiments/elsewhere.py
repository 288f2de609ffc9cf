"""What can be judged but for a run on its own data: other data, weights, embeddings."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from eir_jax.collection.embeddings import opened_npz, read_embeddings
from eir_jax.data.dataset import Dataset, Split, check_classes
from eir_jax.data.sources import load
from eir_jax.evaluation.allowed import judged_split
from eir_jax.evaluation.embed import make_embed
from eir_jax.evaluation.knn import unit_rows
from eir_jax.evaluation.protocol import Protocol
from eir_jax.evaluation.restore import Run, restore_run, restore_weights
from eir_jax.evaluation.tasks import Embedded, Subject
from eir_jax.models.weights import sha256
from eir_jax.run.state import TrainState
from eir_jax.run.validate import validate
from eir_jax.system import sharding
from eir_jax.system.config import load_config, override
from eir_jax.system.errors import UserError

HOW = ("knn.", "retrieval.", "linear.", "evaluation_batch_size")
"""Settings of the evaluation."""


class Judged(NamedTuple):
    """What is judged: by the settings of `run`, on `dataset`."""

    run: Run
    dataset: Dataset
    says: Protocol
    """What decides the numbers beside data and task: whose embedding it is."""
    subject: Subject | None = None
    """It, embedded, where another program has done that."""


def on_other_data(
    workdir: Path, step: str, config: str | os.PathLike[str], overrides: Sequence[str]
) -> Judged:
    """Return a run's encoder, to be judged on the data set of a config.

    Images are normalised as in its training; sizes, splits and the rest are the
    config's.

    Args:
      workdir: of the run.
      step: a number, 'best' or 'last'.
      config: name or file.
      overrides: words `--config.key=value`, for `HOW` and `data.*`.

    Raises:
      UserError: no checkpoint, or the data cannot be had.
    """
    run = restore_run(workdir, step)
    says = {
        "encoder": f"step {int(run.state.step)}, trained on {run.config.data.name} "
        f"({run.meta['train_hash'][:12]})"
    }
    return _on(run, config, overrides, says)


def by_weights(
    file: Path, config: str | os.PathLike[str] | None, overrides: Sequence[str]
) -> Judged:
    """Return the encoder of a file of weights, to be judged on a data set.

    Args:
      file: as `restore_weights` takes it.
      config: name or file of the data set; None: what the weights note.
      overrides: words `--config.key=value`, for `HOW` and `data.*`.

    Raises:
      UserError: the weights cannot be used, or the data cannot be had.
    """
    run = restore_weights(file)
    if config is None and not run.meta["train_hash"]:
        raise UserError(f"{file} notes no data set; give --config, a name or a file")
    hashed = run.meta["checksums"].get("weights", run.meta["train_hash"])
    what = f"weights {file.name} ({hashed[:12]})"
    return _on(run, config, overrides, {"encoder": what})


def of_embeddings(files: Sequence[Path], overrides: Sequence[str]) -> Judged:
    """Return embeddings of any program, to be judged.

    Args:
      files: .npz of train and test, or of one set, which is judged within itself; with
        `embedding`, `label`, and `feature` where it is another.
      overrides: words `--config.key=value`, for `HOW`.

    Raises:
      UserError: a file cannot be read, or they are not of one dimension.
    """
    if not 1 <= len(files) <= 2:
        raise UserError("--embeddings= takes train.npz,test.npz, or one file")
    config = load_config("base")
    override(config, overrides, HOW)
    validate(config)
    if config.linear.augment or config.linear.pooled_map:
        raise UserError(
            "linear.augment and linear.pooled_map need an encoder; embeddings have none"
        )
    read = [_embedded(file) for file in files]
    shapes = {(x.embedding.shape[1], x.feature.shape[1]) for x in read}
    if len(shapes) > 1:
        raise UserError(f"the embeddings of {files[0]} and {files[1]} differ in size")
    ((dim, features),) = shapes
    splits = [Split(x.embedding, x.labels) for x in read]
    name = " and ".join(file.name for file in files)
    test = splits[1] if len(splits) == 2 else None
    dataset = Dataset("embeddings", name, splits[0], test)
    config.model.embedding_dim = dim
    mesh = sharding.make_mesh()
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params={},
        batch_stats={},
        opt_state=(),
        memory={},
    )
    arrays = {
        f"{number}.{key}": getattr(x, key)
        for number, x in enumerate(read)
        for key in ("embedding", "feature")
    }
    meta = {"checksums": {"embeddings": sha256(arrays)}, "train_hash": ""}
    run = Run(config, state, meta, _no_embed, mesh)
    query = read[0 if judged_split(dataset) == "train" else -1]
    train = read[0] if read[0].labels is None else read[0].take(_labelled(read[0]))
    says = {
        "encoder": "another program's",
        "transform": "as the other program did",
        "features": f"embedding: {dim}-d, scaled to unit length; feature: {features}-d",
    }
    return Judged(run, dataset, says, Subject(run, dataset, query, train))


def _on(
    run: Run,
    config: str | os.PathLike[str] | None,
    overrides: Sequence[str],
    says: Protocol,
) -> Judged:
    """Return the run's encoder with the data of a config, normalised as before."""
    settings = run.config.copy_and_resolve_references()
    if config is not None:
        settings.data = load_config(config).data
        settings.data.mean = run.config.data.mean
        settings.data.std = run.config.data.std
    settings.paper = ConfigDict()  # whose numbers are of another encoder
    override(settings, overrides, (*HOW, "data."))
    validate(settings)
    dataset = load(settings.data)
    for note in dataset.notes:
        print(note, file=sys.stderr)
    embed = make_embed(settings, run.mesh)
    run = run._replace(config=settings, state=run.state.replace(memory={}), embed=embed)
    return Judged(run, dataset, says)


def _embedded(file: Path) -> Embedded:
    found = read_embeddings(file)
    with opened_npz(file) as arrays:
        feature = arrays["feature"] if "feature" in arrays.files else found.embedding
    if feature.ndim != 2 or len(feature) != len(found.embedding):
        raise UserError(
            f"'feature' of {file} is {list(feature.shape)}; it must be "
            f"[{len(found.embedding)}, dim]"
        )
    embedding = unit_rows(np.asarray(found.embedding, np.float32), str(file))
    if found.label is not None:
        check_classes(found.label, f"'label' of {file}", "row")
    labels = None if found.label is None else found.label.astype(np.int32)
    return Embedded(embedding, labels, embedding, np.asarray(feature, np.float32))


def _labelled(found: Embedded) -> np.ndarray:
    assert found.labels is not None
    return np.flatnonzero(found.labels >= 0)


def _no_embed(*args, **kwargs):
    raise AssertionError("embeddings are not embedded again")
