"""Linear classifiers of all settings at once: fitted by SGD or L-BFGS, and counted."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from eir_jax.system import sharding
from eir_jax.system.errors import UserError

EpochFeatures = Callable[[int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """All that decides a probe's number, beside the features and the labels."""

    solver: str = "sgd"  # 'sgd', or 'lbfgs': the minimum of the same objective
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)  # > 0; of 'sgd'
    weight_decays: tuple[float, ...] = (1e-4, 1e-3, 1e-2)  # w: + w / 2 * |weight|^2
    held_out: float = 0.1  # share of each class of train that chooses; in (0, 1)
    standardize: bool = True  # each feature to mean 0 and deviation 1 on train
    num_epochs: int = 50  # passes over train, of 'sgd'; >= 1
    batch_size: int = 256  # images a step, over all devices together; >= 1
    momentum: float = 0.9  # in [0, 1)
    milestones: tuple[float, ...] = (0.6, 0.8)  # shares of num_epochs: rate x .1
    tolerance: float = 1e-6  # 'lbfgs' stops at this largest partial derivative; > 0
    max_iterations: int = 500  # of 'lbfgs'; >= 1
    seed: int = 0  # of the held-out split and the order; >= 0


class Classifiers(NamedTuple):
    """Classifiers, one a setting, weights stacked.

    A setting's logits are ((feature - mean) * scale) @ weight.T + bias.
    """

    weight: Float[Array, "setting label dim"]
    bias: Float[Array, "setting label"]
    mean: Float[np.ndarray, " dim"]
    scale: Float[np.ndarray, " dim"]
    converged: Bool[np.ndarray, " setting"]  # True for 'sgd', which has no such test


class Setting(NamedTuple):
    """One setting of the sweep and its share of held-out images named right."""

    learning_rate: float | None  # None: 'lbfgs' has none
    weight_decay: float
    held_out_accuracy: float


