"""What happens where a period begins: the memory anew, and batches by it."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from eir_jax.data.pipeline import Images
from eir_jax.evaluation.embed import Embed
from eir_jax.objectives.memory_bank import padded_rows
from eir_jax.objectives.objective import Objective
from eir_jax.run.state import TrainState
from eir_jax.system import sharding
from eir_jax.training.parts import Parts


class Refresh(Protocol):
    """(state, period, show) -> the state that the period begins with."""

    def __call__(
        self, state: TrainState, period: int, show: Callable[[str], None]
    ) -> TrainState:
        """Do it; `show` is told what is being done."""


def make_refresh(parts: Parts, images: Images, embed: Embed) -> Refresh | None:
    """Return what is to be called before a period's first step; None: nothing is.

    Args:
      parts: of the run.
      images: those trained on, which some objectives look at.
      embed: as `make_embed` returns it.
    """
    compiled = parts.compiled_refresh()
    if compiled is None:
        return None

    def refresh(state: TrainState, period: int, show: Callable[[str], None]):
        seen = []
        if parts.objective.looks_at_all:

            def count(done: int) -> None:
                show(f"features {done:,}/{len(images):,}")

            features = embed(state, images, count).feature
            seen = [put_features(np.asarray(features), parts.mesh)]
            show("clusters")
        return compiled(state, period, *seen)

    return refresh


def put_features(features: np.ndarray, mesh: Mesh) -> jax.Array:
    """Split features by rows over the devices, as a bank: zeros fill them up."""
    rows = padded_rows(len(features), mesh.size)
    padded = np.pad(features, ((0, rows - len(features)), (0, 0)))
    return jax.make_array_from_callback(
        padded.shape, sharding.split_rows(mesh), lambda part: padded[part]
    )


def groups_of(
    objective: Objective, state: TrainState, num_examples: int
) -> np.ndarray | None:
    """Return the group of each instance, where batches are drawn uniformly over them.

    All processes must call it.
    """
    if not objective.uniform_over:
        return None
    return sharding.fetch(state.memory[objective.uniform_over])[:num_examples]


def batches_by_period(
    make: Callable[[int, int], Any],
    start_step: int,
    num_steps: int,
    period_steps: int,
    mesh: Mesh,
) -> Generator[dict[str, jax.Array]]:
    """Yield batches on the devices; none of a period is drawn before the first is.

    Args:
      make: (first step, the step after the last) -> batches, to be closed.
      start_step: of the first batch, from 0 on.
      num_steps: the step after the last batch.
      period_steps: steps of a period; counted from step 0.
      mesh: as `make_mesh` returns it.
    """
    while start_step < num_steps:
        end = min((start_step // period_steps + 1) * period_steps, num_steps)
        with closing(make(start_step, end)) as batches:
            yield from sharding.put_batches(batches, mesh)
        start_step = end
