"""One stage's work as functions of buffers: forward, backward, and backward in two parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.ir.content import content_key
from lepton_jax.ir.export import evaluate
from lepton_jax.ir.importer import trace
from lepton_jax.parallel.pipeline.halves import Halves, halves
from lepton_jax.parallel.pipeline.packing import Packing
from lepton_jax.parallel.pipeline.parts import Batch, Part, Piece, Sent

Arrays = Sequence[Any]


@dataclass(frozen=True)
class Given:
    """What a stage's work reads.

    Attributes:
        params: its parameters, in buffers.
        shared: parameters that several stages read, by position.
        batch: the microbatch, by position.
        received: what the stage before sent, in buffers.
    """

    params: Arrays
    shared: Mapping[int, Any]
    batch: Mapping[int, Any]
    received: Arrays


@dataclass(frozen=True)
class Made:
    """What a stage's backward work makes.

    Attributes:
        loss: of the last stage.
        received: the cotangents of what it received, in buffers; empty if there are none.
        own: the gradients of its own parameters, in buffers; empty if there are none.
        shared: those of shared parameters, by position.
    """

    loss: Any
    received: list[Any]
    own: list[Any]
    shared: dict[int, Any]


@dataclass(frozen=True)
class Chunk:
    """A stage, and how what it reads and sends lies in buffers.

    Attributes:
        index: which.
        is_last: whether its output is the loss.
        part: its program.
        shared: the shapes and dtypes of the parameters that several stages read, by position.
        params: buffers of parameters.
        messages: buffers of what is sent forward, a list for each boundary.
        cotangents: buffers of what is sent backward.
    """

    index: int
    is_last: bool
    part: Part
    shared: Mapping[int, Any]
    params: Packing
    messages: Packing
    cotangents: Packing

    @property
    def pieces(self) -> list[Piece]:
        """Parts of parameters that it alone reads."""
        return [piece for piece in self.part.pieces if piece.param not in self.shared]

    @cached_property
    def key(self) -> Any:
        """Equal for stages that one branch of a program can do."""
        reads = [
            "own" if isinstance(source, Piece) and source.param not in self.shared else source
            for source in self.part.sources
        ]
        near = [
            self.messages.places[b]
            for b in (self.index - 1, self.index)
            if 0 <= b < len(self.messages.places)
        ]
        places = (self.params.places[self.index], *near)
        return (content_key(self.part.graph), tuple(reads), places, self.index == 0, self.is_last)

    def forward(self, given: Given) -> list[Any]:
        """What it sends, in buffers; the last stage's loss."""
        own, shared, batch, received, _ = self._arguments(given, [])
        outputs = self._run(own, shared, batch, received)
        return outputs if self.is_last else self.messages.put(self.index, outputs)

    def backward(self, given: Given, cotangents: Arrays) -> Made:
        """Runs forward again, then backward.

        Args:
            cotangents: of what it sent, in buffers; of the last stage the loss's own.
        """
        args = self._arguments(given, cotangents)
        outputs = self._gradients(*args)
        return self._made(outputs, range(len(outputs) - self._first))

    def first_half(self, given: Given, cotangents: Arrays, kept: Packing) -> tuple[Made, list[Any]]:
        """Runs forward again, and backward without what can wait; also what that needs, in buffers."""
        cut = self.halves
        outputs = evaluate(cut.inputs, jax.tree.leaves(self._arguments(given, cotangents)))
        end = self._first + len(cut.early)
        return self._made(outputs[:end], cut.early), kept.put(self.index, outputs[end:])

    def second_half(self, given: Given, buffers: Arrays, kept: Packing) -> Made:
        """The gradients that waited."""
        cut = self.halves
        every = jax.tree.leaves(self._arguments(given, []))  # what precedes the cotangents keeps its place
        args = [*(every[i] for i in cut.given), *kept.take(self.index, buffers)]
        return self._made(evaluate(cut.params, args), cut.late, waited=True)

    @cached_property
    def halves(self) -> Halves:
        """Its backward work in two halves."""
        values = dict(zip(self.part.sources, self.part.graph.inputs, strict=True))
        sent = sorted((source.place, v) for source, v in values.items() if isinstance(source, Sent))
        back = inexact([v.aval for v in self.part.graph.outputs])
        args = (
            [_struct(values[piece].aval) for piece in self.pieces],
            [_struct(self.shared[i]) for i in self.reads],
            [_struct(values[Batch(i)].aval) for i in self.batch],
            [_struct(v.aval) for _, v in sent],
            [_struct(aval) for aval in back],
        )
        own, shared, batch = (len(each) for each in args[:3])
        graph = trace(self._gradients, *args)
        return halves(graph, self._first, range(own + shared), range(own + shared, own + shared + batch))

    @cached_property
    def reads(self) -> list[int]:
        """The shared parameters that it reads."""
        return sorted({piece.param for piece in self.part.pieces if piece.param in self.shared})

    @cached_property
    def batch(self) -> list[int]:
        """What it reads of the batch."""
        return sorted(source.position for source in self.part.sources if isinstance(source, Batch))

    @property
    def _moving(self) -> list[int]:
        """What of that which it receives has cotangents."""
        pairs = zip(self.part.sources, self.part.graph.inputs, strict=True)
        return sorted(s.place for s, v in pairs if isinstance(s, Sent) and _is_inexact(v.aval))

    @property
    def _first(self) -> int:
        """The position of the first parameter's gradient among those that `_gradients` gives."""
        return int(self.is_last) + len(self._moving)

    def _arguments(self, given: Given, cotangents: Arrays) -> tuple[list[Any], ...]:
        back = list(cotangents)
        if cotangents and not self.is_last:
            back = self.cotangents.take(self.index, cotangents)
        return (
            self._own(given),
            [given.shared[i] for i in self.reads],
            [given.batch[i] for i in self.batch],
            self._received(given),
            back,
        )

    def _gradients(
        self, own: Arrays, shared: Arrays, batch: Arrays, received: Arrays, cotangents: Arrays
    ) -> list[Any]:
        """The last stage's loss, the cotangents of what it received, of its own and of shared parameters."""

        def run(own: Arrays, shared: Arrays, moved: Arrays) -> list[Any]:
            every = list(received)
            for i, x in zip(self._moving, moved, strict=True):
                every[i] = x
            return [x for x in self._run(own, shared, batch, every) if _is_inexact(x)]

        outputs, pull = jax.vjp(run, list(own), list(shared), [received[i] for i in self._moving])
        for_own, for_shared, for_moved = pull(list(cotangents))
        return [*(outputs if self.is_last else []), *for_moved, *for_own, *for_shared]

    def _made(self, outputs: Arrays, which: Sequence[int], waited: bool = False) -> Made:
        """Outputs of `_gradients` in buffers.

        Args:
            which: the parameters whose gradients stand at the end, by position among all that it reads.
            waited: whether nothing else stands before.
        """
        first = 0 if waited else self._first
        own = {i: x for i, x in zip(which, outputs[first:], strict=True) if i < len(self.pieces)}
        places = self.params.places[self.index]
        loss = outputs[0] if self.is_last and not waited else None
        moved = [] if waited else list(outputs[int(self.is_last) : first])
        return Made(
            loss=loss,
            received=self.cotangents.put(self.index - 1, moved) if self.index and not waited else [],
            own=self.params.put(
                self.index,
                [
                    own[i] if i in own else jnp.zeros(place.shape, self._dtype(i))
                    for i, place in enumerate(places)
                ],
            )
            if own
            else [],
            shared={
                self.reads[i - len(self.pieces)]: x
                for i, x in zip(which, outputs[first:], strict=True)
                if i >= len(self.pieces)
            },
        )

    def _dtype(self, piece: int) -> Any:
        place = self.params.places[self.index][piece]
        return self.params.buffers[place.buffer].dtype

    def _own(self, given: Given) -> list[Any]:
        return self.params.take(self.index, given.params)

    def _received(self, given: Given) -> list[Any]:
        return self.messages.take(self.index - 1, given.received) if self.index else []

    def _run(self, own: Arrays, shared: Arrays, batch: Arrays, received: Arrays) -> list[Any]:
        """Its program, on its own and shared parameters, what it reads of the batch, and what it received."""
        mine = dict(zip(self.pieces, own, strict=True))
        common = dict(zip(self.reads, shared, strict=True))
        examples = dict(zip(self.batch, batch, strict=True))
        args = []
        for source in self.part.sources:
            if isinstance(source, Sent):
                args.append(received[source.place])
            elif isinstance(source, Batch):
                args.append(examples[source.position])
            elif source.param in self.shared:
                whole = common[source.param]
                args.append(whole if source.rows is None else lax.slice_in_dim(whole, *source.rows))
            else:
                args.append(mine[source])
        return evaluate(self.part.graph, args)


def _is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def inexact(avals: Sequence[Any]) -> list[Any]:
    """Those that have cotangents."""
    return [aval for aval in avals if _is_inexact(aval)]


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
