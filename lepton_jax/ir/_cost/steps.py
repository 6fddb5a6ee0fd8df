"""The operations of a program in the order in which they run, as XLA sees them: no calls, no views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from lepton_jax.ir._cost.leaves import FREE, leaf_cost
from lepton_jax.ir._cost.sizes import bytes_of, size_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import RUN_ONCE

Kind = Literal["fused", "reduction", "loop", "library", "region"]
"""`fused`: computed element by element, in one loop with what reads it; `reduction`: ends such a loop;
`loop`: has one of its own, that XLA writes; `library`: a library's; `region`: has regions that run."""

REDUCTIONS: Final = frozenset(
    {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce", "reduce_and", "reduce_or"}
    | {"reduce_xor", "argmax", "argmin"}
)
_RUNNING: Final = frozenset({"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"})
_LIBRARY: Final = frozenset(
    {"dot_general", "ragged_dot_general", "ragged_product", "conv_general_dilated", "sort", "top_k"}
    | {"approx_top_k", "fft", "triangular_solve", "cholesky", "lu", "qr", "geqrf", "householder_product"}
    | {"svd", "eigh", "eig", "schur", "hessenberg", "tridiagonal", "reduce_window", "reduce_window_sum"}
    | {"reduce_window_max", "reduce_window_min", "select_and_gather_add", "pure_callback", "io_callback"}
    | {"call_hi_primitive", "pallas_call", "ffi_call"}
    | _RUNNING
)
_APPLIES_ITS_REGION: Final = frozenset({"reduce", "reduce_window", "sort"})


@dataclass(slots=True, eq=False)
class Array:
    """An array that steps read and make; views of it are the same one.

    Attributes:
        bytes: that it takes; 0 for a number that the program holds.
        size: its elements.
        users: the steps that read it.
        is_output: whether the program hands it back.
    """

    bytes: int
    size: int
    users: list[Step] = field(default_factory=list)
    is_output: bool = False


@dataclass(slots=True, eq=False)
class Step:
    """One operation.

    Attributes:
        node: the operation.
        kind: how XLA runs it.
        flops: that it takes, those of its regions left out.
        reads: the arrays that it reads, by position.
        results: the arrays that it makes.
    """

    node: Node
    kind: Kind
    flops: float
    reads: list[Array]
    results: list[Array]


def steps_of(graph: Graph) -> list[Step]:
    """The steps of a graph, regions that run once as part of it; arrays that it returns are marked."""
    steps: list[Step] = []
    for array in _walk(graph, {}, steps):
        array.is_output = True
    return steps


def _is_product_with_vector(node: Node) -> bool:
    """Whether a product has one row, or one column: XLA for CPUs writes a loop for these."""
    if node.op != "dot_general":
        return False
    (left, right), (batch, other) = node.params["dimension_numbers"]
    rows, columns = (
        size_of([d for i, d in enumerate(value.shape) if i not in summed and i not in batches])
        for value, summed, batches in zip(node.operands, (left, right), (batch, other), strict=True)
    )
    return min(rows, columns) == 1 and size_of([node.operands[0].shape[i] for i in batch]) == 1


def _walk(graph: Graph, known: dict[Value, Array], steps: list[Step]) -> list[Array]:
    """Appends the steps of a graph whose inputs are known; its outputs."""

    def array_of(value: Value) -> Array:
        if value not in known:
            is_number = value.is_const and size_of(value.shape) == 1
            known[value] = Array(0 if is_number else bytes_of(value), size_of(value.shape))
        return known[value]

    for node in graph:
        reads = [array_of(value) for value in node.operands]
        region = node.regions[0] if node.regions and node.op in RUN_ONCE else None
        if region is not None and len(region.inputs) == len(reads):
            made = _walk(region, dict(zip(region.inputs, reads, strict=True)), steps)
            known.update(zip(node.results, made, strict=True))
        elif len(node.results) == 1 and reads and _is_view(node):
            known[node.results[0]] = reads[0]
        else:
            step = Step(node, _kind(node), 0.0 if _runs_regions(node) else leaf_cost(node).flops, reads, [])
            step.results += [Array(bytes_of(v), size_of(v.shape)) for v in node.results]
            known.update(zip(node.results, step.results, strict=True))
            for array in reads:
                array.users.append(step)
            steps.append(step)
    return [array_of(value) for value in graph.outputs]


def _is_view(node: Node) -> bool:
    """Whether an operation only renames; products read their operands in any order of dimensions."""
    if node.op == "transpose":
        return all(isinstance(user, Node) and user.op == "dot_general" for user in node.result.users())
    return node.op in FREE


def _runs_regions(node: Node) -> bool:
    """Whether an operation runs its regions, rather than apply one to pairs of elements."""
    return bool(node.regions) and node.op not in _APPLIES_ITS_REGION and not node.op.startswith("scatter")


def _kind(node: Node) -> Kind:
    if _runs_regions(node):
        return "region"
    if node.op in REDUCTIONS:
        return "reduction"
    if node.op.startswith("scatter") or _is_product_with_vector(node):
        return "loop"
    return "library" if node.op in _LIBRARY else "fused"


_LINE: Final = 64
"""Bytes that memory is read in."""


def read_by(step: Step, position: int) -> float:
    """Bytes that a step reads of an operand: parts of it, in whole lines; nothing of what it writes into."""
    whole = float(step.reads[position].bytes)
    count = _PARTIAL.get(step.node.op) if position == 0 else None
    if step.node.op.startswith("scatter"):
        count = _nothing if position == 0 else None
    return whole if count is None else min(whole, count(step))


def written_by(step: Step) -> float:
    """Bytes that a step writes; updates are written in place."""
    if step.node.op == "dynamic_update_slice":
        return float(step.reads[1].bytes)
    if step.node.op.startswith("scatter"):
        return float(step.reads[-1].bytes)
    return float(sum(array.bytes for array in step.results))


def _nothing(step: Step) -> float:
    return 0.0


def _lines(step: Step) -> float:
    """Bytes of the lines in which a part lies: a column of a matrix takes a line for each element."""
    node, result = step.node, step.results[0]
    window = node.params["slice_sizes"] if node.op == "gather" else node.result.shape
    run = 1
    for whole, part in zip(reversed(node.operands[0].shape), reversed(window), strict=True):
        if type(whole) is not int or type(part) is not int:
            break
        run *= part
        if whole != part:
            break
    run_bytes = max(run * result.bytes / max(result.size, 1), 1.0)
    return result.bytes / run_bytes * max(run_bytes, _LINE)


_PARTIAL: Final[Mapping[str, Callable[[Step], float]]] = {
    "slice": _lines,
    "dynamic_slice": _lines,
    "gather": _lines,
    "dynamic_update_slice": _nothing,
}
