"""The text of a compiled program: computations, their instructions, and how often each computation runs."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|[^\s(]\S*) ([a-z][\w\-]*)\((.*)", re.DOTALL)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LIST = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)')
_CONSTANT = re.compile(r"\s*(-?\d+)\s*\)")
_ARRAY = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\]")

_CALLING = frozenset({"fusion", "call", "conditional", "async-start", "custom-call"})
_SAME = frozenset({"copy", "bitcast", "convert", "bitcast-convert", "reshape", "optimization-barrier"})


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without the leading %.
        shape: its result, as `bf16[8,128]{1,0}` or a tuple of these.
        opcode: as `fusion`.
        rest: operands and attributes: all after the opening bracket.
        root: whether it is its computation's result.
    """

    name: str
    shape: str
    opcode: str
    rest: str
    root: bool

    def operands(self) -> tuple[str, ...]:
        """The names of its operands."""
        depth = 1
        for at, sign in enumerate(self.rest):
            depth += (sign == "(") - (sign == ")")
            if not depth:
                return tuple(_NAME.findall(self.rest[:at]))
        return tuple(_NAME.findall(self.rest))

    def index(self) -> int:
        """Which part of a tuple a get-tuple-element takes; -1 for other instructions."""
        found = re.search(r"\bindex=(\d+)", self.rest)
        return int(found[1]) if found and self.opcode == "get-tuple-element" else -1

    def op_name(self) -> str:
        """Where in the user's program it comes from, as JAX says it; or nothing."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclass(slots=True)
class Computation:
    """A function of a compiled program."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """Its result."""
        return next(
            (each for each in self.instructions.values() if each.root),
            next(reversed(self.instructions.values())),
        )


@dataclass(slots=True)
class Module:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: the name of the one that is called.
        devices: how many partitions and replicas it says it is for; 1 where it says nothing.
    """

    computations: dict[str, Computation]
    entry: str
    devices: int

    def times(self, trips: Mapping[str, int] | None = None) -> dict[str, int]:
        """How often each computation runs in one run of the program; those never called are not in it.

        Every branch of a conditional counts as if it ran. A loop whose count the text does not show counts
        once.

        Args:
            trips: how often loops go round that the text does not show, by the while's name or op_name.
        """
        found: dict[str, int] = {}
        for name, factor in self._calls(self.entry, 1, trips or {}, frozenset()):
            found[name] = found.get(name, 0) + factor
        return found

    def _calls(
        self, name: str, factor: int, trips: Mapping[str, int], above: frozenset[str]
    ) -> Iterator[tuple[str, int]]:
        if name not in self.computations or name in above:
            return
        yield name, factor
        for called, times in self._callees(name, trips):
            yield from self._calls(called, factor * times, trips, above | {name})

    def _callees(self, name: str, trips: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        for each in self.computations[name].instructions.values():
            if each.opcode == "while":
                if loop := _LOOP.search(each.rest):
                    rounds = self.rounds(name, each, trips)
                    yield loop[1], rounds
                    yield loop[2], rounds
            elif each.opcode in _CALLING or each.opcode.endswith("-start"):
                for called in called_by(each):
                    yield called, 1

    def rounds(self, name: str, loop: Instruction, trips: Mapping[str, int]) -> int:
        """How often a while goes round: as the caller says, as XLA knows, or as its condition shows; or 1."""
        for key in (loop.name, loop.op_name()):
            if key in trips:
                return trips[key]
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        match = _LOOP.search(loop.rest)
        condition = self.computations.get(match[1]) if match else None
        if match is None or condition is None:
            return 1
        return self._counted(name, loop, condition, self.computations.get(match[2]))

    def _counted(self, name: str, loop: Instruction, condition: Computation, body: Computation | None) -> int:
        """The rounds of a loop that counts upwards to a constant."""
        test = condition.root
        if test.opcode != "compare" or len(sides := test.operands()) != 2:
            return max(_constants(self, condition), default=1)
        counter, bound = (_source(condition, side) for side in sides)
        limit = self._value(name, loop, bound)
        if limit is None or counter is None or counter.opcode != "get-tuple-element":
            return max(_constants(self, condition), default=1)
        start = self._initial(name, loop, counter.index())
        step = 1 if body is None else _step(body, counter.index())
        more = int("direction=LE" in test.rest or "direction=GE" in test.rest)
        return max(0, math.ceil(abs(limit - (start or 0) + more) / step))

    def _value(self, name: str, loop: Instruction, at: Instruction | None) -> int | None:
        if at is None:
            return None
        return self._initial(name, loop, at.index()) if at.opcode == "get-tuple-element" else _constant(at)

    def _initial(self, name: str, loop: Instruction, index: int) -> int | None:
        """The constant that a loop starts with at an index of what it carries."""
        caller = self.computations[name]
        carried = _source(caller, loop.operands()[0]) if loop.operands() else None
        if carried is None or carried.opcode != "tuple" or not 0 <= index < len(carried.operands()):
            return None
        found = _source(caller, carried.operands()[index])
        return None if found is None else _constant(found)


def called_by(instruction: Instruction) -> Iterator[str]:
    """The computations that an instruction calls, in order."""
    for found in _CALLED_LIST.finditer(instruction.rest):
        yield from (each.strip().lstrip("%") for each in found[1].split(",") if each.strip())
    for found in _CALLED.finditer(instruction.rest):
        yield found[1]


def _source(computation: Computation, name: str) -> Instruction | None:
    """What a value is a copy of."""
    at = computation.instructions.get(name)
    while at is not None and at.opcode in _SAME and at.operands():
        at = computation.instructions.get(at.operands()[0])
    return at


def _constant(instruction: Instruction) -> int | None:
    found = _CONSTANT.match(instruction.rest) if instruction.opcode == "constant" else None
    return int(found[1]) if found else None


def _constants(module: Module, computation: Computation) -> Iterator[int]:
    """The whole numbers in a condition, those in what it calls too."""
    for each in computation.instructions.values():
        if each.opcode == "constant" and each.shape.startswith(("s32[]", "s64[]", "u32[]", "u64[]")):
            value = _constant(each)
            if value is not None:
                yield value
        for called in called_by(each) if each.opcode == "fusion" else ():
            if called in module.computations:
                yield from _constants(module, module.computations[called])


def _step(body: Computation, index: int) -> int:
    """By how much a loop's body moves its counter; 1 where it does not show."""
    parts = body.root.operands() if body.root.opcode == "tuple" else ()
    added = _source(body, parts[index]) if 0 <= index < len(parts) else None
    if added is None or added.opcode != "add":
        return 1
    sources = [_source(body, each) for each in added.operands()]
    steps = [value for each in sources if each is not None and (value := _constant(each)) is not None]
    return abs(steps[0]) if steps and steps[0] else 1


@functools.lru_cache(maxsize=2)
def parse(text: str) -> Module:
    """Read a module's text, as `compiled.as_text()` gives it.

    Raises:
        ValueError: there is no entry computation in it.
    """
    computations: dict[str, Computation] = {}
    entry, here = "", None
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            if here is not None and (found := _INSTRUCTION.match(line)):
                root, name, shape, opcode, rest = found.groups()
                here.instructions[name] = Instruction(name, shape, opcode, rest, root is not None)
        elif found := _COMPUTATION.match(line):
            here = computations[found[2]] = Computation(found[2])
            entry = found[2] if found[1] else entry
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])
    return Module(computations, entry, math.prod(map(int, counts)))


_BITS: Mapping[str, int] = {"pred": 8, "token": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "s1": 1, "u1": 1}


def arrays(shape: str) -> list[tuple[str, int]]:
    """The arrays of a shape, in order: how each is written, without its layout, and its bytes.

    Example:
        >>> arrays("(bf16[8,128]{1,0:T(8,128)(2,1)}, s4[16]{0}, token[])")
        [('bf16[8,128]', 2048), ('s4[16]', 8)]
    """
    found = []
    for dtype, dims in _ARRAY.findall(shape):
        sizes = [int(each.lstrip("<=")) for each in dims.split(",") if each]
        bits = math.prod(sizes) * _bits(dtype)
        if dtype != "token":
            found.append((f"{dtype}[{dims}]", -(-bits // 8)))
    return found


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    number = re.match(r"[a-z]+(\d+)", dtype)
    return int(number[1]) if number else 8
