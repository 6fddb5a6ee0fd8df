"""The program that all devices run: one loop over the ticks of a schedule, which sends after each tick.

In each tick a device stores what has arrived, does its task, and sends what the task made to its neighbours.
A stage keeps of a microbatch what it received, in as many places as the schedule has live microbatches, and
computes the rest again when it goes backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.parallel.pipeline import slots
from lepton_jax.parallel.pipeline.chunk import Chunk, Given, Made
from lepton_jax.parallel.pipeline.packing import Packing
from lepton_jax.parallel.pipeline.schedules import Schedule, Task

_IDLE: Final = "idle"

Arrays = list[Any]
Branch = Callable[["_Tick"], "_Done"]


@dataclass
class _Tick:
    """What a device has when its task begins."""

    params: Sequence[Any]
    shared: Mapping[int, Any]
    batch: Mapping[int, Any]
    microbatch: Any
    layer: Any
    received: Arrays
    cotangents: Arrays
    kept: Arrays
    loss: Any
    grads: Arrays
    shared_grads: dict[int, Any]


@dataclass
class _Done:
    """What its task makes."""

    loss: Any
    grads: Arrays
    shared_grads: dict[int, Any]
    forward: Arrays
    backward: Arrays
    kept: Arrays


@dataclass(frozen=True)
class Program:
    """Runs a schedule on the devices of one axis of a mesh.

    Attributes:
        chunks: the stages.
        schedule: of forward tasks alone for the loss alone.
        axis: the axis of the mesh along which stages stand.
        kept: buffers of what the first half of the backward work keeps for the second.
    """

    chunks: tuple[Chunk, ...]
    schedule: Schedule
    axis: str
    kept: Packing

    @property
    def trains(self) -> bool:
        """Whether the schedule goes backward."""
        return any(task.work == "B" for task in self.schedule.when)

    def run(
        self, params: Sequence[Any], shared: Mapping[int, Any], batch: Mapping[int, Any]
    ) -> tuple[Any, Arrays, dict[int, Any]]:
        """What one device does, inside a `shard_map` over the axis.

        Args:
            params: buffers of its chunks' parameters, `[chunks, …]`.
            shared: parameters that several stages read, by position.
            batch: the microbatches, by position, `[microbatches, …]`.

        Returns:
            The mean of the microbatches' losses on the device that has the last chunk and 0 on others, the
            gradients of its parameters, and its part of those of shared ones.
        """
        first = self.chunks[0]
        forward, backward = slots.activations(self.schedule), slots.cotangents(self.schedule)
        waiting = slots.kept(self.schedule)
        branches, kinds = self._branches()
        places = [table for each in (forward, backward, waiting) for table in (each.store, each.use)]
        rows = (kinds, *self._which(), *places)
        device = lax.axis_index(self.axis) if self.schedule.stages > 1 else 0
        table = jnp.stack([jnp.asarray(row)[:, device] for row in rows], 1)
        (loss,) = jax.eval_shape(lambda: self._first_loss(params, shared, batch))
        trains = self.trains
        state = (
            first.messages.zeros(forward.count + 1),
            first.cotangents.zeros(backward.count + 1) if trains else [],
            self.kept.zeros(waiting.count + 1),
            first.messages.zeros(),
            first.cotangents.zeros() if trains else [],
            jnp.zeros(loss.shape, loss.dtype),
            [jnp.zeros_like(x) for x in params] if trains else [],
            {i: jnp.zeros_like(x) for i, x in shared.items()} if trains else {},
        )

        def tick(state: Any, row: Any) -> tuple[Any, None]:
            inbox, outbox, kept, arrived, returned, loss, grads, shared_grads = state
            kind, microbatch, layer, store, use, store_back, use_back, store_kept, use_kept = row
            inbox, outbox = _stored(inbox, arrived, store), _stored(outbox, returned, store_back)
            given = _Tick(
                params=params,
                shared=shared,
                batch=batch,
                microbatch=microbatch,
                layer=layer,
                received=_at(inbox, use),
                cotangents=_at(outbox, use_back),
                kept=_at(kept, use_kept),
                loss=loss,
                grads=grads,
                shared_grads=shared_grads,
            )
            done = _switch(kind, branches, given)
            kept = _stored(kept, done.kept, store_kept)
            sent = [self._shift(x, 1) for x in done.forward]
            back = [self._shift(x, -1) for x in done.backward]
            return (inbox, outbox, kept, sent, back, done.loss, done.grads, done.shared_grads), None

        (*_, total, grads, shared_grads), _ = lax.scan(tick, state, table)
        return total, grads, shared_grads

    def _first_loss(self, params: Sequence[Any], shared: Mapping[int, Any], batch: Mapping[int, Any]) -> Any:
        last = self.chunks[-1]
        own = [x[0] for x in params]
        received = last.messages.zeros()
        return last.forward(Given(own, shared, {i: x[0] for i, x in batch.items()}, received))

    def _shift(self, x: Any, step: int) -> Any:
        """What the neighbour sends; the ends are neighbours where a device has several chunks."""
        stages = self.schedule.stages
        if stages == 1:
            return x
        pairs = [(d, (d + step) % stages) for d in range(stages)]
        if self.schedule.virtual == 1:
            pairs = [(a, b) for a, b in pairs if b - a == step]
        return lax.ppermute(x, self.axis, pairs)

    def _which(self) -> tuple[Any, Any]:
        """The microbatch, and the chunk among those of its device, of each task."""
        shape = (len(self.schedule.table), self.schedule.stages)
        microbatch, layer = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for task, tick in self.schedule.when.items():
            device = task.chunk % self.schedule.stages
            microbatch[tick, device] = task.microbatch
            layer[tick, device] = task.chunk // self.schedule.stages
        return microbatch, layer

    def _branches(self) -> tuple[list[Branch], Any]:
        """The different tasks there are, and which one each task of the schedule is."""
        numbers: dict[Any, int] = {_IDLE: 0}
        branches: list[Branch] = [self._idle]
        kinds = np.zeros((len(self.schedule.table), self.schedule.stages), np.int32)
        for task, tick in self.schedule.when.items():
            chunk = self.chunks[task.chunk]
            if self._is_idle(task):
                continue
            key = (task.work, chunk.key)
            if key not in numbers:
                numbers[key] = len(branches)
                branches.append(self._branch(task, chunk))
            kinds[tick, task.chunk % self.schedule.stages] = numbers[key]
        return branches, kinds

    def _is_idle(self, task: Task) -> bool:
        """Whether there is nothing to do: the last loss comes with its gradients, the batch has none."""
        if not self.trains:
            return False
        if task.work == "F":
            return self.chunks[task.chunk].is_last
        return task.work == "W" and not self.chunks[task.chunk].halves.late

    def _branch(self, task: Task, chunk: Chunk) -> Branch:
        if task.work == "F":
            return lambda tick: self._forward(tick, chunk)
        if task.work == "W":
            return lambda tick: self._second_half(tick, chunk)
        return lambda tick: self._backward(tick, chunk)

    def _idle(self, tick: _Tick) -> _Done:
        """Nothing; what nobody reads is sent as it is."""
        return _Done(tick.loss, tick.grads, tick.shared_grads, tick.received, tick.cotangents, tick.kept)

    def _given(self, tick: _Tick) -> Given:
        return Given(
            params=_at(tick.params, tick.layer),
            shared=tick.shared,
            batch={i: _at([x], tick.microbatch)[0] for i, x in tick.batch.items()},
            received=tick.received,
        )

    def _forward(self, tick: _Tick, chunk: Chunk) -> _Done:
        made = chunk.forward(self._given(tick))
        done = self._idle(tick)
        if chunk.is_last:
            return replace(done, loss=tick.loss + self._share(made[0]))
        return replace(done, forward=made)

    def _backward(self, tick: _Tick, chunk: Chunk) -> _Done:
        given, cotangents = self._given(tick), tick.cotangents
        if chunk.is_last:
            cotangents = [self._share(jnp.ones(tick.loss.shape, tick.loss.dtype))]
        if self.schedule.splits:
            made, kept = chunk.first_half(given, cotangents, self.kept)
        else:
            made, kept = chunk.backward(given, cotangents), tick.kept
        done = replace(self._with(tick, made), kept=kept)
        return replace(done, loss=tick.loss + self._share(made.loss)) if chunk.is_last else done

    def _second_half(self, tick: _Tick, chunk: Chunk) -> _Done:
        return self._with(tick, chunk.second_half(self._given(tick), tick.kept, self.kept))

    def _with(self, tick: _Tick, made: Made) -> _Done:
        """Gradients added, and cotangents to be sent."""
        done = self._idle(tick)
        return replace(
            done,
            grads=[_add_at(total, x, tick.layer) for total, x in zip(tick.grads, made.own, strict=True)]
            if made.own
            else tick.grads,
            shared_grads={
                **tick.shared_grads,
                **{i: tick.shared_grads[i] + x for i, x in made.shared.items()},
            },
            backward=made.received or done.backward,
        )

    def _share(self, loss: Any) -> Any:
        """A microbatch's part of the mean."""
        return loss / self.schedule.microbatches


