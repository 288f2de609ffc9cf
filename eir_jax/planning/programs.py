"""The programs of a run, lowered for devices that need not be there; no data."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jax.stages import Lowered
from ml_collections import ConfigDict

from eir_jax.data.augment_device import abstract_images
from eir_jax.data.order import steps_per_epoch
from eir_jax.data.views import mixes
from eir_jax.evaluation.embed import batch_rows, make_embed_batch
from eir_jax.evaluation.nearest import Search, make_merge, plan_chunks, plan_search
from eir_jax.models.encoder import EncoderOutput
from eir_jax.run.state import TrainState
from eir_jax.system import sharding
from eir_jax.system.errors import UserError
from eir_jax.training.parts import Parts, make_parts

Batch = dict[str, jax.ShapeDtypeStruct]
QUEUES = ("queue", "weak_queue")
"""Of the memory: rows that are no instance's, whole on every device."""


class Job(NamedTuple):
    """What is planned."""

    config: ConfigDict
    num_examples: int
    """N, training images."""
    mesh: Mesh
    num_test: int = 0
    """Test images; 0: none, so that evaluation is within the training images."""

    def parts(self) -> Parts:
        """Return what the run is built of."""
        return make_parts(self.config, self.num_examples, self.mesh)


class Call(NamedTuple):
    """What one call of a program handles, and how many calls a task takes."""

    rows: int
    of: str
    """Of what `rows` are: 'images'."""
    number: int
    task: str
    """That takes so many calls."""


class Lowering(NamedTuple):
    """A program before it is compiled, and what to look for in it."""

    lowered: Lowered
    arguments: Any
    """Shapes, types and shardings of all that it is given."""
    donated: int
    """Arrays whose place the results are to take."""
    watched: dict[str, jax.ShapeDtypeStruct]
    """Arrays so large that none may be copied, by name."""
    call: Call


def abstract_batch(job: Job, parts: Parts) -> Batch:
    """Return what the pipeline gives a step: shapes, types and shardings."""
    config, mesh = job.config, job.mesh
    rows, size = config.batch_size, config.data.image_size
    device = config.data.pipeline == "device"

    def array(dtype, *sides: int) -> jax.ShapeDtypeStruct:
        where = sharding.split_rows(mesh)
        return jax.ShapeDtypeStruct((rows, *sides), dtype, sharding=where)

    batch = {"index": array(np.int32)}
    if config.objective == "supervised":
        batch["label"] = array(np.int32)
    if mixes(parts.objective.slots):
        batch |= {"partner": array(np.int32), "ratio": array(np.float32)}
        if device:
            batch["box"] = array(np.int32, 4)
    if device:
        batch["epoch"] = array(np.int32)
        stored = config.data.resize or size
        batch["images"] = abstract_images(job.num_examples, stored, config, mesh)
    else:
        for slot in parts.objective.slots:
            batch[slot.name] = array(np.float32, size, size, 3)
    return batch


def lower_train(job: Job) -> Lowering:
    """Lower the whole step, its state donated."""
    parts = job.parts()
    state, batch = parts.abstract_state(), abstract_batch(job, parts)
    step: Any = parts.compiled_step()
    lowered = step.lower(state, batch)
    leaves = len(jax.tree.leaves(state))
    watched = _watched(parts, state, batch)
    return Lowering(lowered, (state, batch), leaves, watched, _step(job))


def lower_views(job: Job) -> Lowering:
    """Lower what makes the views of a batch inside the step."""
    parts = job.parts()
    batch = abstract_batch(job, parts)
    lowered = jax.jit(parts.views()).lower(batch)
    return Lowering(lowered, batch, 0, {"images": batch["images"]}, _step(job))


