"""The collectives of a compiled program, read from its text.

Read from texts of XLA for CPU, GPU and TPU. What the text shows several times is counted once: a start and
its done; on TPU the parts of an asynchronous collective that are fused with other work. A TPU writes a
reduce-scatter as an all-reduce within a fusion that keeps a part of it: that is a reduce-scatter here.
Between slices of TPUs data goes through the hosts (`send` and `recv` with a Megascale handler): these are
collectives along the outer axes of the mesh.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from lepton_jax.parallel.aot.groups import Groups, axes_of, chain, replica_groups
from lepton_jax.parallel.aot.text import Computation, Instruction, Module, arrays, called_by, parse
from lepton_jax.parallel.collectives import Collective, Kind
from lepton_jax.parallel.meshes import MeshSpec

KINDS: Final[tuple[Kind, ...]] = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "all-to-all",
    "collective-permute",
)
_ALIASES: Final[Mapping[str, Kind]] = {
    **{kind: kind for kind in KINDS},
    "ragged-all-to-all": "all-to-all",
    "collective-broadcast": "collective-permute",
}
_MEGASCALE: Final[Mapping[str, Kind]] = {
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_GATHER": "all-gather",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}


@dataclass(frozen=True, slots=True)
class CompiledCollective:
    """One collective of a compiled program.

    Attributes:
        kind: as XLA calls it.
        bytes: of its result on one device, all arrays of a tuple together.
        shapes: the arrays of the result on one device, as `bf16[8,128]`.
        groups: which devices exchange; pairs of source and target for a permutation. Between slices of TPUs
            the text does not say; they are empty there.
        size: how many devices exchange with one another.
        axes: along which axes of the mesh they lie; None without a mesh, or where groups do not follow it.
        times: how often it runs in one run of the program: the trip counts of the loops around it.
        computation: the computation that it stands in.
        name: of the instruction.
        op_name: where in the user's program it comes from.
        outer: whether it goes between slices, through the hosts.
    """

    kind: Kind
    bytes: int
    shapes: tuple[str, ...]
    groups: Groups
    size: int
    axes: tuple[str, ...] | None
    times: int
    computation: str
    name: str
    op_name: str = ""
    outer: bool = False

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types of its arrays, each once: `("s8", "f32")` for integers and their scales."""
        return tuple(dict.fromkeys(shape.partition("[")[0] for shape in self.shapes))

    def collective(self) -> Collective:
        """As planning sees it.

        Raises:
            ValueError: its axes are not known: the program was read without a mesh, or does not follow it.
        """
        if self.axes is None:
            raise ValueError(
                f"the axes of {self.kind} {self.name} are not known: give collectives() the mesh"
            )
        return Collective(self.kind, self.axes, self.bytes, self.times, self.op_name)

    def __str__(self) -> str:
        over = f"{self.size} devices" if self.axes is None else "+".join(self.axes)
        times = f" {self.times} times" if self.times != 1 else ""
        return f"{self.kind} of {', '.join(self.shapes)} over {over}{times}"


def collectives(
    text: str, mesh: Any = None, *, trips: Mapping[str, int] | None = None
) -> list[CompiledCollective]:
    """The collectives of a compiled program, from its text.

    Args:
        text: as `jax.jit(f).lower(...).compile().as_text()` gives it.
        mesh: the mesh that the program was compiled for: a `MeshSpec`, `Mesh`, `AbstractMesh`, the sizes of
            its axes by name, or `"data=2,model=4"`; for the axes of each collective.
        trips: how often loops go round, by the name or op_name of the `while`, where the text does not show
            it: a loop that ends by a computed condition counts once.

    Raises:
        ValueError: it is not the text of a compiled program.

    Example:
        >>> text = '''HloModule f, num_partitions=4
        ... ENTRY %main (p: f32[8]) -> f32[8] {
        ...   %p = f32[8]{0} parameter(0)
        ...   ROOT %r = f32[8]{0} all-reduce(%p), replica_groups=[2,2]<=[4], to_apply=%add
        ... }'''
        >>> [str(each) for each in collectives(text, {"data": 2, "model": 2})]
        ['all-reduce of f32[8] over model']
    """
    module = parse(text)
    spec = mesh if mesh is None or isinstance(mesh, MeshSpec) else MeshSpec.of(mesh, chip="cpu")
    fused = _fusion_targets(module)
    times = module.times(trips)
    started = any("AsyncCollectiveStart" in each.rest for each in _instructions(module, "custom-call"))
    found = []
    for name, factor in times.items():
        computation = module.computations[name]
        skip = started and not _starts(computation)
        for each in computation.instructions.values():
            if skip and "async_collective_fusion_config" in each.rest:
                continue  # a later part of a collective that was started elsewhere
            if one := _collective(module, computation, each, factor, name in fused):
                found.append(one)
    return [_placed(each, spec) for each in found]


def _instructions(module: Module, opcode: str) -> Iterator[Instruction]:
    for computation in module.computations.values():
        yield from (each for each in computation.instructions.values() if each.opcode == opcode)


def _fusion_targets(module: Module) -> set[str]:
    return {called for each in _instructions(module, "fusion") for called in called_by(each)}


