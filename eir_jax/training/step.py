"""One step of training: a pure function of state and batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from eir_jax.evaluation import health
from eir_jax.models.encoder import Encoder
from eir_jax.objectives import losses
from eir_jax.objectives.memory_bank import (
    Relations,
    read_rows,
    relate_view,
    relate_views,
    update_memory_bank,
)
from eir_jax.run.state import TrainState, state_shardings
from eir_jax.system import sharding

Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    config: ConfigDict,
    encoder: Encoder,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    num_examples: int,
    mesh: Mesh,
) -> TrainStep:
    """Return the step: (state, batch) -> (state, metrics), Eq. 10.

    A batch holds `view1`, `view2`, `mixed` [batch, size, size, 3] (normalised; only
    those that the configured terms look at), `partner`, `index` [batch] int32 and
    `ratio` [batch] in [0, 1]. Metrics are the scalars `loss`, `loss_instance`,
    `loss_intra`, `loss_inter` (those in use), `learning_rate`, and the label-free
    health of the batch: `embedding_std`, `bank_drift` (mean of 1 - cosine of a row with
    what replaces it), `gradient_norm` and, where both views are encoded, `alignment`,
    `positive_rank`, `entropy_p`, `entropy_q`.
    """
    slots = ("view1", "view2", "mixed")
    everywhere = sharding.replicated(mesh)

    def loss_fn(params, batch_stats, memory_bank, batch, lambda_intra):
        images = [batch[name] for name in slots if name in batch]
        # Instance-major: a device's rows stay its own whatever the number of slots.
        stacked = jnp.stack(images, axis=1)
        output, updates = encoder.apply(
            {"params": params, "batch_stats": batch_stats},
            stacked.reshape(-1, *stacked.shape[2:]),
            train=True,
            mutable=["batch_stats"],
        )
        embedding = output.embedding.reshape(len(stacked), len(images), -1)
        # The bank's rows are split over the devices: each needs the whole batch.
        embedding = jax.lax.with_sharding_constraint(embedding, everywhere)
        named = dict(
            zip((n for n in slots if n in batch), embedding.swapaxes(0, 1), strict=True)
        )
        terms = loss_terms(config, named, memory_bank, batch, num_examples, mesh)
        loss = (
            terms["loss_instance"]
            + lambda_intra * terms.get("loss_intra", 0.0)
            + config.lambda_inter * terms.get("loss_inter", 0.0)
        )
        return loss, (terms, named["view1"], updates["batch_stats"])

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        lambda_intra = config.lambda_intra
        if config.intra.ramp_steps:
            lambda_intra *= jnp.minimum(state.step / config.intra.ramp_steps, 1.0)
        (loss, (terms, view1, batch_stats)), gradient = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state.params, state.batch_stats, state.memory_bank, batch, lambda_intra)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        index = jax.lax.with_sharding_constraint(batch["index"], everywhere)
        before = read_rows(state.memory_bank, index, mesh)
        # A loss that is not finite writes no row. And, as writing waits for the loss,
        # all that reads the old rows is done: XLA need not copy the bank to keep them.
        written = jnp.where(jnp.isfinite(loss), index, -1)
        bank = update_memory_bank(
            state.memory_bank, written, view1, config.bank_momentum, mesh
        )
        drift = 1 - (read_rows(bank, index, mesh) * before).sum(1).mean()
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            memory_bank=bank,
        )
        return new_state, {
            "loss": loss,
            **terms,
            "bank_drift": drift,
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": schedule(state.step),
        }

    return train_step


def loss_terms(
    config: ConfigDict,
    embedding: dict[str, Float[Array, "batch dim"]],
    memory_bank: Float[Array, "rows dim"],
    batch: Batch,
    num_examples: int,
    mesh: Mesh | None = None,
) -> Metrics:
    """Return the terms of Eq. 10 that are in use, and the batch's health, by name."""
    index, tau = batch["index"], config.temperature
    view1 = embedding["view1"]
    how = {"form": config.bank.form, "mesh": mesh}
    if config.instance.form == "ir" and not config.lambda_intra:
        log_p = relate_view(memory_bank, view1, index, num_examples, tau, **how)
        terms = {"loss_instance": losses.ir_loss(log_p)}
    else:
        relations: Relations = relate_views(
            memory_bank,
            view1,
            embedding["view2"],
            index,
            num_examples,
            tau,
            divergence_temperature=config.intra.temperature,
            stop_gradient=config.intra.stop_gradient,
            symmetric=config.intra.symmetric,
            **how,
        )
        if config.instance.form == "ir":
            terms = {"loss_instance": losses.ir_loss(relations.log_p)}
        else:
            terms = {
                "loss_instance": losses.iraug_loss(relations, config.instance.form)
            }
        if config.lambda_intra:
            terms["loss_intra"] = losses.intra_loss(relations)
        terms["alignment"] = health.alignment(view1, embedding["view2"])
        terms["positive_rank"] = relations.rank.mean()
        terms["entropy_p"] = relations.entropy_p.mean()
        terms["entropy_q"] = relations.entropy_q.mean()
    if config.lambda_inter:
        target = losses.mixed_target(view1, batch["partner"], batch["ratio"])
        if config.inter.stop_gradient:
            target = jax.lax.stop_gradient(target)
        if config.inter.negatives == "bank":
            terms["loss_inter"] = losses.inter_bank_loss(
                embedding["mixed"],
                target,
                memory_bank,
                index,
                batch["partner"],
                num_examples,
                tau,
                literal=config.inter.literal,
                **how,
            )
        else:
            terms["loss_inter"] = losses.inter_loss(
                embedding["mixed"], target, tau, literal=config.inter.literal
            )
    terms["embedding_std"] = health.embedding_std(view1)
    return terms


def compile_train_step(
    step: TrainStep,
    state: TrainState,
    mesh: Mesh,
    views_of: Callable[[Batch], Batch] | None = None,
) -> TrainStep:
    """Map a step over the mesh; the state given to it is donated (gone afterwards).

    Args:
      step: as `make_train_step` returns it.
      state: for its shardings.
      mesh: of all devices; batches lie there already (`sharding.put_batch`).
      views_of: makes the step's batch from the one that is given, inside the step.
    """
    shardings = state_shardings(state, mesh)

    def whole_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return step(state, views_of(batch) if views_of else batch)

    return jax.jit(
        whole_step,
        in_shardings=(shardings, None),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
