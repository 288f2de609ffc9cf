"""Linear probe: a linear classifier on frozen features, its settings chosen on train.

Every setting of the sweep is trained at once. `fit` and `choose` are given train alone;
test labels meet the finished classifier in the last lines of `linear_probe`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from eir_jax import sharding
from eir_jax.errors import UserError

EpochFeatures = Callable[[int], np.ndarray]
Progress = Callable[[int, int], None]


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


class LinearProbe(NamedTuple):
    """The number, what was chosen for it, and the classifier that reached it."""

    top1: float  # share of test images, in [0, 1]
    top5: float  # label among the min(5, classes) largest logits
    learning_rate: float | None
    weight_decay: float
    sweep: tuple[Setting, ...]
    converged: bool  # of the final fit; False: 'lbfgs' ran into max_iterations
    classifier: Classifiers  # of one setting, in NumPy
    classes: Int[np.ndarray, " label"]  # the label of each logit
    protocol: dict


def linear_probe(
    train_feature: Float[np.ndarray, "train dim"],
    train_label: Int[np.ndarray, " train"],
    test_feature: Float[np.ndarray, "test dim"],
    test_label: Int[np.ndarray, " test"],
    settings: ProbeSettings | None = None,
    *,
    epoch_features: EpochFeatures | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> LinearProbe:
    """Choose a setting on a held-out part of train, refit on all of it, test once.

    Args:
        train_feature: frozen features of any dimension.
        train_label: integers >= 0; two classes or more, two images of each or more.
        test_feature: features of the same dimension.
        test_label: classes of train.
        settings: the sweep and the solver; ProbeSettings() when left out.
        epoch_features: epoch -> [train, dim], features of freshly augmented views of
            the same images in the same order, which 'sgd' then trains on;
            train_feature still standardises and is held out.
        mesh: devices that a batch is split over, where it divides; this process's
            first when left out.
        progress: called with (epochs or iterations done, in all), of both fits.

    Raises:
        UserError: arrays that do not fit together, are not finite or cannot be probed;
            a setting out of its range; every setting diverges.
    """
    settings = settings or ProbeSettings()
    _check_settings(settings, epoch_features)
    train_feature, train_label = _checked(train_feature, train_label, "train")
    test_feature, test_label = _checked(test_feature, test_label, "test")
    _check_pair(train_feature, train_label, test_feature, test_label)
    classes, label = np.unique(train_label, return_inverse=True)
    run = functools.partial(
        fit,
        train_feature,
        label.astype(np.int32),
        settings=settings,
        epoch_features=epoch_features,
        mesh=mesh or sharding.make_mesh(jax.local_devices()[:1]),
    )
    total = settings.num_epochs if settings.solver == "sgd" else settings.max_iterations

    def tell(before, done):
        if progress:
            progress(before + done, 2 * total)

    sweep = choose(run, train_feature, label, settings, functools.partial(tell, 0))
    chosen = max(sweep, key=lambda s: s.held_out_accuracy)  # the first of equals
    final = run(
        np.arange(len(label)), [chosen[:2]], progress=functools.partial(tell, total)
    )
    final = jax.tree.map(np.asarray, final)
    if not np.isfinite(final.weight).all():
        raise UserError("the linear probe diverged: lower learning_rates")

    hits = accuracy(final, test_feature, np.searchsorted(classes, test_label))
    protocol = dataclasses.asdict(settings) | {
        "classifier": "linear with bias, softmax cross-entropy, starting at 0; "
        "weight decay on the weight alone; float32",
        "order": "shuffled each epoch by (seed, epoch), the incomplete batch left out",
        "schedule": "learning rate x .1 at each of milestones x num_epochs",
        "selection": "largest held-out top-1 (equals: smaller learning rate, then "
        "smaller weight decay), refitted on all of train",
        "trained_on": "augmented views, new each epoch" if epoch_features else "train",
        "num_train": len(train_feature),
        "num_classes": len(classes),
        "feature_dim": train_feature.shape[1],
    }
    return LinearProbe(
        top1=float(hits[0, 0]),
        top5=float(hits[1, 0]),
        learning_rate=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
        sweep=sweep,
        converged=bool(final.converged[0]),
        classifier=final,
        classes=classes,
        protocol=protocol,
    )


def choose(run, feature, label, settings, progress) -> tuple[Setting, ...]:
    """Train the whole grid on a part of train and score it on the rest."""
    sgd = settings.solver == "sgd"
    rates = sorted(set(settings.learning_rates)) if sgd else [None]
    grid = list(itertools.product(rates, sorted(set(settings.weight_decays))))
    fitted, held_out = split_held_out(label, settings.held_out, settings.seed)
    swept = run(fitted, grid, progress=progress)
    scores = accuracy(swept, feature[held_out], label[held_out])[0]
    return tuple(Setting(*s, float(x)) for s, x in zip(grid, scores, strict=True))


def split_held_out(label: np.ndarray, share: float, seed: int):
    """Return rows (fitted, held out), sorted: of each class `share`, at least one."""
    held = np.zeros(len(label), bool)
    for value in np.unique(label):
        rows = np.flatnonzero(label == value)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        order = np.random.default_rng((seed, int(value))).permutation(rows)
        held[order[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


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
    mean, scale = _statistics(feature, rows, settings.standardize)
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
            x = put(_checked_epoch(epoch_features(epoch), feature.shape, epoch))
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


def _statistics(feature, rows, standardize):
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


def _check_settings(s: ProbeSettings, epoch_features):
    """Raise where settings are out of range, all of them at once."""
    checks = {
        f"solver={s.solver!r} is not 'sgd' or 'lbfgs'": s.solver in ("sgd", "lbfgs"),
        f"learning_rates={s.learning_rates} must be > 0": min(s.learning_rates) > 0,
        f"weight_decays={s.weight_decays} must be >= 0": min(s.weight_decays) >= 0,
        f"held_out={s.held_out} must be in (0, 1)": 0 < s.held_out < 1,
        "num_epochs, batch_size and max_iterations must be >= 1": (
            min(s.num_epochs, s.batch_size, s.max_iterations) >= 1
        ),
        "augmented features need solver='sgd'": not epoch_features or s.solver == "sgd",
    }
    if wrong := [message for message, holds in checks.items() if not holds]:
        raise UserError(f"linear probe: {'; '.join(wrong)}")


def _checked(feature, label, name):
    """Return float32 [row, dim] and integer [row], or raise."""
    feature, label = np.asarray(feature, np.float32), np.asarray(label)
    if feature.ndim != 2 or not feature.size:
        raise UserError(
            f"{name} features must be [row, dim] and not empty, not {feature.shape}"
        )
    if label.shape != (len(feature),):
        raise UserError(
            f"{len(feature)} {name} features but labels of shape {label.shape}: "
            "the probe needs one label a feature"
        )
    if not np.issubdtype(label.dtype, np.integer):
        raise UserError(f"{name} labels are {label.dtype}: the probe needs integers")
    if label.min() < 0:
        raise UserError(
            f"{np.count_nonzero(label < 0)} of {len(label)} {name} labels are negative "
            "(-1 is unlabelled): probe the labelled images alone"
        )
    _check_finite(feature, f"{name} features")
    return feature, label


def _check_finite(feature, name):
    bad = np.count_nonzero(~np.isfinite(feature.sum(axis=1)))
    if bad:
        raise UserError(
            f"{bad} of {len(feature)} rows of {name} hold NaN or infinity: "
            "the training that made them has diverged"
        )


def _checked_epoch(feature, shape, epoch):
    """Return one epoch's augmented features as float32, or raise."""
    feature = np.asarray(feature, np.float32)
    if feature.shape != shape:
        raise UserError(
            f"epoch_features({epoch}) are {feature.shape}, train's are {shape}: "
            "return the same images in the same order"
        )
    _check_finite(feature, f"epoch_features({epoch})")
    return feature


def _check_pair(train_feature, train_label, test_feature, test_label):
    """Raise where train and test make no probe together."""
    if train_feature.shape[1] != test_feature.shape[1]:
        raise UserError(
            f"train features {train_feature.shape} and test features "
            f"{test_feature.shape} differ in dimension"
        )
    classes, counts = np.unique(train_label, return_counts=True)
    if len(classes) < 2:
        raise UserError(
            f"train holds class {classes[0]} alone: a probe needs two classes or more"
        )
    if counts.min() < 2:
        raise UserError(
            f"class {classes[counts.argmin()]} has 1 train image: a probe needs 2 of "
            "each, one to hold out; leave the class out"
        )
    unseen = np.setdiff1d(test_label, classes)
    if len(unseen):
        raise UserError(
            f"{len(unseen)} test classes ({unseen[0]}, ...) are not in train: sets of "
            "unseen classes cannot be probed, only retrieved from"
        )
