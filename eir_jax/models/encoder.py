"""The encoder f_theta: backbone, head, unit length."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from eir_jax.models.batch_norm import Passes
from eir_jax.models.colour import LAB_MEAN, LAB_STD, rgb_to_lab
from eir_jax.models.convolution import KERNEL_INIT
from eir_jax.models.resnet import BLOCKS, BOTTLENECKS, Layers, ResNet
from eir_jax.system import sharding

HEADS = ("linear", "mlp", "mlp_bn")
"""Linear; Linear-ReLU-Linear (MoCo v2); Linear-BN-ReLU-Linear (SimCLR)."""


class EncoderOutput(NamedTuple):
    """What the encoder says of each image."""

    embedding: Float[Array, "rows dim"]
    """v = f_theta(x): unit length."""
    feature: Float[Array, "rows feature"]
    """The last stage, averaged over space, before the head."""
    logits: Float[Array, "rows class"] | None = None
    """Of a linear classifier on the head's output, where there is one."""


class Encoder(nn.Module):
    """ResNet, global average pool, head, L2 norm."""

    backbone: ResNet
    embedding_dim: int
    head: str = "linear"
    num_classes: int = 0
    """Of the classifier on the head's output, before the L2 norm; 0: there is none."""

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "rows height width 3"],
        train: bool = False,
        pooled_map: bool = False,
    ) -> EncoderOutput:
        """Embed normalised images.

        With `pooled_map` the feature is the last stage's map, averaged over windows of
        2x2, flat: 4,608-d for ResNet-18 at 224 px.
        """
        feature_map = self.backbone(images, train)
        # Not less than float32 from here on.
        feature_map = feature_map.astype(
            jnp.promote_types(feature_map.dtype, jnp.float32)
        )
        feature = feature_map.mean((1, 2))
        hidden = feature
        if self.head != "linear":
            hidden = self._dense(feature.shape[-1], "head_hidden", hidden)
            if self.head == "mlp_bn":
                norm = self.backbone.layers.norm("head_norm")
                hidden = norm(hidden[:, None, None], train)[:, 0, 0]
            hidden = nn.relu(hidden)
        projected = self._dense(self.embedding_dim, "head", hidden)
        logits = None
        if self.num_classes:
            logits = self._dense(self.num_classes, "classifier", projected)
        if pooled_map:
            window = tuple(min(2, side) for side in feature_map.shape[1:3])
            pooled = nn.avg_pool(feature_map, window, strides=window)
            feature = pooled.reshape(len(pooled), -1)
        return EncoderOutput(l2_normalize(projected), feature, logits)

    def _dense(self, features: int, name: str, x: Array) -> Array:
        """Apply a linear layer as PyTorch initialises it."""
        layer = nn.Dense(
            features,
            kernel_init=KERNEL_INIT["pytorch"],
            bias_init=_bias_init(x.shape[-1]),
            precision=self.backbone.layers.precision,
            name=name,
        )
        applied: Array = layer(x)
        return applied


class TwoTowers(nn.Module):
    """An encoder of an image's lightness and one of its colours (CMC).

    The embedding is l2([v of L; v of ab]), of which each half has length sqrt(1/2);
    the feature is both towers', one after the other.
    """

    lightness: Encoder
    colour: Encoder
    mean: tuple[float, float, float]
    """By which the images were normalised, and `std`."""
    std: tuple[float, float, float]

    def __call__(
        self,
        images: Float[Array, "rows height width 3"],
        train: bool = False,
        pooled_map: bool = False,
    ) -> EncoderOutput:
        """Embed normalised images."""
        mean, std = (jnp.array(x, images.dtype) for x in (self.mean, self.std))
        lab = rgb_to_lab(images * std[None, None, None] + mean[None, None, None])
        mean, std = (jnp.array(x, images.dtype) for x in (LAB_MEAN, LAB_STD))
        lab = (lab - mean[None, None, None]) / std[None, None, None]
        halves = (
            self.lightness(lab[..., :1], train, pooled_map),
            self.colour(lab[..., 1:], train, pooled_map),
        )
        embedding = jnp.concatenate([half.embedding for half in halves], axis=1)
        feature = jnp.concatenate([half.feature for half in halves], axis=1)
        return EncoderOutput(embedding * 0.5**0.5, feature)


def l2_normalize(
    x: Float[Array, "*batch dim"], epsilon: float = 1e-12
) -> Float[Array, "*batch dim"]:
    """Scale the last axis to unit length; zero vectors stay zero."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, epsilon**2))


def make_encoder(
    config: ConfigDict,
    passes: Passes = ((0,),),
    exact: bool = False,
    mesh: Mesh | None = None,
) -> Encoder | TwoTowers:
    """Build the encoder that `config.model` and `config.batch_norm` describe.

    `passes` says which of the images of an instance, by their places, batch norm
    normalises together in training.

    With `exact`, for evaluation, it computes in float32 without rounding the factors of
    products, whatever `config.model` says; the parameters are the same.

    `mesh` is of the devices that it will run on (None: JAX's own): the form of the
    convolutions, and what `model.dtype=auto` is, follow them.
    """
    target = sharding.target_of(mesh)
    dtype = "float32" if exact else config.model.dtype
    if dtype == "auto":
        dtype = "float32" if target.platform == "cpu" else "bfloat16"
    layers = Layers(
        target=target,
        groups=config.batch_norm.groups,
        passes=passes,
        dtype=jnp.bfloat16 if dtype == "bfloat16" else None,
        precision="highest" if exact else config.model.precision,
        kernel_init=KERNEL_INIT[config.model.init],
    )

    def build(towers: int) -> Encoder:
        return Encoder(
            backbone=ResNet(
                blocks=BLOCKS[config.model.name],
                width=config.model.width // towers,
                stem=config.model.stem,
                layers=layers,
                bottleneck=config.model.name in BOTTLENECKS,
            ),
            embedding_dim=config.model.embedding_dim // towers,
            head=config.model.head,
            num_classes=config.model.num_classes,
        )

    if config.model.towers == "one":
        return build(1)
    return TwoTowers(build(2), build(2), config.data.mean, config.data.std)


def feature_dim(model: ConfigDict) -> int:
    """Return the length of the feature before the head."""
    stages = len(BLOCKS[model.name])
    return model.width * 2 ** (stages - 1) * (4 if model.name in BOTTLENECKS else 1)


def with_passes(encoder: Encoder, passes: Passes) -> Encoder:
    """Return the encoder whose batch norm normalises these slots together."""
    backbone = encoder.backbone
    layers = backbone.layers._replace(passes=passes)
    return encoder.clone(backbone=backbone.clone(layers=layers))


def _bias_init(fan_in: int):
    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
