"""Several values computed alike from parts of the same arrays: one computation over a new first dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.graph import Node, Value
from lepton_jax.ir.structure import operand_key, params_key
from lepton_jax.passes.simplify._demand.makers import is_relu
from lepton_jax.passes.simplify._movement.common import is_free

_MOST_STEPS: Final = 48

Step = tuple[Any, ...]


@dataclass(frozen=True)
class Product:
    """A matrix product that all compute.

    Attributes:
        work: multiplications of one of them.
        rows: where one of its operands is the same for all, how many rows the other one has; else 0.
        is_left: whether it is the left one that is the same.
    """

    work: int
    rows: int = 0
    is_left: bool = False


@dataclass
class Alike:
    """Values that one program computes, each from its own parts of shared arrays.

    Attributes:
        context: the equation context that all must have.
        leaves: arrays that the program reads.
        parts: for each leaf, None where all read it whole; else the axis along which it is
            cut, and where the parts start.
        sizes: for each leaf, how long a part is along that axis.
        steps: the program: a primitive, its parameters and where its operands stand; or a leaf.
        nodes: the nodes that the program replaces.
        products: the matrix products, by the step that makes them.
    """

    context: Any
    leaves: list[Value] = field(default_factory=list)
    parts: list[tuple[int, int] | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    nodes: dict[Node, None] = field(default_factory=dict)
    products: dict[int, Product] = field(default_factory=dict)
    _known: dict[tuple[Value, ...], int] = field(default_factory=dict)

    def add(self, values: tuple[Value, ...]) -> int | None:
        """Where the step stands that computes these values, or None where they are not computed alike."""
        known = self._known.get(values)
        if known is not None:
            return known
        step = self._step(values) if len(self.steps) < _MOST_STEPS else None
        if step is None:
            return None
        self.steps.append(step)
        self._known[values] = len(self.steps) - 1
        return len(self.steps) - 1

    def is_shared(self, place: int) -> bool:
        """Whether a step is the same for all."""
        step = self.steps[place]
        return step[0] is None and self.parts[step[1]] is None

    def _step(self, values: tuple[Value, ...]) -> Step | None:
        first = values[0]
        if all(value is first for value in values):
            return self._leaf(first, None)
        if first.is_const:
            key = operand_key(first)
            same = all(v.is_const and operand_key(v) == key and v.aval == first.aval for v in values)
            return self._leaf(first, None) if same else None
        makers = [value.node for value in values]
        template = makers[0]
        if template is None:
            return None
        if template.op == "custom_jvp_call":
            return self._relus(makers)
        if not _can_run(template, self.context):
            return None
        nodes = [m for m in makers if m is not None and m.op == template.op and m.context is self.context]
        if len(nodes) != len(values) or len(set(nodes)) != len(nodes):
            return None
        if template.op == "slice":
            return self._slices(nodes)
        return self._operation(nodes)

    def _relus(self, makers: list[Node | None]) -> Step | None:
        """`jax.nn.relu`, which has a derivative of its own."""
        nodes = [m for m in makers if m is not None and m.context is self.context and is_relu(m)]
        if len(nodes) != len(makers) or len(set(nodes)) != len(nodes):
            return None
        place = self.add(tuple(node.operands[0] for node in nodes))
        if place is None:
            return None
        self.nodes.update(dict.fromkeys(nodes))
        return ("relu", (), place)

    def _leaf(self, value: Value, part: tuple[int, int] | None, size: int = 1) -> Step:
        self.leaves.append(value)
        self.sizes.append(size)
        self.parts.append(part)
        return (None, len(self.leaves) - 1)

    def _slices(self, nodes: list[Node]) -> Step | None:
        """Parts of one array that lie side by side along one axis, in order."""
        source, shape = nodes[0].operands[0], nodes[0].result.shape
        strides = nodes[0].params["strides"]
        if strides is not None and any(s != 1 for s in strides):
            return None
        starts = [tuple(n.params["start_indices"]) for n in nodes]
        if any(n.operands[0] is not source or n.result.shape != shape for n in nodes):
            return None
        if any(n.params["strides"] != strides for n in nodes):
            return None
        axes = [d for d in range(source.ndim) if starts[0][d] != starts[1][d]]
        if len(axes) != 1:
            return None
        axis = axes[0]
        wanted = [
            tuple(s + i * shape[axis] if d == axis else s for d, s in enumerate(starts[0]))
            for i in range(len(nodes))
        ]
        whole = all(shape[d] == source.shape[d] for d in range(source.ndim) if d != axis)
        if starts != wanted or not whole:
            return None
        return self._leaf(source, (axis, starts[0][axis]), shape[axis])

    def _operation(self, nodes: list[Node]) -> Step | None:
        template = nodes[0]
        key = params_key(template.params)
        shape = template.result.shape
        if key is None or any(params_key(n.params) != key or n.result.shape != shape for n in nodes[1:]):
            return None
        places = []
        for column in zip(*(n.operands for n in nodes), strict=True):
            place = self.add(column)
            if place is None:
                return None
            places.append(place)
        if template.op == "dot_general":
            self._product(template, places)
        self.nodes.update(dict.fromkeys(nodes))
        return (template.primitive, tuple(sorted(template.params.items())), *places)

    def _product(self, node: Node, places: list[int]) -> None:
        (summed, batch) = node.params["dimension_numbers"]
        x = node.operands[0]
        work = math.prod(node.result.shape) * math.prod(x.shape[d] for d in summed[0])
        shared = [side for side in (0, 1) if self.is_shared(places[side])]
        rows = 0
        if shared:
            side = 1 - shared[0]
            inner = {*summed[side], *batch[side]}
            rows = math.prod(n for d, n in enumerate(node.operands[side].shape) if d not in inner)
        self.products[len(self.steps)] = Product(work, rows, shared[:1] == [0])

    def is_private(self, readers: set[Node]) -> bool:
        """Whether only the program itself and `readers` read what it computes."""
        inside = readers | set(self.nodes)
        return all(user in inside for node in self.nodes for user, _ in node.result.uses)

    def spread(self, most_work: int) -> tuple[bool, ...]:
        """For each leaf, whether it is the same for all and an operand of a product of at most so much."""
        found = [False] * len(self.leaves)
        for at, product in self.products.items():
            for place in self.steps[at][2:] if product.work <= most_work else ():
                if self.is_shared(place):
                    found[self.steps[place][1]] = True
        return tuple(found)


def _can_run(node: Node, context: Any) -> bool:
    plain = not node.regions and not node.effects and len(node.results) == 1
    return plain and node.context is context and is_free(node) and node.op != "optimization_barrier"


def run_alike(
    *leaves: jax.Array,
    steps: tuple[Step, ...],
    parts: tuple[tuple[int, int] | None, ...],
    sizes: tuple[int, ...],
    spread: tuple[bool, ...],
    count: int,
) -> jax.Array:
    """The values that a program computes for each of `count` parts, stacked.

    Args:
        sizes: for each leaf, how long a part is.
        spread: which shared leaves are copied: batched products of small matrices are faster than one with
            the batch as a further dimension.
    """
    arrays: list[jax.Array] = []
    axes: list[int | None] = []
    for leaf, part, size, copied in zip(leaves, parts, sizes, spread, strict=True):
        if part is None:
            arrays.append(lax.broadcast(leaf, (count,)) if copied else leaf)
            axes.append(0 if copied else None)
            continue
        axis, start = part
        if leaf.shape[axis] != count * size:
            leaf = lax.slice_in_dim(leaf, start, start + count * size, axis=axis)
        split = lax.reshape(leaf, (*leaf.shape[:axis], count, size, *leaf.shape[axis + 1 :]))
        arrays.append(jnp.moveaxis(split, axis, 0))
        axes.append(0)

    def once(*values: jax.Array) -> jax.Array:
        made: list[jax.Array] = []
        for primitive, *rest in steps:
            if primitive is None:
                made.append(values[rest[0]])
            elif primitive == "relu":
                made.append(jax.nn.relu(made[rest[1]]))
            else:
                made.append(primitive.bind(*(made[place] for place in rest[1:]), **dict(rest[0])))
        return made[-1]

    result: jax.Array = jax.vmap(once, in_axes=tuple(axes))(*arrays)
    return result
