"""Embedding whole splits with the encoder in evaluation mode."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from eir_jax.models.encoder import make_encoder
from eir_jax.run.state import TrainState
from eir_jax.system import sharding
from eir_jax.system.errors import enough_memory

PADDED = 500  # rows to which a batch is filled up at most, but for more images


class Features(NamedTuple):
    """What is judged of each image."""

    embedding: Float[Array, "rows dim"]
    """v = f_theta(x): unit length."""
    feature: Float[Array, "rows feature"]
    """The last stage, averaged over space, before the head."""


Embed = Callable[..., Features]


def describe_view(data: ConfigDict) -> str:
    """Say what `evaluation_view` shows, for the record beside every number."""
    crop = "no crop"
    if data.resize not in (0, data.image_size):
        side = "shorter side" if data.fit == "crop" else "both sides"
        crop = f"{side} to {data.resize}, centre {data.image_size}"
    return f"{crop}, (x / 255 - mean) / std, mean {data.mean}, std {data.std}"


def evaluation_view(
    images: UInt8[Array, "batch height width 3"], config: ConfigDict
) -> Float[Array, "batch height width 3"]:
    """Return the single view that is evaluated: the centre, normalised.

    Args:
      images: uint8, their sides at least image_size.
      config: all settings.
    """
    size = config.data.image_size
    assert min(images.shape[1:3]) >= size  # else the crop would be of a corner
    top, left = ((side - size) // 2 for side in images.shape[1:3])
    images = images[:, top : top + size, left : left + size]
    mean, std = jnp.asarray(config.data.mean), jnp.asarray(config.data.std)
    scaled = images.astype(jnp.float32) / 255
    return (scaled - mean[None, None, None]) / std[None, None, None]


def make_embed(config: ConfigDict, mesh: Mesh) -> Embed:
    """Return embed(state, images, progress=None, pooled_map=False) -> Features.

    `images` is uint8 [n, size, size, 3], any n, or float32: then normalised already.
    The batches (of `config.evaluation_batch_size`, the last one padded) are split over
    the devices of all processes, each of which reads its own images alone; the result
    is NumPy arrays, in each process all of it. `progress` is called with the number of
    images done so far; `pooled_map` as in the encoder. It raises UserError where there
    is not enough memory.
    """
    embed_batch = make_embed_batch(config, mesh)
    too_large = (
        f"lower evaluation_batch_size={config.evaluation_batch_size} "
        "(--config.evaluation_batch_size=N)"
    )

    @enough_memory(too_large)
    def embed(
        state: TrainState,
        images: np.ndarray,
        progress: Callable[[int], None] | None = None,
        pooled_map: bool = False,
    ) -> Features:
        size = batch_rows(config, mesh, len(images))
        own_rows = np.arange(size)[sharding.process_rows(size, mesh)]
        parts = []
        for start in range(0, len(images), size):
            count = min(size, len(images) - start)
            # The last batch is filled up with the last image.
            chunk = images[np.minimum(start + own_rows, len(images) - 1)]
            output = embed_batch(
                state.params,
                state.batch_stats,
                sharding.put_batch({"images": chunk}, mesh)["images"],
                pooled_map,
            )
            parts.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], output))
            if progress:
                progress(start + count)
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    return embed


def batch_rows(config: ConfigDict, mesh: Mesh, images: int) -> int:
    """Return how many of so many images are embedded at a time.

    It is a multiple of the devices.
    """
    # A batch for many more images than there are would be memory for nothing.
    most = max(images, PADDED)
    return _whole(min(config.evaluation_batch_size, most), mesh)


def _whole(rows: int, mesh: Mesh) -> int:
    """Return so many rows, or the next multiple of the devices."""
    return -(-rows // mesh.size) * mesh.size


def make_embed_batch(config: ConfigDict, mesh: Mesh) -> Callable[..., Features]:
    """Return the jitted (params, batch_stats, images, pooled_map) -> Features.

    `images` [batch_rows, size, size, 3] are split over the mesh, uint8 or float32: then
    normalised already; what is found of them is whole on every device.
    """
    encoder = make_encoder(config, exact=True, mesh=mesh)

    @functools.partial(jax.jit, static_argnames="pooled_map")
    def embed_batch(params, batch_stats, images, pooled_map) -> Features:
        if images.dtype == jnp.uint8:
            images = evaluation_view(images, config)
        variables = {"params": params, "batch_stats": batch_stats}
        output: Any = encoder.apply(variables, images, pooled_map=pooled_map)
        found = Features(output.embedding, output.feature)
        return jax.lax.with_sharding_constraint(found, sharding.replicated(mesh))

    return embed_batch
