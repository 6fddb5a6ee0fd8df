"""A pipeline for arguments of known shapes: its stages, their buffers, and the program that runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lepton_jax.ir.cost import aval_bytes
from lepton_jax.parallel.pipeline import slots
from lepton_jax.parallel.pipeline.chunk import Chunk, inexact
from lepton_jax.parallel.pipeline.packing import Packing
from lepton_jax.parallel.pipeline.parts import Part, Piece
from lepton_jax.parallel.pipeline.program import Program
from lepton_jax.parallel.pipeline.schedules import Schedule
from lepton_jax.parallel.pipeline.stages import Stages

Packed = dict[str, list[Any]]
"""Parameters as the devices hold them: `own` in buffers `[devices, chunks of a device, …]`, split along the
first dimension; `shared` on all of them."""


@dataclass(frozen=True)
class Place:
    """Where a pipeline stands.

    Attributes:
        mesh: all of whose axes are left to the compiler but those named here.
        axis: along which stages stand.
        data: the axes that split the batch.
        shards: into how many parts.
    """

    mesh: Mesh | AbstractMesh
    axis: str
    data: tuple[str, ...]
    shards: int


class PackedPipeline:
    """A pipeline for arguments of known shapes, whose parameters lie where the stages are.

    `pack` and `unpack` go between trees of parameters and these buffers. Optimisers that work element by
    element work on the buffers as on any tree.

    Attributes:
        stages: how the program is cut.
        schedule: which device does what when.
        chunks: what the stages do, on buffers.
    """

    def __init__(
        self, stages: Stages, schedule: Schedule, place: Place, tree: Any, leaves: Sequence[Any]
    ) -> None:
        self.stages, self.schedule = stages, schedule
        self._place, self._tree, self._leaves = place, tree, tuple(leaves)
        self._shared = tuple(stages.shared)
        parts = [stage.part for stage in stages.stages]
        self._params = Packing([_own_avals(part, stages.shared) for part in parts])
        shared = {i: self._leaves[i] for i in self._shared}
        messages = Packing(stages.boundaries)
        cotangents = Packing([inexact(avals) for avals in stages.boundaries])
        self.chunks = tuple(
            Chunk(i, i == len(parts) - 1, part, shared, self._params, messages, cotangents)
            for i, part in enumerate(parts)
        )
        waits = [chunk.halves.kept if schedule.splits else () for chunk in self.chunks]
        self._kept = Packing(waits)

    @property
    def held_bytes(self) -> int:
        """Bytes on each device, predicted: parameters, gradients, and places for what waits between tasks."""
        shared = sum(aval_bytes(self._leaves[i]) for i in self._shared)
        first = self.chunks[0]
        waiting = (slots.activations(self.schedule).count + 1) * first.messages.bytes
        waiting += (slots.kept(self.schedule).count + 1) * self._kept.bytes
        waiting += (slots.cotangents(self.schedule).count + 1) * first.cotangents.bytes
        return 2 * (self.schedule.virtual * self._params.bytes + shared) + waiting

    def shardings(self) -> dict[str, Any]:
        """The shardings of what `pack` returns: for `jax.jit`, `jax.device_put` and checkpoints."""
        own = NamedSharding(self._place.mesh, P(self._place.axis))
        return {
            "own": [own] * len(self._params.buffers),
            "shared": [NamedSharding(own.mesh, P())] * len(self._shared),
        }

    def pack(self, params: Any) -> Packed:
        """A tree of parameters in buffers.

        Parameters of loops over layers that are cut evenly are reshaped, others are copied.
        """
        leaves = jax.tree.leaves(params)
        chunks = [
            chunk.params.put(chunk.index, [_piece(leaves, piece) for piece in chunk.pieces])
            for chunk in self.chunks
        ]
        devices, virtual = self.schedule.stages, self.schedule.virtual
        own = []
        for index, each in enumerate(zip(*chunks, strict=True)):
            param = self._rows_of(index)
            stacked = jnp.stack(each) if param is None else leaves[param]
            own.append(jnp.swapaxes(stacked.reshape(virtual, devices, *each[0].shape), 0, 1))
        return {"own": own, "shared": [leaves[i] for i in self._shared]}

    def unpack(self, packed: Packed) -> Any:
        """The tree of what lies in buffers: parameters, gradients, or an optimiser's state of them."""
        whole: dict[int, Any] = dict(zip(self._shared, packed["shared"], strict=True))
        rows: dict[int, list[tuple[int, Any]]] = {}
        for index, buffer in enumerate(packed["own"]):
            param = self._rows_of(index)
            if param is not None:
                whole[param] = jnp.swapaxes(buffer, 0, 1).reshape(self._leaves[param].shape)
        for chunk in self.chunks:
            layer, device = divmod(chunk.index, self.schedule.stages)
            own = chunk.params.take(chunk.index, [x[device, layer] for x in packed["own"]])
            for piece, x in zip(chunk.pieces, own, strict=True):
                if piece.param in whole and piece.rows is not None:
                    continue
                if piece.rows is None:
                    whole[piece.param] = x
                else:
                    rows.setdefault(piece.param, []).append((piece.rows[0], x))
        for param, each in rows.items():
            whole[param] = jnp.concatenate([x for _, x in sorted(each, key=lambda pair: pair[0])])
        found = [whole[i] if i in whole else jnp.zeros(x.shape, x.dtype) for i, x in enumerate(self._leaves)]
        return jax.tree.unflatten(self._tree, found)

    def _rows_of(self, buffer: int) -> int | None:
        """The parameter whose rows lie in a buffer, in order and all of them; None if it is not so."""
        found: list[Piece] = []
        for chunk in self.chunks:
            places = self._params.places[chunk.index]
            found += [
                piece
                for piece, place in zip(chunk.pieces, places, strict=True)
                if place.buffer == buffer and place.offset is None
            ]
        if len(found) < len(self.chunks) or found[0].rows is None:
            return None
        param, count = found[0].param, found[0].rows[1]
        wanted = [Piece(param, (i * count, (i + 1) * count)) for i in range(len(self.chunks))]
        return param if found == wanted else None

    def __call__(self, packed: Packed, *batch: Any) -> tuple[Any, Packed]:
        """The loss, and its gradients as they lie in buffers. To be compiled by `jax.jit`."""
        loss, grads = self.run(self.schedule, packed, batch)
        assert grads is not None
        return loss, grads

    def run(self, schedule: Schedule, packed: Packed, batch: Sequence[Any]) -> tuple[Any, Packed | None]:
        """The loss, and gradients if the schedule goes backward."""
        kept = self._kept if schedule.splits else Packing([])
        program = Program(self.chunks, schedule, self._place.axis, kept)
        place, microbatches = self._place, schedule.microbatches
        examples = {len(self._leaves) + i: x for i, x in enumerate(jax.tree.leaves(batch))}

        def on_device(own: list[Any], shared: list[Any], examples: Mapping[int, Any]) -> Any:
            small = {
                i: x.reshape(microbatches, -1, *x.shape[1:])
                if x.ndim
                else jnp.broadcast_to(x, (microbatches,))
                for i, x in examples.items()
            }
            known = dict(zip(self._shared, shared, strict=True))
            loss, grads, shared_grads = program.run([x[0] for x in own], known, small)
            ours = [shared_grads[i] for i in self._shared] if program.trains else []
            loss, ours = jax.tree.map(lambda x: _mean(x, place, place.axis), (loss, ours))
            return loss, [_mean(x, place)[None] for x in grads], ours

        mapped = jax.shard_map(
            on_device,
            mesh=place.mesh,
            in_specs=(
                P(place.axis),
                P(),
                {i: P(place.data or None) if jnp.ndim(x) else P() for i, x in examples.items()},
            ),
            out_specs=(P(), P(place.axis), P()),
            axis_names={place.axis, *place.data},
            check_vma=False,
        )
        loss, own, shared = mapped(packed["own"], packed["shared"], examples)
        return loss, {"own": own, "shared": shared} if program.trains else None


def _mean(x: Any, place: Place, *summed: str) -> Any:
    """The sum over some axes of the mean over the data axes."""
    axes = (*summed, *place.data)
    return jax.lax.psum(x, axes) / place.shards if axes else x


def _own_avals(part: Part, shared: Mapping[int, Any]) -> list[Any]:
    """The parts of parameters that a stage alone reads."""
    pairs = zip(part.sources, part.graph.inputs, strict=True)
    return [v.aval for source, v in pairs if isinstance(source, Piece) and source.param not in shared]


def _piece(leaves: Sequence[Any], piece: Piece) -> Any:
    whole = leaves[piece.param]
    return whole if piece.rows is None else jax.lax.slice_in_dim(whole, *piece.rows)
