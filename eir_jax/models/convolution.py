"""Convolution without bias, in the form that XLA runs fastest.

On accelerators that is XLA's own. On a CPU, XLA has fast code for the plain forward
convolution of larger maps alone. Over small maps and backwards through a stride, one
matrix product for each tap of the kernel is up to ten times as fast, and the kernel's
gradient is two to three times as fast in parts. benchmarks/NOTES.md has the numbers.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from eir_jax.system.sharding import Target

KERNEL_INIT = {
    # U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's, of convolutions and linear layers.
    "pytorch": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    # N(0, 2/fan_out), for ReLU (He et al., 2015): torchvision's ResNets.
    "he": nn.initializers.variance_scaling(2, "fan_out", "normal"),
}
"""How kernels begin, by `config.model.init`."""

# XLA's kernel gradient on a CPU copies every window that a kernel sees; of so small a
# part of the batch they stay in a cache. Below SMALL numbers all is done at once.
PARTS = 16
SMALL = 2**16

Images = Float[Array, "rows height width channel"]
Kernel = Float[Array, "size size channel feature"]


class Conv(nn.Module):
    """Square convolution, padded as PyTorch's `padding=size // 2`."""

    features: int
    size: int
    stride: int
    target: Target
    dtype: DTypeLike | None = None  # computed in; None: the parameters' type
    precision: str = "default"
    kernel_init: nn.initializers.Initializer = KERNEL_INIT["pytorch"]

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "rows h w features"]:
        """Map [rows, height, width, channel] to [rows, h, w, features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        dtype = self.dtype or kernel.dtype
        form = convolve
        if self.target.platform == "cpu" and self.size in (1, 3):
            alone = self.target.devices == 1
            form = functools.partial(convolve_on_cpu, alone=alone)
        with jax.default_matmul_precision(self.precision):
            return form(x.astype(dtype), kernel.astype(dtype), stride=self.stride)


def convolve(x: Images, kernel: Kernel, stride: int) -> Array:
    """Convolve by XLA's own operation, padded by size // 2 on each side."""
    pad = len(kernel) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve_by_taps(x: Images, kernel: Kernel, stride: int) -> Array:
    """Convolve by one matrix product for each tap of the kernel."""
    products = [part @ kernel[tap] for tap, part in _seen(x, len(kernel), stride)]
    return functools.reduce(jnp.add, products)


@functools.partial(jax.custom_vjp, nondiff_argnames=("stride", "alone"))
def convolve_on_cpu(
    x: Images, kernel: Kernel, stride: int, alone: bool = True
) -> Array:
    """Convolve; forward and both gradients each in the form that is faster on a CPU.

    `alone`: the rows lie on one device, so that a part of them may be taken.
    """
    by_taps = len(kernel) == 1 or x.shape[1] <= 2 * stride
    return (convolve_by_taps if by_taps else convolve)(x, kernel, stride)


def _forward(x, kernel, stride, alone):
    return convolve_on_cpu(x, kernel, stride, alone), (x, kernel)


def _backward(stride, alone, residuals, cotangent):
    x, kernel = residuals
    size, _, channels, features = kernel.shape
    height = cotangent.shape[1]

    by_taps = size == 1 or stride > 1 or height <= 2
    form = convolve_by_taps if by_taps else convolve
    gradient_x = jax.vjp(lambda x: form(x, kernel, stride), x)[1](cotangent)[0]

    if size == 1:
        rows = x[:, ::stride, ::stride].reshape(-1, channels)
        gradient_kernel = rows.T @ cotangent.reshape(-1, features)
        return gradient_x, gradient_kernel.reshape(kernel.shape)
    # Rows that are split over devices stay together: a part would be one device's.
    if alone and x.size >= SMALL:
        return gradient_x, _kernel_gradient_in_parts(x, cotangent, size, stride)
    kernel_of = jax.vjp(lambda kernel: convolve(x, kernel, stride), kernel)[1]
    return gradient_x, kernel_of(cotangent)[0]


convolve_on_cpu.defvjp(_forward, _backward)


def _kernel_gradient_in_parts(
    x: Images, cotangent: Array, size: int, stride: int
) -> Kernel:
    """Sum the kernel's gradient over parts of the batch, in a loop.

    A part's is a convolution of its images, channels for rows and rows for channels, by
    the cotangent. It is turned by hand: within a loop XLA does not. Before a loop both
    arrays are written, else XLA would make them anew for each part, as it turns them.
    """
    shape = (x.shape[3], size, size, cotangent.shape[3])
    pad = size // 2
    ends = [
        (pad, (there - 1) * stride + size - pad - here)
        for here, there in zip(x.shape[1:3], cotangent.shape[1:3], strict=True)
    ]

    def add(total, part):
        images, gradient = part
        found = jax.lax.conv_general_dilated(
            images.transpose(3, 1, 2, 0),
            gradient.transpose(1, 2, 0, 3),
            (1, 1),
            ends,
            rhs_dilation=(stride, stride),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return total + found, None

    def split(array):
        """Return [PARTS, rows, ...], with zeros where rows are missing."""
        missing = [(0, -len(array) % PARTS)] + [(0, 0)] * 3
        return jnp.pad(array, missing).reshape(PARTS, -1, *array.shape[1:])

    zeros = jnp.zeros(shape, x.dtype)
    total, _ = jax.lax.scan(add, zeros, (split(x), split(cotangent)))
    return total.transpose(1, 2, 0, 3)


def _seen(x: Images, size: int, stride: int) -> Iterator[tuple[tuple[int, int], Array]]:
    """Yield each tap (row, column) of a kernel and what it sees, [rows, h, w, channel].

    In the order of a kernel's rows and columns.
    """
    pad = size // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    # The last place of the kernel's corner, by row and column.
    last = [(side - 1) // stride * stride for side in x.shape[1:3]]
    for i in range(size):
        for j in range(size):
            yield (
                (i, j),
                jax.lax.slice(
                    padded,
                    (0, i, j, 0),
                    (x.shape[0], i + last[0] + 1, j + last[1] + 1, x.shape[3]),
                    (1, stride, stride, 1),
                ),
            )
