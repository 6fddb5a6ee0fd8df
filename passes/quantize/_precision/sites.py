"""Which products are to run in low precision, and why the others are not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from lepton_jax.ir.cost import Cost, aval_bytes
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.passes.quantize._precision.lists import PRODUCTS, VIEWS
from lepton_jax.rewrite import PassContext
from lepton_jax.rewrite.profit import WORTH, is_disregarded, is_fixed, trips_of

F32: Final = "float32"

LOW: Final = {"bf16": "bfloat16", "f16": "float16", "fp8": "bfloat16"}
"""The dtype that operands are stored in, for each value of the option `dtype`."""

_SMALLEST_ON_CPU: Final = (16, 2**18)
"""Fewer rows, or fewer elements of the matrix, have not been seen to gain on a CPU."""

_STORAGE: Final = 16
"""Float8 products of libraries want multiples of this in every dimension."""


@dataclass(frozen=True)
class Choice:
    """What the user asked for, and where.

    Attributes:
        dtype: `bf16`, `f16` or `fp8`.
        scope: only products whose scope this is found in; None for all.
        keep: no products whose scope this is found in.
        force: convert whether or not it pays.
        refusal: why nothing is faster on the target, or None.
        early: parameters of the function, which are converted once.
    """

    dtype: str
    scope: re.Pattern[str] | None
    keep: re.Pattern[str] | None
    force: bool
    refusal: str | None
    early: frozenset[Value]

    @property
    def low(self) -> str:
        """The dtype that operands are stored in."""
        return LOW[self.dtype]


def products(graph: Graph) -> Iterator[Node]:
    """Every product of the program, in regions too, but for those that linear solvers are given."""
    for inner in graph.graphs(enter=lambda node: node.op != "custom_linear_solve"):
        for node in inner:
            if node.op in PRODUCTS:
                yield node


def is_float32(node: Node) -> bool:
    """Whether a product takes float32 arrays and gives one."""
    return all(v.dtype is not None and v.dtype == F32 for v in (*node.operands, *node.results))


def why_keep(node: Node, choice: Choice, ctx: PassContext) -> str | None:
    """Why a float32 product stays as it is, or None."""
    if choice.scope is not None and choice.scope.search(node.scope) is None:
        return f"not in scope={choice.scope.pattern!r}"
    if choice.keep is not None and choice.keep.search(node.scope) is not None:
        return f"kept by keep={choice.keep.pattern!r}"
    if not _is_default(node.params.get("precision")):
        return "the program asks for a precision of its own"
    if node.params.get("out_sharding") is not None:
        return "its result has a sharding of its own"
    if choice.force or is_disregarded():
        return None
    return choice.refusal or _why_slower(node, choice, ctx)


def _is_default(precision: Any) -> bool:
    parts = precision if isinstance(precision, tuple) else (precision,)
    return all(part is None or getattr(part, "name", "") == "DEFAULT" for part in parts)


def _why_slower(node: Node, choice: Choice, ctx: PassContext) -> str | None:
    on_cpu = ctx.rates.platform == "cpu"
    if not all(v.is_static for v in (*node.operands, *node.results)):
        return "its shape is not known" if on_cpu else None
    if node.op == "conv_general_dilated":
        return "convolutions in low precision are not faster on a cpu" if on_cpu else None
    rows, columns, contracted = _sizes(node)
    if on_cpu and (
        min(rows, columns) < _SMALLEST_ON_CPU[0] or contracted * max(rows, columns) < _SMALLEST_ON_CPU[1]
    ):
        return "too small to gain on a cpu"
    flops = 2.0 * math.prod(node.result.shape) * contracted
    wide = sum(map(_bytes, (*node.operands, *node.results)))
    low = sum(_bytes(v) / 2 for v in node.operands) + _bytes(node.result)
    before = Cost(flops, wide, ((F32, flops),), nodes=1)
    after = Cost(flops, low + _casts(node, choice), ((choice.low, flops),), nodes=1)
    old, new = ctx.seconds(before), ctx.seconds(after)
    if new < WORTH * old:
        return None
    return f"takes {new * 1e6:.3g} µs instead of {old * 1e6:.3g} on {ctx.rates.name}, as estimated"


def _sizes(node: Node) -> tuple[int, int, int]:
    """Rows, columns and contracted elements of one product of a batch."""
    (left, right), (batch, _) = node.params["dimension_numbers"]
    a, b = (v.shape for v in node.operands)
    contracted = math.prod(a[d] for d in left)
    rows = math.prod(a) // max(contracted * math.prod(a[d] for d in batch), 1)
    columns = math.prod(b) // max(math.prod(b[d] for d in right) * math.prod(a[d] for d in batch), 1)
    return rows, columns, contracted


def _bytes(value: Value) -> float:
    return float(aval_bytes(value.aval))


def _casts(node: Node, choice: Choice) -> float:
    """Bytes that converting the operands moves: reading all and writing half, shared by all products.

    What is the same on every iteration of a loop XLA converts in front of it; parameters are prepared.
    """
    moved = 0.0
    for value in dict.fromkeys(node.operands):
        source = value
        while source.node is not None and source.op in VIEWS:
            source = source.node.operands[0]
        if source.is_const or source in choice.early:
            continue
        readers = sum(1 for user in value.users() if user.op in PRODUCTS)
        whole = 0.5 if source.node is not None else 1.5  # what is computed is converted on the way to memory
        moved += whole * _bytes(value) / (max(readers, 1) * (trips_of(node) if is_fixed(value) else 1))
    return moved


def takes_fp8(node: Node) -> bool:
    """Whether a product of the forward pass is one of a matrix, of sizes that libraries multiply in float8.

    What `jax.grad` makes has `transpose` in its name stack: gradients are left to wider formats.
    """
    if node.op != "dot_general" or "transpose(" in node.scope:
        return False
    (_, _), (batch, _) = node.params["dimension_numbers"]
    if batch or min(v.ndim for v in node.operands) > 2:
        return False
    return all(type(d) is int and d % _STORAGE == 0 for d in _sizes(node)[1:])
