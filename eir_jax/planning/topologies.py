"""Accelerators that need not be there: what compiles for them, and what they are.

`jax.experimental.topologies` compiles ahead of time for a GPU or TPU with no device and
no driver; it takes the plug-in that would drive it (`jax[cuda13]`, `jax[tpu]`).
"""

import importlib.util
import math
import re
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from eir_jax.system.errors import UserError, first_line
from eir_jax.system.sharding import make_mesh
from eir_jax.system.words import counted


class Chip(NamedTuple):
    """One device, by its maker's data sheet."""

    memory: float
    """Bytes."""
    bandwidth: float
    """Of its memory, bytes a second."""
    flops: dict[str, float]
    """Dense operations a second by the operands' type; 'exact': float32, unrounded."""
    link: float
    """Bytes a second that it sends to the others of its machine or slice."""
    network: float
    """The same to those of other machines; 0: they are of the same net."""
    sides: int = 2
    """Of a TPU slice."""
    most: int = 0
    """Chips of the largest slice; 0: no limit is known."""


def _tpu(memory, bandwidth, bf16, link, most, sides=2) -> Chip:
    # Exact float32 is made of six products of bfloat16.
    flops = {"bf16": bf16, "exact": bf16 / 6}
    return Chip(memory, bandwidth, flops, link, 0, sides, most)


CHIPS = {
    # SXM5: HBM3, NVLink 450 GB/s each way; one 400 Gb/s network card a GPU.
    "h100": Chip(
        memory=84_942_979_072,
        bandwidth=3.35e12,
        flops={"bf16": 989e12, "f32": 494e12, "exact": 67e12},
        link=450e9,
        network=50e9,
    ),
    # cloud.google.com/tpu/docs/v5e and its neighbours; of a v5p pod's 8,960 chips one
    # program may have 6,144.
    "v5e": _tpu(16 * 2**30, 819e9, 197e12, 200e9, most=256),
    "v5p": _tpu(95 * 2**30, 2765e9, 459e12, 600e9, most=6144, sides=3),
    "v6e": _tpu(32 * 2**30, 1640e9, 918e12, 448e9, most=256),
}
"""What `--topology` may name, beside 'cpu', of which nothing is said."""
GPUS = ("h100",)
LARGEST_HOST = 8  # GPUs of one machine
MOST_HOSTS = 1024  # of GPUs that are offered
FORMS = "h100:1, h100:2x8 (hosts x GPUs), v5e:16x16, v6e:4x4 or v5p:2x2x1"

# XLA's description of the device (openxla/xla, xla/backends/gpu/target_config/specs/
# h100_sxm.txtpb, Apache-2.0), for which it chooses kernels without autotuning.
H100 = """\
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
runtime_version { major: 13 minor: 0 patch: 0 }
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class MissingPlugin(UserError):
    """JAX's plug-in for the devices is not installed."""


class Topology(NamedTuple):
    """Devices to compile for."""

    name: str
    mesh: Mesh
    chip: Chip | None
    """None: a CPU, of which nothing is said."""
    hosts: int


def find_topology(name: str) -> Topology:
    """Return the devices that 'h100:2x8' (hosts x GPUs) or 'v5e:16x16' names.

    'cpu:N' are this machine's own, for trying.

    Raises:
      UserError: there is no such topology, or no plug-in for it.
    """
    kind, _, sides = name.partition(":")
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", sides):
        raise UserError(f"--topology={name} is none; give {FORMS}")
    dims = [int(side) for side in sides.split("x")]
    if kind == "cpu":
        return _cpus(name, dims)
    if kind not in CHIPS:
        raise UserError(f"--topology={name}: of {kind} nothing is known; give {FORMS}")
    return (_gpus if kind in GPUS else _tpus)(name, kind, dims)


