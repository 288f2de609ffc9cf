"""What a run begins with, where that is not all made by the seed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from eir_jax.evaluation.restore import tensors_of
from eir_jax.models.weights import from_torchvision
from eir_jax.run.state import TrainState
from eir_jax.system import processes, sharding
from eir_jax.training.parts import Parts


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