def fit(
    feature: Float[np.ndarray, "train dim"],
    label: Int[np.ndarray, " train"],
    rows: Int[np.ndarray, " row"],
    grid: list[tuple[float | None, float]],
    *,
    settings: ProbeSettings,
    mesh: Mesh,
    epoch_features: EpochFeatures | None = None,
    progress: Callable[[int], None] | None = None,
) -> Classifiers:
    """Train a classifier on the given rows for each (learning rate, weight decay).

    The objective is mean cross-entropy + weight_decay / 2 * |weight|^2, which is
    scikit-learn's LogisticRegression with C = 1 / (rows * weight_decay).
    """
    mean, scale = statistics_of(feature, rows, settings.standardize)
    shape = (len(grid), label.max() + 1, feature.shape[1])
    params = tuple(
        sharding.put_everywhere(np.zeros(s, np.float32), mesh)
        for s in (shape, shape[:2])
    )
    decay = np.asarray([weight_decay for _, weight_decay in grid], np.float32)

    def put(x):
        return sharding.put_everywhere((x - mean[None]) * scale[None], mesh)

    if settings.solver == "lbfgs":
        x, y = put(feature[rows]), sharding.put_everywhere(label[rows], mesh)
        params, converged = _fit_lbfgs(params, decay, x, y, settings, progress)
        weight, bias = params
        return Classifiers(weight, bias, mean, scale, converged)

    x, y = put(feature), sharding.put_everywhere(label, mesh)
    velocity = jax.tree.map(jnp.zeros_like, params)
    batch_size = min(settings.batch_size, len(rows))
    split = sharding.replicated(mesh)
    if batch_size % mesh.size == 0:
        split = sharding.split_rows(mesh)
    rate = np.asarray([rate for rate, _ in grid], np.float32)
    for epoch in range(settings.num_epochs):
        if epoch_features:
            x = put(checked_epoch(epoch_features(epoch), feature.shape, epoch))
        passed = sum(epoch >= m * settings.num_epochs for m in settings.milestones)
        order = np.random.default_rng((settings.seed, epoch)).permutation(rows)
        order = order[: len(rows) // batch_size * batch_size].reshape(-1, batch_size)
        params, velocity = _sgd_epoch(
            params,
            velocity,
            rate * np.float32(0.1**passed),
            decay,
            x,
            y,
            order.astype(np.int32),
            settings.momentum,
            split,
        )
        if progress:
            jax.block_until_ready(params)
            progress(epoch + 1)
    weight, bias = params
    return Classifiers(weight, bias, mean, scale, np.ones(len(grid), bool))


def _objective(params, x, label, weight_decay):
    """Return one setting's mean cross-entropy + weight_decay / 2 * |weight|^2.

    Logits are [label, row]: stacked by vmap they are one [setting * label, dim] x
    [dim, row] product, and so is its gradient, with nothing to transpose.
    """
    weight, bias = params
    logits = jnp.dot(weight, x.T, precision="highest") + bias[:, None]
    logits -= jax.lax.stop_gradient(logits.max(axis=0, keepdims=True))
    hot = label[None] == jnp.arange(len(bias))[:, None]
    own = jnp.where(hot, logits, 0).sum(axis=0)
    cross_entropy = jnp.log(jnp.exp(logits).sum(axis=0)) - own
    return cross_entropy.mean() + weight_decay / 2 * jnp.sum(weight**2)


@functools.partial(jax.jit, static_argnames="split")
def _sgd_epoch(params, velocity, rate, weight_decay, x, label, order, momentum, split):
    """Take a step on each row of order ([step, batch], of x) in every setting."""

    def step(params, velocity, rate, weight_decay, x, label):
        gradient = jax.grad(_objective)(params, x, label, weight_decay)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
        return jax.tree.map(lambda p, v: p - rate * v, params, velocity), velocity

    steps = jax.vmap(step, in_axes=(0, 0, 0, 0, None, None))

    def on_batch(carry, batch):
        images = x[batch], label[batch]  # gathered once for all settings
        images = jax.lax.with_sharding_constraint(images, split)
        state = *carry, rate, weight_decay, *images
        return steps(*state), None

    return jax.lax.scan(on_batch, (params, velocity), order)[0]


def _fit_lbfgs(params, weight_decay, x, label, settings, progress):
    """Minimise every setting's objective over all of x; (params, converged)."""
    state = jax.vmap(optax.lbfgs().init)(params)
    # As the step returns it (not weakly typed, committed), else it compiles twice.
    state = jax.tree.map(lambda x: x.astype(x.dtype), state)
    state = jax.device_put(state, params[0].sharding)
    for i in range(settings.max_iterations):
        params, state, largest = _lbfgs_step(
            params, state, weight_decay, x, label, settings.tolerance
        )
        converged = np.asarray(largest) <= settings.tolerance
        if converged.all():
            break
        if progress:
            progress(i + 1)
    if progress:
        progress(settings.max_iterations)
    return params, converged


@jax.jit
def _lbfgs_step(params, state, weight_decay, x, label, tolerance):
    """Move every setting that is not there; their largest derivatives before it."""

    def step(params, state, weight_decay):
        objective = functools.partial(
            _objective, x=x, label=label, weight_decay=weight_decay
        )
        value_and_grad = optax.value_and_grad_from_state(objective)
        value, gradient = value_and_grad(params, state=state)
        updates, moved = optax.lbfgs().update(
            gradient, state, params, value=value, grad=gradient, value_fn=objective
        )
        largest = jnp.maximum(jnp.abs(gradient[0]).max(), jnp.abs(gradient[1]).max())
        there = largest <= tolerance
        before, after = (params, state), (optax.apply_updates(params, updates), moved)
        kept = jax.tree.map(lambda b, a: jnp.where(there, b, a), before, after)
        return *kept, largest

    return jax.vmap(step)(params, state, weight_decay)


def accuracy(
    classifiers: Classifiers,
    feature: Float[np.ndarray, "row dim"],
    label: Int[np.ndarray, " row"],
    block: int = 4096,
) -> Float[np.ndarray, "2 setting"]:
    """Return each setting's top-1 and top-5 as shares of the rows.

    Equal logits rank by class, first the first; a row with NaN is named wrong.
    """
    right = np.zeros((2, len(classifiers.weight)), np.int64)
    for start in range(0, len(feature), block):
        rows = slice(start, start + block)
        x = (feature[rows] - classifiers.mean[None]) * classifiers.scale[None]
        right += np.asarray(_hits(classifiers.weight, classifiers.bias, x, label[rows]))
    return right / len(feature)


@jax.jit
def _hits(weight, bias, x, label):
    """Count the rows whose label ranks first, and among the first five."""

    def count(weight, bias):
        logits = jnp.dot(weight, x.T, precision="highest") + bias[:, None]
        own = jnp.take_along_axis(logits, label[None], axis=0)
        earlier = jnp.arange(len(bias))[:, None] < label[None]
        rank = ((logits > own) | ((logits == own) & earlier)).sum(axis=0)
        finite = jnp.isfinite(logits).all(axis=0)
        return jnp.stack([(finite & (rank < k)).sum() for k in (1, 5)])

    return jax.vmap(count, out_axes=1)(weight, bias)


def statistics_of(feature, rows, standardize):
    """Return (mean, scale) of the rows; a constant feature's scale is 0."""
    dim = feature.shape[1]
    if not standardize:
        return np.zeros(dim, np.float32), np.ones(dim, np.float32)
    blocks = np.array_split(rows, -(-len(rows) // 8192))
    mean = sum(feature[b].sum(0, dtype=np.float64) for b in blocks) / len(rows)
    square = sum(((feature[b] - mean[None]) ** 2).sum(0) for b in blocks)
    deviation = np.sqrt(square / len(rows))
    varies = deviation > 1e-6 * np.abs(mean)
    scale = np.divide(1, deviation, out=np.zeros(dim), where=varies)
    return mean.astype(np.float32), scale.astype(np.float32)


def checked_epoch(feature, shape, epoch):
    """Return one epoch's augmented features as float32, or raise."""
    feature = np.asarray(feature, np.float32)
    if feature.shape != shape:
        raise UserError(
            f"epoch_features({epoch}) are {feature.shape}, train's are {shape}: "
            "return the same images in the same order"
        )
    check_finite(feature, f"epoch_features({epoch})")
    return feature


def check_finite(feature, name):
    """Raise UserError where a row holds NaN or infinity."""
    bad = np.count_nonzero(~np.isfinite(feature.sum(axis=1)))
    if bad:
        raise UserError(
            f"{bad} of {len(feature)} rows of {name} hold NaN or infinity: "
            "the training that made them has diverged"
        )
