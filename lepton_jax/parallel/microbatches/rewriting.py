"""Writing a program as a loop over parts of its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _jax, export
from lepton_jax.ir.cutting.cut import where
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.ir.importer import copy_equations, struct_of
from lepton_jax.ir.regions import erase_dead_nodes
from lepton_jax.parallel.microbatches.evaluating import Env, Round
from lepton_jax.parallel.microbatches.flow import Flow
from lepton_jax.parallel.microbatches.numbered import tie_numbered_rows
from lepton_jax.parallel.microbatches.pieces import joined, parted
from lepton_jax.parallel.microbatches.states import Late, MicrobatchError, Part, Split, Sum
from lepton_jax.parallel.microbatches.sums import accumulated

SCOPE: Final = "microbatches"
"""The name of the loop in the name stack, by which it is known again."""


def in_parts(graph: Graph, batch: Mapping[Value, Part], count: int, lanes: int = 1) -> None:
    """Rewrite a program as a loop over `count` parts of its batch.

    Args:
        graph: with plain calls inlined (`inline_calls`), all shapes known; it is changed, unless this raises.
        batch: of those inputs that are the batch, the dimension of the examples.
        count: how many parts.
        lanes: how many shares of each sum are kept apart until the loop ends: as many as devices split the
            batch, which then add up once. It divides `outer` of every part.

    Raises:
        MicrobatchError: an operation needs more than its part of the batch; or nothing adds up or returns
            what depends on the batch.
    """
    tie_numbered_rows(graph)
    for inner in graph.graphs():
        erase_dead_nodes(inner)
    flow = Flow(graph, batch, Split(count))
    sums = accumulated(flow)
    outputs = [v for v in dict.fromkeys(graph.outputs) if isinstance(flow.of(v), Part)]
    if not sums and not outputs:
        raise MicrobatchError(f"nothing that {graph.name} returns depends on its batch")
    for node in graph:
        if node.effects and any(isinstance(flow.of(v), Part) for v in node.operands):
            raise MicrobatchError(
                f"{node.op} has an effect for all examples at once ({where(node)}): the program cannot be "
                "computed in parts of its batch"
            )
    writer = _Writer(graph, flow, batch, sums, outputs, count, lanes)
    traced = _jax.trace_flat(writer.run, list(map(struct_of, graph.inputs)))
    old = list(graph)
    graph.set_outputs(copy_equations(traced, graph.inputs, graph, graph.ret, {}))
    for node in reversed(old):
        graph.erase(node)
    erase_dead_nodes(graph)


class _Writer:
    def __init__(
        self,
        graph: Graph,
        flow: Flow,
        batch: Mapping[Value, Part],
        sums: Sequence[Value],
        outputs: Sequence[Value],
        count: int,
        lanes: int,
    ) -> None:
        self.graph, self.flow, self.batch, self.sums, self.outputs = graph, flow, batch, sums, outputs
        self.count, self.lanes = count, lanes

    def run(self, *args: Any) -> list[Any]:
        """The program in parts."""
        env: Env = dict(zip(self.graph.inputs, args, strict=True))
        self._before(env)
        with jax.named_scope(SCOPE):
            totals, stacked = self._loop(env)
            env.update(zip(self.sums, totals, strict=True))
        for value, rows in zip(self.outputs, stacked, strict=True):
            state = self.flow.of(value)
            assert isinstance(state, Part)
            env[value] = joined(rows, state, self.count)
        self._after(env)
        return [value.const if value.is_const else env[value] for value in self.graph.outputs]

    def _before(self, env: Env) -> None:
        """What does not depend on the batch, and sums over it that are computed whole."""
        reader = Round(self.flow, self.lanes, None)
        early = self.flow.early
        with _jax.Placement() as placement:
            for node in self.graph:
                if any(value in early for value in node.results):
                    inner: Env = dict(env)
                    for value in node.results:
                        env[value] = reader.computed(value, inner)
                elif self._is_free(node):
                    _bind(node, env, placement)

    def _is_free(self, node: Node) -> bool:
        if any(self.flow.of(value) is not None for value in (*node.operands, *node.results)):
            return False
        return bool(node.results) or not any(self._waits(value) for value in node.operands)

    def _waits(self, value: Value) -> bool:
        return self.flow.of(value) is not None

    def _loop(self, env: Env) -> tuple[list[Any], list[Any]]:
        inputs = [value for value in self.graph.inputs if value in self.batch]
        pieces = [parted(env[value], self.batch[value], self.count) for value in inputs]

        def step(totals: list[Any], xs: tuple[Any, list[Any]]) -> tuple[list[Any], list[Any]]:
            index, own = xs
            inner = {**env, **dict(zip(inputs, own, strict=True))}
            now = Round(self.flow, self.lanes, index)
            now.run(self.graph, inner)
            added = [
                _add(total, inner[value], self._how(value))
                for total, value in zip(totals, self.sums, strict=True)
            ]
            return added, [inner[value] for value in self.outputs]

        start = [self._start(value) for value in self.sums]
        numbers = np.arange(self.count, dtype=np.int32)
        totals, stacked = jax.lax.scan(step, start, (numbers, pieces))
        return [self._finished(v, total) for v, total in zip(self.sums, totals, strict=True)], stacked

    def _how(self, value: Value) -> str:
        state = self.flow.of(value)
        assert isinstance(state, Sum)
        return state.how

    def _start(self, value: Value) -> Any:
        shape = (self.lanes, *value.shape) if self.lanes > 1 else value.shape
        return jnp.full(shape, _NEUTRAL[self._how(value)](value.dtype), _wide(value, self._how(value)))

    def _finished(self, value: Value, total: Any) -> Any:
        """A sum as the program has it: of all lanes, in its own type."""
        if self.lanes > 1:
            total = _REDUCED[self._how(value)](total, axis=0)
        return total.astype(value.dtype)

    def _after(self, env: Env) -> None:
        """What depends on finished sums."""
        with _jax.Placement() as placement:
            for node in self.graph:
                if any(value in env for value in node.results):
                    missing = [value for value in node.results if value not in env]
                    if not missing:
                        continue
                if all(value.is_const or value in env for value in node.operands) and self._is_late(node):
                    _bind(node, env, placement)

    def _is_late(self, node: Node) -> bool:
        if not node.results:
            return any(self._waits(value) for value in node.operands)
        return any(isinstance(self.flow.of(value), (Late, Sum)) for value in node.results) and not any(
            isinstance(self.flow.of(value), Part) for value in node.operands
        )


def _bind(node: Node, env: Env, placement: _jax.Placement) -> None:
    read = [value.const if value.is_const else env[value] for value in node.operands]
    with placement.at(node.source, node.context):
        results = export.bind(node, read)
    env.update(zip(node.results, results, strict=True))


def _wide(value: Value, how: str) -> Any:
    """The type in which a sum is kept: float32 of the types that are narrower."""
    dtype = value.dtype
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype("float32") if narrow and how in ("add", "mul") else dtype


def _add(total: Any, share: Any, how: str) -> Any:
    return _JOINED[how](total, share.astype(total.dtype))


_JOINED: Final[Mapping[str, Any]] = {
    "add": jax.lax.add,
    "mul": jax.lax.mul,
    "max": jax.lax.max,
    "min": jax.lax.min,
    "and": jax.lax.bitwise_and,
    "or": jax.lax.bitwise_or,
}
_REDUCED: Final[Mapping[str, Any]] = {
    "add": jnp.sum,
    "mul": jnp.prod,
    "max": jnp.max,
    "min": jnp.min,
    "and": jnp.all,
    "or": jnp.any,
}


def _lowest(dtype: Any) -> Any:
    if dtype == jnp.bool_:
        return False
    return -np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    if dtype == jnp.bool_:
        return True
    return np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max


_NEUTRAL: Final[Mapping[str, Any]] = {
    "add": lambda dtype: 0,
    "mul": lambda dtype: 1,
    "max": _lowest,
    "min": _highest,
    "and": lambda dtype: True if dtype == jnp.bool_ else -1,
    "or": lambda dtype: False if dtype == jnp.bool_ else 0,
}
