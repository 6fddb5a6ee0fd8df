"""Shardy's own passes, run from Python: how XLA will spread a program, in milliseconds and without devices.

The sharding propagation of XLA (Shardy, openxla.org/shardy), then its explicit reshards and collectives. As
XLA does later, a sum of two arrays that are reduced over the same axes is reduced once, and a reduction of
which each device keeps a part over the same axes is a reduce-scatter. Bytes are those of each array as it
is written, so they do not depend on a backend that widens bfloat16. XLA may still choose other layouts
within loops, and it sends several arrays at once where that pays: bytes agree with compiled texts more
often than counts do.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Final

from lepton_jax.ir import _jax
from lepton_jax.parallel.aot._mlir import (
    AXIS,
    array_of,
    dims_of,
    moved_axes,
    name_of,
    rounds_of,
    starts_empty,
    text_of,
    used_once,
)
from lepton_jax.parallel.collectives import Collective, Kind

_PASSES: Final = (
    "builtin.module(sdy-propagation-pipeline)",
    "builtin.module(func.func(sdy-insert-explicit-reshards{enable-full-version=true}))",
    "builtin.module(func.func(sdy-reshard-to-collectives))",
)
_KINDS: Final[dict[str, Kind]] = {
    "sdy.all_reduce": "all-reduce",
    "sdy.reduce_scatter": "reduce-scatter",
    "sdy.all_gather": "all-gather",
    "sdy.all_to_all": "all-to-all",
    "sdy.collective_permute": "collective-permute",
}
_WAITS: Final = frozenset(
    {
        *(f"stablehlo.{name}" for name in ("dot_general", "dot", "convolution", "while", "case", "if")),
        *(f"stablehlo.{name}" for name in ("gather", "scatter", "custom_call", "return")),
        *("func.call", *_KINDS),
    }
)


class ShardyUnavailable(RuntimeError):
    """This jaxlib does not let Python run Shardy's passes: compile ahead of time instead."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """An array of a propagated program.

    Attributes:
        bytes: of one device's part.
        shape: of the whole array, as `bf16[8,4096]`.
        layout: as Shardy writes it: `[{"data"}, {}]`.
        what: where in the user's program it comes from.
        kind: an argument, what a loop collects for later, or any other value.
    """

    bytes: int
    shape: str
    layout: str
    what: str
    kind: str


@dataclass(frozen=True)
class Propagated:
    """A program as Shardy spreads it.

    Attributes:
        text: the module, in MLIR's text.
        collectives: in the order of the program; what loops repeat has their trip counts.
        buffers: arguments and values, the largest first.
        late: positions of the collectives that only outputs wait for, not in loops: XLA joins those alike.
    """

    text: str
    collectives: tuple[Collective, ...]
    buffers: tuple[Buffer, ...]
    late: frozenset[int] = frozenset()

    def joined(self) -> list[Collective]:
        """The collectives, sums that only outputs wait for as one for each kind and axes."""
        found: dict[tuple[object, ...], Collective] = {}
        for n, each in enumerate(self.collectives):
            is_one = n in self.late and each.kind in ("all-reduce", "reduce-scatter")
            key = (each.kind, each.axes) if is_one else (n,)
            known = found.get(key)
            found[key] = each if known is None else replace(known, bytes=known.bytes + each.bytes)
        return list(found.values())


def propagated(lowered: Any) -> Propagated:
    """How XLA will spread a lowered program over its mesh.

    Args:
        lowered: a `jax.stages.Lowered`, on a mesh or an abstract mesh; it is not changed. Its arguments
            should carry shardings, as `jax.ShapeDtypeStruct(shape, dtype, sharding=...)` do.

    Raises:
        ShardyUnavailable: this jaxlib does not let Python run the passes.

    Example:
        >>> import jax
        >>> from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec as P
        >>> mesh = AbstractMesh((2,), ("model",), axis_types=(AxisType.Auto,))
        >>> x = jax.ShapeDtypeStruct((4, 8), "float32", sharding=NamedSharding(mesh, P(None, "model")))
        >>> w = jax.ShapeDtypeStruct((8, 4), "float32", sharding=NamedSharding(mesh, P("model")))
        >>> lowered = jax.jit(lambda x, w: x @ w).trace(x, w).lower(lowering_platforms=("tpu",))
        >>> [(each.kind, each.axes, each.bytes) for each in propagated(lowered).collectives]
        [('all-reduce', ('model',), 64)]
    """
    try:
        module = _jax.run_mlir_passes(lowered, _PASSES)
    except (ImportError, AttributeError, ValueError) as error:
        raise ShardyUnavailable(
            f"this jaxlib does not run Shardy's passes from Python ({error}); compile ahead of time instead"
        ) from error
    return _Walk(module).result()


class _Walk:
    """Goes once through a propagated module."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.sizes: dict[str, int] = {}
        self.functions: dict[str, Any] = {}
        for op in module.regions[0].blocks[0].operations:
            if op.operation.name == "sdy.mesh":
                self.sizes.update((name, int(size)) for name, size in re.findall(r'"([^"]+)"=(\d+)', str(op)))
            elif op.operation.name == "func.func":
                self.functions[text_of(op.attributes["sym_name"])] = op
        self.collectives: list[Collective | None] = []
        self.sums: dict[Any, int] = {}  # values that an all-reduce gives, and sums of such: which one
        self.made: dict[int, Any] = {}  # by collective, outside of loops, its result
        self.ends: dict[Any, bool] = {}
        self.depth = 0  # of calls
        self.buffers: list[Buffer] = []

    def result(self) -> Propagated:
        """All that was found."""
        main = self.functions["main"]
        self._arguments(main)
        self._block(main.regions[0].blocks[0], 1)
        self.buffers.sort(key=lambda each: -each.bytes)
        kept = [n for n, each in enumerate(self.collectives) if each is not None]
        found = tuple(each for each in self.collectives if each is not None)
        late = frozenset(
            place for place, n in enumerate(kept) if n in self.made and self._is_returned(self.made[n])
        )
        return Propagated(str(self.module), found, tuple(self.buffers), late)

    def _is_returned(self, value: Any) -> bool:
        """Whether outputs alone are made of a value, by operations on elements."""
        if value not in self.ends:
            self.ends[value] = False  # what reads itself is none
            users = [use.owner for use in value.uses]
            self.ends[value] = all(
                user.operation.name == "func.return"
                or (user.operation.name not in _WAITS and all(map(self._is_returned, user.results)))
                for user in users
            )
        return self.ends[value]

    def _arguments(self, main: Any) -> None:
        attributes = main.attributes
        kept = attributes["arg_attrs"] if "arg_attrs" in attributes else ()  # noqa: SIM401
        for number, value in enumerate(main.regions[0].blocks[0].arguments):
            own = kept[number] if number < len(kept) else {}
            layout = dims_of(str(own["sdy.sharding"])) if "sdy.sharding" in own else ""
            self._note(value.type, layout, name_of(str(value.location)) or f"argument {number}", "argument")

    def _block(self, block: Any, times: int) -> None:
        for op in block.operations:
            name = op.operation.name
            if name in _KINDS or name == "sdy.all_slice":
                self._collective(op, name, times)
            elif name == "func.call":
                called = self.functions.get(text_of(op.attributes["callee"]).lstrip("@"))
                if called is not None:
                    self.depth += 1
                    self._block(called.regions[0].blocks[0], times)
                    self.depth -= 1
            elif name == "stablehlo.while":
                self._values(op, "collected by a loop")
                self._block(op.regions[1].blocks[0], times * rounds_of(op))
            else:
                if name == "stablehlo.add":
                    self._merge(op)
                self._values(op, "value")
                if not name.startswith("stablehlo.reduce"):
                    for region in op.regions:
                        for inner in region.blocks:
                            self._block(inner, times)

    def _values(self, op: Any, kind: str) -> None:
        if op.operation.name in ("stablehlo.constant", "sdy.constant", "stablehlo.return", "func.return"):
            return
        per_value = str(op.attributes["sdy.sharding"]) if "sdy.sharding" in op.attributes else ""
        layouts = re.findall(r"<@\w+, (\[.*?\])(?:,[^>]*)?>", per_value)
        what = name_of(str(op.location))
        for number, value in enumerate(op.results):
            stacked = kind != "value" and starts_empty(op.operands[number])
            layout = layouts[number] if number < len(layouts) else ""
            self._note(value.type, layout, what, kind if stacked else "value")

    def _note(self, kind: Any, layout: str, what: str, role: str) -> None:
        shape, nbytes = array_of(str(kind))
        if shape:
            self.buffers.append(Buffer(nbytes // self._parts(layout), shape, layout, what, role))

    def _parts(self, layout: str) -> int:
        return math.prod(
            int(size) if size else self.sizes.get(axis, 1) for axis, _, size in AXIS.findall(layout)
        )

    def _collective(self, op: Any, name: str, times: int) -> None:
        text = str(op).partition("{stablehlo")[0]
        layout = dims_of(str(op.attributes["out_sharding"])) if "out_sharding" in op.attributes else ""
        _, nbytes = array_of(str(op.results[0].type))
        nbytes //= self._parts(layout)
        if name == "sdy.all_slice":
            self._slice(op, text, nbytes)
            return
        axes = self._axes(op, name, text)
        if not axes:
            return
        kind = _KINDS[name]
        if kind == "all-reduce":
            self.sums[op.results[0]] = len(self.collectives)
        if times == 1 and not self.depth:
            self.made[len(self.collectives)] = op.results[0]
        self.collectives.append(Collective(kind, axes, nbytes, times, name_of(str(op.location))))

    def _merge(self, op: Any) -> None:
        """A sum of two arrays that are reduced over the same axes and not used elsewhere."""
        left, right = (self.sums.get(each) if used_once(each) else None for each in op.operands)
        if left is None or right is None or left == right:
            return
        first, second = self.collectives[left], self.collectives[right]
        if first and second and (first.axes, first.bytes) == (second.axes, second.bytes):
            self.collectives[left] = None  # XLA reduces the sum
            self.sums[op.results[0]] = right

    def _slice(self, op: Any, text: str, nbytes: int) -> None:
        """A slice of what was just reduced over the same axes: XLA makes a reduce-scatter of both."""
        at = self.sums.get(op.operands[0])
        whole = None if at is None else self.collectives[at]
        if at is None or whole is None or not used_once(op.operands[0]):
            return
        if set(self._named(text.partition("out_sharding")[0])) == set(whole.axes):
            self.collectives[at] = Collective("reduce-scatter", whole.axes, nbytes, whole.times, whole.what)

    def _axes(self, op: Any, name: str, text: str) -> tuple[str, ...]:
        if name != "sdy.collective_permute":
            return self._named(text.partition("out_sharding")[0].partition("=")[2] or text)
        after = dims_of(str(op.attributes["out_sharding"]))
        owner = op.operands[0].owner
        found = getattr(owner, "attributes", {})
        before = next(
            (dims_of(str(found[key])) for key in ("out_sharding", "sdy.sharding") if key in found), ""
        )
        moved = set(AXIS.findall(after)) if not before else moved_axes(before, after)
        return tuple(axis for axis in self.sizes if axis in {each[0] for each in moved})

    def _named(self, text: str) -> tuple[str, ...]:
        found = {axis for axis, _, _ in AXIS.findall(text)}
        return tuple(axis for axis in self.sizes if axis in found)
