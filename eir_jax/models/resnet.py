"""ResNet backbones (He et al., 2016) with the conventions of PyTorch.

Several images of one instance (its two views and its mixed image: `slots`) go through
the network in one call, side by side in the batch: rows i * slots ... belong to
instance i. Batch norm knows which of them share statistics.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from eir_jax.models.batch_norm import BatchNorm, Passes, kept_relu
from eir_jax.models.convolution import KERNEL_INIT, Conv
from eir_jax.models.pooling import max_pool
from eir_jax.system.sharding import Target

BLOCKS = {
    "resnet6": (1, 1),
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
"""Blocks in each stage, by `config.model.name`."""
BOTTLENECKS = ("resnet50",)
"""The networks whose blocks are `Bottleneck`s; of the others they are basic."""


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
        y = norm("norm1", relu=True)(y, train)
        y = conv(self.features, 3, 1, "conv2")(y)
        y = norm("norm2")(y, train)
        if x.shape != y.shape:
            x = conv(self.features, 1, self.stride, "conv_shortcut")(x)
            x = norm("norm_shortcut")(x, train)
        return self.layers.relu(x + y)


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
        y = norm("norm1", relu=True)(y, train)
        y = conv(self.features, 3, self.stride, "conv2")(y)
        y = norm("norm2", relu=True)(y, train)
        y = conv(4 * self.features, 1, 1, "conv3")(y)
        y = norm("norm3")(y, train)
        if x.shape != y.shape:
            x = conv(4 * self.features, 1, self.stride, "conv_shortcut")(x)
            x = norm("norm_shortcut")(x, train)
        return self.layers.relu(x + y)


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

    def norm(self, name: str, relu: bool = False) -> BatchNorm:
        """Return a batch norm, or a batch norm and a ReLU."""
        by_hand = self.target.platform == "gpu"
        return BatchNorm(by_hand, self.groups, self.passes, relu=relu, name=name)

    def relu(self, x: Array) -> Array:
        """Return max(x, 0), of what the next convolution reads anyway."""
        return kept_relu(x) if self.target.platform == "gpu" else nn.relu(x)

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
        # The maxima of what is not negative are the same before and after.
        x = self.layers.norm("norm")(x, train)
        x = self.layers.relu(self.layers.max_pool(x) if imagenet else x)
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
