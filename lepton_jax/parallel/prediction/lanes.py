"""How arrays lie in the tiles of a TPU that convolutions read and make part by part.

A convolution whose kernel is gathered part by part, or whose kernel's gradient is scattered so, becomes a
loop (`prediction.windows`). Each turn makes or reads a few channels of an array, and XLA lays the whole array
out for that: the lanes of a tile run over its channels or over its examples, whichever leaves less of them
unused in a part. With 8 channels in a part and 32 examples on a device these are the examples, and the array
takes four times its bytes. Where both leave as many these are the channels, but for the gradient of a
kernel, which adds up over examples, the examples. An array that lies otherwise than a loop reads it is copied
before.

So it is in 25 programs for v5e that were compiled for comparison, with 4 to 64 channels in a part and 8 to
128 examples on a device.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from lepton_jax.ir.graph import Node, Value
from lepton_jax.parallel.factors.elementwise import ELEMENTWISE
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.elements import WINDOWS
from lepton_jax.parallel.prediction.events import Walked
from lepton_jax.parallel.prediction.sending import Sending
from lepton_jax.parallel.prediction.sizes import LANES, SUBLANES, covered_elements
from lepton_jax.parallel.prediction.steps import MINOR

Tile: TypeAlias = tuple[int, int]
"""The dimensions that lanes and rows of a tile run over."""

AT_ONCE: Final = 3
MANY: Final = 6
"""So many gradients of kernels are scattered at once where there are so many.

