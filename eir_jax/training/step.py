"""One step of training: a pure function of state and batch."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from eir_jax.data.order import SHUFFLE
from eir_jax.evaluation import health
from eir_jax.models.encoder import Encoder, TwoTowers, with_passes
from eir_jax.objectives.objective import Objective
from eir_jax.run.state import TrainState
from eir_jax.system import sharding

Batch = dict[str, Array]
Metrics = Mapping[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    objective: Objective,
    encoder: Encoder | TwoTowers,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    seed: int = 0,
) -> TrainStep:
    """Return the step: (state, batch) -> (state, metrics), Eq. 10.

    A batch holds an image [batch, size, size, 3] (normalised) for each slot of the
    objective, and what else that asks for: `index` [batch] int32, and with mixed images
    `partner` and `ratio` in [0, 1]. Metrics are scalars: `loss` and its terms,
    `learning_rate`, `gradient_norm`, what the objective watches, and the label-free
    health of the batch: `embedding_std` and, of two views, `alignment`.

    Slots of the key encoder are encoded by `memory["key"]`, without gradient, each in a
    batch shuffled by (seed, step, place of the slot): only so do `batch_norm.groups`
    hide which images belong together (MoCo).
    """
    names = [slot.name for slot in objective.slots if slot.encoder == "online"]
    keys = [slot.name for slot in objective.slots if slot.encoder == "key"]
    everywhere = sharding.replicated(mesh)
    on_cpu = sharding.target_of(mesh).platform == "cpu"

    def encode_key(place, params, batch_stats, images, step):
        chance = jax.random.fold_in(jax.random.key(seed), SHUFFLE)
        chance = jax.random.fold_in(jax.random.fold_in(chance, step), place)
        shuffled = jax.random.permutation(chance, len(images))
        assert isinstance(encoder, Encoder)  # `problems`: two towers are CMC's alone
        # In training mode; the key encoder's running statistics are used nowhere.
        output, _ = with_passes(encoder, ((0,),)).apply(
            {"params": params, "batch_stats": batch_stats},
            images[shuffled],
            train=True,
            mutable=["batch_stats"],
        )
        output = jax.lax.with_sharding_constraint(output, everywhere)
        back = jnp.argsort(shuffled)
        return jax.tree.map(lambda x: x[back], output)

    def loss_fn(params, batch_stats, memory, batch, weights, outputs):
        # Instance-major: a device's rows stay its own whatever the number of slots.
        stacked = jnp.stack([batch[name] for name in names], axis=1)
        with jax.named_scope("encoder"):
            output, updates = encoder.apply(
                {"params": params, "batch_stats": batch_stats},
                stacked.reshape(-1, *stacked.shape[2:]),
                train=True,
                mutable=["batch_stats"],
            )
        apart = jax.tree.map(lambda x: x.reshape(*stacked.shape[:2], -1), output)
        # Rows to be told apart may lie on any device: each needs the whole batch.
        apart = jax.lax.with_sharding_constraint(apart, everywhere)
        outputs = outputs | {
            name: jax.tree.map(lambda x, i=i: x[:, i], apart)
            for i, name in enumerate(names)
        }
        with jax.named_scope("relations"):
            terms = objective.terms(outputs, memory, batch)
        loss = sum(factor * terms[name] for name, factor in weights.items())
        return loss, (terms, outputs, updates["batch_stats"])

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        index = jax.lax.with_sharding_constraint(batch["index"], everywhere)
        batch = batch | {"index": index, "step": state.step}
        keyed = {
            name: encode_key(
                place, state.memory["key"], state.batch_stats, batch[name], state.step
            )
            for place, name in enumerate(keys)
        }
        (loss, (terms, outputs, batch_stats)), gradient = jax.value_and_grad(
            loss_fn, has_aux=True
        )(
            *(state.params, state.batch_stats, state.memory, batch),
            objective.weights(state.step),
            keyed,
        )
        if not on_cpu:
            gradient = jax.tree.map(_turned, gradient)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        with jax.named_scope("memory"):
            # The memory is written when all that reads it is done, backwards too: else
            # XLA may keep a copy. And when the gradient is finite: of images that are
            # not the loss may be, as XLA on a CPU takes a sum of max(nan, 0) for 0.
            norm = _norm(gradient)
            norm, finite = jax.lax.optimization_barrier(
                (norm, jnp.isfinite(loss) & jnp.isfinite(norm))
            )
            memory, watched = objective.update(
                state.memory, outputs, batch, params, finite
            )
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            memory=memory,
        )
        return new_state, {
            "loss": loss,
            **terms,
            **watched,
            **health.of_batch(
                {name: outputs[name].embedding for name in [*names, *keys]}
            ),
            "gradient_norm": norm,
            "learning_rate": schedule(state.step),
        }

    return train_step


def _turned(gradient: Array) -> Array:
    """Return a kernel's gradient as the parameters lie, on GPUs another way than its.

    By itself, of numbers in a row: turned within the update, the new parameters and
    momenta would be copied to their places.
    """
    if gradient.ndim < 2:
        return gradient
    in_a_row = jax.lax.optimization_barrier(gradient.reshape(-1))
    return in_a_row.reshape(gradient.shape)


def _norm(gradient: Any) -> Float[Array, ""]:
    """Return the length of all leaves as one vector.

    What is left of each when its last axis is summed is put together: one more sum in
    place of one a leaf.
    """
    squares = [jnp.square(x) for x in jax.tree.leaves(gradient)]
    parts = [x.sum(-1).reshape(-1) if x.ndim > 1 else x for x in squares]
    together = jax.lax.optimization_barrier(jnp.concatenate(parts))
    return jnp.sqrt(together.sum())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Together(Mapping[str, Float[Array, ""]]):
    """Scalars by name that lie in one array: the host fetches them by one copy."""

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    row: Float[Array, " names"]

    @classmethod
    def of(cls, metrics: Metrics) -> "Together":
        """Put them in a row by their names, in the widest type among them."""
        names = tuple(sorted(metrics))
        return cls(names, jnp.stack([metrics[name] for name in names]))

    def __getitem__(self, name: str) -> Float[Array, ""]:
        if name not in self.names:
            raise KeyError(name)
        return self.row[self.names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def skip_step(state: TrainState) -> TrainState:
    """Return the state after a step whose batch is left out.

    The optimiser's own count, which its learning rate follows, goes on with the step.
    """

    def counted(path, x):
        return x + 1 if getattr(path[-1], "name", "") == "count" else x

    return state.replace(
        step=state.step + 1,
        opt_state=jax.tree_util.tree_map_with_path(counted, state.opt_state),
    )


def compile_train_step(
    step: TrainStep,
    state: TrainState,
    mesh: Mesh,
    views_of: Callable[[Batch], Batch] | None = None,
) -> TrainStep:
    """Map a step over the mesh; the state given to it is donated (gone afterwards).

    Its metrics come `Together`.

    Args:
      step: as `make_train_step` returns it.
      state: as it lies on the devices, or its shapes with their shardings.
      mesh: of all devices; batches lie there already (`sharding.put_batch`).
      views_of: makes the step's batch from the one that is given, inside the step.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state)

    def whole_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if views_of:
            with jax.named_scope("views"):
                batch = views_of(batch)
        state, metrics = step(state, batch)
        return state, Together.of(metrics)

    return jax.jit(
        whole_step,
        in_shardings=(shardings, None),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )
