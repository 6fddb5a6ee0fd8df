"""What passes on weights share: which uses they select, and values that leave regions and go into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.ir.export import evaluate
from lepton_jax.ir.graph import Graph, Node
from lepton_jax.ir.importer import from_jaxpr
from lepton_jax.numerics import Scheme
from lepton_jax.numerics.observers import MinMax
from lepton_jax.passes._weights import lifting
from lepton_jax.passes._weights.selecting import WeightPass
from lepton_jax.passes._weights.uses import weight_uses
from lepton_jax.passes._weights.watching import Known, observe, seen
from lepton_jax.passes.quantize._quantize.observing import RangeSeen
from lepton_jax.rewrite import PassContext, Pipeline, rewrite
from lepton_jax.targets import get_target
from tests.passes._quantize import done, floats, reasons

WS, X = floats(3, 4, 4), floats(2, 4)


def layers(ws: Any, x: Any) -> Any:
    """Two steps in each of three layers."""

    def layer(h: Any, w: Any) -> Any:
        return lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, None, length=2)[0], None

    return lax.scan(layer, x, ws)[0]


def graph_of(fun: Any, *args: Any) -> Graph:
    return from_jaxpr(jax.make_jaxpr(fun)(*args))


def first(graph: Graph, op: str) -> Node:
    return next(node for node in graph.walk() if node.op == op)


def region(node: Node) -> Graph:
    assert node.graph is not None
    return node.graph


def test_values_leave_loops_and_arrays_go_in() -> None:
    graph = graph_of(layers, WS, X)
    node = first(graph, "tanh")
    assert lifting.depth(region(node)) == 2 and lifting.loop_lengths(region(node)) == (3, 2)
    assert lifting.top(region(node)) is graph and not lifting.in_branch(region(node))
    given = floats(3, 2, 2, 4)
    ctx = PassContext(get_target("cpu"))
    node.set_operand(0, lifting.lower(given, "given", region(node), ctx))
    graph.set_outputs([*graph.outputs, lifting.lift(node.result, region(node))])
    assert ctx.params == {2} and ctx.paths == ("given",) and ctx.seen == [given]
    last, every = evaluate(graph, [WS, X, given])
    np.testing.assert_allclose(every, np.tanh(given), rtol=1e-6)
    np.testing.assert_array_equal(last, every[-1, -1])


def test_what_a_branch_gives_where_it_is_not_taken() -> None:
    def branched(x: Any) -> Any:
        return jax.checkpoint(lambda x: lax.cond(x[0] > 0, jnp.exp, jnp.tanh, x))(x)

    graph = graph_of(branched, X[0])
    node = first(graph, "tanh")
    assert lifting.in_branch(region(node)) and lifting.depth(region(node)) == 0
    zeros = lifting.lift(node.result, region(node), lambda v: rewrite(jnp.zeros_like, v))
    graph.set_outputs([*graph.outputs, zeros])
    for sign in (-1, 1):
        x = jnp.abs(X[0]) * sign
        np.testing.assert_allclose(
            evaluate(graph, [x])[1], np.where(sign > 0, 0, np.tanh(x)), rtol=1e-6, err_msg=str(sign)
        )


def test_what_nothing_can_leave() -> None:
    step = jax.jit(lambda h: jnp.tanh(h) * 2)
    twice = graph_of(lambda x: step(step(x)), X)
    loop = graph_of(lambda x: lax.while_loop(lambda h: h[0, 0] < 1, lambda h: jnp.tanh(h) + 1, x), X)
    for graph, reason in ((twice, "called in several places"), (loop, "it is in a while")):
        assert reason in str(lifting.depth(region(first(graph, "tanh"))))


@dataclass(frozen=True)
class Touch(WeightPass):
    """Notes what it selects."""

    name: ClassVar[str] = "touch"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        """Note it."""
        found = self.select(graph, ctx)
        for use in found.selected:
            self.note(use, "touched", "", ctx)
        self.report_rest(found, "touch", ctx)


def several(p: Any, ids: Any) -> Any:
    with jax.named_scope("front"):
        h = p["table"][ids]
    with jax.named_scope("back"):
        return jnp.tanh(h @ p["up"]) @ p["down"] + p["bias"]


PARAMS = {"table": WS[0], "up": floats(4, 8), "down": floats(8, 4), "bias": floats(4)}
EVERY = {"p/table", "p/up", "p/down"}


@pytest.mark.parametrize(
    ("settings", "wanted", "reason"),
    [
        ({}, EVERY, ""),
        ({"only": "p/up p/down"}, {"p/up", "p/down"}, "only p/up p/down is selected"),
        ({"skip": "p/*p"}, {"p/table", "p/down"}, "p/*p is skipped"),
        ({"scope": "back"}, {"p/up", "p/down"}, "its scope 'front' has no 'back'"),
        ({"ops": "gather"}, {"p/table"}, "dot_general is not selected"),
        ({"least": 32}, {"p/up", "p/down"}, "it has 16 elements, fewer than 32"),
        ({"skip_first": 1, "skip_last": 1}, {"p/up"}, "the first and last are skipped"),
    ],
)
def test_selectors(settings: dict[str, Any], wanted: set[str], reason: str) -> None:
    run = lepton.optimize(several, Pipeline((Touch(**settings),)), params="p", strict=True)
    sites = run.trace(PARAMS, jnp.array([1, 0])).report.sites
    assert {name for name, what in done(sites).items() if what} == wanted
    left = reasons(sites)
    assert left.pop("p/bias") == "no product, convolution or gather of rows reads it"
    assert left.keys() == EVERY - wanted and set(left.values()) <= {reason}


def test_selectors_that_are_wrong_say_so() -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"ops": "add"}, "ops: add is none of dot_general"),
        ({"least": -1}, "cannot be negative"),
        ({"scope": "("}, "no regular expression"),
    )
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            Touch(**settings)
    ids = jnp.array([1, 0])
    nothing: tuple[tuple[dict[str, Any], str], ...] = (
        ({"only": "p/bias"}, "selects nothing"),
        ({"skip": "p/nothing"}, "p/nothing"),
    )
    for settings, message in nothing:
        with pytest.raises(lepton.UsageError, match=message):
            lepton.optimize(several, Pipeline((Touch(**settings),)), params="p", strict=True)(PARAMS, ids)


def test_a_value_is_seen_once_and_whole() -> None:
    """Two products read one input, and a third every second row of it: the range is that of all rows."""

    def thirds(p: Any, x: Any) -> Any:
        return x @ p[0], x @ p[1], x[::2] @ p[2]

    def context(**more: Any) -> PassContext:
        return PassContext(get_target("cpu"), params=frozenset({0}), paths=("p", "x"), **more)

    watcher = RangeSeen(MinMax(), Scheme("int8"))
    graph, ctx = graph_of(thirds, WS, X), context(watches=[])
    known: Known = {}
    uses = weight_uses(graph, ctx)
    assert [observe(use, [watcher], known, ctx) for use in uses] == [None] * 3
    (watch,) = ctx.watches or []
    outputs = evaluate(graph, [WS, X])
    state = jax.tree.unflatten(watch.tree, outputs[-watch.count :])
    low, high = watcher.result(watcher.merge(watcher.empty(X.shape), state))
    np.testing.assert_array_equal([-low, high], [np.abs(X).max()] * 2)
    assert (watch.name, watch.kind, watch.loops) == (uses[0].name, "range", 0)

    graph, ctx = graph_of(thirds, WS, X), context(calibration={(uses[0].name, "range"): (low, high)})
    uses, again = weight_uses(graph, ctx), dict[Any, Any]()
    found = [seen(use, [watcher], again, ctx) for use in uses]
    assert found[0] == found[1] == found[2] == graph.inputs[2:] and len(ctx.seen) == 2
    assert seen(uses[1], [watcher], {}, ctx) == "calibration did not see its range"
