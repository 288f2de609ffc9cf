"""Counting what a compiled program does: bytes, products, copies, collectives.

A count is of the compiler's plan. Bytes are those of operands and results of each
instruction that is run, of which a slice or gather reads no more than it gives, and
an update in place writes no more than it is given; caches are left out of account.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from eir_jax.planning.hlo import (
    Computation,
    Executed,
    Instruction,
    Program,
    Shape,
    executed,
    fused,
    inside,
)

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "collective-permute"),
    *("all-to-all", "collective-broadcast", "ragged-all-to-all"),
)
SMALL = 64 * 2**10
"""Bytes of a collective whose time is its latency's."""
# What only moves numbers: a fusion of these alone is a copy of what comes in.
MOVES = ("bitcast", "copy", "transpose", "convert", "reshape", "get-tuple-element")
# The kernel of objectives/fused.py: the type of its products, and whether it is exact.
FUSED = {"__gpu$xla.gpu.triton": ("f32x3", False), "tpu_custom_call": ("f32", True)}
_PARTS = ("views", "encoder", "relations", "optimizer", "memory")


class Work(NamedTuple):
    """A convolution or matrix product."""

    flops: int
    dtype: str
    """Of its operands; 'f32x3': float32 by three passes of TF32."""
    exact: bool
    """float32 factors are not rounded."""
    is_convolution: bool


class Row(NamedTuple):
    """What one instruction comes to, all its times together."""

    part: str
    """Of the step: 'convolutions', 'encoder', 'views', ..., 'rest'."""
    bytes: int
    work: tuple[Work, ...]
    times: int


class Copy(NamedTuple):
    """An array made anew of another, with nothing computed."""

    of: Shape
    source: tuple[int, ...]
    """Sides of the program's argument that it is a copy of; (): of none directly."""
    times: int


class Collective(NamedTuple):
    """What devices send each other at once."""

    kind: str
    dtype: str
    bytes: int
    """Of the result on a device."""
    times: int


def rows(program: Program, on_chip: int | None = None) -> Iterator[Row]:
    """Yield what each instruction that is run comes to.

    Arrays in the memory space `on_chip` cost no bytes.
    """
    for run in executed(program):
        work = tuple(work_of(program, run))
        yield Row(
            part=_part(run.instruction, work),
            bytes=run.times * moved(program, run, on_chip),
            work=tuple(w._replace(flops=w.flops * run.times) for w in work),
            times=run.times,
        )


def _part(instruction: Instruction, work: tuple[Work, ...]) -> str:
    if any(w.is_convolution for w in work):
        return "convolutions"
    if instruction.op.removesuffix("-start") in COLLECTIVES:
        return "collectives"
    name = instruction.text("op_name").lower()
    return next((part for part in _PARTS if part in name), "rest")


def moved(program: Program, run: Executed, on_chip: int | None = None) -> int:
    """Return the bytes that one execution reads and writes."""
    one, computation, _ = run
    body = fused(program, one)
    if body is None:
        read, written = _plain(one, computation)
    else:
        read = [
            (shape, _used(program, body, number, shape.bytes))
            for number, shape in _operands(one, computation)
        ]
        root = next(part for part in body.values() if part.is_root)
        written = list(zip(one.shapes, _outputs(body, root), strict=False))
    return sum(size for shape, size in (*read, *written) if shape.space != on_chip)


def _operands(
    one: Instruction, computation: Computation
) -> Iterator[tuple[int, Shape]]:
    for number, name in enumerate(one.operands):
        if name in computation:
            for shape in computation[name].shapes:
                yield number, shape


def _plain(one: Instruction, computation: Computation):
    """Return (shape, bytes) of what an instruction alone reads, and writes."""
    operands = list(_operands(one, computation))
    whole = [(shape, shape.bytes) for shape in results(one)]
    if one.op == "slice-start":  # its tuple: what is given, the slice, a mark
        part = one.shapes[1]
        return [(operands[0][1], part.bytes)], [(part, part.bytes)]
    if one.op in ("dynamic-slice", "gather", "slice"):
        first = [(shape, one.bytes) for number, shape in operands if number == 0]
        return first + [(s, s.bytes) for number, s in operands if number], whole
    if one.op in ("dynamic-update-slice", "scatter"):
        given = [(s, s.bytes) for number, s in operands if number]
        return given, [(one.shapes[0], _update(one, computation))]
    return [(shape, shape.bytes) for _, shape in operands], whole


