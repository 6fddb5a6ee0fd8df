"""What calibration is to see at a use of a weight."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

import jax
import jax.numpy as jnp

from lepton_jax.ir.graph import Graph, Value
from lepton_jax.numerics._seen import seen_by
from lepton_jax.numerics.hessian import (
    Hessian,
    empty_hessian,
    merge_hessians,
    update_conv_hessian,
    update_hessian,
)
from lepton_jax.numerics.learned import LEARNED
from lepton_jax.numerics.observers import Moments, Observer, Sums, check
from lepton_jax.numerics.quantize import Scheme
from lepton_jax.passes.quantize._quantize.learned import InputStart, WeightStart
from lepton_jax.passes.quantize._quantize.lifting import depth, in_branch, lift, lower
from lepton_jax.passes.quantize._quantize.means import MeanSeen
from lepton_jax.passes.quantize._quantize.sites import WeightUse
from lepton_jax.rewrite import PassContext, Watch, rewrite
from lepton_jax.rewrite.replacement import Rewrite, write_before

_RULE: Final = "observed-value"

_Array = TypeVar("_Array")


@dataclass(frozen=True)
class RangeSeen:
    """The range of activations, for a scale of all of them.

    Attributes:
        observer: how it is found.
        scheme: what they will be rounded to.
    """

    observer: Observer
    scheme: Scheme
    kind: ClassVar[str] = "range"

    def see(self, x: jax.Array) -> Any:
        """The state after one array."""
        return self.observer.update(self.observer.init(x.shape), x)

    def merge(self, left: Any, right: Any) -> Any:
        """The state after both."""
        return self.observer.merge(left, right)

    def check(self, state: Any, name: str) -> None:
        """Raise where nothing was seen, or what was seen is not finite."""
        check(state, name)

    def result(self, state: Any) -> tuple[jax.Array, ...]:
        """The ends of the range."""
        return self.observer.range(state, self.scheme)


@dataclass(frozen=True)
class ChannelsSeen:
    """How large the inputs of a product are, for each input channel.

    Attributes:
        axis: of the channels.
    """

    axis: int
    kind: ClassVar[str] = "channels"

    def see(self, x: jax.Array) -> Any:
        """The state after one array."""
        observer = Moments(axes=(self.axis,))
        return observer.update(observer.init(x.shape), x)

    def merge(self, left: Any, right: Any) -> Any:
        """The state after both."""
        return Moments(axes=(self.axis,)).merge(left, right)

    def check(self, state: Any, name: str) -> None:
        """Raise where nothing was seen, or what was seen is not finite."""
        check(state, name)

    def result(self, state: Sums) -> tuple[jax.Array, ...]:
        """The greatest magnitudes, the mean ones, and the mean squares."""
        return state.largest, state.magnitude, state.second


@dataclass(frozen=True)
class HessianSeen:
    """The second moments of the inputs of a product or convolution.

    Attributes:
        axes: contracted axes of the input, in the order of the weight's.
        batch: its batch axes.
        size: the number of contracted elements.
        batches: the sizes of the batch axes, or the number of groups of a convolution.
        convolution: the kernel's shape and the parameters, of a convolution.
    """

    axes: tuple[int, ...]
    batch: tuple[int, ...]
    size: int
    batches: tuple[int, ...]
    convolution: tuple[tuple[int, ...], tuple[tuple[str, Any], ...]] | None = None
    kind: ClassVar[str] = "hessian"

    def see(self, x: jax.Array) -> Hessian:
        """The state after one array."""
        empty = empty_hessian(self.size, self.batches)
        if self.convolution is None:
            return update_hessian(empty, x, axes=self.axes, batch=self.batch)
        shape, params = self.convolution
        return update_conv_hessian(empty, x, shape, **dict(params))

    def merge(self, left: Hessian, right: Hessian) -> Hessian:
        """The state after both."""
        return merge_hessians(left, right)

    def check(self, state: Hessian, name: str) -> None:
        """Raise where nothing was seen, or what was seen is not finite."""
        if bad := float(state.nonfinite.sum()):
            raise ValueError(f"{name}: calibration saw {bad:.0f} inputs with NaN or infinities")
        if not float(state.rows.sum()):
            raise ValueError(f"{name}: calibration saw no input; give it batches that reach this place")

    def result(self, state: Hessian) -> tuple[jax.Array, ...]:
        """The matrix of second moments."""
        return (state.matrix,)


Watcher = RangeSeen | ChannelsSeen | HessianSeen | MeanSeen | WeightStart | InputStart


Known = dict[tuple[Value, Watcher], list[Value]]
"""What calibration is to see, or has seen, of values: asked once, however many products read a value."""


def observe(use: WeightUse, watchers: Sequence[Watcher], known: Known, ctx: PassContext) -> str | None:
    """Let calibration see what a use of a weight reads; or why it cannot."""
    graph = use.node.graph
    assert graph is not None and ctx.watches is not None
    loops, branch = _depth(graph, watchers), in_branch(graph)
    if isinstance(loops, str):
        return loops
    for watcher in watchers:
        value = _seen_value(use, watcher)
        if (value, watcher) in known:
            continue
        states = write_before(rewrite(_see, value, watcher=watcher), use.node, _RULE)
        known[value, watcher] = states
        aval = jax.ShapeDtypeStruct(value.shape, value.dtype)
        tree = jax.tree.structure(jax.eval_shape(watcher.see, aval))
        top = _top(graph)
        lifted = [
            lift(state, graph, functools.partial(_untaken, watcher, value.shape, i))
            for i, state in enumerate(states)
        ]
        top.set_outputs([*top.outputs, *lifted])
        saw = functools.partial(_saw, watcher) if branch else None
        ctx.watches.append(Watch(use.name, watcher.kind, watcher, tree, len(states), loops, saw))
    return None


def _depth(graph: Graph, watchers: Sequence[Watcher]) -> int | str:
    """How many loops a site stands in, or why it cannot be seen: what a weight starts from is no sum."""
    loops = depth(graph)
    if isinstance(loops, int) and in_branch(graph) and any(isinstance(w, WeightStart) for w in watchers):
        return "it is in a cond"
    return loops


def _untaken(watcher: Watcher, shape: tuple[int, ...], place: int, state: Value) -> Rewrite:
    """What a branch that is not taken has seen."""
    return rewrite(_nothing, watcher=watcher, shape=shape, place=place, full=state.shape)


def _nothing(*, watcher: Watcher, shape: tuple[int, ...], place: int, full: tuple[int, ...]) -> jax.Array:
    if isinstance(watcher, HessianSeen):
        state: Any = empty_hessian(watcher.size, watcher.batches)
    elif isinstance(watcher, ChannelsSeen):
        state = Moments(axes=(watcher.axis,)).init(shape)
    elif isinstance(watcher, MeanSeen):
        state = watcher.see(jnp.zeros(tuple(n if i in watcher.axes else 0 for i, n in enumerate(shape))))
    else:
        assert not isinstance(watcher, WeightStart)
        state = watcher.observer.init(shape)
    return jnp.broadcast_to(jax.tree.leaves(state)[place], full)


def _saw(watcher: Watcher, state: Any) -> bool:
    """Whether all of what was to be seen in a branch was seen at least once."""
    if isinstance(state, Hessian):
        return bool((state.rows > 0).all())
    if isinstance(watcher, MeanSeen):
        return bool((state["count"] > 0).all())
    counts = seen_by(state)
    return bool((counts.finite + counts.nan + counts.infinite > 0).all())


def _seen_value(use: WeightUse, watcher: Watcher) -> Value:
    """What a watcher looks at: the weight, or what it is combined with."""
    if isinstance(watcher, WeightStart):
        return use.weight
    return _whole(use.other) if isinstance(watcher, RangeSeen | InputStart) else use.other


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


def _top(graph: Graph) -> Graph:
    while graph.parents:
        inner = graph.parents[0].graph
        assert inner is not None
        graph = inner
    return graph


COUNTS: Final = {"range": 2, "channels": 3, "hessian": 1, **LEARNED}
"""How many arrays calibration makes of what it saw, by the kind."""


def by_kind(arrays: tuple[_Array, ...], kinds: tuple[str, ...]) -> dict[str, tuple[_Array, ...]]:
    """What calibration saw, put together by kind."""
    rest = iter(arrays)
    return {kind: tuple(itertools.islice(rest, COUNTS[kind])) for kind in kinds}


def seen(use: WeightUse, watchers: Sequence[Watcher], known: Known, ctx: PassContext) -> list[Value] | str:
    """What calibration saw at a use of a weight, as values there; or why there is nothing."""
    graph = use.node.graph
    assert graph is not None
    reason = _depth(graph, watchers) if watchers else 0
    if isinstance(reason, str):
        return reason
    for watcher in watchers:
        value = _seen_value(use, watcher)
        if (value, watcher) in known:
            continue
        arrays = ctx.calibration.get((use.name, watcher.kind))
        if arrays is None:
            never = in_branch(graph)
            return (
                "calibration never took its branch"
                if never
                else f"calibration did not see its {watcher.kind}"
            )
        path = f"calibration/{use.name}/{watcher.kind}"
        found = [lower(array, f"{path}/{i}", graph, ctx) for i, array in enumerate(arrays)]
        known[value, watcher] = found
    return [array for watcher in watchers for array in known[_seen_value(use, watcher), watcher]]
