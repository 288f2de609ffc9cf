"""IR as first published: noise-contrastive estimation of the softmax (NCE)."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from eir_jax.data.order import NOISE
from eir_jax.data.views import Slot
from eir_jax.objectives.bank import make_bank
from eir_jax.objectives.memory_bank import read_rows
from eir_jax.objectives.objective import Batch, Memory, Objective, Outputs, Scalars

EPSILON = 1e-7  # in the denominators, as released


def make_noise_objective(
    config: ConfigDict, num_examples: int, mesh: Mesh | None = None
) -> Objective:
    """Return 'ir_nce' (Wu et al., 2018): view 1 against `nce.negatives` rows drawn.

    The memory is the bank and `z`, which makes scores probabilities: it is estimated
    from the first batch, and stays or is a moving average (`nce.z_momentum`); -1: not
    yet.
    """
    bank, tau = make_bank(config, num_examples, mesh), config.temperature
    z_momentum = config.nce.z_momentum

    def scores(outputs: Outputs, memory: Memory, batch: Batch) -> tuple[Array, Array]:
        """Return the cosines / tau of the own row and those drawn, and their Z."""
        index = batch["index"]
        chance = jax.random.fold_in(jax.random.key(config.seed), NOISE)
        shape = (len(index), config.nce.negatives)
        drawn = jax.random.randint(
            jax.random.fold_in(chance, batch["step"]), shape, 0, num_examples
        )
        numbers = jnp.concatenate([index[:, None], drawn], axis=1)
        found = drawn_scores(
            outputs["view1"].embedding, memory["bank"], numbers, tau, mesh
        )
        return found, jax.lax.stop_gradient(num_examples * jnp.exp(found).mean())

    def terms(outputs: Outputs, memory: Memory, batch: Batch) -> Scalars:
        found, own_z = scores(outputs, memory, batch)
        z = jnp.where(memory["z"] < 0, own_z, memory["z"])
        return {"loss_instance": nce_loss(found, z, num_examples)}

    def update(memory: Memory, outputs: Outputs, batch: Batch, params, finite):
        _, own_z = scores(outputs, memory, batch)
        z = memory["z"]
        averaged = z if z_momentum == 1 else z_momentum * z + (1 - z_momentum) * own_z
        z = jnp.where(z < 0, own_z, averaged)
        written, watched = bank.update(memory, outputs, batch, finite)
        return written | {"z": jnp.where(finite, z, memory["z"])}, watched

    return Objective(
        slots=(Slot("view1"),),
        init=lambda key, params: bank.init(key) | {"z": -jnp.ones(())},
        specs={"bank": P("data"), "z": P()},
        weights=lambda step: {"loss_instance": 1.0},
        terms=terms,
        update=update,
    )


def drawn_scores(
    view: Float[Array, "batch dim"],
    bank: Float[Array, "rows dim"],
    numbers: Int[Array, "batch drawn"],
    temperature: float,
    mesh: Mesh | None = None,
) -> Float[Array, "batch drawn"]:
    """Return the cosines / tau of each view to the bank's rows of these numbers."""
    rows = read_rows(bank, numbers.reshape(-1), mesh)
    rows = rows.reshape(*numbers.shape, -1)
    return jnp.einsum("bd,bkd->bk", view, rows, precision="highest") / temperature


def nce_loss(
    scores: Float[Array, "batch drawn"], z: Float[Array, ""], num_examples: int
) -> Float[Array, ""]:
    """Return the mean of -log P(own is data) - sum of log P(a row drawn is noise).

    Args:
      scores: cosines / tau, the own row's first, then those of K rows drawn uniformly.
      z: P = exp(score) / z.
      num_examples: N; K / N is the noise's share.
    """
    noise = (scores.shape[1] - 1) / num_examples
    p = jnp.exp(scores) / z
    own = jnp.log(p[:, 0]) - jnp.log(p[:, 0] + noise + EPSILON)
    drawn = jnp.log(noise) - jnp.log(p[:, 1:] + noise + EPSILON)
    return -(own + drawn.sum(axis=1)).mean()
