"""One round of the loop: a program on its part of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp

from lepton_jax.ir import _jax, export
from lepton_jax.ir.cutting.custom import bind_custom
from lepton_jax.ir.cutting.cut import Cut, CutError
from lepton_jax.ir.cutting.evaluate import evaluate_cut
from lepton_jax.ir.cutting.rules import bind_leaf
from lepton_jax.ir.dimensions.result import Kept
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.importer import from_jaxpr, struct_of
from lepton_jax.ir.regions import slots
from lepton_jax.parallel.factors import factors_of
from lepton_jax.parallel.microbatches.flow import Flow
from lepton_jax.parallel.microbatches.growing import counted_part, is_grown, random_part
from lepton_jax.parallel.microbatches.pieces import cut_out, lanes_first
from lepton_jax.parallel.microbatches.states import MicrobatchError, Part, Split, State, Sum, needs_all

Env = dict[Value, Any]
_DEPTH: Final = 100
"""So many cheap operations in a row are computed in part; of what is before them the part is cut out."""


class Round:
    """Evaluates what depends on the batch, on the part of one round.

    Of sums each of `lanes` devices keeps its own: they have a leading dimension of this size, if it is not 1.

    Attributes:
        index: which round, a scalar int32.
    """

    def __init__(self, flow: Flow, lanes: int, index: Any) -> None:
        self.flow, self.lanes, self.index = flow, lanes, index
        self.split: Split = flow.split
        self.fine = Split(flow.split.count * lanes)

    # Reading

    def whole(self, value: Value, env: Env) -> Any:
        """A value as `env` has it; one that does not depend on the batch is computed now if it was not."""
        if value.is_const:
            return value.const
        if value not in env and self.flow.of(value) is not None:
            raise MicrobatchError(f"{value!r} of the whole batch is not there in a part of it")
        return self.computed(value, env)

    def computed(self, value: Value, env: Env) -> Any:
        """A value, and what it is computed of, as the program has it."""
        stack = [value]
        while stack:
            node = stack[-1].node
            if stack[-1] in env:
                stack.pop()
                continue
            assert node is not None
            missing = [each for each in node.operands if not each.is_const and each not in env]
            if missing:
                stack += missing
                continue
            read = [each.const if each.is_const else env[each] for each in node.operands]
            with _jax.Placement() as placement, placement.at(node.source, node.context):
                env.update(zip(node.results, export.bind(node, read), strict=True))
        return env[value]

    def as_state(self, value: Value, state: State, env: Env) -> Any:
        """A value as it is wanted: its part, its share of a sum, or whole."""
        if state is None or self.flow.of(value) == state:
            return self.whole(value, env)
        if isinstance(state, Part):
            return self.part(value, state, env)
        zero = jnp.zeros(value.shape, value.dtype)
        return jnp.broadcast_to(zero, (self.lanes, *value.shape)) if self.lanes > 1 else zero

    def part(self, value: Value, part: Part, env: Env, depth: int = 0) -> Any:
        """The part of this round of a value that does not depend on the batch.

        What is cheap is computed for this part alone; of all else the part is cut out.
        """
        node = value.node
        if node is not None and depth < _DEPTH and is_grown(node, value, self.split, part):
            if node.op == "iota":
                return counted_part(node, part, self.split.count, self.index)
            if node.op == "random_bits":
                keys = self.whole(node.operands[0], env)
                return random_part(node, part, self.split.count, self.index, keys)
            return self._grown(node, part, env, depth)
        array = self.whole(value, env)
        return cut_out(jnp.asarray(array), part, self.split.count, self.index)

    def _grown(self, node: Node, part: Part, env: Env, depth: int) -> Any:
        factors = factors_of(node)
        result = factors.results[0]
        factor = self.split.located(factors, result, part)
        assert factor is not None
        parts = {node.result: part}
        read = []
        for value, dims in zip(node.operands, factors.operands, strict=True):
            own = self.split.part(factors, dims, factor)
            if own is None:
                read.append(self.whole(value, env))
                continue
            parts[value] = own
            read.append(self.part(value, own, env, depth + 1))
        with _jax.Placement() as placement, placement.at(node.source, node.context):
            return bind_leaf(node, read, self._cut(parts))[0]

    def _cut(self, parts: Mapping[Value, Part], lanes: int = 1) -> Cut:
        split = self.split if lanes == 1 else self.fine
        kept: dict[Value, Kept] = {}
        for value, part in parts.items():
            indices = split.indices(value, Part(part.dim, part.outer // lanes))
            kept[value] = tuple(indices if dim == part.dim else None for dim in range(value.ndim))
        return Cut(kept)

    # Running

    def run(self, graph: Graph, env: Env) -> None:
        """Evaluate the nodes of a graph that depend on the batch; `env` has what it is given."""
        with _jax.Placement() as placement:
            for node in graph:
                if not any(isinstance(self.flow.of(value), (Part, Sum)) for value in node.results):
                    continue
                with placement.at(node.source, node.context):
                    results = self._node(node, env)
                env.update(zip(node.results, results, strict=True))

    def outputs(self, graph: Graph, args: Sequence[Any], wanted: Sequence[State]) -> list[Any]:
        """The outputs of a region, each as it is wanted."""
        env: Env = dict(zip(graph.inputs, args, strict=True))
        self.run(graph, env)
        return [self.as_state(v, state, env) for v, state in zip(graph.outputs, wanted, strict=True)]

    def _node(self, node: Node, env: Env) -> Sequence[Any]:
        try:
            if node.regions:
                return self._with_regions(node, env)
            if any(isinstance(self.flow.of(value), Sum) for value in node.results):
                return self._sum(node, env)
            return self._leaf(node, env)
        except CutError:
            raise
        except (TypeError, ValueError) as error:
            raise needs_all(node) from error

    def _leaf(self, node: Node, env: Env) -> Sequence[Any]:
        read, parts = self._read(node, env)
        return bind_leaf(node, read, self._cut(parts))

    def _read(self, node: Node, env: Env) -> tuple[list[Any], dict[Value, Part]]:
        """The operands of a node, those along the examples in part, and these parts."""
        factors, factor = self.flow.parts(node)
        parts: dict[Value, Part] = {}
        read = []
        for value, dims in zip(node.operands, factors.operands, strict=True):
            part = None if factor is None else self.split.part(factors, dims, factor)
            if part is not None:
                parts[value] = part
            read.append(self.as_state(value, part, env))
        for value in node.results:
            if isinstance(state := self.flow.of(value), Part):
                parts[value] = state
        return read, parts

    def _sum(self, node: Node, env: Env) -> Sequence[Any]:
        """A node that adds up over the examples, or goes on with such sums."""
        read, parts = self._read(node, env)
        if self.lanes == 1:
            return bind_leaf(node, read, self._cut(parts))
        axes: list[int | None] = []
        for place, value in enumerate(node.operands):
            if isinstance(self.flow.of(value), Sum):
                axes.append(0)
            elif value in parts:
                part = parts[value]
                if part.outer % self.lanes:
                    raise needs_all(node)
                read[place] = lanes_first(jnp.asarray(read[place]), part.dim, self.lanes)
                axes.append(0)
            else:
                axes.append(None)
        cut = self._cut(parts, self.lanes)
        return list(jax.vmap(lambda *each: list(bind_leaf(node, each, cut)), in_axes=tuple(axes))(*read))

    def _with_regions(self, node: Node, env: Env) -> Sequence[Any]:
        states = {i: self.flow.of(value) for i, value in enumerate(node.operands)}
        connections = slots(node)
        wanted: list[list[State]] = [[None] * len(region.outputs) for region in node.regions]
        moved: list[int] = []
        for slot in connections:
            inside = [self.flow.of(node.regions[r].inputs[i]) for r, i in slot.inputs]
            if slot.kind == "carry" and inside and slot.operand is not None:
                states[slot.operand] = inside[0]
            state = None if slot.result is None else self.flow.of(node.results[slot.result])
            if slot.kind == "stacked" and isinstance(state, Part):
                state = Part(state.dim - 1, state.outer)
            for r, i in slot.outputs:
                wanted[r][i] = inside[0] if slot.kind == "carry" and inside else state
            if self.lanes > 1 and isinstance(state, Sum) and slot.kind == "stacked":
                assert slot.result is not None
                moved.append(slot.result)
        read = [self.as_state(value, states[i], env) for i, value in enumerate(node.operands)]
        if self.lanes > 1:
            for slot in connections:
                if slot.kind == "scanned" and isinstance(states[slot.operand or 0], Sum):
                    assert slot.operand is not None
                    read[slot.operand] = jnp.moveaxis(read[slot.operand], 0, 1)
        if node.op in ("custom_jvp_call", "custom_vjp_call"):
            return self._custom(node, read, wanted[0])
        regions = [self._region(region, wanted[r]) for r, region in enumerate(node.regions)]
        smaller = Node(
            node.op,
            node.primitive,
            (),
            (),
            node.params,
            regions=regions,
            source=node.source,
            context=node.context,
        )
        results = list(export.bind(smaller, read))
        for place in moved:
            results[place] = jnp.moveaxis(results[place], 1, 0)
        return results

    def _region(self, region: Graph, wanted: Sequence[State]) -> Graph:
        def run(*args: Any) -> list[Any]:
            return self.outputs(region, args, wanted)

        return from_jaxpr(_jax.trace_flat(run, [self._shape(value) for value in region.inputs]), region.name)

    def _shape(self, value: Value) -> Any:
        """The shape of a region's input in this round."""
        state, shape = self.flow.of(value), list(value.shape)
        if isinstance(state, Part):
            shape[state.dim] //= self.split.count
        elif isinstance(state, Sum) and self.lanes > 1:
            shape = [self.lanes, *shape]
        return struct_of(value, shape)

    def _custom(self, node: Node, read: Sequence[Any], wanted: Sequence[State]) -> Sequence[Any]:
        """A function with a derivative of its own: the rule is made smaller as the function is."""
        (region,) = node.regions
        pairs = [(v, self.flow.of(v)) for v in (*node.operands, *node.results)]
        cut = self._cut({value: state for value, state in pairs if isinstance(state, Part)})

        def rule(graph: Graph, args: list[Any], smaller: Cut) -> list[Any]:
            for each in graph.walk():
                made = each.results if each.op in ("iota", "random_bits") else ()
                if any(v in smaller.kept for v in (*made, *_constants(each))):
                    raise needs_all(node)
            return evaluate_cut(graph, args, smaller)

        def body(*args: Any) -> list[Any]:
            return self.outputs(region, args, wanted)

        return bind_custom(node, read, cut, body, rule)


def _constants(node: Node) -> list[Value]:
    return [value for value in node.operands if value.is_const]
