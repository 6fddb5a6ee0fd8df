"""The residual stream: values tied together by what is linear along one axis, and all that touch them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from lepton_jax.ir.graph import RETURN, Graph, Node, Value
from lepton_jax.ir.regions import Slot, editable, slots
from lepton_jax.passes._weights.uses import indexed_axis
from lepton_jax.passes.quantize._rotate.links import is_rows, link_down, links
from lepton_jax.passes.simplify._absorb.known import Known, compact_shape
from lepton_jax.passes.simplify._absorb.product import Product, product_of

_MOST: Final = 20_000


@dataclass(frozen=True)
class Place:
    """An operand that holds parameters, and the axis of it that belongs to the stream."""

    node: Node
    position: int
    axis: int

    @property
    def value(self) -> Value:
        """The operand."""
        return self.node.operands[self.position]


@dataclass(frozen=True)
class Reader:
    """A product that reads the stream, or what was scaled and shifted by parameters on the way from it.

    Attributes:
        product: the product.
        axis: of the weight, that goes with the stream.
        steps: scales and shifts in between, in order.
    """

    product: Product
    axis: int
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Step:
    """One of them: `mul`, `add`, `sub` or `from` (the coefficient minus the value).

    Attributes:
        kind: what is done.
        node: the operation.
        rows: a factor that is the same along the axis, if there is one too.
        early: the coefficients that are made of parameters.
    """

    kind: str
    node: Node
    rows: tuple[Value, ...]
    early: tuple[Value, ...]


@dataclass
class Stream:
    """Values that can be rotated together.

    Attributes:
        known: the program.
        size: of the axis.
        axes: the values, and the axis of each.
        writers: weights of products and tables whose results are in the stream.
        added: other operands made of parameters: biases, positions, where loops start.
        readers: products that read it.
        sums: reductions over the axis.
        squares: sums of squares over the axis.
        rows: operations that add a number to each row.
    """

    known: Known
    size: int
    axes: dict[Value, int] = field(default_factory=dict)
    writers: list[Place] = field(default_factory=list)
    added: list[Place] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    sums: list[Node] = field(default_factory=list)
    squares: list[Node] = field(default_factory=list)
    rows: list[Node] = field(default_factory=list)

    def why_not(self, value: Value, axis: int) -> str | None:
        """Find all that belongs to a value's stream; or why it cannot be rotated."""
        self._stack = [(value, axis)]
        while self._stack:
            value, axis = self._stack.pop()
            if value in self.axes:
                if self.axes[value] != axis:
                    return "it is read along two axes"
                continue
            if not value.is_static or value.shape[axis] != self.size or len(self.axes) > _MOST:
                return "its size changes"
            self.axes[value] = axis
            reason = self._made(value, axis)
            for user, position in [] if reason else value.uses:
                reason = reason or self._read(user, position, axis)
            if reason is not None:
                return reason
        return None

    # Where a value comes from

    def _made(self, value: Value, axis: int) -> str | None:
        node = value.node
        if node is None:
            return self._enters(value, axis)
        if node.regions:
            slot = next(slot for slot in slots(node) if slot.result == value.index)
            return self._through(node, slot, axis)
        if self.known.misplaced(node):
            return "it is sharded, or its shape is not known"
        if node.op == "gather":
            return self._row(node, axis)
        product = product_of(node, self.known)
        if product is not None:
            if product.groups != 1 or axis not in product.axes:
                return f"{node.op} makes it of groups, or of each element of its own"
            place = product.axes.index(axis)
            if product.inner[place] is not None:
                return f"{node.op} makes it in batches"
            self.writers.append(Place(node, product.side, place))
            return None
        found = links(node, axis)
        if found is None:
            return f"{node.op} makes it"
        for position, place in found:
            self._give(node, position, place)
        return None

    def _give(self, node: Node, position: int, axis: int) -> None:
        value = node.operands[position]
        if self.known.is_early(value):
            self.added.append(Place(node, position, axis))
        elif is_rows(value, axis):
            self.rows.append(node)
        else:
            self._stack.append((value, axis))

    def _row(self, node: Node, axis: int) -> str | None:
        numbers, rows = node.params["dimension_numbers"], indexed_axis(node)
        if rows is None or axis not in numbers.offset_dims or not self.known.is_early(node.operands[0]):
            return "gather takes it from something else than rows of a table"
        stay = [i for i in range(node.operands[0].ndim) if i not in numbers.collapsed_slice_dims]
        place = stay[numbers.offset_dims.index(axis)]
        if place == rows:
            return "gather takes single elements"
        self.writers.append(Place(node, 0, place))
        return None

    def _enters(self, value: Value, axis: int) -> str | None:
        graph = value.graph
        if graph is None or not graph.parents:
            return "it is an input of the program"
        (node,) = graph.parents if len(graph.parents) == 1 else (None,)
        if node is None:
            return "it is in a function that is called in several places"
        place = (node.regions.index(graph), value.index)
        slot = next(slot for slot in slots(node) if place in slot.inputs)
        return self._through(node, slot, axis + (slot.kind == "scanned"))

    # Who reads a value

    def _read(self, user: Node, position: int, axis: int) -> str | None:
        if user.op == RETURN:
            return self._leaves(user.graph, position, axis)
        if user.regions:
            slot = next(slot for slot in slots(user) if slot.operand == position)
            return self._through(user, slot, axis)
        if user.op == "reduce_sum" and axis in user.params["axes"]:
            if tuple(user.params["axes"]) != (axis,):
                return "reduce_sum adds up rows too"
            self.sums.append(user)
            return None
        if _is_square(user):
            return self._square(user, axis)
        if user.op in ("dot_general", "conv_general_dilated"):
            return self._product(user, position, axis, ())
        down = link_down(user, position, axis)
        if down is not None:
            self._stack.append((user.result, down))
            return None
        step = self._step(user, position, axis)
        return f"{user.op} reads it" if step is None else self._scaled(step, axis, ())

    def _leaves(self, graph: Graph | None, position: int, axis: int) -> str | None:
        if graph is None or len(graph.parents) != 1:
            return "it is a result of the program"
        (node,) = graph.parents
        place = (node.regions.index(graph), position)
        slot = next(slot for slot in slots(node) if place in slot.outputs)
        return self._through(node, slot, axis + (slot.kind == "stacked"))

    def _through(self, node: Node, slot: Slot, axis: int) -> str | None:
        """Follow a value into, out of, and around a loop, a branch or a call; the axis is the outer one."""
        if slot.kind in ("predicate", "opaque") or not editable(node):
            return f"it goes through a {node.op}"
        inner = axis - (slot.kind in ("scanned", "stacked"))
        if inner < 0:
            return f"the {node.op} runs over it"
        if slot.operand is not None:
            self._give(node, slot.operand, axis)
        if slot.result is not None:
            self._stack.append((node.results[slot.result], axis))
        self._stack += [(node.regions[r].inputs[i], inner) for r, i in slot.inputs]
        outputs = [node.regions[r].outputs[i] for r, i in slot.outputs]
        if any(map(self.known.is_early, outputs)):
            return f"a {node.op} makes it of parameters alone"
        self._stack += [(value, inner) for value in outputs]
        return None

    def _square(self, node: Node, axis: int) -> str | None:
        for user in node.result.users():
            if user.op != "reduce_sum" or tuple(user.params["axes"]) != (axis,):
                return f"{user.op} reads its square"
            if user not in self.squares:
                self.squares.append(user)
        return None

    def _product(self, user: Node, position: int, axis: int, steps: tuple[Step, ...]) -> str | None:
        product = product_of(user, self.known)
        if product is None or product.side == position:
            return f"{user.op} reads it with something that is not a weight"
        if product.groups != 1 or axis not in product.inner:
            return f"{user.op} reads it without summing over it"
        place = product.inner.index(axis)
        if product.axes[place] is not None:
            return f"{user.op} reads it in batches"
        if any(step.kind != "mul" for step in steps) and not product.sees_all():
            return f"{user.op} pads it"
        shapes = [compact_shape(v, user.operands[position].ndim) for step in steps for v in step.early]
        if not all(map(product.takes_inside, shapes)):
            return f"{user.op} reads it after it was scaled by parameters along other axes than the weight's"
        self.readers.append(Reader(product, place, steps))
        return None

    def _step(self, user: Node, position: int, axis: int) -> Step | None:
        """A scale or shift by parameters, beside a scale of whole rows."""
        if user.op not in ("mul", "add", "sub") or len(user.operands) != 2:
            return None
        other = user.operands[1 - position]
        if user.op != "mul":
            kind = "from" if user.op == "sub" and position == 1 else user.op
            return Step(kind, user, (), (other,)) if self.known.is_early(other) else None
        factors = self._factors(other, axis)
        return None if factors is None else Step("mul", user, *factors)

    def _factors(self, value: Value, axis: int) -> tuple[tuple[Value, ...], tuple[Value, ...]] | None:
        """A factor as factors that are the same along the axis, and such that are made of parameters."""
        if is_rows(value, axis):
            return (value,), ()
        if self.known.is_early(value):
            return (), (value,)
        node = value.node
        if node is None or node.op != "mul":
            return None
        both = [self._factors(v, axis) for v in node.operands]
        if both[0] is None or both[1] is None:
            return None
        return both[0][0] + both[1][0], both[0][1] + both[1][1]

    def _scaled(self, step: Step, axis: int, before: tuple[Step, ...]) -> str | None:
        """Follow what was scaled or shifted by parameters to the products that read it."""
        steps = (*before, step)
        if len([each for each in steps if each.kind == "mul"]) > 1 or len(steps) > 4:
            return "it is scaled by parameters more than once"
        if before and step.kind == "mul":
            return "it is scaled by parameters after a shift"
        for user, position in step.node.result.uses:
            if user.op in ("dot_general", "conv_general_dilated"):
                reason = self._product(user, position, axis, steps)
            else:
                following = self._step(user, position, axis)
                is_shift = following is not None and following.kind != "mul"
                reason = f"{user.op} reads it after it was scaled by parameters"
                if following is not None and is_shift:
                    reason = self._scaled(following, axis, steps) or ""
            if reason:
                return reason
        return None


def _is_square(node: Node) -> bool:
    if node.op == "square" or (node.op == "integer_pow" and node.params["y"] == 2):
        return True
    return node.op == "mul" and node.operands[0] is node.operands[1]
