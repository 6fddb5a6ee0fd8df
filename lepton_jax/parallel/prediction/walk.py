"""The collectives of a program, found by following its values in order as XLA's partitioner does.

Parts of a sum stay parts as long as XLA leaves them so: through what only renames, and through the sum of two
such, which is completed once (XLA's all-reduce reassociation). What was gathered is kept for the next reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import jax.numpy as jnp

from lepton_jax.ir.cost import bytes_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.regions import LOOPS, Slot, slots, trip_count
from lepton_jax.parallel.collectives import Collective, Kind
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.copies import Copies, taken_apart
from lepton_jax.parallel.prediction.events import Move, Walked
from lepton_jax.parallel.prediction.heights import FAR as FAR
from lepton_jax.parallel.prediction.heights import heights
from lepton_jax.parallel.prediction.values import (
    described,
    is_made,
    needed_nodes,
    only_multiplied,
    read_on,
    summed_as,
    turned,
)
from lepton_jax.parallel.prediction.windows import PRODUCTS, Product
from lepton_jax.parallel.resharding import reshard
from lepton_jax.parallel.strategies import as_given, cheapest
from lepton_jax.parallel.told import needs

RENAMES: Final = frozenset(
    {
        *("reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "neg", "copy", "copy_p"),
        *("name", "shard_hint", "sharding_constraint", "stop_gradient"),
    }
)
SUMS: Final = frozenset({"add", "add_any"})
MANUAL: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        **dict.fromkeys(("psum", "psum_invariant", "pmax", "pmin"), "all-reduce"),
        **dict.fromkeys(("all_gather", "all_gather_invariant"), "all-gather"),
        "reduce_scatter": "reduce-scatter",
        "all_to_all": "all-to-all",
        "ppermute": "collective-permute",
    }
)
"""The collectives that `jax.lax` has."""
_ADDING: Final = PRODUCTS | {"reduce_sum", "gather", "scatter-add", "cumsum"}


def walk(graph: Graph, assignment: Mapping[Value, Layout], mesh: MeshSpec) -> Walked:
    """The collectives of a graph whose values lie so."""
    run = _Walk(assignment, mesh)
    for value in graph.inputs:
        run.state[value] = run.wanted(value)
        run.given.add(value)
    run.graph(graph, 1)
    for value in graph.outputs:
        run.complete(value, None, 1)
    run.found.exchange(taken_apart(run.gathered, run.products, run.copies))
    return run.found


class _Walk:
    def __init__(self, assignment: Mapping[Value, Layout], mesh: MeshSpec) -> None:
        self.assignment = assignment
        self.mesh = mesh
        self.state: dict[Value, Layout] = {}
        self.dtypes: dict[Value, Any] = {}
        self.source: dict[Value, Node] = {}
        self.given: set[Value] = set()
        self.heights: dict[Node, int] = {}
        self.loop: int | None = None
        self.returned: dict[Value, bool] = {}
        self.products: dict[Node, Product] = {}
        self.scattered: set[tuple[tuple[int, ...], tuple[str, ...], int | None]] = set()
        self.gathered: list[tuple[Move, Layout]] = []
        self.found = Walked([], {}, {}, {}, self.state, {})
        self.copies = Copies(self.found.held, mesh)

    def wanted(self, value: Value) -> Layout:
        """How a value shall lie."""
        return self.assignment.get(value) or Layout.whole(value.ndim)

    def lies(self, value: Value) -> Layout:
        """How a value lies now."""
        if value.is_const:
            return Layout.whole(value.ndim)
        return self.state.get(value) or self.wanted(value)

    def graph(self, graph: Graph, times: int) -> None:
        """Follow the nodes of a graph that runs so often."""
        needed = needed_nodes(graph)
        self.heights |= heights(graph, needed, self.wanted)
        for node in graph:
            if node not in needed:
                continue
            if node.regions:
                self.holder(node, times)
            else:
                self.leaf(node, times)

    def leaf(self, node: Node, times: int) -> None:
        """An operation: what it needs, and what it leaves."""
        if node.op in MANUAL:
            self.manual(node, times)
            return
        if self.passed_on(node):
            self.found.times[node] = times
            return
        for value in node.operands:
            self.complete(value, node, times)
        results = [self.wanted(value) for value in node.results]
        strategy, _ = cheapest(node, [self.lies(value) for value in node.operands], results, self.mesh)
        self.found.shares[node], self.found.times[node] = strategy.share, times
        told = dict(needs(node, self.assignment, self.mesh)) if node.op in PRODUCTS else {}
        if node.op in PRODUCTS:
            before = tuple(told.get(i) or self.lies(value) for i, value in enumerate(node.operands))
            self.products[node] = Product(node, before, strategy.results[0], strategy.share)
        for place, (value, layout) in enumerate(zip(node.operands, strategy.operands, strict=True)):
            self.bring(value, layout, node, times, told=place in told)
        self.found.note(node, self.loop)
        if node.op in RENAMES and node.operands[0] in self.given:
            self.given.update(node.results)
        sums = node.op in _ADDING
        for value, layout in zip(node.results, strategy.results, strict=True):
            self.state[value] = layout
            if layout.partial:
                self.dtypes[value], self.source[value] = summed_as(node), node
            if not (layout.partial and sums):
                self.complete(value, node, times)

    def manual(self, node: Node, times: int) -> None:
        """A collective that the user wrote, within `jax.shard_map`, where values are one device's parts."""
        names = node.params.get("axes", node.params.get("axis_name", ()))
        chosen = {names} if isinstance(names, str) else set(names)
        axes = tuple(name for name in self.mesh.names if name in chosen)
        if self.mesh.size(*axes) > 1:
            for value in node.results:
                self.add([Collective(MANUAL[node.op], axes, bytes_of(value))], value, node, times)

    def passed_on(self, node: Node) -> bool:
        """Whether parts of sums go through a node as they are; if so they do."""
        parts = [value for value in node.operands if self.lies(value).partial]
        if not parts or len(node.results) != 1 or any(len(value.uses) != 1 for value in parts):
            return False
        layouts = [self.lies(value) for value in node.operands]
        if node.op in SUMS:
            if len(parts) != 2 or layouts[0] != layouts[1] or parts[0].shape != parts[1].shape:
                return False
        elif node.op not in RENAMES:
            return False
        (result,) = node.results
        strategy = as_given(node, [layout.complete() for layout in layouts], self.mesh)
        if strategy is None:
            return False
        self.found.shares[node] = strategy.share
        self.state[result] = replace(strategy.results[0], partial=layouts[0].partial)
        self.dtypes[result] = result.dtype if node.op in SUMS else self.dtypes[parts[0]]
        self.source[result] = node if node.op in SUMS else self.source[parts[0]]
        return True

    def complete(self, value: Value, node: Node | None, times: int) -> None:
        """Let a value lie as it shall; parts of its sum are joined."""
        if value.is_const:
            return
        have, want = self.lies(value), self.wanted(value)
        if have == want:
            return
        self.state[value] = want
        aval = self.sent_as(value)
        if have.partial and self.dtypes.get(value, value.dtype) != value.dtype:
            aval = value.aval.update(dtype=self.dtypes[value])
        source = self.source.get(value, node)
        joined = source is not None and source.op.startswith("reduce_")
        moves: Sequence[Collective] = reshard(aval, have, want, self.mesh, joined=joined)
        after = self.is_returned(value)
        if moves and have.partial and after and times == 1:
            self.found.parts[value] = have
        even = reshard(aval, have, want, self.mesh, even=True)
        if have.partial and len(even) == 1 and source in self.products:
            key = want.local_shape(value.shape, self.mesh), even[0].axes, self.loop
            apart = self.products[source].scatter(even[0], want, self.mesh, key in self.scattered)
            if apart.kind == "collective-permute":
                self.scattered.add(key)
                moves = [apart]
        self.add(moves, value, source, times, after)

    def is_returned(self, value: Value) -> bool:
        """Whether no product and no loop waits for a value: only updates and outputs are made of it."""
        waiting = [] if value in self.returned else [value]
        while waiting:
            ahead = read_on(waiting[-1])
            unknown = [each for each in ahead or () if each not in self.returned]
            waiting += unknown
            if not unknown:
                returned = ahead is not None and all(self.returned[each] for each in ahead)
                self.returned[waiting.pop()] = returned
        return self.returned[value]

    def bring(self, value: Value, layout: Layout, node: Node | None, times: int, told: bool = False) -> None:
        """Have a copy of a value that lies so; `told`: there is a constraint that says so."""
        have = self.lies(value)
        if value.is_const or have == layout or is_made(value):
            return
        moves = reshard(self.sent_as(value), have, layout, self.mesh)
        height = None if node is None else self.heights.get(node, 0)
        # What sums and constraints gather is one array for convolutions there and back, which turn windows.
        summed = told or any(each.kind == "all-reduce" for each in moves)
        if self.copies.has(turned(value) if summed else value, layout, moves, height):
            return
        self.add(moves, value, node, times)
        if len(moves) == 1 and node in self.products:
            self.gathered.append((self.found.moves[-1], layout))

    def sent_as(self, value: Value) -> Any:
        """The type in which a value is sent: on TPUs what only products read is rounded before."""
        if self.mesh.chip.rates.platform == "tpu" and value.dtype == jnp.float32 and only_multiplied(value):
            return value.aval.update(dtype=jnp.dtype(jnp.bfloat16))
        return value.aval

    def add(
        self, moves: Sequence[Collective], value: Value, node: Node | None, times: int, after: bool = False
    ) -> None:
        """Note collectives."""
        what = described(value, node)
        ahead = value in self.given
        scattered = False
        for each in moves:
            move = Move(replace(each, times=each.times * times, what=what), value, node, ahead, after)
            if not (scattered and each.kind == "collective-permute"):
                self.found.moves.append(move)
            self.found.note(move, self.loop)
            scattered = scattered or each.kind == "reduce-scatter"

    def holder(self, node: Node, times: int) -> None:
        """A node with regions: what goes in, what is done there, what comes out."""
        inner = times * (trip_count(node) or 1)
        for value in node.operands:
            self.complete(value, node, times)
        flows = slots(node)
        for slot in flows:
            self.enter(node, slot, times)
        outside, self.loop = self.loop, len(self.found.events) if node.op in LOOPS else self.loop
        for region in node.regions:
            self.graph(region, inner)
        for slot in flows:
            self.leave(node, slot, inner)
        self.loop = outside
        for value in node.results:
            self.state.setdefault(value, self.wanted(value))

    def enter(self, node: Node, slot: Slot, times: int) -> None:
        for place in slot.inputs:
            region, index = place
            inside = node.regions[region].inputs[index]
            self.state[inside] = self.wanted(inside)
            if slot.operand is None or slot.kind == "opaque":
                continue
            outside = node.operands[slot.operand]
            want = self.state[inside]
            if slot.kind == "scanned":
                want = Layout(((), *want.dims))
            self.bring(outside, want, node, times)
            if outside in self.given and slot.kind != "carry":
                self.given.add(inside)

    def leave(self, node: Node, slot: Slot, times: int) -> None:
        for region, index in slot.outputs:
            graph = node.regions[region]
            value = graph.outputs[index]
            self.complete(value, None, times)
            if slot.kind == "opaque":
                continue
            want = self.lies(value)
            if slot.kind == "carry":
                want = self.wanted(graph.inputs[next(i for r, i in slot.inputs if r == region)])
            elif slot.result is not None:
                want = self.wanted(node.results[slot.result])
                if slot.kind == "stacked":
                    want = Layout(want.dims[1:])
            self.bring(value, want, None, times)
            if slot.result is not None:
                self.state[node.results[slot.result]] = (
                    Layout(((), *want.dims)) if slot.kind == "stacked" else want
                )
