"""Devices: the mesh and every sharding.

The training step is written once, over the global batch; `jax.jit` maps it over the
mesh. That is what `jax.pmap` (itself `jit` of a `shard_map` by now) has become: the
same numbers come out on 1, 8 or 64 devices, but for rounding: gradients of bfloat16
convolutions are summed over devices in bfloat16.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: list | None = None) -> Mesh:
    """Return a one-axis mesh, 'data', over `devices` (default: all).

    The devices of a process stand together, so that its rows do.
    """
    devices = devices or jax.devices()
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))


class Target(NamedTuple):
    """What a program is compiled for, by which it may take another form."""

    platform: str
    """'cpu', 'gpu' or 'tpu'."""
    devices: int


def target_of(mesh: Mesh | None) -> Target:
    """Return what a mesh's programs are compiled for; None: JAX's own devices.

    The one place that asks: a mesh may be of devices that are not here, or of CPUs on a
    machine with a GPU.
    """
    if mesh is None:
        return Target(jax.default_backend(), jax.device_count())
    platform = mesh.devices.flat[0].platform
    return Target("gpu" if platform == "cuda" else platform, mesh.size)


def process_rows(rows: int, mesh: Mesh) -> slice:
    """Return which of `rows`, split over the mesh, lie on this process's devices.

    Args:
      rows: a multiple of the mesh's devices.
      mesh: as `make_mesh` returns it.
    """
    here = jax.process_index()
    own = [n for n, device in enumerate(mesh.devices) if device.process_index == here]
    each = rows // mesh.size
    return slice(own[0] * each, (own[-1] + 1) * each)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of the array."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the devices: batches, bank rows."""
    return NamedSharding(mesh, PartitionSpec("data"))


def map_rows(function: Callable, mesh: Mesh | None, in_specs, out_specs) -> Callable:
    """Map `function(axis, *arrays)` over the devices, each with its share of the rows.

    `axis` names the devices in collectives; it is None where there is but one (`mesh`
    None). No differentiation may pass through: give what is mapped its own rule.
    """
    if mesh is None or mesh.size == 1:
        return functools.partial(function, None)
    return jax.shard_map(
        functools.partial(function, "data"),
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,  # what it checks is for differentiation
    )


def first_row(axis: str | None, rows: int) -> jax.Array | int:
    """Return the number, among all rows, of the first of this device's `rows`."""
    return 0 if axis is None else jax.lax.axis_index(axis) * rows


def put_everywhere(value: np.ndarray, mesh: Mesh) -> jax.Array:
    """Send an array, the same in each process, whole to every device."""
    return jax.make_array_from_callback(
        value.shape, replicated(mesh), lambda part: value[part]
    )


def fetch(array: jax.Array) -> np.ndarray:
    """Return an array whole, wherever its parts lie; all processes must call it."""
    whole: np.ndarray = multihost_utils.process_allgather(array, tiled=True)
    return whole


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Send a batch to the devices, split by instance.

    Each process gives its own part, `process_rows`.
    """
    on_devices: dict[str, jax.Array] = jax.make_array_from_process_local_data(
        split_rows(mesh), batch
    )
    return on_devices


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
