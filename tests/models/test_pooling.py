"""Max-pooling equals Flax's and PyTorch's, forwards and backwards, ties too."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from flax import linen as nn

from eir_jax.models.pooling import max_pool
from eir_jax.models.resnet import Layers
from eir_jax.system.sharding import Target


def flax_pool(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


@pytest.fixture(params=[(2, 8, 8, 3), (2, 7, 9, 2), (1, 1, 2, 1)], ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["apart", "ties"])
def pooled(request, shape):
    """Return pixels, their maxima, a gradient of these, and ours of the pixels."""
    rng = np.random.default_rng(3)
    x = rng.integers(-1, 2, shape) if request.param else rng.normal(size=shape)
    x = jnp.asarray(x, jnp.float32)
    y, back = jax.vjp(max_pool, x)
    gradient = rng.normal(size=y.shape).astype(np.float32)
    return x, y, gradient, back(gradient)[0]


def test_equals_flax(pooled):
    x, y, gradient, back = pooled
    want, flax_back = jax.vjp(flax_pool, x)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_allclose(back, flax_back(gradient)[0], rtol=1e-6, atol=1e-7)


def test_equals_pytorch(pooled):
    torch = pytest.importorskip("torch")
    x, y, gradient, back = pooled
    leaf = torch.tensor(np.array(x), requires_grad=True)
    theirs = torch.nn.functional.max_pool2d(leaf.permute(0, 3, 1, 2), 3, 2, 1)
    np.testing.assert_array_equal(y, theirs.detach().permute(0, 2, 3, 1))
    theirs.backward(torch.tensor(gradient).permute(0, 3, 1, 2))
    np.testing.assert_allclose(back, leaf.grad, rtol=1e-6, atol=1e-7)


def test_equals_its_differences():
    x = jax.random.normal(jax.random.key(0), (1, 5, 6, 2))
    weight = jax.random.normal(jax.random.key(1), (1, 3, 3, 2))
    jax.test_util.check_grads(lambda x: (max_pool(x) * weight).sum(), (x,), 1, ["rev"])


def test_keeps_its_type_and_one_byte_a_window():
    x = jnp.zeros((1, 4, 4, 8), jnp.bfloat16)
    y, back = jax.vjp(max_pool, x)
    assert y.dtype == back(y)[0].dtype == jnp.bfloat16
    kept = [z for z in jax.tree.leaves(back) if getattr(z, "size", 1) > 1]
    assert [z.dtype for z in kept] == [jnp.uint8]


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_tpu_keeps_the_form_that_moves_less_there(platform):
    layers = Layers(Target(platform, 1))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    np.testing.assert_array_equal(layers.max_pool(x), flax_pool(x))
    program = str(jax.make_jaxpr(jax.grad(lambda x: layers.max_pool(x).sum()))(x))
    assert ("select_and_scatter" in program) == (platform == "tpu")