def larger(kind: str, devices: int) -> Iterator[tuple[str, int]]:
    """Yield topologies of more than so many devices, and theirs, the smallest first.

    Of GPUs those of whole hosts, or of one; of TPUs those whose sides double in turn.
    """
    if kind in GPUS:
        names = [(f"{kind}:{n}", n) for n in range(1, LARGEST_HOST + 1)]
        hosts = range(2, MOST_HOSTS + 1)
        names += [(f"{kind}:{n}x{LARGEST_HOST}", n * LARGEST_HOST) for n in hosts]
    else:
        names, sides = [], [2, 2, 1][: CHIPS[kind].sides]
        while math.prod(sides) <= CHIPS[kind].most:
            names.append((f"{kind}:{'x'.join(map(str, sides))}", math.prod(sides)))
            last = max(n for n, side in enumerate(sides) if side == min(sides))
            sides[last] *= 2
    yield from ((name, size) for name, size in names if size > devices)


def _cpus(name: str, dims: list[int]) -> Topology:
    here = jax.devices("cpu")
    if len(dims) > 1 or dims[0] > len(here):
        raise UserError(
            f"--topology={name}: this process has {counted(len(here), 'CPU device')}; "
            f"use cpu:{len(here)}, or XLA_FLAGS=--xla_force_host_platform_device_count"
        )
    return Topology(name, make_mesh(here[: dims[0]]), None, 1)


def _gpus(name: str, kind: str, dims: list[int]) -> Topology:
    hosts, each = [1, *dims][-2:]
    if len(dims) > 2 or each > LARGEST_HOST:
        whole = math.prod(dims)
        like = whole if whole <= LARGEST_HOST else f"{-(-whole // LARGEST_HOST)}x8"
        raise UserError(
            f"--topology={name}: a host has at most {LARGEST_HOST} GPUs; give "
            f"{kind}:HOSTSxGPUS, like {kind}:{like}"
        )
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        _lacks(name, "cuda13")
    try:
        found = topologies.get_topology_desc(
            kind, platform="cuda", topology=f"1x{hosts}x{each}", target_config=H100
        )
    except Exception as error:  # of several kinds, by what is wrong
        _does_not_work(name, "cuda13", error)
    return Topology(name, make_mesh(list(found.devices)), CHIPS[kind], hosts)


def _tpus(name: str, kind: str, dims: list[int]) -> Topology:
    chip = CHIPS[kind]
    if math.prod(dims) > chip.most:
        raise UserError(
            f"--topology={name}: {math.prod(dims):,} chips, and a slice of {kind} has "
            f"at most {chip.most:,}; give {kind}: with {_slices(kind)}"
        )
    if importlib.util.find_spec("libtpu") is None:
        _lacks(name, "tpu")
    try:
        devices = _slice(kind, dims)
    except Exception as error:  # of several kinds, by what is wrong
        try:
            _slice(kind, [1])
        except Exception:  # one chip there always is
            _does_not_work(name, "tpu", error)
        raise UserError(
            f"--topology={name}: libtpu knows no such slice; give {kind}: with "
            f"{_slices(kind)} ({first_line(error)})"
        ) from None
    mesh = make_mesh(devices)
    hosts = len({device.process_index for device in mesh.devices.flat})
    return Topology(name, mesh, chip, hosts)


def _slice(kind: str, dims: list[int]) -> list:
    """Return the devices of a TPU slice."""
    words = {}
    if set(dims) == {1}:  # one chip, where a host has four
        dims, words = [1] * CHIPS[kind].sides, {"chips_per_host_bounds": (1, 1, 1)}
    topology = f"{kind}:{'x'.join(map(str, dims))}"
    found = topologies.get_topology_desc(topology, platform="tpu", **words)
    return list(found.devices)


def _slices(kind: str) -> str:
    return "1, 2x2x1 or 4x4x4" if CHIPS[kind].sides == 3 else "1, 2x2, 4x4 or 16x16"


def _lacks(name: str, extra: str) -> NoReturn:
    raise MissingPlugin(
        f"--topology={name} needs JAX's plug-in for it, no device and no driver: "
        f'pip install "jax[{extra}]=={jax.__version__}"'
    )


def _does_not_work(name: str, extra: str, error: Exception) -> NoReturn:
    raise UserError(
        f"--topology={name}: JAX's plug-in for it is installed and does not work, as "
        f"one of another version than JAX: pip install --upgrade "
        f'"jax[{extra}]=={jax.__version__}" ({first_line(error)})'
    ) from None