def _starts(computation: Computation) -> bool:
    return any("AsyncCollectiveStart" in each.rest for each in computation.instructions.values())


def _collective(
    module: Module, computation: Computation, each: Instruction, times: int, fused: bool
) -> CompiledCollective | None:
    if each.opcode == "recv" and "_xla_megascale_transfer_type" in each.rest:
        return _between_slices(computation, each, times)
    opcode = each.opcode.removesuffix("-start")
    if each.opcode == "recv" and "_xla_send_recv_source_target_pairs" in each.rest:
        opcode = "collective-permute"  # in two halves
    elif opcode not in _ALIASES or (opcode != each.opcode and any(_wrapped(each))):
        return None
    kind = _ALIASES[opcode]
    parts = _parts(each)
    groups = replica_groups(each.rest, module.devices)
    size = chain(groups) if kind == "collective-permute" else max(map(len, groups), default=1)
    if size < 2:  # every device keeps what it has
        return None
    if fused and kind == "all-reduce" and _is_scattered(computation, parts, size):
        kind, parts = "reduce-scatter", arrays(computation.root.shape)
    shapes = tuple(shape for shape, _ in parts)
    count = sum(nbytes for _, nbytes in parts)
    op_name = each.op_name() or _caller_op_name(module, computation.name if fused else "")
    return CompiledCollective(
        kind, count, shapes, groups, size, None, times, computation.name, each.name, op_name
    )


def _wrapped(each: Instruction) -> Iterator[str]:
    """The computation that an asynchronous instruction wraps, where the text shows it apart."""
    yield from (name for name in called_by(each) if "to_apply" not in each.rest)


def _parts(each: Instruction) -> list[tuple[str, int]]:
    """The arrays of its result."""
    if each.opcode == "recv":
        return [part for part in arrays(each.shape) if part[0] != "u32[]"]
    return arrays(_result(each.shape) if _is_paired(each) else each.shape)


def _is_paired(each: Instruction) -> bool:
    """Whether the result is a tuple of operands, results, and what the hardware needs."""
    if each.opcode == "all-reduce-start":
        return each.shape.startswith("((")  # elsewhere the results alone
    return each.opcode.endswith("-start")


def _result(shape: str) -> str:
    """The second part of a tuple, which may itself be a tuple."""
    depth, start, parts = 0, 1, []
    for at, sign in enumerate(shape):
        depth += (sign in "([{") - (sign in ")]}")
        if (sign == "," and depth == 1) or (sign == ")" and depth == 0):
            parts.append(shape[start:at])
            start = at + 1
    return parts[1] if len(parts) > 1 else shape


def _is_scattered(computation: Computation, parts: list[tuple[str, int]], size: int) -> bool:
    """Whether a fusion keeps of an all-reduce only this device's part."""
    kept = sum(nbytes for _, nbytes in arrays(computation.root.shape))
    whole = sum(nbytes for _, nbytes in parts)
    return "all-reduce-scatter" in computation.name or (size > 1 and kept * size == whole)


def _caller_op_name(module: Module, name: str) -> str:
    for each in _instructions(module, "fusion") if name else ():
        if name in called_by(each):
            return each.op_name()
    return ""


def _between_slices(computation: Computation, each: Instruction, times: int) -> CompiledCollective | None:
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', each.rest)
    slices = re.search(r'_xla_megascale_target="\{([\d,:]*)\}', each.rest)
    parts = _parts(each)
    size = sum(_span(part) for part in slices[1].split(",") if part) if slices else 1
    if kind is None or kind[1] not in _MEGASCALE:
        return None
    return CompiledCollective(
        _MEGASCALE[kind[1]],
        sum(nbytes for _, nbytes in parts),
        tuple(shape for shape, _ in parts),
        (),
        size,
        None,
        times,
        computation.name,
        each.name,
        each.op_name(),
        outer=True,
    )


def _span(part: str) -> int:
    low, _, high = part.partition(":")
    return int(high) - int(low) + 1 if high else 1


def _placed(each: CompiledCollective, mesh: MeshSpec | None) -> CompiledCollective:
    """The same, with the axes along which it goes."""
    if mesh is None:
        return each
    outer = tuple(axis.name for axis in mesh.axes if axis.link.kind == "dcn")
    if each.outer:
        return replace(each, axes=outer, size=mesh.size(*outer)) if outer else each
    used = 1 + max(map(max, each.groups), default=0)
    axes = [axis for axis in mesh.axes if axis.name not in outer or used > mesh.devices // mesh.size(*outer)]
    found = axes_of(each.groups, [axis.size for axis in axes], [axis.name for axis in axes])
    return replace(each, axes=found)


def totals(found: Iterable[CompiledCollective | Collective]) -> dict[str, tuple[int, int]]:
    """How many collectives of each kind run, and the bytes of their results on one device.

    Example:
        >>> totals([Collective("all-reduce", ("data",), 100, times=3)])
        {'all-reduce': (3, 300)}
    """
    sums: dict[str, tuple[int, int]] = {}
    for each in found:
        count, size = sums.get(each.kind, (0, 0))
        sums[each.kind] = (count + each.times, size + each.bytes * each.times)
    return {kind: sums[kind] for kind in KINDS if kind in sums}
