"""The state that training carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from eir_jax.models.encoder import Encoder, TwoTowers
from eir_jax.objectives.objective import Memory, Objective

PyTree = Any


class TrainState(struct.PyTreeNode):
    """All that a step reads and writes."""

    step: Int[Array, ""]
    """Steps taken."""
    params: PyTree
    batch_stats: PyTree
    """Running means and variances of batch norm."""
    opt_state: optax.OptState
    memory: Memory
    """What the objective remembers: a bank, a queue; {}: nothing."""


def state_shardings(state: TrainState, objective: Objective, mesh: Mesh) -> TrainState:
    """Return where each leaf lives: on every device, but what the objective splits."""
    specs = jax.tree.map(lambda _: PartitionSpec(), state)
    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    memory = jax.tree.broadcast(objective.specs, state.memory, is_leaf=is_spec)
    specs = specs.replace(memory=memory)
    shardings: TrainState = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec
    )
    return shardings


def abstract_train_state(
    config: ConfigDict,
    objective: Objective,
    encoder: Encoder | TwoTowers,
    tx: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """Return the state's shapes, types and shardings, without computing it."""
    state = jax.eval_shape(_make_init(config, objective, encoder, tx))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        state_shardings(state, objective, mesh),
    )


def create_train_state(
    config: ConfigDict,
    objective: Objective,
    encoder: Encoder | TwoTowers,
    tx: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """Return the state before the first step: a function of `config.seed` alone."""
    init = _make_init(config, objective, encoder, tx)
    shardings = state_shardings(jax.eval_shape(init), objective, mesh)
    return jax.jit(init, out_shardings=shardings)()


def _make_init(config, objective, encoder, tx):
    def init() -> TrainState:
        key = jax.random.key(config.seed)
        size = config.data.image_size
        variables = encoder.init(
            jax.random.fold_in(key, 0), jnp.zeros((1, size, size, 3))
        )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=tx.init(variables["params"]),
            memory=objective.init(jax.random.fold_in(key, 1), variables["params"]),
        )

    return init
