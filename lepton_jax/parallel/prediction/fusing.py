"""Which arrays of a program are written down, and which XLA makes again where they are read.

Operations on elements run within who reads them: an array takes no memory where it has one reader, or where
what it is made of is about as small. On TPUs they run within products too: within the next, whose operand
they make, and within the one before, where all that is made of its result goes into one array, and only that
is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

from lepton_jax.ir.graph import Node, Value
from lepton_jax.ir.regions import RUN_ONCE
from lepton_jax.parallel.prediction.elements import (
    EXPONENTIALS,
    FUSED,
    RENAMED,
    WINDOWS,
    puts_one,
    reads_elements,
)
from lepton_jax.parallel.prediction.softmaxes import softmax_runs_within, sums_weights
from lepton_jax.parallel.prediction.windows import PRODUCTS, is_plain

ENOUGH: Final = 1.25
"""Arrays with several readers are made again where what they are made of is at most this much larger."""
MOST_WITHIN: Final = 32
"""How many operations are looked through to find what runs within a product."""


class Fusing:
    """What of a program is in memory.

    Attributes:
        same: values that are others: a region's inputs and its node's operands.
        products: of values that are written at the end of a product, the product.
        loops: products within which nothing else runs.
    """

    def __init__(
        self,
        size: Callable[[Value], int],
        moved: Collection[Value],
        within_products: bool,
        repeats: bool = True,
        nests: bool = False,
        apart: Collection[Node] = (),
    ) -> None:
        """Nothing is followed yet.

        Args:
            size: bytes of a value.
            moved: values that are sent, or parts of a sum that is.
            within_products: whether operations run within products.
            repeats: whether several products each take the same exponentials.
            nests: whether convolutions run within others that alone read them, as their kernels.
            apart: products that are computed in parts.
        """
        self.same: dict[Value, Value] = {}
        self._size = size
        self._moved = frozenset(moved)
        self._within_products = within_products
        self._repeats = repeats
        self._nests = nests
        self._apart = frozenset(apart)
        self.loops: Collection[Node] = ()
        self._roots: dict[Value, tuple[Value, ...]] = {}
        self._place: dict[Node, int] = {}
        self._kept: set[Value] = set()
        self._within: set[Value] = set()
        self.products: dict[Value, Node] = {}

    def enter(self, nodes: Iterable[Node]) -> None:
        """Know the order of a graph's nodes."""
        for node in nodes:
            self._place[node] = len(self._place)

    def keep(self, values: Iterable[Value]) -> None:
        """Have values written down whatever they are."""
        for value in values:
            if value not in self.same:
                self._kept.add(value)
                self._roots[value] = () if value.is_const else (value,)

    def made_of(self, value: Value) -> tuple[Value, ...]:
        """The arrays in memory from which a value is read: itself, or what it is made again from."""
        if value.is_const:
            return ()
        known = self._roots.get(value)
        if known is None:
            known = self._roots[value] = self._made_of(value)
        return known

    def written(self, node: Node) -> list[Value]:
        """Which results of a node are written; none where it runs within another."""
        if self._within_products and node.op in PRODUCTS and node not in self.loops:
            self._absorb(node)
            self._nest(node)
        return [value for value in node.results if self.made_of(value) == (value,)]

    def runs(self, node: Node, written: Collection[Value]) -> bool:
        """Whether a node is a step of its own."""
        return bool(written) or not (
            self.by_elements(node) or any(value in self._within for value in node.results)
        )

    def by_elements(self, node: Node) -> bool:
        """Whether a node works on elements, and runs within who reads what it makes."""
        return node.op in FUSED or (self._within_products and puts_one(node))

    def is_alone(self, value: Value) -> bool:
        """Whether an array is made by one operation on written ones, and no sum of it within the same."""
        node: Node | None = named(value).node
        if node is None or any(self.made_of(each) != (named(each),) for each in node.operands):
            return False
        ahead = [value]
        while ahead:
            for reader, _ in ahead.pop().uses:
                if reader.op.startswith("reduce_"):
                    return False
                if reader.op in FUSED and all(
                    self.made_of(each) in ((), (value,)) for each in reader.operands
                ):
                    ahead += reader.results
        return True

    def _made_of(self, value: Value) -> tuple[Value, ...]:
        if value in self.same:
            return self.made_of(self.same[value])
        node, within = value.node, value in self._within
        if node is None or value in self.products or not (within or self.by_elements(node)):
            return (value,)
        found = dict.fromkeys(root for operand in node.operands for root in self.made_of(operand))
        if within or (
            self._is_fused(value, sum(map(self._size, found))) and not self._is_softmax(value, found)
        ):
            return tuple(found)
        return (value,)

    def _is_fused(self, value: Value, bytes: int) -> bool:
        """Whether an array is made again by who reads it, from others of so many bytes."""
        if not bytes and self._within_products:
            return True
        if any(node.regions and node.op not in RUN_ONCE for node, _ in value.uses):
            return False
        readers = [node for node, _ in value.uses]
        if self._is_read_whole(value):
            return False
        if bytes <= ENOUGH * self._size(value):
            return not softmax_runs_within(value)
        count = len(readers)
        if not self._within_products:
            return count == 1 and reads_elements(readers[0])
        return all(map(reads_elements, readers)) and bytes * (count - 1) < self._size(value) * (count + 1)

    def _is_softmax(self, value: Value, roots: Iterable[Value]) -> bool:
        """Whether several products read exponentials of one array that not each of them takes for itself.

        A product that can run within another takes none: within a product within a product nothing else runs.
        Without `repeats` one that writes its result as it is takes none either; one in batches whose result
        is sent, or goes into the next operation, does. Sums of what is weighted always could.
        """
        products = _read_by(value)
        if len(products) < 2 or sum(2 * self._size(root) >= self._size(value) for root in roots) != 1:
            return False
        ahead, seen = [value], {value}
        while ahead:
            node = ahead.pop().node
            if node is None or not self.by_elements(node):
                continue
            if node.op in EXPONENTIALS:
                others = [each for each in products if not sums_weights(each, node.result)]
                return any(self._is_nested(each) or self._is_written(each) for each in others)
            ahead += [operand for operand in node.operands if operand not in seen]
            seen.update(node.operands)
        return False

    def _is_nested(self, product: Node) -> bool:
        """Whether a product can run within another that alone reads what it makes."""
        readers = [node for node, _ in product.results[0].readers(_is_renaming)]
        return len(readers) == 1 and readers[0].op in PRODUCTS and readers[0] not in self._apart

    def _is_written(self, product: Node) -> bool:
        """Whether a product writes its result as it is, for others to read, and so takes no exponentials."""
        (value,) = product.results
        while not self._repeats:
            names = _names(value)
            readers = [node for name in names for node, _ in name.uses if not _is_renaming(node)]
            kept = not self._kept.isdisjoint(names) and self._apart.isdisjoint(readers)
            if kept or not self._moved.isdisjoint(names):
                return is_plain(product)  # in batches, what is sent or returned has other dimensions
            if len(readers) != 1 or readers[0].op in PRODUCTS:
                return True
            (node,) = readers
            roots = (root for each in node.operands if each not in names for root in self.made_of(each))
            if node.op not in FUSED or any(2 * self._size(root) >= self._size(value) for root in roots):
                return False  # it runs within the product
            value = node.result
        return False

    def _is_read_whole(self, value: Value) -> bool:
        """Whether somebody reads an array that is not made within it."""
        if value.node is None or value.node.op in RENAMED:
            return False
        if not self._within_products:
            return any(node.op in PRODUCTS for node, _ in value.uses)
        return any(node.op in WINDOWS for node, _ in value.uses)

    def _absorb(self, product: Node) -> None:
        """Find what runs within a product, on its result before that is written."""
        value = product.results[0]
        end, within = value, list[Value]()
        while (found := self._meeting(end)) is not None:
            within += found[0]
            end = found[1]
        if end is not value:
            self._within.update(within)
            for each in (*within, end):
                self._roots.pop(each, None)
            self.products[end] = product

    def _nest(self, product: Node) -> None:
        """Let a convolution run within another that alone reads it as its kernel, as gradients of kernels do.

        So it is where products write the main memory: nothing of it is written and read there.
        """
        if not self._nests or product.op != "conv_general_dilated":
            return
        value = next((end for end, node in self.products.items() if node is product), product.results[0])
        readers = [(node.op, place) for node, place in value.uses]
        if value in self._kept or value in self._moved or readers != [(product.op, 1)]:
            return
        self.products.pop(value, None)
        for each in (value, product.results[0]):
            self._within.add(each)
            self._roots.pop(each, None)

    def _meeting(self, value: Value) -> tuple[list[Value], Value] | None:
        """The values between one and the first that all that is made of it goes into."""
        born = self._at(value)
        ahead: dict[Value, None] = {value: None}
        between: list[Value] = []
        while len(between) < MOST_WITHIN:
            first = min(ahead, key=self._at)
            del ahead[first]
            between.append(first)
            if not first.uses or first in self._moved or first in self._kept:
                return None
            for node, _ in first.uses:
                if not self.by_elements(node) or self._waits(node, born, {*between, *ahead}):
                    return None
                ahead[node.results[0]] = None
            if len(ahead) == 1:
                (end,) = ahead
                if self._size(end) <= self._size(value) or softmax_runs_within(end):
                    return between, end
        return None

    def _at(self, value: Value) -> int:
        return -1 if value.node is None else self._place.get(value.node, -1)

    def _waits(self, node: Node, born: int, known: set[Value]) -> bool:
        """Whether an operation on elements needs what is made after a step, and not on elements."""
        ahead = [node]
        while ahead:
            for value in ahead.pop().operands:
                before = value.node
                if before is None or value in known or self._at(value) < born:
                    continue
                if not self.by_elements(before) or value in self.products:
                    return True
                known.add(value)
                ahead.append(before)
        return False


def _read_by(value: Value) -> list[Node]:
    """The products that read a value, by whatever name."""
    return [node for node, _ in value.readers(_is_renaming) if node.op in PRODUCTS]


def named(value: Value) -> Value:
    """The array that a value is another name of."""
    while value.node is not None and value.node.op in RENAMED:
        value = value.node.operands[0]
    return value


def _names(value: Value) -> list[Value]:
    """An array and those that are other names of it."""
    found = [value]
    for each in found:
        found += [node.result for node, _ in each.uses if _is_renaming(node)]
    return found


def _is_renaming(node: Node) -> bool:
    """Whether a node gives what it reads another name, and does nothing else."""
    return node.op in RENAMED
