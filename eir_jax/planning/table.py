"""What was found out about a run, as text."""

from collections.abc import Iterator
from typing import Any

from eir_jax.system.words import counted

Facts = dict[str, Any]


def show(found: Facts) -> Iterator[str]:
    """Yield the lines that tell what `plan` found."""
    devices = counted(found["devices"], "device")
    yield (
        f"{found['topology']}: {devices} ({found['device']}), "
        f"{counted(found['hosts'], 'host')}; N = {found['num_examples']:,}"
    )
    for facts in found["programs"]:
        yield from _program(facts, found["peaks"])
    yield from found["assumptions"]


def _program(facts: Facts, peaks: Facts | None) -> Iterator[str]:
    """Yield the lines that tell what is known of a program."""
    memory = facts["memory"]
    of = f" of {_gb(peaks['memory'])}" if peaks else ""
    yield f"{facts['what']} (compiled in {facts['compiled_in_s']:.0f} s)"
    call = facts["call"]
    yield (
        f"  one call       {call['rows']:,} {call['of']}; {call['number']:,} for "
        f"{call['task']}"
    )
    yield (
        f"  memory         {_gb(memory['peak'])}{of} a device: arguments "
        f"{_gb(memory['arguments'])}, temporaries {_gb(memory['temporaries'])}"
    )
    place = facts["in_place"]
    if place["leaves"]:
        yield (
            f"  in place       {place['updated']} of "
            f"{counted(place['leaves'], 'state leaf', 'state leaves')}"
        )
    copies = ", ".join(f"{n} of the {name}" for name, n in facts["copies"].items())
    yield (
        f"  whole copies   {copies or 'nothing looked for'}; "
        f"{_gb(facts['copied_bytes'])} in copies of 1 MiB or more"
    )
    kinds = ", ".join(f"{n} {kind}" for kind, n in facts["convolutions"].items())
    yield f"  convolutions   {kinds or 'none'}"
    yield (
        f"  work           {facts['flops'] / 1e12:.3f} TFLOP, "
        f"{_gb(facts['bytes_moved'])} moved, {facts['launches']:,} launches"
    )
    for one in facts["collectives"]:
        size = ", each under 64 kB" if one["small"] else ""
        yield (
            f"  {one['kind']:14} {one['number']} of {one['dtype']}, "
            f"{one['bytes'] / 1e6:.2f} MB{size}"
        )
    if not facts["collectives"]:
        yield "  collectives    none"
    yield f"  {'part':14} {'GB moved':>9} {'TFLOP':>8} {'launches':>9} {'ms':>7}"
    for part in facts["parts"]:
        seconds = f"{1000 * part['seconds']:7.2f}" if peaks else "      -"
        yield (
            f"  {part['part']:14} {part['bytes'] / 1e9:9.3f} "
            f"{part['flops'] / 1e12:8.3f} {part['launches']:9,} {seconds}"
        )
    if peaks:
        whole = 1000 * sum(part["seconds"] for part in facts["parts"])
        yield f"  {'in all':14} {'':28} {whole:7.2f}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
