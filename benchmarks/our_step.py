"""Our training step as benchmarks/train_step.py times it: whole, and its parts."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from configs import base
from eir_jax.data.augment_device import put_images
from eir_jax.data.pipeline import make_train_batches
from eir_jax.models.encoder import EncoderOutput
from eir_jax.models.resnet import BLOCKS
from eir_jax.run.state import TrainState
from eir_jax.system import sharding
from eir_jax.system.errors import UserError
from eir_jax.training.parts import Parts, make_parts
from eir_jax.training.step import TrainStep


@dataclasses.dataclass(frozen=True)
class Ours:
    """What our step is made of."""

    parts: Parts
    step: TrainStep
    state: TrainState
    views_of: Callable
    resident: dict[str, jax.Array]
    batches: Iterator[dict[str, np.ndarray]]


def make_ours(config: ConfigDict, images: np.ndarray, device: Any) -> Ours:
    """Build our step as training does, for one device, views made in the step.

    Args:
      config: with data.pipeline=device.
      images: uint8 [N, height, width, 3].
      device: of JAX.

    Raises:
      UserError: a batch holds none, or more than all of the images.
    """
    if not 1 <= config.batch_size <= len(images):
        raise UserError(
            f"a batch of {config.batch_size} does not fit {len(images)} images; give "
            f"--batch from 1 to {len(images)}"
        )
    mesh = sharding.make_mesh([device])
    parts = make_parts(config, len(images), mesh)
    labels = None
    if config.objective == "supervised":
        labels = np.arange(len(images)) % config.model.num_classes
    return Ours(
        parts=parts,
        step=parts.step(),
        state=parts.create_state(),
        views_of=parts.views(),
        resident={"images": put_images(images, config, mesh)},
        batches=make_train_batches(
            images, config, parts.objective.slots, 0, 10**9, labels=labels
        ),
    )


def tiny_config() -> ConfigDict:
    """Return settings of a step that takes a moment."""
    config = base.get_config()
    config.model.update(name="resnet10", width=8, embedding_dim=32, dtype="float32")
    config.data.update(image_size=16, pipeline="device")
    config.batch_size = 32
    return config


class OurStep(NamedTuple):
    """One step of ours, and what it was taken from."""

    ours: Ours
    images: np.ndarray
    batch: dict[str, np.ndarray]
    views: dict[str, np.ndarray]
    before: TrainState
    after: TrainState
    metrics: dict[str, np.ndarray]


def take_our_step(
    config: ConfigDict,
    dtype: str = "float32",
    device: Any = None,
    start: OurStep | None = None,
) -> OurStep:
    """Take the first step from 200 random images.

    Args:
      config: with data.pipeline=device.
      dtype: of parameters, bank and views; the views are made in float32.
      device: of JAX; None: the host.
      start: a step from whose parameters, bank and views this one is taken as well.
    """
    images = random_images(200, config.data.image_size)
    device = device or jax.devices("cpu")[0]
    with jax.default_device(device):
        ours = make_ours(config, images, device)
        batch = next(ours.batches)
        views = jax.device_get(jax.jit(ours.views_of)(batch | ours.resident))
        before = jax.device_get(ours.state)
        if start:
            before, views = start.before, start.views
        with jax.enable_x64(dtype == "float64"):
            before, views = jax.tree.map(
                lambda x: x.astype(dtype) if x.dtype.kind == "f" else x,
                (before, views),
            )
            after, metrics = jax.device_get(jax.jit(ours.step)(before, views))
    return OurStep(ours, images, batch, views, before, after, metrics)


def gradient_of(one: OurStep) -> Any:
    """Return the gradient of that step's loss, for every parameter.

    The momentum after the first step is the gradient and the weight decay.
    """
    decay = one.ours.parts.config.optimizer.weight_decay
    trace = optax.tree.get(one.after.opt_state, "trace")
    return jax.tree.map(lambda m, p: m - decay * p, trace, one.before.params)


def random_images(count: int, size: int) -> np.ndarray:
    """Return blobs of 4x4 pixels, uint8 [count, size, size, 3]."""
    coarse = (count, -(-size // 4), -(-size // 4), 3)
    blobs = np.random.default_rng(0).integers(0, 256, coarse, np.uint8)
    return np.ascontiguousarray(blobs.repeat(4, 1).repeat(4, 2)[:, :size, :size])


def count_flop(config: ConfigDict, num_examples: int) -> dict[str, float]:
    """Return the floating-point operations of a step: `encoder` and `bank`.

    The encoder's convolutions and head count forward and twice as much backward (the
    stem half of that: no gradient enters the images). The bank's products with both
    views count forward and once backward: its rows get no gradient.
    """
    model, side = config.model, config.data.image_size
    kernel, stride = (7, 2) if model.stem == "imagenet" else (3, 1)
    side = -(-side // stride)
    stem = 2 * kernel**2 * 3 * model.width * side**2
    if model.stem == "imagenet":
        side = -(-side // 2)
    rest, channels = 0, model.width
    for stage, count in enumerate(BLOCKS[model.name]):
        for block in range(count):
            features = model.width * 2**stage
            stride = 2 if stage > 0 and block == 0 else 1
            side = -(-side // stride)
            weights = 9 * (channels + features) * features
            if channels != features:
                weights += channels * features
            rest += 2 * weights * side**2
            channels = features
    rest += 2 * channels * model.embedding_dim
    batch = config.batch_size
    bank = 2 * 2 * 2 * batch * num_examples * model.embedding_dim
    return {"encoder": 3 * batch * (2 * stem + 3 * rest), "bank": bank}


def measure_ceiling(dtype: str, size: int, repeats: int = 5) -> float:
    """Return the best FLOP/s of a matrix product [size, size] x [size, size]."""
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    jax.block_until_ready(product(a, a))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def time_parts(ours: Ours, steps: int, repeats: int) -> dict[str, float]:
    """Return the milliseconds of the step's parts, each compiled and run by itself.

    Each part is a function (carry, batch) -> (carry, what it makes); the carry is
    donated, as the state in training. Medians of `repeats` blocks of `steps`.
    """
    config, objective, encoder = (
        ours.parts.config,
        ours.parts.objective,
        ours.parts.encoder,
    )
    mesh, state = ours.parts.mesh, ours.parts.create_state()
    drawn = sharding.put_batch(next(ours.batches), mesh) | ours.resident
    size, side = config.batch_size, config.data.image_size
    key = jax.random.key(0)
    names = [slot.name for slot in objective.slots]
    count = len(names)
    images = jax.random.normal(key, (count * size, side, side, 3))
    direction = jax.random.normal(key, (count * size, config.model.embedding_dim))
    embedding = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)

    def views(carry, batch):
        return carry, ours.views_of(batch)

    def encode(batch_stats, batch):
        def loss(params):
            output, updates = encoder.apply(
                {"params": params, "batch_stats": batch_stats},
                batch["stacked"],
                train=True,
                mutable=["batch_stats"],
            )
            return (output.embedding * direction).sum(), updates["batch_stats"]

        gradient, updated = jax.grad(loss, has_aux=True)(batch["params"])
        return updated, gradient

    def remember(memory, batch):
        def outputs_of(embedding):
            apart = embedding.reshape(count, size, -1)
            return {n: EncoderOutput(x, x) for n, x in zip(names, apart, strict=True)}

        def loss(embedding):
            terms = objective.terms(outputs_of(embedding), memory, batch)
            weights = objective.weights(jnp.zeros((), jnp.int32))
            return sum(factor * terms[name] for name, factor in weights.items())

        made = jax.value_and_grad(loss)(batch["embedding"])
        outputs = outputs_of(batch["embedding"])
        return objective.update(memory, outputs, batch, None, jnp.isfinite(made[0]))[
            0
        ], made

    def optimiser(carry, batch):
        params, opt_state = carry
        updates, opt_state = ours.parts.tx.update(batch["gradient"], opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), ()

    gradient = jax.tree.map(jnp.ones_like, state.params)
    kept = jax.tree.map(jnp.copy, state.params)
    parts: dict[str, tuple[Callable, Any, dict]] = {
        "views": (views, (), drawn),
        "encoder": (encode, state.batch_stats, {"stacked": images, "params": kept}),
        "bank": (remember, state.memory, drawn | {"embedding": embedding}),
        "optimiser": (
            optimiser, (state.params, state.opt_state), {"gradient": gradient}
        ),
    }  # fmt: skip
    return {
        name: _time(*part, steps=steps, repeats=repeats) for name, part in parts.items()
    }


def _time(part, carry, batch, *, steps: int, repeats: int) -> float:
    part = jax.jit(part, donate_argnums=0)
    milliseconds = []
    for block in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(steps if block else 2):
            carry, made = part(carry, batch)
        jax.block_until_ready((carry, made))
        milliseconds.append(1000 * (time.perf_counter() - start) / steps)
    return statistics.median(milliseconds[1:])
