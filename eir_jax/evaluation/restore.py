"""A run's network from its workdir alone, or from a file of weights."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eir_jax.data.dataset import Dataset
from eir_jax.data.sources import load
from eir_jax.evaluation.embed import Embed, make_embed
from eir_jax.models.encoder import feature_dim, make_encoder
from eir_jax.models.weights import (
    Tensors,
    from_torchvision,
    network_of,
    read_weights,
    sha256,
    to_torchvision,
)
from eir_jax.objectives.systems import make_objective
from eir_jax.run.checkpoint import Checkpoints, DamagedCheckpoint, Meta
from eir_jax.run.optimizer import make_optimizer
from eir_jax.run.state import TrainState, abstract_train_state
from eir_jax.run.validate import check_complete, check_data_there, validate
from eir_jax.system import sharding
from eir_jax.system.config import (
    complete,
    flatten,
    load_config,
    override,
    read_config,
)
from eir_jax.system.errors import UserError


class Run(NamedTuple):
    """A restored checkpoint and what is needed to use it."""

    config: ConfigDict
    state: TrainState
    meta: Meta
    embed: Embed
    mesh: Mesh


def restore_run(
    workdir: Path,
    step: str = "last",
    overrides: Sequence[str] = (),
    allowed: tuple[str, ...] = ("evaluation_batch_size",),
) -> Run:
    """Restore a checkpoint of `workdir` onto all devices.

    Args:
      workdir: of a run of `eir_jax.main`.
      step: a number, 'last' (the newest whole one) or 'best' (by kNN while training).
      overrides: words `--config.key=value` of settings that do not touch the network.
      allowed: what their keys may begin with.

    Raises:
      UserError: no workdir, no such checkpoint, a damaged one, or a setting that is
        not allowed or wrong.
    """
    config = read_config(workdir / "config.json")
    check_complete(config, str(workdir / "config.json"))
    override(config, overrides, allowed)
    validate(config)
    mesh = sharding.make_mesh()
    encoder = make_encoder(config, exact=True, mesh=mesh)
    # The schedule's length does not enter the state's shapes: any will do.
    tx = make_optimizer(config, steps_per_epoch=1)

    def abstract(meta: Meta) -> TrainState:
        try:
            saved = complete(meta["config"]).model.to_dict()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedCheckpoint(f"its notes hold no settings ({error})") from None
        if saved != config.model.to_dict():
            raise UserError(
                f"the checkpoints in {workdir} are of the model {saved}, its "
                f"config.json says {config.model.to_dict()}; put the settings back"
            )
        objective = make_objective(config, meta["num_examples"], mesh)
        return abstract_train_state(config, objective, encoder, tx, mesh)

    directory = workdir / "checkpoints"
    checkpoints = Checkpoints(directory, read_only=True) if directory.is_dir() else None
    if checkpoints is None or not checkpoints.steps:
        raise UserError(
            f"{workdir} holds no checkpoint yet; train with `python -m eir_jax.main`"
        )
    if step == "last":
        found = checkpoints.restore_newest(abstract)
        if found is None:
            raise UserError(f"every checkpoint in {directory} is damaged")
        state, meta = found
    else:
        number = _number(step, checkpoints, workdir)
        try:
            meta = checkpoints.read_meta(number)
            state = checkpoints.restore(number, abstract(meta))
        except DamagedCheckpoint as damage:
            raise UserError(
                f"checkpoint {number} is damaged: {damage}; {_existing(checkpoints)}"
            ) from None
    return Run(config, state, meta, make_embed(config, mesh), mesh)


PREPARATION_KEYS = (
    *("evaluation_batch_size", "data.image_size", "data.resize", "data.fit"),
    *("data.mean", "data.std"),
)
"""What may be set of weights of other programs, which do not say it."""


def restore_weights(
    file: Path, overrides: Sequence[str] = (), allowed: tuple[str, ...] | None = None
) -> Run:
    """Return what embeds by a file of weights, as `restore_run` by a checkpoint.

    Weights of other programs have no head of ours: the embedding is the feature, scaled
    to unit length. Their images are prepared as ImageNet's are (a 7x7 first
    convolution) or CIFAR's (3x3), if not set otherwise.

    Args:
      file: .safetensors or .pth.
      overrides: words `--config.key=value`.
      allowed: what their keys may begin with; None: `evaluation_batch_size`, and of
        other programs' weights `PREPARATION_KEYS`.

    Raises:
      UserError: no such file, a damaged one, one of a network that there is not here,
        or a setting that is not allowed or wrong.
    """
    tensors, about = read_weights(file)
    if about:
        try:
            config = complete(about["config"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file} notes no settings: {error}") from None
    else:
        config = load_config("base")
        try:
            config.model.update(network_of(tensors))
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        config.model.embedding_dim = feature_dim(config.model)
        if config.model.stem == "imagenet":
            theirs = load_config("image_folder").data
            for key, value in theirs.items(preserve_field_references=True):
                if key in ("image_size", "resize", "fit", "mean", "std"):
                    config.data[key] = value  # resize follows image_size there
        tensors = {n: x for n, x in tensors.items() if not n.startswith("fc.")}
        tensors["fc.weight"] = np.eye(config.model.embedding_dim, dtype=np.float32)
        tensors["fc.bias"] = np.zeros(config.model.embedding_dim, np.float32)
    if allowed is None:
        allowed = PREPARATION_KEYS[:1] if about else PREPARATION_KEYS
    override(config, overrides, allowed)
    validate(config)
    mesh = sharding.make_mesh()
    encoder = make_encoder(config, exact=True, mesh=mesh)
    size = config.data.image_size
    like = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    )
    try:
        variables = from_torchvision(
            tensors, like["params"], like["batch_stats"], with_head=True
        )
    except UserError as error:
        raise UserError(
            f"{file} is not whole, or of a network that there is not here: {error}"
        ) from None
    params, batch_stats = jax.tree.map(
        lambda x: sharding.put_everywhere(x, mesh), variables
    )
    state = TrainState(
        step=jnp.asarray(about.get("step", 0), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=(),
        memory={},
    )
    meta = {
        "num_examples": about.get("num_examples", 0),
        "train_hash": about.get("train_hash", ""),
        "checksums": about.get("checksums") or {"weights": sha256(tensors)},
        "config": config.to_dict(),
    }
    if not about:  # to prepare other pictures in the same way
        settings = flatten(config)
        meta["settings"] = {key: settings[key] for key in PREPARATION_KEYS[1:]}
    return Run(config, state, meta, make_embed(config, mesh), mesh)


def restore(
    source: Path,
    step: str = "last",
    overrides: Sequence[str] = (),
) -> Run:
    """Restore a workdir's checkpoint, or a file of weights.

    Raises:
      UserError: as `restore_run` and `restore_weights`.
    """
    if source.is_dir():
        return restore_run(source, step, overrides)
    if not source.exists():
        raise UserError(f"there is no workdir or file of weights {source}")
    return restore_weights(source, overrides)


def tensors_of(source: Path) -> Tensors:
    """Return the newest weights of a workdir, or a file's, by torchvision's names.

    Raises:
      UserError: as `restore_run` and `read_weights`.
    """
    if source.is_dir():
        state = restore_run(source).state
        return to_torchvision(state.params, state.batch_stats)
    return read_weights(source).tensors


def load_data(run: Run, data_path: str | None = None) -> Dataset:
    """Load the data that the run was trained on.

    Args:
      run: the restored run.
      data_path: where the data lies now, instead of the settings' `data.path`.

    Raises:
      UserError: it cannot be had, or its training images are not the checkpoint's.
    """
    if data_path is not None:
        if not run.config.data.path:
            raise UserError(
                f"--data_path={data_path}: this run's data, data.source="
                f"{run.config.data.source}, lies at no path; leave it out"
            )
        run.config.data.path = data_path
    check_data_there(run.config.data)
    dataset = load(run.config.data)
    for note in dataset.notes:
        print(note, file=sys.stderr)
    if not dataset.trains_as(run.meta["train_hash"]):
        raise UserError(
            f"the training images of {dataset.name} are not those of the checkpoint "
            f"(content {dataset.train_hash[:12]}, there "
            f"{run.meta['train_hash'][:12]}); give --data_path"
        )
    return dataset


def _number(step: str, checkpoints: Checkpoints, workdir: Path) -> int:
    if step == "best":
        if checkpoints.best is None:
            raise UserError(
                f"no checkpoint of {workdir} was evaluated while training; use "
                "--step=last"
            )
        return checkpoints.best
    if not step.isdecimal() or int(step) not in checkpoints.steps:
        raise UserError(
            f"{workdir} has no checkpoint of step {step}; {_existing(checkpoints)}"
        )
    return int(step)


def _existing(checkpoints: Checkpoints) -> str:
    steps = ", ".join(map(str, sorted(checkpoints.steps)))
    return f"there are {steps}, and 'best' and 'last'"
