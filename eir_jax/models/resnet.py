"""ResNet backbones (He et al., 2016) with the conventions of PyTorch.

Several images of one instance (its two views and its mixed image: `slots`) go through
the network in one call, side by side in the batch: rows i * slots ... belong to
instance i. Batch norm knows which of them share statistics.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from eir_jax.models.convolution import KERNEL_INIT, Conv
from eir_jax.models.pooling import max_pool
from eir_jax.system.sharding import Target

BLOCKS = {
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
"""Blocks in each stage, by `config.model.name`."""
BOTTLENECKS = ("resnet50",)
"""The networks whose blocks are `Bottleneck`s; of the others they are basic."""

Passes = tuple[tuple[int, ...], ...]
"""The slots that are normalised together, e.g. ((0, 1), (2,)): views, then mixed."""


class BatchNorm(nn.Module):
    """Normalise over batch and space, in groups of instances and passes of slots.

    The statistics equal those of one forward pass for each of `passes`, with the
    instances split over `groups` devices. Running averages move once a pass, by the
    mean over its groups, with the unbiased variance (PyTorch's convention). Computed in
    the parameters' type, whatever that of `x` is, which the result has again.
    """

    on_cpu: bool
    groups: int = 1
    passes: Passes = ((0,),)
    momentum: float = 0.9  # PyTorch's 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "rows height width channel"], train: bool
    ) -> Float[Array, "rows height width channel"]:
        """Normalise `x`: by its own statistics in training, else by running averages.

        `rows` is batch * slots; `groups` must divide the batch.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            offset = bias - running_mean.value * factor
            normalised = x * _channelwise(factor) + _channelwise(offset)
            return normalised.astype(x.dtype)

        slots = sum(map(len, self.passes))
        slabs = x.reshape(self.groups, -1, slots, *x.shape[1:])
        form = normalize_on_cpu if self.on_cpu else normalize
        normalised, mean, variance = form(slabs, scale, bias, self.passes, self.epsilon)
        if not self.is_initializing():
            count = slabs.size // (self.groups * slots * channels)
            keep = self.momentum
            for members in self.passes:
                number = count * len(members)
                pass_mean, pass_var = (y[:, members[0]] for y in (mean, variance))
                unbiased = pass_var.mean(0) * (number / max(number - 1, 1))
                running_mean.value = keep * running_mean.value + (
                    1 - keep
                ) * pass_mean.mean(0)
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        return normalised.reshape(x.shape)


Slabs = Float[Array, "group instance slot height width channel"]
Moments = Float[Array, "group slot channel"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x: Slabs,
    scale: Float[Array, " channel"],
    bias: Float[Array, " channel"],
    passes: Passes,
    epsilon: float,
) -> tuple[Slabs, Moments, Moments]:
    """Return (x - mean) / sqrt(variance + epsilon) * scale + bias, and both moments.

    Each slot has the moments of its pass, within its group. No gradient passes through
    the moments that are returned. The rule is written by hand (Ioffe and Szegedy,
    2015): two sums forward and two backward are all that is summed over batch and
    space, and of what lies between them accelerators make few kernels.
    """
    return _normalize(x, scale, bias, passes, epsilon)[0]


def normalize_on_cpu(
    x: Slabs,
    scale: Float[Array, " channel"],
    bias: Float[Array, " channel"],
    passes: Passes,
    epsilon: float,
) -> tuple[Slabs, Moments, Moments]:
    """Return the same, by XLA's own rule: no slower where kernels cost nothing."""
    return _normalize(x, scale, bias, passes, epsilon, once=False)[0]


def _normalize(x, scale, bias, passes, epsilon, once=True):
    x32 = x.astype(scale.dtype)
    means = _means([x32, jnp.square(x32)], once)
    mean, square = (_shared(y, passes) for y in means)
    variance = jnp.maximum(square - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    factor = scale[None, None] * inverse
    offset = bias[None, None] - mean * factor
    y = (x32 * _wide(factor) + _wide(offset)).astype(x.dtype)
    return (y, mean, variance), (x, scale, mean, inverse)


def _normalize_backward(passes, epsilon, residuals, cotangents):
    x, scale, mean, inverse = residuals
    dy = cotangents[0].astype(scale.dtype)
    x32 = x.astype(scale.dtype)
    # Of dy, and of dy times the normalised x.
    total, along = _means([dy, dy * x32])
    along = (along - mean * total) * inverse
    number = x.size // total.size
    dscale, dbias = number * along.sum((0, 1)), number * total.sum((0, 1))
    factor = scale[None, None] * inverse
    by_x = -factor * inverse * _shared(along, passes)
    alone = -factor * _shared(total, passes) - by_x * mean
    dx = dy * _wide(factor) + x32 * _wide(by_x) + _wide(alone)
    return dx.astype(x.dtype), dscale, dbias


normalize.defvjp(_normalize, _normalize_backward)


def _means(arrays: list[Slabs], once: bool = True) -> list[Moments]:
    """Return means over batch and space.

    `once` puts a barrier behind the sums: of what is summed of them in turn XLA would
    make further sums of the large arrays.
    """
    sums = [x.sum((1, 3, 4)) for x in arrays]
    if once:
        sums = jax.lax.optimization_barrier(sums)
    return [y * (y.size / x.size) for x, y in zip(arrays, sums, strict=True)]


def _shared(value: Moments, passes: Passes) -> Moments:
    """Return, at each slot, the mean over its pass."""
    if len(passes) == value.shape[1]:  # each its own
        return value
    number = {slot: n for n, members in enumerate(passes) for slot in members}
    numbers = np.array([number[slot] for slot in range(len(number))])
    together = numbers[:, None] == numbers[None]
    sizes = together.sum(1).astype(value.dtype)[None, :, None]
    return jnp.where(together[None, :, :, None], value[:, None], 0).sum(2) / sizes


def _wide(value: Moments) -> Float[Array, "group 1 slot 1 1 channel"]:
    return value[:, None, :, None, None]


def _channelwise(value: Float[Array, " channel"]) -> Float[Array, "1 1 1 channel"]:
    return value[None, None, None]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (1x1 convolution where the shape changes)."""

    features: int
    stride: int
    layers: "Layers"

    @nn.compact
    def __call__(self, x: Float[Array, "rows h w c"], train: bool) -> Array:
        """Map [rows, h, w, c] to [rows, h / stride, w / stride, features]."""
        conv, norm = self.layers.conv, self.layers.norm
        y = conv(self.features, 3, self.stride, "conv1")(x)
        y = nn.relu(norm("norm1")(y, train))
        y = conv(self.features, 3, 1, "conv2")(y)
        y = norm("norm2")(y, train)
        if x.shape != y.shape:
            x = conv(self.features, 1, self.stride, "conv_shortcut")(x)
            x = norm("norm_shortcut")(x, train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions to four times the features, and a shortcut.

    The 3x3 one has the stride, as torchvision's.
    """

    features: int
    stride: int
    layers: "Layers"

    @nn.compact
    def __call__(self, x: Float[Array, "rows h w c"], train: bool) -> Array:
        """Map [rows, h, w, c] to [rows, h / stride, w / stride, 4 * features]."""
        conv, norm = self.layers.conv, self.layers.norm
        y = conv(self.features, 1, 1, "conv1")(x)
        y = nn.relu(norm("norm1")(y, train))
        y = conv(self.features, 3, self.stride, "conv2")(y)
        y = nn.relu(norm("norm2")(y, train))
        y = conv(4 * self.features, 1, 1, "conv3")(y)
        y = norm("norm3")(y, train)
        if x.shape != y.shape:
            x = conv(4 * self.features, 1, self.stride, "conv_shortcut")(x)
            x = norm("norm_shortcut")(x, train)
        return nn.relu(x + y)


class Layers(NamedTuple):
    """What all layers of a network have in common."""

    target: Target
    groups: int = 1
    passes: Passes = ((0,),)
    dtype: DTypeLike | None = None
    """Of convolutions and of what lies between the layers; None: the parameters'."""
    precision: str = "default"
    """Of the products of float32 convolutions: JAX's default_matmul_precision."""
    kernel_init: nn.initializers.Initializer = KERNEL_INIT["pytorch"]

    def conv(self, features: int, size: int, stride: int, name: str) -> Conv:
        """Return a convolution."""
        how = (self.target, self.dtype, self.precision, self.kernel_init)
        return Conv(features, size, stride, *how, name=name)

    def norm(self, name: str) -> BatchNorm:
        """Return a batch norm."""
        on_cpu = self.target.platform == "cpu"
        return BatchNorm(on_cpu, self.groups, self.passes, name=name)

    def max_pool(self, x: Float[Array, "n h w c"]) -> Float[Array, "n rows columns c"]:
        """Return the maxima of 3x3 windows, stride 2, one pixel of padding."""
        if self.target.platform == "tpu":  # our slices move six times the bytes there
            return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return max_pool(x)


class ResNet(nn.Module):
    """ResNet up to its last feature map; strides 1-2-2-2.

    `stem` is 'small' (3x3, stride 1, for 32 and 96 px) or 'imagenet' (7x7, stride 2,
    then 3x3 max-pool of stride 2, for 224 px).
    """

    blocks: Sequence[int]
    layers: Layers
    width: int = 64
    stem: str = "small"
    bottleneck: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "rows height width 3"], train: bool
    ) -> Float[Array, "rows h w feature"]:
        """Map normalised images to the last stage's feature map."""
        imagenet = self.stem == "imagenet"
        size, stride = (7, 2) if imagenet else (3, 1)
        x = self.layers.conv(self.width, size, stride, "conv")(images)
        x = nn.relu(self.layers.norm("norm")(x, train))
        if imagenet:
            x = self.layers.max_pool(x)
        block_of = Bottleneck if self.bottleneck else BasicBlock
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                x = block_of(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    layers=self.layers,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train)
        return x