def _at(arrays: Sequence[Any], index: Any) -> Arrays:
    """A row of each."""
    return [
        x[0] if x.shape[0] == 1 else lax.dynamic_index_in_dim(x, index, 0, keepdims=False) for x in arrays
    ]


def _stored(buffers: Arrays, arrays: Arrays, index: Any) -> Arrays:
    """Arrays put in a row of each buffer."""
    pairs = zip(buffers, arrays, strict=True)
    return [lax.dynamic_update_index_in_dim(buffer, x, index, 0) for buffer, x in pairs]


def _add_at(total: Any, x: Any, index: Any) -> Any:
    """Add to a row."""
    if total.shape[0] == 1:
        return total + x[None]
    row = lax.dynamic_index_in_dim(total, index, 0, keepdims=False)
    return lax.dynamic_update_index_in_dim(total, row + x, index, 0)


def _switch(kind: Any, branches: Sequence[Branch], tick: _Tick) -> _Done:
    """Do the task of a kind."""

    def flat(branch: Branch) -> Callable[..., Any]:
        def run(moving: Any, where: Any) -> Any:
            received, cotangents, kept, loss, grads, shared_grads = moving
            done = branch(
                replace(
                    tick,
                    microbatch=where[0],
                    layer=where[1],
                    received=received,
                    cotangents=cotangents,
                    kept=kept,
                    loss=loss,
                    grads=grads,
                    shared_grads=shared_grads,
                )
            )
            return done.loss, done.grads, done.shared_grads, done.forward, done.backward, done.kept

        return run

    moving = (tick.received, tick.cotangents, tick.kept, tick.loss, tick.grads, tick.shared_grads)
    where = (tick.microbatch, tick.layer)
    return _Done(*lax.switch(kind, [flat(branch) for branch in branches], moving, where))
