"""What is found out about a run: counts of the compiler's plan, and a roofline."""

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eir_jax.planning import count, hlo
from eir_jax.planning.fit import check_fits
from eir_jax.planning.programs import PROGRAMS, Job, Lowering, bytes_of
from eir_jax.planning.topologies import Chip, Topology, find_topology
from eir_jax.run.validate import validate, validate_sizes
from eir_jax.system.errors import UserError, lacks_memory

Facts = dict[str, Any]
MOST_IMAGES = 2**31 - 2**16
"""Whose numbers, and those of rows that fill up, int32 holds."""


def plan(
    config: ConfigDict,
    topology: str,
    what: Sequence[str] = ("train",),
    num_examples: int = 0,
    say: Callable[[str], None] = print,
) -> Facts:
    """Compile programs of a run for devices that need not be there, and count.

    Args:
      config: all settings.
      topology: as `find_topology` reads it.
      what: some of PROGRAMS.
      num_examples: N, training images; 0: as many as `config.data.expected` says.
      say: is told what takes time.

    Returns:
      What was found, of numbers and words alone: one entry a program in `programs`.

    Raises:
      UserError: settings or devices that there are not, or that do not go together;
        or what is planned does not fit.
    """
    validate(config, reads_data=False)
    for name in what:
        if name not in PROGRAMS:
            raise UserError(f"--what={name} is none of {', '.join(PROGRAMS)}")
    train, test = sizes(config, num_examples)
    if "views" in what and config.data.pipeline != "device":
        raise UserError(
            f"--what=views: data.pipeline={config.data.pipeline} makes the views on "
            "the host; use --config.data.pipeline=device, or leave views out"
        )
    place = find_topology(topology)
    validate_sizes(config, train, place.mesh.size)
    job = Job(config, train, place.mesh, test)
    return {
        "topology": topology,
        "device": place.mesh.devices.flat[0].device_kind,
        "devices": place.mesh.size,
        "hosts": place.hosts,
        "num_examples": train,
        "num_test": test,
        "batch_size": config.batch_size,
        "peaks": place.chip and place.chip._asdict(),
        "assumptions": [*assumptions(place)],
        "programs": [study(name, job, place, say) for name in what],
    }


def sizes(config: ConfigDict, num_examples: int) -> tuple[int, int]:
    """Return the training and test images; of the latter 0: there are none.

    Args:
      config: all settings.
      num_examples: N, training images; 0: those of `data.expected` without the share
        `data.held_out`, which is rounded here for all classes together.

    Raises:
      UserError: there are none or too many.
    """
    expected, test = config.data.expected
    share = config.data.held_out
    train = num_examples or expected - round(share * expected)
    if not train:
        raise UserError(
            "how many training images there are says neither data.expected nor "
            "--num_examples; give --num_examples=N"
        )
    if not 0 < train <= MOST_IMAGES:
        raise UserError(
            f"--num_examples={train}: training images are numbered by int32; give 1 "
            f"to {MOST_IMAGES}"
        )
    return train, test or round(train * share / (1 - share))


def assumptions(place: Topology) -> Iterator[str]:
    """Yield what the counts and the roofline take for granted."""
    yield "Counts are of the compiler's plan: nothing has run."
    chip = place.chip
    if chip is None:
        yield "Of a CPU no peaks are known here, so that no time is given."
        return
    rates = ", ".join(
        f"{value / 1e12:.0f} of {kind}" for kind, value in chip.flops.items()
    )
    link = chip.network if place.hosts > 1 and chip.network else chip.link
    yield (
        "ms: the least time, were each instruction at its peak and none beside "
        f"another: {chip.bandwidth / 1e12:.2f} TB/s of memory; TFLOP/s of "
        f"products {rates} (exact: float32, not rounded); {link / 1e9:.0f} GB/s "
        "between devices. Launches, latencies and the host are left out."
    )


