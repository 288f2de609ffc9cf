"""A run's network from its workdir alone: settings, checkpoint, encoder."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from eir_jax.data.dataset import Dataset
from eir_jax.data.sources import load
from eir_jax.evaluation.embed import Embed, make_embed
from eir_jax.models.encoder import make_encoder
from eir_jax.objectives.systems import make_objective
from eir_jax.run.checkpoint import Checkpoints, DamagedCheckpoint, Meta
from eir_jax.run.optimizer import make_optimizer
from eir_jax.run.state import TrainState, abstract_train_state
from eir_jax.run.validate import check_complete, check_data_there, validate
from eir_jax.system import sharding
from eir_jax.system.config import complete, override, read_config
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
    encoder = make_encoder(config, exact=True)
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
    return Run(config, state, meta, make_embed(config, encoder, mesh), mesh)


def load_data(run: Run, data_path: str | None = None) -> Dataset:
    """Load the data that the run was trained on.

    Args:
      run: the restored run.
      data_path: where the data lies now, instead of the settings' `data.path`.

    Raises:
      UserError: it cannot be had, or its training images are not the checkpoint's.
    """
    if data_path is not None:
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
