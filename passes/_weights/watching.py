"""What calibration is to see at a use of a weight, and what it has seen there."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

import jax
import jax.numpy as jnp

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.ir.shards import shard_maps_around
from lepton_jax.numerics._seen import seen_by
from lepton_jax.passes._weights.iterations import over_iterations, same_in_loops
from lepton_jax.passes._weights.lifting import (
    depth,
    found_by_calibration,
    in_branch,
    lift_states,
    top,
)
from lepton_jax.passes._weights.uses import WeightUse
from lepton_jax.rewrite import PassContext, Watch, rewrite
from lepton_jax.rewrite.replacement import Rewrite, write_before

_RULE: Final = "observed-value"


LooksAt = Literal["input", "whole input", "weight"]


class Watcher(ABC):
    """What calibration looks at, and what it makes of it. Derived classes are frozen dataclasses.

    Attributes:
        looks_at: `input`: what the weight is combined with; `whole input`: the array that this is a regular
            part of; `weight`: the weight itself, whose kind begins with `weight-`.
    """

    looks_at: ClassVar[LooksAt] = "input"

    @property
    @abstractmethod
    def kind(self) -> str:
        """A name for what is seen; a site has one watcher of a kind."""

    @abstractmethod
    def see(self, x: jax.Array) -> Any:
        """The state after one array: a tree of arrays."""

    @abstractmethod
    def merge(self, left: Any, right: Any) -> Any:
        """The state after both."""

    @abstractmethod
    def check(self, state: Any, name: str) -> None:
        """Raise ValueError where nothing was seen, or what was seen is not finite."""

    @abstractmethod
    def result(self, state: Any) -> tuple[jax.Array, ...]:
        """What the pass is handed."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """The state of a branch that is not taken, for arrays of this shape."""
        raise NotImplementedError

    def saw(self, state: Any) -> bool:
        """Whether all of what was to be seen in a branch was seen at least once."""
        raise NotImplementedError


Known = dict[tuple[Value, Watcher, tuple[str, ...], tuple[bool, ...]], list[Value]]
"""What calibration is to see, or has seen, of values: asked once, however many products read a value."""


def _same(use: WeightUse) -> tuple[bool, ...]:
    """The loops in which a weight is the same in all iterations, as in one over time: seen there as one."""
    graph = use.node.graph
    assert graph is not None
    return () if shard_maps_around(graph) else same_in_loops(use.weight, graph)


def observe(use: WeightUse, watchers: Sequence[Watcher], known: Known, ctx: PassContext) -> str | None:
    """Let calibration see what a use of a weight reads; or why it cannot."""
    graph = use.node.graph
    assert graph is not None and ctx.watches is not None
    loops, branch = _depth(graph, watchers), in_branch(graph)
    if isinstance(loops, str):
        return loops
    same = _same(use)
    for watcher in watchers:
        value = _seen_value(use, watcher)
        if (value, watcher, use.axes, same) in known:
            continue
        states = write_before(rewrite(_see, value, watcher=watcher), use.node, _RULE)
        known[value, watcher, use.axes, same] = states
        aval = jax.ShapeDtypeStruct(value.shape, value.dtype)
        tree = jax.tree.structure(jax.eval_shape(watcher.see, aval))
        whole = top(graph)
        untaken = functools.partial(_untaken, watcher, value.shape)
        lifted = lift_states(states, graph, untaken, watcher.merge, tree, use.axes)
        if any(same):
            lifted = over_iterations(lifted, watcher.merge, tree, same)
        whole.set_outputs([*whole.outputs, *lifted])
        saw = watcher.saw if branch else None
        kept = loops - sum(same)
        ctx.watches.append(Watch(use.name, watcher.kind, watcher, tree, len(states), kept, saw))
    return None


def _depth(graph: Graph, watchers: Sequence[Watcher]) -> int | str:
    """How many loops a site stands in, or why it cannot be seen: what a weight starts from is no sum."""
    loops = depth(graph, shards=True)
    if isinstance(loops, int) and in_branch(graph) and any(w.looks_at == "weight" for w in watchers):
        return "it is in a cond"
    return loops


def _untaken(watcher: Watcher, shape: tuple[int, ...], place: int, state: Value) -> Rewrite:
    """What a branch that is not taken has seen."""
    return rewrite(_nothing, watcher=watcher, shape=shape, place=place, full=state.shape)


def _nothing(*, watcher: Watcher, shape: tuple[int, ...], place: int, full: tuple[int, ...]) -> jax.Array:
    return jnp.broadcast_to(jax.tree.leaves(watcher.empty(shape))[place], full)


def saw_all(state: Any) -> bool:
    """Whether each place of an observer's state has seen a number."""
    counts = seen_by(state)
    return bool((counts.finite + counts.nan + counts.infinite > 0).all())


def _seen_value(use: WeightUse, watcher: Watcher) -> Value:
    """What a watcher looks at: the weight, or what it is combined with."""
    if watcher.looks_at == "weight":
        return use.weight
    return _whole(use.other) if watcher.looks_at == "whole input" else use.other


def _whole(value: Value) -> Value:
    """The array of which a value is every second element or the like: both are quantised by one range."""
    node = value.node
    if node is None or node.op != "slice" or node.params["strides"] is None:
        return value
    whole = node.operands[0]
    limits, strides = node.params["limit_indices"], node.params["strides"]
    steps = zip(whole.shape, limits, strides, strict=True)
    covers = all(limit + stride > size for size, limit, stride in steps) and not any(
        node.params["start_indices"]
    )
    return whole if covers else value


def _see(x: jax.Array, *, watcher: Watcher) -> list[Any]:
    return jax.tree.leaves(watcher.see(x))


def seen(use: WeightUse, watchers: Sequence[Watcher], known: Known, ctx: PassContext) -> list[Value] | str:
    """What calibration saw at a use of a weight, as values there; or why there is nothing."""
    graph = use.node.graph
    assert graph is not None
    reason = _depth(graph, watchers) if watchers else 0
    if isinstance(reason, str):
        return reason
    same = _same(use) if watchers else ()
    for watcher in watchers:
        value = _seen_value(use, watcher)
        if (value, watcher, use.axes, same) in known:
            continue
        if (use.name, watcher.kind) not in ctx.calibration:
            never = in_branch(graph)
            return (
                "calibration never took its branch"
                if never
                else f"calibration did not see its {watcher.kind}"
            )
        arrays = found_by_calibration(use.name, watcher.kind, graph, ctx, use.axes, same)
        known[value, watcher, use.axes, same] = arrays
    keys = [(_seen_value(use, watcher), watcher, use.axes, same) for watcher in watchers]
    return [array for key in keys for array in known[key]]
