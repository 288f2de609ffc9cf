"""What a run begins with, where that is not all made by the seed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from eir_jax.data.dataset import Dataset
from eir_jax.data.picture_record import recorded_pictures, trained_on
from eir_jax.evaluation.restore import restore_run, tensors_of
from eir_jax.models.weights import from_torchvision
from eir_jax.run.state import TrainState
from eir_jax.system import processes, sharding
from eir_jax.system.errors import UserError
from eir_jax.training.parts import Parts


def begin(parts: Parts, dataset: Dataset) -> TrainState:
    """Return the state before the first step.

    Raises:
      UserError: `model.weights` or `grow_from` names nothing that this can begin with.
    """
    state = parts.create_state()
    if parts.config.grow_from:
        return grown(parts, state, dataset)
    return with_weights(parts, state) if parts.config.model.weights else state


def grown(parts: Parts, state: TrainState, dataset: Dataset) -> TrainState:
    """Return the state with the encoder of `grow_from`, and its rows of what both have.

    A picture is known by its path and its file's size. Optimiser and what else there is
    of memory begin anew.

    Raises:
      UserError: it is no workdir of a run on a folder, or of another model.
    """
    source = Path(parts.config.grow_from).expanduser()
    before = restore_run(source)
    ours = parts.config.model.to_dict()
    theirs = before.config.model.to_dict()
    shapes = theirs.keys() - {"weights", "init", "dtype", "precision"}
    if differs := sorted(key for key in shapes if theirs[key] != ours[key]):
        words = " ".join(f"--config.model.{key}={theirs[key]}" for key in differs)
        raise UserError(f"grow_from={source} is of another model; give {words}, as it")
    memory, words = dict(state.memory), "the memory begins anew"
    if "key" in memory:
        memory["key"] = jax.tree.map(jnp.copy, before.state.params)
    if "bank" in memory and "bank" in before.state.memory:
        known = {picture: row for row, picture in enumerate(recorded_pictures(source))}
        pictures = trained_on(dataset.files)
        pairs = [
            (row, known[picture])
            for row, picture in enumerate(pictures)
            if picture in known
        ]
        memory["bank"] = _with_rows(
            memory["bank"],
            before.state.memory["bank"],
            np.array(pairs, np.int64).reshape(-1, 2),
        )
        words = (
            f"{len(pairs):,} of {len(pictures):,} pictures keep their row of the bank, "
            f"{len(pictures) - len(pairs):,} begin one"
        )
    if processes.is_main():
        print(f"goes on from {source}, step {int(before.state.step)}: {words}")
    return state.replace(
        params=before.state.params,
        batch_stats=before.state.batch_stats,
        memory=memory,
    )


def _with_rows(
    bank: jax.Array, before: jax.Array, pairs: Int[np.ndarray, "kept 2"]
) -> jax.Array:
    """Return the bank with rows of another: pairs of its own row and the other's."""
    rows, other = sharding.fetch(bank).copy(), sharding.fetch(before)
    rows[pairs[:, 0]] = other[pairs[:, 1]].astype(rows.dtype)
    return jax.make_array_from_callback(
        rows.shape, bank.sharding, lambda part: rows[part]
    )


def with_weights(parts: Parts, state: TrainState) -> TrainState:
    """Return the state before the first step with the backbone of `model.weights`."""
    source = parts.config.model.weights
    tensors = tensors_of(Path(source).expanduser())
    params, batch_stats = jax.tree.map(
        lambda x: sharding.put_everywhere(np.asarray(x), parts.mesh),
        from_torchvision(tensors, state.params, state.batch_stats, with_head=False),
    )
    if processes.is_main():
        print(f"backbone of {source}; head and memory begin anew")
    memory = state.memory
    if "key" in memory:  # it begins as the encoder, in arrays of its own
        memory = memory | {"key": jax.tree.map(jnp.copy, params)}
    return state.replace(params=params, batch_stats=batch_stats, memory=memory)
