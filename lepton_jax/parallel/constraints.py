"""Layouts written into a program, where XLA's own propagation need not find them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from lepton_jax.ir import _jax, _primitives
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.importer import copy_equations, struct_of
from lepton_jax.ir.regions import CALLS, LOOPS, slots
from lepton_jax.parallel.factors.elementwise import ELEMENTWISE
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.told import HINTS as HINTS
from lepton_jax.parallel.told import is_in_place, is_kept_apart, is_widened, needs, told_behind, way

_TOLD: Final = frozenset(
    {
        *("dot_general", "ragged_dot_general", "conv_general_dilated"),
        *(
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_and",
            "reduce_or",
            "argmax",
            "argmin",
        ),
        *("gather", "scatter", "scatter-add", "scatter_add", "scatter_mul", "dynamic_slice"),
        *(
            "slice",
            "split",
            "dynamic_update_slice",
            "pad",
            "reshape",
            "concatenate",
            "sort",
            "top_k",
            "cumsum",
            "iota",
        ),
        *("broadcast_in_dim", "rng_bit_generator", "random_bits", "scan", "while", "cond"),
    }
)
"""What leaves more than one layout open: sums over what is split, and what has other dimensions than its
operands. An element-wise operation lies as its operands do, where nobody wants it otherwise."""

_SHAPES: Final = frozenset({"reshape", "broadcast_in_dim", "squeeze", "expand_dims"})

_CLOSED: Final = frozenset({"shard_map", "custom_linear_solve", "custom_jvp_call", "custom_vjp_call"})
"""Their regions see parts of arrays, or have derivatives that do not know of constraints."""


def constrain(graph: Graph, assignment: Mapping[Value, Layout], mesh: Mesh | AbstractMesh) -> int:
    """Write `jax.lax.with_sharding_constraint` behind what leaves its layout open, in loops and branches too.

    Hints are replaced by constraints. Element-wise operations and transposes get one where their result lies
    otherwise than their operands; what only adds or drops dimensions of size 1 gets none, since it lies as
    its operand does and XLA moves it about, and what lies as it shall whatever else there is gets none.
    Products, look-ups and joins get more where XLA would not compute them as they are meant (`told`). Arrays
    that are parts of sums get none: XLA adds them up where they are needed whole. Layouts of arrays of one
    element are left to XLA.

    Args:
        graph: it is changed.
        assignment: of values that shall lie so.
        mesh: of JAX; its axes are those of the layouts, of the type `Auto`.

    Returns:
        How many constraints there are now.
    """
    count = 0
    traces: dict[Any, Any] = {}
    spec = MeshSpec.of(mesh)
    assignment = dict(assignment)  # what stands behind constraints is added, for those who read it then
    for inner in graph.graphs(enter=_is_open):
        count += _gather_for_reductions(inner, assignment, mesh, traces)
        count += _bring(inner, assignment, mesh, traces, spec)
        for value, after in list(_places(inner, assignment, spec)):
            layout = assignment.get(value)
            if layout is None or layout.partial:
                continue
            sharding = NamedSharding(mesh, layout.spec())
            if value.node is not None and value.node.params.get("sharding") == sharding:
                continue  # the user's own constraint
            layouts = way(value, assignment, spec)
            shardings = [NamedSharding(mesh, each.spec()) for each in layouts]
            apart = is_kept_apart(value, assignment, spec)
            # Not in loops: behind them XLA would add up the sums as they are carried, widened as they may be.
            if inner is graph and not shardings and not apart:
                value = told_behind(value, assignment)
                sharding = NamedSharding(mesh, assignment[value].spec())
                after = after if value.node is None or value.node.next is None else value.node.next
            told = _write(value, [*shardings, sharding, *[None] * apart], inner, after, traces)
            own = assignment[value]
            assignment.update(zip(told, [*layouts, own, *[own] * apart], strict=True))
            count += 1 + len(shardings)
        for node in inner:
            if node.op == _primitives.SHARD_HINT:
                node.result.replace_uses(node.operands[0])
                inner.erase(node)
    return count


def part_hints(graph: Graph) -> None:
    """Let what a hint gives be an array of its own, where a loop, a branch or a call ties it to others.

    What a loop carries lies alike at its beginning and its end; a hint there is kept, and what it gives is
    laid out anew behind it.
    """
    for node in list(hints(graph)):
        value, inner = node.result, node.graph
        assert inner is not None and node.next is not None
        tied = [(user, place) for user, place in value.uses if user.regions or user is inner.ret]
        if not tied or (inner is graph and all(user is graph.ret for user, _ in tied)):
            continue
        traced = _jax.trace_flat(_open_hint, [struct_of(value)])
        (free,) = copy_equations(traced, [value], inner, node.next, {})
        for user, place in tied:
            user.set_operand(place, free)


def _open_hint(x: Any) -> list[Any]:
    return [_primitives.shard_hint(x, (None,) * x.ndim)]


def hints(graph: Graph) -> Iterator[Node]:
    """The nodes that say how an array shall lie, those in loops and branches too."""
    for inner in graph.graphs(enter=_is_open):
        yield from (node for node in inner if node.op in HINTS)


def _is_open(node: Node) -> bool:
    return node.op not in _CLOSED and node.op not in CALLS


def _places(graph: Graph, assignment: Mapping[Value, Layout], mesh: MeshSpec) -> Iterator[tuple[Value, Node]]:
    """The values of a graph that get a constraint, each with the node before which it stands."""
    first = next(iter(graph), graph.ret)
    carried = {
        graph.inputs[i]
        for parent in graph.parents
        if parent.op in LOOPS
        for slot in slots(parent)
        if slot.kind == "carry"
        for r, i in slot.inputs
        if parent.regions[r] is graph
    }
    for value in graph.inputs:
        if value in carried and _is_told(value):
            yield value, first
    for node in graph:
        assert node.next is not None
        if node.op == "broadcast_in_dim" and node.operands[0].is_const:  # a constant lies as its readers want
            continue
        if _follows(node, assignment) or is_in_place(node, assignment, mesh):
            continue
        if node.op in HINTS or node.op in _TOLD or _changes(node, assignment):
            yield from ((value, node.next) for value in node.results if node.op in HINTS or _is_told(value))


def _follows(node: Node, assignment: Mapping[Value, Layout]) -> bool:
    """Whether only dimensions of size 1 come and go, between operations that keep what they are given."""
    if node.op not in _SHAPES and not node.op.startswith("reduce_"):
        return False
    value, result = node.operands[0], node.results[0]
    before = assignment.get(value, Layout.whole(value.ndim))
    after = assignment.get(result, Layout.whole(result.ndim))
    if _wide(value, before) != _wide(result, after):
        return False
    users = {user.op for user, _ in result.uses}
    return all(op in ELEMENTWISE or op in _SHAPES or op.startswith("reduce_") for op in users)


def _wide(value: Value, layout: Layout) -> list[tuple[Any, tuple[str, ...]]]:
    """The dimensions that have more than one element, and how they lie."""
    return [(size, names) for size, names in zip(value.shape, layout.dims, strict=True) if size != 1]


def _changes(node: Node, assignment: Mapping[Value, Layout]) -> bool:
    """Whether the result of an element-wise operation or a transpose lies otherwise than an operand."""
    if len(node.results) != 1 or node.result not in assignment:
        return False
    layout = assignment[node.result]
    order = node.params["permutation"] if node.op == "transpose" else range(layout.ndim)
    for value in node.operands:
        before = assignment.get(value)
        if value.is_const or before is None or before.ndim != layout.ndim:
            continue
        is_alike = tuple(value.shape[dim] for dim in order) == node.result.shape
        if is_alike and tuple(before.dims[dim] for dim in order) != layout.dims:
            return True
    return False


def _is_told(value: Value) -> bool:
    """Whether it is an array of several elements that somebody reads."""
    if not value.uses or not _jax.is_array_aval(value.aval) or _jax.is_extended(value.dtype):
        return False
    return any(not isinstance(size, int) or size > 1 for size in value.shape)


def _gather_for_reductions(
    graph: Graph, assignment: Mapping[Value, Layout], mesh: Mesh | AbstractMesh, traces: dict[Any, Any]
) -> int:
    """Let reductions by functions of the user's read arrays that are whole along what is reduced.

    XLA joins parts of sums, products and extrema only; it fails where it cannot.
    """
    count = 0
    for node in [node for node in graph if node.op == "reduce"]:
        for place, value in enumerate(node.operands[: len(node.results)]):
            before = assignment.get(value, Layout.whole(value.ndim)).dims
            axes = node.params["dimensions"]
            whole = Layout(tuple(() if dim in axes else names for dim, names in enumerate(before)))
            count += _read(node, place, whole, mesh, traces)
    return count


def _bring(
    graph: Graph,
    assignment: dict[Value, Layout],
    mesh: Mesh | AbstractMesh,
    traces: dict[Any, Any],
    spec: MeshSpec,
) -> int:
    """Let operations read operands as they need them, where XLA would not find it (`told.needs`)."""
    count = 0
    for node in list(graph):
        for place, layout in list(needs(node, assignment, spec)):
            count += _read(node, place, layout, mesh, traces)
            if is_widened(node, assignment | {node.operands[place]: layout}):
                assignment[node.operands[place]] = layout
    return count


def _read(node: Node, place: int, layout: Layout, mesh: Mesh | AbstractMesh, traces: dict[Any, Any]) -> bool:
    """Let a node read an operand that lies so; returns whether it is an array of which that can be said."""
    value, graph = node.operands[place], node.graph
    assert graph is not None
    if value.is_const or not _is_told(value):
        return False
    node.set_operand(place, _behind(value, NamedSharding(mesh, layout.spec()), graph, node, traces))
    return True


def _write(
    value: Value,
    shardings: Sequence[NamedSharding | None],
    graph: Graph,
    before: Node,
    traces: dict[Any, Any],
) -> list[Value]:
    """Let all who read a value read it behind constraints, one after the other; None is a barrier.

    Returns:
        what stands behind each of them.
    """
    found: list[Value] = []
    for sharding in shardings:
        new = _behind(found[-1] if found else value, sharding, graph, before, traces)
        assert new.node is not None
        if value.node is not None:
            new.node.source = value.node.source
        found.append(new)
    value.replace_uses(found[-1])
    assert found[0].node is not None
    found[0].node.set_operand(0, value)
    return found


def _behind(
    value: Value, sharding: NamedSharding | None, graph: Graph, before: Node, traces: dict[Any, Any]
) -> Value:
    """A value behind a constraint, or a barrier; those that are alike are traced once."""

    def told(x: Any) -> list[Any]:
        if sharding is None:
            return [jax.lax.optimization_barrier(x)]
        return [jax.lax.with_sharding_constraint(x, sharding)]

    struct = struct_of(value)
    key = struct, sharding
    if key not in traces:
        traces[key] = _jax.trace_flat(told, [struct])
    (new,) = copy_equations(traces[key], [value], graph, before, {})
    return new
