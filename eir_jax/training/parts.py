"""What a step is built of: a function of the settings, N and the devices alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from eir_jax.data.augment_device import make_batch_views
from eir_jax.data.order import steps_per_epoch
from eir_jax.models.encoder import Encoder, TwoTowers, make_encoder
from eir_jax.objectives.objective import Objective, passes_of
from eir_jax.objectives.systems import make_objective
from eir_jax.run.optimizer import make_optimizer, make_schedule
from eir_jax.run.state import TrainState, abstract_train_state, create_train_state
from eir_jax.system import sharding
from eir_jax.training.step import TrainStep, compile_train_step, make_train_step


class Parts(NamedTuple):
    """The system, its encoder and optimiser, on a mesh; no data, nothing computed."""

    config: ConfigDict
    mesh: Mesh
    objective: Objective
    encoder: Encoder | TwoTowers
    tx: optax.GradientTransformation
    schedule: optax.Schedule

    def abstract_state(self) -> TrainState:
        """Return the state's shapes, types and shardings."""
        how = (self.objective, self.encoder, self.tx, self.mesh)
        return abstract_train_state(self.config, *how)

    def create_state(self) -> TrainState:
        """Return the state before the first step."""
        how = (self.objective, self.encoder, self.tx, self.mesh)
        return create_train_state(self.config, *how)

    def step(self) -> TrainStep:
        """Return the pure step, of batches that hold the slots' images."""
        how = (self.encoder, self.tx, self.schedule, self.mesh, self.config.seed)
        return make_train_step(self.objective, *how)

    def views(self) -> Callable:
        """Return what makes the slots' images inside the step."""
        return make_batch_views(self.config, self.objective.slots, self.mesh)

    def compiled_step(self) -> TrainStep:
        """Return the step mapped over the mesh, of batches as the pipeline gives them.

        The state given to it is donated.
        """
        views = self.views() if self.config.data.pipeline == "device" else None
        return compile_train_step(
            self.step(), self.abstract_state(), self.mesh, views_of=views
        )

    def compiled_refresh(self) -> Callable[..., TrainState] | None:
        """Return (state, period) -> state, mapped over the mesh; None: there is none.

        Where the objective looks at all images, it is (state, period, features). The
        state given to it is donated.
        """
        objective = self.objective
        refresh, renew = objective.refresh, objective.renew
        if refresh is None:
            return None

        def refreshed(state: TrainState, period: int, *features: Array) -> TrainState:
            begins = jnp.asarray(period)
            memory = refresh(state.memory, begins, *features)
            params = renew(state.params, begins) if renew else state.params
            return state.replace(memory=memory, params=params)

        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state())
        seen = [sharding.split_rows(self.mesh)] * objective.looks_at_all
        return jax.jit(
            refreshed,
            in_shardings=(shardings, None, *seen),
            out_shardings=shardings,
            donate_argnums=0,
        )


def make_parts(config: ConfigDict, num_examples: int, mesh: Mesh) -> Parts:
    """Return what a run of `config` on `num_examples` training images is built of."""
    per_epoch = steps_per_epoch(num_examples, config.batch_size)
    objective = make_objective(config, num_examples, mesh)
    return Parts(
        config=config,
        mesh=mesh,
        objective=objective,
        encoder=make_encoder(config, passes_of(objective.slots), mesh=mesh),
        tx=make_optimizer(config, per_epoch),
        schedule=make_schedule(config, per_epoch),
    )
