"""What would fit where a program does not fit the memory of its devices."""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

import jax

from eir_jax.planning.programs import Job, Lowering, bytes_of
from eir_jax.planning.topologies import Topology, larger
from eir_jax.system.errors import UserError

ROOM = 0.9
"""Of a device's memory what arguments and temporaries may fill in what is offered."""
SHARDED = "--config.data.placement=sharded"
HOST = "--config.data.pipeline=tf.data"
HALF = "--config.bank.dtype=bfloat16"


class Load(NamedTuple):
    """What a program holds, in bytes."""

    whole: float
    """On every device, however many there are: parameters, queues."""
    split: float
    """Of all devices together, each of which has a share."""
    batch: float
    """Of `split` what a smaller batch makes less: its arrays, and temporaries."""
    banks: float
    """Of `split` the banks in float32."""
    images: float
    """All of them, in device memory: counted neither in `whole` nor in `split`."""
    sharded: bool
    """Of the images each device has a share."""

    def on(self, devices: int, settings: tuple[str, ...] = ()) -> float:
        """Return the bytes on each of so many devices, with other settings."""
        whole, split = self.whole, self.split
        if HALF in settings:
            split -= self.banks / 2
        if HOST not in settings:
            if self.sharded or SHARDED in settings:
                split += self.images
            else:
                whole += self.images
        return whole + split / devices


def load_of(program: Lowering, job: Job, temporaries: float = 0) -> Load:
    """Return what a program holds, with so many bytes of temporaries a device."""
    config, devices = job.config, job.mesh.size
    images: Any = program.watched.get("images")
    held = {"whole": 0.0, "split": 0.0, "batch": 0.0}
    for array in jax.tree.leaves(program.arguments):
        if array is not images:
            split = is_split(array)
            held["split" if split else "whole"] += all_bytes(array)
            if split and array.shape[0] == config.batch_size:
                held["batch"] += all_bytes(array)
    held["split"] += temporaries * devices
    held["batch"] += temporaries * devices
    banks = [x for x in program.watched.values() if x is not images and is_split(x)]
    return Load(
        **held,
        banks=sum(all_bytes(bank) for bank in banks if bank.dtype == "float32"),
        images=all_bytes(images) if images is not None else 0,
        sharded=images is not None and is_split(images),
    )


def is_split(array: Any) -> bool:
    """Tell whether each device has a share of an array, were there several."""
    return "data" in array.sharding.spec


def all_bytes(array: Any) -> float:
    """Return the bytes of an array, once."""
    return float(array.size) * array.dtype.itemsize


def check_fits(
    size: float, what: str, name: str, program: Lowering, job: Job, place: Topology
) -> None:
    """Say what would fit where so many bytes a device do not.

    Args:
      size: bytes; infinite where it is only known that they are too many.
      what: is so large.
      name: of the program.
      program: that is planned.
      job: the settings, N and the devices.
      place: the devices.

    Raises:
      UserError: the bytes exceed the device's memory.
    """
    chip = place.chip
    if chip is None or size <= chip.memory:
        return
    known = size < math.inf
    needed, verb = (f"{size / 1e9:.1f} GB", "use") if known else ("more", "try")
    held = size if known else chip.memory  # at least
    temporaries = max(0, held - bytes_of(program.arguments))
    if name == "embed":
        ways = ["a smaller --config.evaluation_batch_size"]
    elif name in ("nearest", "merge"):
        ways = [_way_to_search(program)]
    else:
        ways = [*ways_to_train(name, load_of(program, job, temporaries), job, place)]
    ways = ways or ["fewer images: no devices that are known here would do"]
    words = f"one of: {', '.join(ways)}" if ways[1:] else ways[0]
    raise UserError(
        f"{name} does not fit {place.name}: {what} {needed} a device, which has "
        f"{chip.memory / 1e9:.1f} GB; {verb} {words}"
    )


def _way_to_search(program: Lowering) -> str:
    best, index, *rows = program.arguments
    if bytes_of((best, index)) >= bytes_of(rows):
        return "a smaller --config.knn.k"
    return "a smaller --config.model.embedding_dim"


def ways_to_train(name: str, load: Load, job: Job, place: Topology) -> Iterator[str]:
    """Yield what would make the step, or a part of it, fit: each way by itself.

    More devices, if need be with other settings; such settings on these devices; a
    smaller batch, where the rest leaves room for one.

    That temporaries are shared by the devices, as the batch is, is an estimate.
    """
    assert place.chip
    room, devices = ROOM * place.chip.memory, job.mesh.size
    settings = [HALF] * bool(load.banks)
    if load.images:
        settings += [SHARDED] * (not load.sharded) + [HOST] * (name != "views")
    choices = [
        chosen
        for number in range(1, len(settings) + 1)
        for chosen in combinations(settings, number)
        if not {SHARDED, HOST} <= set(chosen)
    ]
    enough = [chosen for chosen in choices if load.on(devices, chosen) <= room]
    others = ((), *(chosen for chosen in choices if chosen not in enough))
    more = (_more_devices(load, job, place, chosen) for chosen in others)
    yield from [words for words in more if words][:1]
    alone = [chosen for chosen in enough if len(chosen) == 1]
    yield from (" ".join(chosen) for chosen in alone or enough[:1])
    batchless = load._replace(split=load.split - load.batch)
    if load.batch and batchless.on(devices) <= room:
        yield "a smaller --config.batch_size"


def _more_devices(
    load: Load, job: Job, place: Topology, settings: tuple[str, ...]
) -> str:
    """Return the least devices that would do, with other settings; '': none do."""
    assert place.chip
    batch = job.config.batch_size
    for name, number in larger(place.name.partition(":")[0], job.mesh.size):
        if number < batch and batch % number:
            continue
        if load.on(number, settings) <= ROOM * place.chip.memory:
            words = [f"--topology={name}", *settings]
            if number > batch:
                words.append(f"--config.batch_size={number}")
            return f"{' '.join(words)} for {number} devices or more"
    return ""