def results(one: Instruction) -> tuple[Shape, ...]:
    """Return the arrays that an instruction makes.

    The tuple of one that only begins something may hold its operands too, and marks: a
    copy's what is made, the operand and a mark; others' the operands, what is made of
    each, and marks; an all-reduce's what is made alone.
    """
    shapes, given = one.shapes, len(one.operands)
    if one.op == "copy-start":
        return shapes[:1]
    if one.op.endswith("-start") and len(shapes) >= 2 * given:
        return shapes[given : 2 * given]
    return shapes


def _update(one: Instruction, computation: Computation) -> int:
    """Return the bytes that an update in place is given."""
    name = one.operands[1 if one.op == "dynamic-update-slice" else -1]
    return computation[name].bytes if name in computation else one.bytes


def _used(program: Program, body: Computation, number: int, whole: int) -> int:
    """Return the bytes of a fusion's parameter that it reads."""
    name = next(
        (p.name for p in body.values() if p.op == "parameter" and p.number == number),
        "",
    )
    return min(whole, _read(program, body, name, whole))


def _read(program: Program, body: Computation, name: str, whole: int) -> int:
    total = 0
    for user in body.values():
        if name not in user.operands:
            continue
        first = user.operands[0] == name
        if first and user.op in ("dynamic-slice", "gather", "slice"):
            total += user.bytes
        elif first and user.op in ("dynamic-update-slice", "scatter"):
            total += 0
        elif user.op == "bitcast":
            total += _read(program, body, user.name, whole)
        else:
            return whole
    return total


def _outputs(body: Computation, root: Instruction) -> list[int]:
    """Return the bytes that a fusion writes of each of its results."""
    return [_written(body, one) for one in _results(body, root)]


def _results(body: Computation, root: Instruction) -> list[Instruction]:
    if root.op == "tuple":
        return [body[name] for name in root.operands]
    return [root]


def _written(body: Computation, one: Instruction) -> int:
    origin = _behind(body, one, ("bitcast",))
    if origin.op in ("dynamic-update-slice", "scatter"):
        return _update(origin, body)
    return one.bytes


def _behind(body: Computation, one: Instruction, through: tuple) -> Instruction:
    while one.op in through and one.operands and one.operands[0] in body:
        one = body[one.operands[0]]
    return one


def copies(program: Program, at_least: int = 2**20) -> Iterator[Copy]:
    """Yield the copies of arrays of so many bytes: other layout, type or place."""
    for run in executed(program):
        one, body = run.instruction, fused(program, run.instruction)
        made: list[tuple[Shape, int]] = []  # and which operand it is made of
        if one.op in ("copy", "transpose", "convert", "copy-start"):
            made = [(one.shapes[0], 0)] if _stays(run) else []
        elif body is not None:
            root = next(part for part in body.values() if part.is_root)
            for result in _results(body, root):
                origin = _behind(body, result, MOVES)
                moved_only = origin.op == "parameter"
                if moved_only and _behind(body, result, ("bitcast",)) is not origin:
                    made.append((result.shapes[0], origin.number))
        for shape, number in made:
            if shape.bytes >= at_least:
                first = run.computation.get(one.operands[number])
                behind = first and _behind(run.computation, first, MOVES)
                argument = behind is not None and behind.op == "parameter"
                source = behind.shapes[0].dims if behind and argument else ()
                yield Copy(shape, source, run.times)


def _stays(run: Executed) -> bool:
    """Tell whether a copy is no transfer, to the chip's own memory or from it."""
    given = [shape.space for _, shape in _operands(run.instruction, run.computation)]
    return run.instruction.shapes[0].space in given[:1]


def collectives(program: Program) -> Iterator[Collective]:
    """Yield what is said to other devices."""
    for run in executed(program):
        one = run.instruction
        kind = one.op.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        shapes = results(one)
        size = sum(shape.bytes for shape in shapes)
        yield Collective(kind, shapes[0].dtype, size, run.times)


