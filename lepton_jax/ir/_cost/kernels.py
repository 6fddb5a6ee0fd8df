"""What a whole program takes: its operations put together to the kernels that XLA makes of them.

XLA computes elementwise operations, views and parts in one loop with what reads them, so that only what is
read by products, sorts and the like goes through memory. On a CPU a loop in which nothing but such kernels
runs becomes one kernel itself: a round of it takes nanoseconds. `docs/targets.md` has the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from lepton_jax.ir._cost.chances import rounds_of, shares
from lepton_jax.ir._cost.leaves import leaf_cost
from lepton_jax.ir._cost.model import Rates
from lepton_jax.ir._cost.sizes import size_of
from lepton_jax.ir._cost.steps import (
    REDUCTIONS,
    Array,
    Step,
    read_by,
    steps_of,
    written_by,
)
from lepton_jax.ir.graph import Graph, Node

_MOST_COPIES: Final = 8
_CHEAP: Final = 4.0
"""What takes less than so many additions an element is computed anew in each kernel that reads it."""

# Additions an element on a CPU, where XLA's kernels are slower than other machines would have it.
_ON_CPU: Final[Mapping[str, float]] = {
    **dict.fromkeys(("pow",), 70.0),
    **dict.fromkeys(("sin", "cos", "tan"), 35.0),
    **dict.fromkeys(("random_bits", "threefry2x32"), 100.0),
    **dict.fromkeys(("argmax", "argmin"), 80.0),
    **dict.fromkeys(("cumsum", "cumprod"), 100.0),
    **dict.fromkeys(("cummax", "cummin"), 180.0),
    "cumlogsumexp": 300.0,
}
_SCATTERED: Final = 8.0
_CONVOLVED: Final = 0.6
"""The rate of convolutions on a CPU, in that of products."""
_FULL_CONVOLUTION: Final = 4608
"""Weights in a group from which convolutions on a CPU have their full rate: 3×3 taps, 16 channels to 32."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """What running something takes.

    Attributes:
        alone: as kernels that are started one after the other.
        compiled: as part of a loop that is compiled to one kernel; None where it has to be started.
    """

    alone: float
    compiled: float | None


@dataclass(slots=True, eq=False)
class _Kernel:
    """What runs in one loop: the step whose result is written, and those computed with it."""

    root: Step
    steps: list[Step] = field(default_factory=list)


class Program:
    """Estimates graphs for one target; a region that several nodes share is estimated once."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._is_cpu = rates.platform == "cpu"
        launch = rates.seconds_per_fusion
        self._launch = rates.seconds_per_node if launch is None else launch
        self._known: dict[tuple[Graph, bool], Seconds] = {}

    def graph(self, graph: Graph, in_loop: bool = False) -> Seconds:
        """Estimated seconds of running a graph once."""
        key = graph, in_loop
        if key not in self._known:
            self._known[key] = _total(self._kernel(kernel, in_loop) for kernel in _kernels(steps_of(graph)))
        return self._known[key]

    def _kernel(self, kernel: _Kernel, in_loop: bool) -> Seconds:
        step = kernel.root
        if step.kind == "region":
            return self._regions(step, in_loop)
        if step.kind == "library":
            return Seconds(self._library(step, in_loop) + self._rates.seconds_per_node, None)
        read: dict[Array, float] = {}
        here = {array for each in kernel.steps for array in each.results if not array.is_output}
        for each in kernel.steps:
            for position, array in enumerate(each.reads):
                if array not in here:
                    read[array] = max(read.get(array, 0.0), read_by(each, position))
        moved = sum(map(self._moved, read.values())) + self._moved(written_by(step), fresh=not in_loop)
        busy = sum(self._flops(each) for each in kernel.steps) / self._rates.vector_flops
        if step.node.op == "dot_general":
            busy = self._products(step)
        took = max(busy, moved)
        return Seconds(took + self._launch, took)

    def _moved(self, amount: float, fresh: bool = False) -> float:
        """Seconds to read or write an array; large ones that are new have to be got from the system."""
        for size, rate in self._rates.caches:
            if amount <= size:
                return amount / rate
        new = self._rates.fresh_bytes_per_second
        return amount / (self._rates.bytes_per_second if new is None or not fresh else new)

    def _flops(self, step: Step) -> float:
        """Additions of a step in a kernel, in terms of elementwise ones."""
        op = step.node.op
        if op in ("broadcast_in_dim", "iota", "dot_general"):
            return 0.0
        if self._is_cpu and op.startswith("scatter"):
            return _SCATTERED * step.reads[-1].size
        if self._is_cpu and op in _ON_CPU:
            return _ON_CPU[op] * (step.reads[0].size if op in REDUCTIONS else step.results[0].size)
        return step.flops

    def _products(self, step: Step) -> float:
        default = self._rates.flops["float32"]
        by_dtype = leaf_cost(step.node).dot_flops
        return sum(flops / self._rates.flops.get(dtype, default) for dtype, flops in by_dtype)

    def _library(self, step: Step, in_loop: bool) -> float:
        node = step.node
        moved = sum(self._moved(array.bytes) for array in step.reads)
        moved += sum(self._moved(array.bytes, fresh=not in_loop) for array in step.results)
        products = self._products(step)
        if products and node.op == "conv_general_dilated" and self._is_cpu:
            products /= _CONVOLVED * min(1.0, _weights(node) / _FULL_CONVOLUTION)
        others = 0.0 if products else self._flops(step) * (0.5 if _is_real_transform(node) else 1.0)
        return max(products + others / self._rates.vector_flops, moved)

    def _regions(self, step: Step, in_loop: bool) -> Seconds:
        node = step.node
        is_loop = node.op in ("scan", "while")
        parts = [self.graph(region, in_loop or is_loop) for region in node.regions]
        if is_loop:
            return self._loop(step, _total(parts), in_loop)
        if node.op == "cond":
            found = _total(parts, shares(node))
        else:  # of a linear solve, the solver
            found = parts[2] if node.op == "custom_linear_solve" and len(parts) > 2 else parts[0]
        return Seconds(found.alone + self._launch, found.compiled)

    def _loop(self, step: Step, body: Seconds, in_loop: bool) -> Seconds:
        node, stacks = step.node, 0.0
        if node.op == "while":
            trips = rounds_of(node)
        else:
            trips, carried = float(size_of((node.params["length"],))), node.params["num_carry"]
            scanned = step.reads[node.params["num_consts"] + carried :]
            stacks = sum(self._moved(array.bytes) for array in scanned)
            stacks += sum(self._moved(array.bytes, fresh=not in_loop) for array in step.results[carried:])
        round_ = self._rates.seconds_per_compiled_iteration
        if round_ is None or body.compiled is None:
            took = trips * (body.alone + self._rates.seconds_per_iteration)
            return Seconds(took + stacks + self._launch, None)
        took = trips * (body.compiled + round_) + stacks
        return Seconds(took + self._launch, took)


