"""Devices: the mesh and every sharding.

The training step is written once, over the global batch; `jax.jit` maps it over the
mesh. That is what `jax.pmap` (itself `jit` of a `shard_map` by now) has become: the
same numbers come out on 1, 8 or 64 devices.
"""

from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: list | None = None) -> Mesh:
    """Return a one-axis mesh, 'data', over `devices` (default: all)."""
    devices = devices or jax.devices()
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of the array."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the devices: batches, bank rows."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Send a batch to the devices, split by instance."""
    sharding = split_rows(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def put_batches(
    batches: Iterable[dict[str, np.ndarray]], mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    """Send batches to the devices, each while the one before is worked on."""
    ahead = None
    for batch in batches:
        following = put_batch(batch, mesh)
        if ahead is not None:
            yield ahead
        ahead = following
    if ahead is not None:
        yield ahead