def for_kernels_of(mesh: Mesh) -> AbstractContextManager:
    """Tell Pallas which device it lowers for: newer JAX asks, where none is here."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def study(what: str, job: Job, topology: Topology, say: Callable[[str], None]) -> Facts:
    """Lower, compile and count one program of a run.

    Args:
      what: one of PROGRAMS.
      job: the settings, N and the devices.
      topology: that the job's mesh is of.
      say: is told what takes time.

    Raises:
      UserError: the program does not fit the devices' memory.
    """
    began = time.monotonic()
    say(f"{what}: lowering for {topology.name}")
    with for_kernels_of(topology.mesh):
        program = PROGRAMS[what](job)
    of = (what, program, job, topology)
    check_fits(bytes_of(program.arguments), "its arguments alone take", *of)
    say(f"{what}: compiling (a minute or so for a GPU, several for a TPU)")
    try:
        compiled = program.lowered.compile()
    except Exception as error:
        if not lacks_memory(error):
            raise
        check_fits(float("inf"), "with temporaries it takes", *of)
        raise
    facts: Facts = {"what": what, "compiled_in_s": round(time.monotonic() - began, 1)}
    facts["call"] = program.call._asdict()
    facts |= _memory(compiled.memory_analysis())
    facts |= describe(compiled.as_text() or "", program, topology)
    check_fits(facts["memory"]["peak"], "with temporaries it takes", *of)
    return facts


def _memory(stats: Any) -> Facts:
    sizes = {
        name: getattr(stats, f"{name}_size_in_bytes")
        for name in ("argument", "output", "alias", "temp")
    }
    # What results take beyond the places of arguments is held beside them.
    peak = sizes["argument"] + sizes["temp"] + sizes["output"] - sizes["alias"]
    return {
        "memory": {
            "arguments": sizes["argument"],
            "temporaries": sizes["temp"],
            "peak": peak,
        }
    }


def describe(text: str, program: Lowering, topology: Topology) -> Facts:
    """Return the counts of a compiled program's text, and its roofline."""
    parsed = hlo.parse(text)
    platform = topology.mesh.devices.flat[0].platform
    rows = list(count.rows(parsed, on_chip=1 if platform == "tpu" else None))
    found = list(count.copies(parsed))
    facts: Facts = {
        "in_place": {"leaves": program.donated, "updated": parsed.in_place},
        "copies": {
            name: sum(copy.times for copy in found if is_of(copy, array))
            for name, array in alike(program.watched)
        },
        "copied_bytes": sum(copy.of.bytes * copy.times for copy in found),
        "convolutions": count.convolutions(parsed),
        "flops": sum(work.flops for row in rows for work in row.work),
        "bytes_moved": sum(row.bytes for row in rows),
        "launches": sum(row.times for row in rows),
        "collectives": _collectives(parsed),
    }
    facts["parts"] = _parts(rows, topology)
    return facts


def alike(watched: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield arrays with their names, as 'this or that' where a copy may be of either.

    A copy is told by its sides alone.
    """
    names: dict[tuple, list[str]] = {}
    for name, array in watched.items():
        names.setdefault((array.shape, array.sharding), []).append(name)
    yield from ((" or ".join(same), watched[same[0]]) for same in names.values())


def is_of(copy: count.Copy, array: Any) -> bool:
    """Tell whether a copy is of an array, or of a device's share of it."""
    shapes = (array.shape, array.sharding.shard_shape(array.shape))
    return copy.of.dims in shapes or copy.source in shapes


def _collectives(parsed: hlo.Program) -> list[Facts]:
    found: dict[tuple, list[int]] = collections.defaultdict(lambda: [0, 0])
    for one in count.collectives(parsed):
        entry = found[one.kind, one.dtype, one.bytes < count.SMALL]
        entry[0] += one.times
        entry[1] += one.bytes * one.times
    return [
        {"kind": kind, "dtype": dtype, "small": small, "number": number, "bytes": size}
        for (kind, dtype, small), (number, size) in sorted(found.items())
    ]


def _parts(rows: list[count.Row], topology: Topology) -> list[Facts]:
    """Return bytes, operations and roofline seconds of each part, the longest first."""
    parts: dict[str, Facts] = {}
    for row in rows:
        part = parts.setdefault(
            row.part, {"part": row.part, "bytes": 0, "flops": 0, "launches": 0}
        )
        part["bytes"] += row.bytes
        part["flops"] += sum(work.flops for work in row.work)
        part["launches"] += row.times
        if topology.chip:
            part["seconds"] = part.get("seconds", 0) + _seconds(row, topology)
    by = "seconds" if topology.chip else "bytes"
    return sorted(parts.values(), key=lambda part: part[by], reverse=True)


def _seconds(row: count.Row, topology: Topology) -> float:
    """Return the least time of an instruction: by its bytes or by its operations."""
    chip = topology.chip
    assert chip
    computing = sum(work.flops / rate(chip, work) for work in row.work)
    moving = row.bytes / chip.bandwidth
    if row.part == "collectives":
        slow = topology.hosts > 1 and chip.network
        moving = row.bytes / (chip.network if slow else chip.link)
    return max(moving, computing)


def rate(chip: Chip, work: count.Work) -> float:
    """Return the operations a second of a product, by the type of its factors."""
    if work.dtype == "f32x3":
        return chip.flops["f32"] / 3
    if work.dtype in ("f32", "f64"):
        kind = "exact" if work.exact else "f32"
        return chip.flops.get(kind, chip.flops["bf16"])
    return chip.flops["bf16"]