def work_of(program: Program, run: Executed) -> Iterator[Work]:
    """Yield the convolutions and products of an instruction, or in its fusion."""
    for one, computation in inside(program, run.instruction, run.computation):
        if one.op not in ("convolution", "dot", "custom-call"):
            continue
        shapes = [s for _, s in _operands(one, computation)]
        target = one.text("custom_call_target")
        dtype = shapes[0].dtype if shapes else ""
        exact = dtype in ("f32", "f64") and "highest" in one.rest
        if one.op == "convolution" or target.startswith("__cudnn$conv"):
            flops, spatial = _convolution_flops(one, shapes, target)
            # A TPU multiplies many matrices at once by a convolution, as one may.
            spatial &= "dot_general" not in one.text("op_name")
            yield Work(flops, dtype, exact, spatial)
        elif one.op == "dot" or target.startswith("__cublas$"):
            yield Work(_product_flops(one, shapes), dtype, exact, False)
        elif target in FUSED and "other_rows" in one.text("op_name"):
            yield Work(_other_rows_flops(one, shapes), *FUSED[target], False)


def _product_flops(one: Instruction, shapes: list[Shape]) -> int:
    found = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([^\]}]*)', one.rest)
    places = re.findall(r"\d+", found[1]) if found else []
    contracted = math.prod(shapes[0].dims[int(place)] for place in places)
    return 2 * one.shapes[0].size * contracted


def _other_rows_flops(one: Instruction, shapes: list[Shape]) -> int:
    """Return the operations of objectives/fused.py's products.

    Each view's scores, and for each of its outputs [parts, n, batch, dim] n sums.
    """
    _, bank, query, *_ = shapes
    given, batch, dim = query.dims
    summed = sum(shape.dims[1] for shape in one.shapes if shape.dims[-1] == dim)
    return 2 * bank.size * batch * (given + summed)


def _convolution_flops(
    one: Instruction, shapes: list[Shape], target: str
) -> tuple[int, bool]:
    """Return its operations, padding left out, and whether it has a window.

    The gradients of cuDNN count as the forward convolution they belong to.
    """
    result = one.shapes[0]
    x, kernel, y = shapes[0], shapes[1], result
    if target.endswith("BackwardInput"):
        x, kernel, y = result, shapes[1], shapes[0]
    elif target.endswith("BackwardFilter"):
        x, kernel, y = shapes[0], result, shapes[1]
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    if not labels:
        return 0, True
    of_x, of_kernel, of_y = labels.groups()
    window = dict(re.findall(r"(\w+)=([\w\-]+)", _window(one.rest)))
    pairs = 1
    spatial = sorted(c for c in of_kernel if c.isdigit())
    for n, axis in enumerate(spatial):
        pairs *= _taps(
            side=x.dims[of_x.index(axis)],
            size=kernel.dims[of_kernel.index(axis)],
            out=y.dims[of_y.index(axis)],
            stride=_number(window, "stride", n, 1),
            low=int(window["pad"].split("x")[n].split("_")[0])
            if "pad" in window
            else 0,
            lhs=_number(window, "lhs_dilate", n, 1),
            rhs=_number(window, "rhs_dilate", n, 1),
        )
    channels = kernel.dims[of_kernel.index("i")]
    batch, features = y.dims[of_y.index("b")], y.dims[of_y.index("f")]
    return 2 * batch * features * channels * pairs, bool(spatial)


def _window(rest: str) -> str:
    found = re.search(r"window=\{([^}]*)\}", rest)
    return found[1] if found else ""


def _number(window: dict[str, str], name: str, place: int, default: int) -> int:
    return int(window[name].split("x")[place]) if name in window else default


def _taps(*, side, size, out, stride, low, lhs, rhs) -> int:
    """Count the pairs of an output and a tap that see a number, along one axis."""
    count = 0
    for tap in range(size):
        for place in range(out):
            at = place * stride + tap * rhs - low
            count += 0 <= at <= (side - 1) * lhs and at % lhs == 0
    return count


def convolutions(program: Program) -> dict[str, int]:
    """Return how many convolutions there are of each type."""
    count: dict[str, int] = collections.Counter()
    for run in executed(program):
        for work in work_of(program, run):
            if work.is_convolution:
                count[work.dtype] += run.times
    return dict(sorted(count.items()))
