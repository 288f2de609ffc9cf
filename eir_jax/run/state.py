"""The state that training carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from eir_jax.models.encoder import Encoder
from eir_jax.objectives.memory_bank import create_memory_bank, padded_rows
from eir_jax.system import sharding

PyTree = Any


class TrainState(struct.PyTreeNode):
    """All that a step reads and writes."""

    step: Int[Array, ""]
    """Steps taken."""
    params: PyTree
    batch_stats: PyTree
    """Running means and variances of batch norm."""
    opt_state: optax.OptState
    memory_bank: Float[Array, "rows dim"]
    """One unit row for each training image, then zero rows (see memory_bank.py)."""


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Return where each leaf lives: the bank split by rows, the rest everywhere."""
    everywhere: NamedSharding = sharding.replicated(mesh)
    shardings: TrainState = jax.tree.map(lambda _: everywhere, state)
    return shardings.replace(memory_bank=sharding.split_rows(mesh))


def abstract_train_state(
    config: ConfigDict,
    encoder: Encoder,
    tx: optax.GradientTransformation,
    num_examples: int,
    mesh: Mesh,
) -> TrainState:
    """Return the state's shapes, types and shardings, without computing it."""
    state = jax.eval_shape(_make_init(config, encoder, tx, num_examples, mesh))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        state_shardings(state, mesh),
    )


def create_train_state(
    config: ConfigDict,
    encoder: Encoder,
    tx: optax.GradientTransformation,
    num_examples: int,
    mesh: Mesh,
) -> TrainState:
    """Return the state before the first step: a function of `config.seed` alone."""
    init = _make_init(config, encoder, tx, num_examples, mesh)
    shardings = state_shardings(jax.eval_shape(init), mesh)
    return jax.jit(init, out_shardings=shardings)()


def _make_init(config, encoder, tx, num_examples, mesh):
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
            memory_bank=create_memory_bank(
                jax.random.fold_in(key, 1),
                num_examples,
                config.model.embedding_dim,
                padded_rows(num_examples, mesh.size),
                config.bank.dtype,
                mesh,
            ),
        )

    return init
