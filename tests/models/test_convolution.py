"""Convolutions: every form against float64 NumPy, by value and by both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eir_jax.models.convolution import (
    PARTS,
    Conv,
    convolve,
    convolve_by_taps,
    convolve_on_cpu,
)
from eir_jax.system.sharding import Target

# Each branch that convolve_on_cpu takes: maps small and large, strides, channels.
SHAPES = [
    # rows, height, width, channels, features, size, stride
    (3, 9, 8, 3, 4, 3, 1),
    (2, 8, 8, 17, 5, 3, 1),
    (2, 2, 2, 6, 5, 3, 1),
    (2, 1, 1, 4, 3, 3, 1),
    (3, 8, 6, 4, 5, 3, 2),
    (2, 7, 5, 4, 5, 3, 2),
    (2, 12, 12, 4, 6, 3, 2),
    (2, 4, 3, 4, 6, 3, 2),
    (3, 8, 6, 4, 5, 1, 2),
    (3, 7, 7, 4, 5, 1, 1),
]
# Enough for the kernel's gradient in parts; 37 rows are not whole ones.
LARGE = [(37, 32, 30, 8, 2, 3, 1), (37, 32, 30, 8, 2, 3, 2)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def reference(x, kernel, stride):
    """Convolve by its definition, in float64."""
    size = len(kernel)
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    h = (x.shape[1] - size) // stride + 1
    w = (x.shape[2] - size) // stride + 1
    out = np.zeros((len(x), h, w, kernel.shape[3]))
    for row in range(h):
        for column in range(w):
            top, left = row * stride, column * stride
            window = x[:, top : top + size, left : left + size]
            out[:, row, column] = np.einsum("bijc,ijcf->bf", window, kernel)
    return out


def check_values_and_gradients(form, shape, rng):
    rows, height, width, channels, features, size, stride = shape
    x = rng.normal(size=(rows, height, width, channels))
    kernel = rng.normal(size=(size, size, channels, features))
    wanted = reference(x, kernel, stride)
    weight = rng.normal(size=wanted.shape)

    def loss(x, kernel):
        return jnp.sum(form(x, kernel, stride) * weight.astype(np.float32))

    x32, kernel32 = x.astype(np.float32), kernel.astype(np.float32)
    found = jax.jit(form, static_argnums=2)(x32, kernel32, stride)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(x32, kernel32)
    for place, array in enumerate((x, kernel)):
        # The loss is linear in each array: a difference is the derivative itself.
        direction = rng.normal(size=array.shape)
        moved = [x, kernel]
        moved[place] = direction
        derivative = np.sum(reference(*moved, stride) * weight)
        along = np.sum(np.asarray(gradient[place], np.float64) * direction)
        np.testing.assert_allclose(along, derivative, rtol=1e-4, atol=1e-3)
        assert gradient[place].shape == array.shape


@pytest.mark.parametrize("form", [convolve, convolve_by_taps, convolve_on_cpu])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(form, shape, rng):
    check_values_and_gradients(form, shape, rng)


@pytest.mark.parametrize("shape", LARGE)
def test_the_kernel_gradient_in_parts(shape, rng):
    check_values_and_gradients(convolve_on_cpu, shape, rng)
    x, kernel = jnp.zeros(shape[:4]), jnp.zeros((3, 3, *shape[3:5]))
    of_kernel = jax.grad(lambda kernel: convolve_on_cpu(x, kernel, shape[-1]).sum())
    assert f"length={PARTS}" in str(jax.make_jaxpr(of_kernel)(kernel))


def test_bfloat16_keeps_float32_kernels(rng):
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    target = Target("cpu", 1)
    conv = Conv(features=4, size=3, stride=1, target=target, dtype=jnp.bfloat16)
    variables = conv.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].dtype == jnp.float32
    out = conv.apply(variables, x)
    assert out.dtype == jnp.bfloat16
    exact = convolve(x, variables["params"]["kernel"], 1)
    # bfloat16 has 8 bits: 2**-9 of each factor, over 27 products.
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)