def lower_memory(job: Job) -> Lowering:
    """Lower the step without its encoder: the terms, their gradient, the memory."""
    parts = job.parts()
    state, objective = parts.abstract_state(), parts.objective
    batch = {
        name: x
        for name, x in abstract_batch(job, parts).items()
        if x.ndim == 1 and name != "epoch"
    }
    whole = sharding.replicated(job.mesh)
    sides = len(objective.slots), job.config.batch_size, job.config.model.embedding_dim
    embeddings = jax.ShapeDtypeStruct(sides, jnp.float32, sharding=whole)

    def logits_of(x):  # as wide as the classifier's, where there is one
        classes = job.config.model.num_classes
        return jnp.broadcast_to(x[:, :1], (len(x), classes)) if classes else None

    def outputs_of(embeddings):
        return {
            slot.name: EncoderOutput(x, x, logits_of(x))
            for slot, x in zip(objective.slots, embeddings, strict=True)
        }

    def loss(embeddings, memory, batch):
        terms = objective.terms(outputs_of(embeddings), memory, batch)
        weights = objective.weights(jnp.zeros((), jnp.int32))
        return sum(factor * terms[name] for name, factor in weights.items())

    def remember(memory, batch, embeddings, params):
        batch = batch | {"step": jnp.zeros((), jnp.int32)}
        batch["index"] = jax.lax.with_sharding_constraint(batch["index"], whole)
        with jax.named_scope("relations"):
            value, gradient = jax.value_and_grad(loss)(embeddings, memory, batch)
        value, gradient = jax.lax.optimization_barrier((value, gradient))
        with jax.named_scope("memory"):
            memory, watched = objective.update(
                memory, outputs_of(embeddings), batch, params, jnp.isfinite(value)
            )
        return memory, (gradient, watched)

    where = jax.tree.map(lambda x: x.sharding, state.memory)
    # Parameters are what a key encoder follows; where there is none, jit drops them.
    lowered = jax.jit(remember, out_shardings=(where, whole), donate_argnums=0).lower(
        state.memory, batch, embeddings, state.params
    )
    leaves = len(jax.tree.leaves(state.memory))
    watched = _watched(parts, state, {})
    return Lowering(lowered, state.memory, leaves, watched, _step(job))


def _step(job: Job) -> Call:
    number = steps_per_epoch(job.num_examples, job.config.batch_size)
    task = f"an epoch of {job.num_examples:,} images"
    return Call(job.config.batch_size, "images", number, task)


def lower_embed(job: Job) -> Lowering:
    """Lower the embedding of a batch of evaluation."""
    config, mesh, count = job.config, job.mesh, job.num_examples
    state, size = job.parts().abstract_state(), config.data.image_size
    rows = batch_rows(config, mesh, count)
    images = jax.ShapeDtypeStruct(
        (rows, size, size, 3), np.uint8, sharding=sharding.split_rows(mesh)
    )
    how = (state.params, state.batch_stats, images)
    embed: Any = make_embed_batch(config, mesh)
    lowered = embed.lower(*how, pooled_map=False)
    task = f"the {count:,} training images"
    return Lowering(
        lowered, how, 0, {}, Call(rows, "images", math.ceil(count / rows), task)
    )


class KNN(NamedTuple):
    """A search of the neighbours of all test images, or where there are none of all."""

    search: Search
    chunks: int
    task: str


def plan_knn(job: Job) -> KNN:
    """Return how evaluation searches each image's neighbours among those trained on.

    Raises:
      UserError: there is one image alone.
    """
    count, k = job.num_examples, max(job.config.knn.k)
    if not job.num_test and count < 2:
        raise UserError(
            "one training image has no neighbours to look for; give --num_examples=2 "
            "or more"
        )
    # An image that is looked for among others and itself is found as well.
    kept = min(k, count) if job.num_test else min(k, count - 1) + 1
    queries = job.num_test or count
    chunks, chunk, block = plan_chunks(queries)
    search = plan_search(chunk, count, kept, job.mesh, block)
    task = f"a kNN of {queries:,} queries among {count:,} rows"
    return KNN(search, chunks, task)


def lower_nearest(job: Job) -> Lowering:
    """Lower the search of a chunk of queries in a block of the training images."""
    search, chunks, task = plan_knn(job)
    arguments = search.arguments(job.config.model.embedding_dim)
    of = f"queries among {search.block:,} rows a device"
    if job.mesh.size > 1:
        task += f", beside {chunks:,} of merge"
    call = Call(search.queries, of, chunks * search.steps, task)
    return Lowering(search.step.lower(*arguments), arguments, 0, {}, call)


def lower_merge(job: Job) -> Lowering:
    """Lower what makes of the devices' neighbours of a chunk those of all rows."""
    search, chunks, task = plan_knn(job)
    found = search.arguments(job.config.model.embedding_dim)[:2]
    of = f"queries with {search.k:,} neighbours a device"
    lowered = make_merge(job.mesh).lower(*found)
    return Lowering(lowered, found, 0, {}, Call(search.queries, of, chunks, task))


def _watched(
    parts: Parts, state: TrainState, batch: Batch
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return what has a row an instance, the queues, and the images."""
    split, memory = PartitionSpec("data"), state.memory
    watched = {
        name: memory[name]
        for name, spec in parts.objective.specs.items()
        if name in QUEUES or (spec == split and memory[name].ndim == 2)
    }
    return watched | {name: x for name, x in batch.items() if name == "images"}


def bytes_of(tree: Any) -> int:
    """Return the bytes that arrays take on each device."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


PROGRAMS: dict[str, Callable[[Job], Lowering]] = {
    "train": lower_train,
    "views": lower_views,
    "memory": lower_memory,
    "embed": lower_embed,
    "nearest": lower_nearest,
    "merge": lower_merge,
}
"""What `--what` may name."""