def _kernels(steps: list[Step]) -> list[_Kernel]:
    """Which steps run together. Cheap ones that several kernels read run in each of them."""
    homes: dict[Step, set[_Kernel]] = {}
    kernels: list[_Kernel] = []
    for step in reversed(steps):
        users = [user for array in step.results for user in array.users if user in homes]
        is_output = any(array.is_output for array in step.results)
        if not users and not is_output and not step.node.effects:
            continue
        found: set[_Kernel] = set()
        if step.kind == "fused" and not is_output and all(u.kind in ("fused", "reduction") for u in users):
            found = set().union(*(homes[user] for user in users))
            weight = step.flops / max(step.results[0].size, 1)
            if len(found) > 1 and (weight >= _CHEAP or len(found) > _MOST_COPIES):
                found = set()
        if not found:
            kernels.append(_Kernel(step))
            found = {kernels[-1]}
        homes[step] = found
        for kernel in found:
            kernel.steps.append(step)
    return kernels


def _total(parts: Iterable[Seconds], weights: Iterable[float] | None = None) -> Seconds:
    """What several take together, each as often as its weight says."""
    parts = list(parts)
    times = [1.0] * len(parts) if weights is None else list(weights)
    alone = sum(time * part.alone for time, part in zip(times, parts, strict=True))
    if any(part.compiled is None for part in parts):
        return Seconds(alone, None)
    return Seconds(alone, sum(t * (part.compiled or 0.0) for t, part in zip(times, parts, strict=True)))


def _weights(node: Node) -> int:
    """Weights in a group of a convolution."""
    groups: int = node.params["feature_group_count"] * node.params["batch_group_count"]
    return max(size_of(node.operands[1].shape) // groups, 1)


def _is_real_transform(node: Node) -> bool:
    """Whether it is a Fourier transform from or to real numbers: half the work."""
    return node.op == "fft" and not all(
        np.issubdtype(value.dtype, np.complexfloating) for value in (node.operands[0], node.result)
    )
