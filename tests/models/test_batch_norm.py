"""Batch norm is that of separate forward passes, by either rule, and ReLU behind it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from eir_jax.models.batch_norm import (
    BatchNorm,
    kept_relu,
    normalize,
)
from eir_jax.models.resnet import Layers, ResNet
from eir_jax.system.sharding import Target, make_mesh


def normalised(x):
    """Batch norm of one forward pass, in float64."""
    x = np.asarray(x, np.float64)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5), mean, var


PASSES = [((0, 1), (2,)), ((0, 1, 2),), ((0,), (1,), (2,))]


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("passes", PASSES)
def test_batch_norm_equals_separate_forward_passes(groups, passes, by_hand):
    x = np.random.default_rng(0).normal(1.5, 2, size=(8, 3, 4, 5, 6))
    norm = BatchNorm(by_hand, groups=groups, passes=passes)
    flat = jnp.asarray(x.reshape(24, 4, 5, 6), jnp.float32)
    variables = norm.init(jax.random.key(0), flat, False)
    out, updates = norm.apply(variables, flat, True, mutable=["batch_stats"])
    out = np.asarray(out).reshape(x.shape)

    running_mean, running_var = np.zeros(6), np.ones(6)
    for members in passes:
        means, variances = [], []
        for group in np.split(np.arange(8), groups):
            part = x[np.ix_(group, members)]
            want, mean, var = normalised(part.reshape(-1, 4, 5, 6))
            np.testing.assert_allclose(
                out[np.ix_(group, members)].reshape(want.shape), want, atol=2e-5
            )
            count = part.size / 6
            means.append(mean)
            variances.append(var * count / (count - 1))
        running_mean = 0.9 * running_mean + 0.1 * np.mean(means, 0)
        running_var = 0.9 * running_var + 0.1 * np.mean(variances, 0)
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], running_mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], running_var, rtol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("passes", PASSES)
def test_batch_norm_of_gpus_has_the_gradients_by_xlas_rule(passes, relu):
    """In float64: of x, scale and bias, by groups and passes."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, scale, bias = (
            jnp.asarray(rng.normal(1.5, 2, shape))
            for shape in ((2, 4, 3, 4, 5, 6), (6,), (6,))
        )
        weight = jnp.asarray(rng.normal(size=x.shape))

        def loss(by_hand, *arrays):
            how = passes, 1e-5, relu, by_hand
            return jnp.sum(weight * normalize(*arrays, *how)[0])

        found, want = (
            jax.jit(jax.grad(loss, (1, 2, 3)), static_argnums=0)(
                by_hand, x, scale, bias
            )
            for by_hand in (True, False)
        )
    for ours, theirs in zip(found, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_batch_norm_of_gpus_is_the_same_over_devices():
    """Of one pass over a batch that eight devices hold parts of."""
    mesh = make_mesh()
    rng = np.random.default_rng(0)
    shapes = (1, 16, 3, 4, 5, 6), (6,), (6,)
    arrays = [rng.normal(1, 2, shape).astype(np.float32) for shape in shapes]
    weight = rng.normal(size=shapes[0]).astype(np.float32)

    def loss(x, scale, bias):
        how = ((0, 1), (2,)), 1e-5, True, True
        y, mean, variance = normalize(x, scale, bias, *how)
        return jnp.sum(weight * y), (mean, variance)

    taken = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    want = taken(*arrays)
    split = jax.NamedSharding(mesh, jax.P(None, mesh.axis_names[0]))
    found = taken(jax.device_put(arrays[0], split), *arrays[1:])
    assert len(found[1][0].sharding.device_set) == 8
    for ours, theirs in zip(*map(jax.tree.leaves, (found, want)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("by_hand", [True, False])
def test_relu_follows(by_hand, train):
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 5))
    plain, with_relu = BatchNorm(by_hand), BatchNorm(by_hand, relu=True)
    variables = plain.init(jax.random.key(0), x, False)
    (want, _), (found, _) = (
        norm.apply(variables, x, train, mutable=["batch_stats"])
        for norm in (plain, with_relu)
    )
    assert (want < 0).any()
    np.testing.assert_array_equal(found, np.maximum(want, 0))


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_a_network_has_the_same_gradients_by_either_rule(stem, bottleneck):
    """In float64: as it is built for GPUs, and for CPUs."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        images = jnp.asarray(rng.normal(size=(6, 16, 16, 3)))
        found = []
        for platform in ("gpu", "cpu"):
            layers = Layers(Target(platform, 1), 1, ((0, 1), (2,)), jnp.float64)
            network = ResNet((1, 1), layers, 4, stem, bottleneck)
            variables = jax.jit(network.init, static_argnums=2)(
                jax.random.key(0), images, False
            )
            variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)

            def loss(params, images, network=network, stats=variables["batch_stats"]):
                maps, updates = network.apply(
                    {"params": params, "batch_stats": stats},
                    *(images, True),
                    mutable=["batch_stats"],
                )
                return jnp.sum(jnp.sin(maps)), updates

            taken = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
            found.append(taken(variables["params"], images))
    for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)


def test_a_kept_relu_is_relu():
    """At 0 too, whose gradient is 0."""
    x = jnp.array([-2.0, -0.0, 0.0, 3.0, jnp.nan])
    found, want = (
        jax.vjp(relu, x)[1](jnp.arange(1.0, 6))[0] for relu in (kept_relu, nn.relu)
    )
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(kept_relu(x), nn.relu(x))


def test_batch_norm_in_evaluation_equals_flax():
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 5))
    params = {"scale": jnp.arange(1.0, 6), "bias": jnp.arange(5.0)}
    stats = {"mean": jnp.linspace(-1, 1, 5), "var": jnp.linspace(0.5, 2, 5)}
    variables = {"params": params, "batch_stats": stats}
    with jax.numpy_rank_promotion("allow"):
        want = nn.BatchNorm(use_running_average=True).apply(variables, x)
    np.testing.assert_allclose(
        BatchNorm(False).apply(variables, x, False), want, atol=1e-5
    )
