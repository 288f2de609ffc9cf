"""Reading the text of a compiled program: XLA's optimised, scheduled HLO.

Of each instruction no more is read than what is counted (count.py): the text changes
between versions. What is not understood is left out, never guessed.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {
    **{"pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4},
    **{"u32": 4, "s64": 8, "u64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8},
    **{"c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1},
}
"""Of one number; of what is none, as a token, there are none."""
FREE = {
    *("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all"),
    *("opt-barrier", "partition-id", "replica-id", "iota", "add-dependency"),
}
"""Instructions that move nothing."""

BRANCHES = ("branch_computations", "true_computation", "false_computation")
"""Attributes of a condition."""

_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{")
_NAMED = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")


class Shape(NamedTuple):
    """An array's type and sides, and the memory it lies in."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0
    """0: the device's own memory; on a TPU 1 is on the chip."""

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of it, without padding."""
        return BYTES.get(self.dtype, 0) * self.size


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shapes: tuple[Shape, ...]
    """Of its results: one, or those of a tuple."""
    op: str
    operands: tuple[str, ...]
    rest: str
    """What follows the operands: window, metadata, configuration."""
    number: int = 0
    """Of a parameter: its place; of a constant that is a whole number: that."""
    is_root: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of all results."""
        return sum(shape.bytes for shape in self.shapes)

    def called(self, *names: str) -> list[str]:
        """Return the computations that attributes hold: each one, or {several}."""
        found = re.findall(
            rf"\b(?:{'|'.join(names)})=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest
        )
        return [name for one in found for name in re.findall(r"[\w.\-]+", one)]

    def text(self, attribute: str) -> str:
        """Return an attribute between quotes, '' where there is none."""
        found = re.search(rf'{attribute}="([^"]*)"', self.rest)
        return found[1] if found else ""


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str
    in_place: int
    """Results that take the place of an argument."""


class Executed(NamedTuple):
    """An instruction that is run by itself."""

    instruction: Instruction
    computation: Computation
    """Where its operands are."""
    times: int
    """How often: loops by their trip counts, 1 where these cannot be told."""


def parse(text: str) -> Program:
    """Read a program's text.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None or not line.startswith(" "):
            current = None
            if (head := _COMPUTATION.fullmatch(line)) and " = " not in line[:40]:
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif (found := _instruction(line)) is not None:
            current[found.name] = found
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY")
    first = text[: text.find("\n")]
    return Program(computations, entry, len(re.findall(r"(?:may|must)-alias", first)))


def _instruction(line: str) -> Instruction | None:
    named = _NAMED.match(line)
    if not named:
        return None
    start = named.end()
    # A tuple's type stands in brackets and holds blanks; an array's has neither.
    end = _closing(line, start) if line[start] == "(" else line.find(" ", start)
    called = re.compile(r"\s*([\w\-]+)\(").match(line, end)
    if not called:
        return None
    close = _closing(line, called.end() - 1)
    inside = line[called.end() : close - 1]
    op = called[1]
    return Instruction(
        name=named[2],
        shapes=tuple(shapes_of(line[start:end])),
        op=op,
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)) if op != "constant" else (),
        rest=line[close:],
        number=int(inside) if re.fullmatch(r"-?\d+", inside) else 0,
        is_root=bool(named[1]),
    )


def _closing(line: str, start: int) -> int:
    """Return the place after the bracket that closes the one at `start`."""
    depth = 0
    for bracket in re.finditer(r"[()]", line[start:]):
        depth += 1 if bracket[0] == "(" else -1
        if not depth:
            return start + bracket.end()
    return len(line)


def shapes_of(text: str) -> Iterator[Shape]:
    """Yield the arrays that a type names."""
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sides = tuple(int(side) for side in dims.split(",") if side)
        yield Shape(dtype, sides, int(space[1]) if space else 0)


def executed(program: Program) -> Iterator[Executed]:
    """Yield what is run, in order; a fusion is one instruction.

    Of the branches of a condition one is run: here the one that makes most bytes.
    """

    def visit(name: str, times: int) -> Iterator[Executed]:
        computation = program.computations[name]
        for instruction in computation.values():
            op = instruction.op
            if op == "while":
                for body in instruction.called("body"):
                    yield from visit(body, times * _turns(program, instruction))
            elif op == "call":
                for part in instruction.called("to_apply"):
                    yield from visit(part, times)
            elif op == "conditional":
                names = instruction.called(*BRANCHES)
                branches = [list(visit(part, times)) for part in names]
                yield from max(branches, key=_made, default=[])
            elif op not in FREE and not op.endswith("-done"):
                yield Executed(instruction, computation, times)

    yield from visit(program.entry, 1)


def _made(branch: list[Executed]) -> int:
    return sum(run.instruction.bytes * run.times for run in branch)


def _turns(program: Program, loop: Instruction) -> int:
    """Return how often a loop turns: as the compiler says, or as its condition does.

    That of a TPU says nothing; a loop of JAX counts from 0 on, by ones, to a constant.
    """
    said = re.search(r'known_trip_count":\{"n":"?(\d+)|trip_count=(\d+)', loop.rest)
    if said:
        return int(said[1] or said[2])
    for name in loop.called("condition"):
        condition = program.computations[name]
        root = next(one for one in condition.values() if one.is_root)
        limit = condition.get(root.operands[-1]) if root.operands else None
        if root.op == "compare" and "direction=LT" in root.rest and limit:
            return max(limit.number, 1) if limit.op == "constant" else 1
    return 1


def fused(program: Program, instruction: Instruction) -> Computation | None:
    """Return what a fusion, or an asynchronous one, consists of."""
    if instruction.op not in ("fusion", "async-start"):
        return None
    (name,) = instruction.called("calls")[:1] or ("",)
    return program.computations.get(name)


def inside(
    program: Program, instruction: Instruction, computation: Computation
) -> Iterator[tuple[Instruction, Computation]]:
    """Yield an instruction, or those that it fuses, each with where it stands."""
    body = fused(program, instruction)
    if body is None:
        yield instruction, computation
        return
    for part in body.values():
        yield from inside(program, part, body)