So it is in 23 of 25 programs of 3 to 12 convolutions. XLA's scheduler is not followed: of six one after the
other, without sums beside them, all wait; of three, each beside a sum, two.
"""

_NAMES: Final = frozenset({"shard_hint", "sharding_constraint", "stop_gradient"})
_AS_THEY_LIE: Final = ELEMENTWISE | WINDOWS | _NAMES
_SPREAD: Final = ELEMENTWISE | _NAMES | {"broadcast_in_dim"}


@dataclass(frozen=True, slots=True)
class InParts:
    """A convolution that a loop computes.

    Attributes:
        operands: the tiles of the images and of the kernel; None where they do not matter.
        result: those of the result.
        summed: whether the parts are added up to the result.
        waste: how many times longer it takes than if all lanes were used.
        work: the bytes of parts of the result that are there at once: two that are made, and copies of both.
    """

    operands: tuple[Tile | None, Tile | None]
    result: Tile | None
    summed: bool
    waste: float
    work: int = 0


class Lanes:
    """How arrays lie that convolutions in parts read and make.

    Attributes:
        loops: those convolutions.
        scattered: of them those whose results are scattered, in the order of the program.
        at_once: those whose results are scattered as soon as they can be; the others after all that gradients
            of images wait for.
    """

    def __init__(
        self,
        inputs: Collection[Value],
        walked: Walked,
        mesh: MeshSpec,
        sending: Sending,
        same: Mapping[Value, Value],
    ) -> None:
        """Find the convolutions in parts of a program with such inputs; `same` are values that are others."""
        self._inputs = set(inputs)
        self._walked = walked
        self._mesh = mesh
        self._same = same
        self._of: dict[Value, Tile | None] = {}
        self.loops: dict[Node, InParts] = {}
        self.scattered: dict[Node, None] = {}
        self.at_once: set[Node] = set()
        if mesh.chip.rates.platform != "tpu":
            return
        for node, sent in sending.apart.items():
            found = None
            if node.op == "conv_general_dilated" and _is_plain(node) and node.results[0].ndim >= MINOR:
                found = self._in_parts(node, set(sent.axes), node in sending.scattered)
            if found is not None:
                self.loops[node] = found
        order = [node for node in walked.shares if node in self.loops and node in sending.scattered]
        self.scattered = dict.fromkeys(order)
        self.at_once = set(order[:AT_ONCE] if len(order) >= MANY else ())

    def of(self, value: Value) -> Tile | None:
        """How an array lies, as it is made; None where no loop makes what it is made of.

        Operations on elements make it as the largest of their operands lies. Of inputs the last dimension is
        in the lanes and the one before in the rows, unless the first in the lanes and the last in the rows
        leaves less room unused.
        """
        while value in self._same:
            value = self._same[value]
        node = value.node
        if not self.loops or value.ndim < MINOR:
            return None
        if value in self._inputs:
            last = value.ndim - 1
            return min((last, last - 1), (0, last), key=lambda tile: self.size(value, tile))
        if node is None:
            return None
        if node in self.loops:
            return self.loops[node].result
        if value not in self._of:
            self._of[value] = None
            if node.op in _AS_THEY_LIE and value.dtype is not None:
                tiles = [self.of(each) for each in node.operands if each.ndim == value.ndim]
                known = [tile for tile in tiles if tile is not None]
                self._of[value] = max(known, key=lambda tile: self.size(value, tile), default=None)
        return self._of[value]

    def read(self, node: Node, place: int) -> Tile | None:
        """How a node needs an operand; None where it does not matter."""
        return self.loops[node].operands[place] if node in self.loops else None

    def work(self, node: Node) -> int:
        """The bytes of what a loop needs besides what it reads and makes."""
        return self.loops[node].work if node in self.loops else 0

    def adds_up(self, node: Node) -> bool:
        """Whether a loop adds up what a node makes."""
        return node in self.loops and self.loops[node].summed

    def lies(self, value: Value, root: Value, tile: Tile) -> bool:
        """Whether a value that is made of one array in memory is that array, and lies so."""
        while value is not root:
            if value in self._same:
                value = self._same[value]
            elif value.node is not None and value.node.op in _NAMES:
                value = value.node.operands[0]
            else:
                return False
        return self.of(root) == tile

    def size(self, value: Value, tile: Tile) -> int:
        """The bytes of one device's part of an array that lies so."""
        return covered_elements(self._shape(value), *tile) * int(value.dtype.itemsize)

    def _shape(self, value: Value) -> tuple[int, ...]:
        return self._layout(value).local_shape(value.shape, self._mesh)

    def _layout(self, value: Value) -> Layout:
        return self._walked.lies.get(value) or Layout.whole(value.ndim)

    def _in_parts(self, node: Node, axes: set[str], scattered: bool) -> InParts | None:
        images, kernel = node.operands
        (result,) = node.results
        numbers = node.params["dimension_numbers"]
        (rows, into), (out, summed) = numbers.lhs_spec[:2], numbers.rhs_spec[:2]
        made_rows, made = numbers.out_spec[:2]
        count = self._mesh.size(*axes)
        if scattered:
            dims = self._layout(self._sum(result)).dims
            if axes == set(dims[made]):
                tiles = self._best(images, rows, into), self._best(kernel, summed, out, count, out)
                free = self._shape(images)[rows]
            elif axes == set(dims[made_rows]):
                tiles = self._best(images, into, rows, count, rows), self._best(kernel, out, summed)
                free = self._shape(kernel)[out]
            else:
                return None
            return InParts(tiles, None, False, _waste(self._shape(images)[into], free))
        dims = self._layout(kernel).dims
        if axes == set(dims[out]):
            tile = self._best(result, made, made_rows, count, made)
            part = self._part(result, made, count)
            work = 4 * covered_elements(part, *tile) * int(result.dtype.itemsize)
            return InParts(
                (self._best(images, into, rows), None),
                tile,
                False,
                _waste(self._shape(images)[into], part[tile[0]]) * _waste(part[tile[1]], of=SUBLANES),
                work,
            )
        if axes == set(dims[summed]):
            tile = self._best(result, made, made_rows)
            part = self._part(images, into, count)
            return InParts(
                (self._best(images, into, rows, count, into), None),
                tile,
                True,
                # The places of a row of the window are multiplied together with the channels.
                _waste(part[into] * kernel.shape[numbers.rhs_spec[-1]], self._shape(result)[tile[0]]),
            )
        return None

    def _sum(self, value: Value) -> Value:
        """The sum of what are parts of one, by whatever type."""
        while self._layout(value).partial and len(value.uses) == 1:
            ((node, _),) = value.uses
            if node.op not in _AS_THEY_LIE or len(node.results) != 1:
                break
            (value,) = node.results
        return value

    def _part(self, value: Value, channels: int, count: int) -> tuple[int, ...]:
        shape = list(self._shape(value))
        shape[channels] = -(-shape[channels] // count)
        return tuple(shape)

    def _best(self, value: Value, lanes: int, rows: int, count: int = 1, cut: int = 0) -> Tile:
        """These tiles, or turned ones where they leave less room unused in a part of so many along `cut`."""
        part = self._part(value, cut, count)
        return min((lanes, rows), (rows, lanes), key=lambda tile: covered_elements(part, *tile))


def is_spread(value: Value) -> bool:
    """Whether an array is made by elements of what is spread over it, as the gradient of a mean is."""
    ahead, seen = [value], {value}
    while ahead:
        each = ahead.pop()
        node = each.node
        if each.is_const:
            continue
        if node is None or node.op not in _SPREAD:
            return False
        if node.op != "broadcast_in_dim":
            ahead += [operand for operand in node.operands if operand not in seen]
            seen.update(node.operands)
        elif math.prod(node.operands[0].shape) * SUBLANES > math.prod(each.shape):
            return False
    return True


def _is_plain(node: Node) -> bool:
    return all(node.params[name] == 1 for name in ("feature_group_count", "batch_group_count"))


def _waste(*sizes: int, of: int = LANES) -> float:
    """How many times longer it takes to multiply what does not fill so many lanes."""
    found = 1.0
    for size in sizes:
        found *= -(-size // of) * of / max(size, 1)
    return found
