from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.check import GraphError, check
from lepton_jax.ir.graph import Graph, Node, constant

X = jnp.arange(3.0)
_SHARED = jax.jit(lambda x: jnp.exp(x))


def example() -> Graph:
    """sin, a scan, a cond, and a shared call."""

    def fun(x: jax.Array, w: jax.Array) -> Any:
        def step(carry: jax.Array, row: jax.Array) -> Any:
            return carry * w + row, carry + 1

        y = jnp.sin(x)
        total, rows = lax.scan(step, y[0], y)
        picked = lax.cond(total > 0, jnp.cos, jnp.tan, rows)
        return _SHARED(_SHARED(picked)), w

    return trace(fun, X, jnp.float32(2))


def first(graph: Graph, op: str) -> Node:
    return next(node for node in graph if node.op == op)


def another(node: Node) -> Node:
    return Node(node.op, node.primitive, node.operands, [v.aval for v in node.results], node.params)


def test_whole_graphs_pass() -> None:
    check(example())
    check(trace(lambda: (), *()))
    check(trace(lambda x: x, X))


def _read_before_definition(graph: Graph) -> None:
    graph.move(first(graph, "sin"), graph.ret)


def _read_from_another_graph(graph: Graph) -> None:
    first(graph, "sin").set_operand(0, first(graph, "scan").regions[0].inputs[0])


def _read_a_result_of_a_region(graph: Graph) -> None:
    graph.set_outputs([next(iter(first(graph, "scan").regions[0])).result, graph.inputs[1]])


def _read_of_an_erased_node(graph: Graph) -> None:
    sin = first(graph, "sin")
    old = another(sin)
    graph.insert(old, sin)
    graph.erase(old)
    graph.set_outputs([old.result])


def _read_of_a_removed_input(graph: Graph) -> None:
    added = graph.add_input(jax.typeof(X))
    graph.remove_inputs([added.index])
    graph.set_outputs([added])


def _missing_use(graph: Graph) -> None:
    sin = first(graph, "sin")
    del sin.operands[0].uses[sin, 0]


def _use_that_is_none(graph: Graph) -> None:
    graph.inputs[0].uses[first(graph, "scan"), 0] = None


def _use_by_a_node_outside(graph: Graph) -> None:
    another(first(graph, "sin"))


def _use_beyond_the_operands(graph: Graph) -> None:
    graph.inputs[0].uses[first(graph, "sin"), 7] = None


def _result_index(graph: Graph) -> None:
    first(graph, "scan").results[1].index = 0


def _result_node(graph: Graph) -> None:
    first(graph, "scan").results[0].node = first(graph, "sin")


def _result_twice(graph: Graph) -> None:
    scan = first(graph, "scan")
    scan.results.append(scan.results[0])


def _result_constant(graph: Graph) -> None:
    first(graph, "sin").result.const = 1.0


def _constant_with_owner(graph: Graph) -> None:
    value = constant(1.0, jax.typeof(X))
    value.graph = graph
    first(graph, "sin").set_operand(0, value)


def _input_index(graph: Graph) -> None:
    graph.inputs[1].index = 5


def _input_twice(graph: Graph) -> None:
    graph.inputs.append(graph.inputs[0])


def _input_of_another(graph: Graph) -> None:
    graph.inputs[1].graph = first(graph, "scan").regions[0]


def _input_constant(graph: Graph) -> None:
    graph.inputs[1].const = 2.0


def _node_in_another_graph(graph: Graph) -> None:
    first(graph, "sin").graph = first(graph, "scan").regions[0]


def _broken_link(graph: Graph) -> None:
    scan = first(graph, "scan")
    scan.prev = graph.ret


def _missing_parent(graph: Graph) -> None:
    first(graph, "scan").regions[0].parents.clear()


def _foreign_parent(graph: Graph) -> None:
    first(graph, "scan").regions[0].parents.append(first(graph, "sin"))


def _twice_a_parent(graph: Graph) -> None:
    scan = first(graph, "scan")
    scan.regions[0].parents.append(scan)


def _wrong_counts(graph: Graph) -> None:
    scan = first(graph, "scan")
    scan.params = {**scan.params, "num_consts": 0}


def _too_many_counts(graph: Graph) -> None:
    scan = first(graph, "scan")
    scan.params = {**scan.params, "num_carry": 7}


def _missing_parameter(graph: Graph) -> None:
    scan = first(graph, "scan")
    scan.params = {k: v for k, v in scan.params.items() if k != "num_carry"}


def _missing_region_input(graph: Graph) -> None:
    region = first(graph, "cond").regions[0]
    region.set_outputs([constant(X, jax.typeof(X))])
    region.add_input(jax.typeof(X))


def _missing_region_output(graph: Graph) -> None:
    first(graph, "cond").regions[1].set_outputs([])


def _wrong_shape_of_an_output(graph: Graph) -> None:
    region = first(graph, "scan").regions[0]
    region.set_outputs([region.outputs[0], constant(X, jax.typeof(X))])


def _wrong_dtype_of_an_input(graph: Graph) -> None:
    region = first(graph, "cond").regions[0]
    region.inputs[0].aval = jax.typeof(jnp.arange(3))


def _wrong_length(graph: Graph) -> None:
    scan = first(graph, "scan")
    scan.params = {**scan.params, "length": 4}


def _damage_in_a_shared_region(graph: Graph) -> None:
    region = next(node for node in graph if node.op == "jit").regions[0]
    next(iter(region)).results[0].index = 1


DAMAGE: list[tuple[Callable[[Graph], None], str]] = [
    (_read_before_definition, r"node \w+ number 0: operand 0 is a result of sin, which comes later"),
    (_read_from_another_graph, "node sin number 0: operand 0 is an input of another graph"),
    (_read_a_result_of_a_region, r"outputs: operand 0 is a result of \w+, which is in graph body"),
    (_read_of_an_erased_node, "outputs: operand 0 is a result of sin, which was erased"),
    (_read_of_a_removed_input, "outputs: operand 0 is an input that was removed"),
    (_missing_use, "node sin number 0: operand 0 does not list this use"),
    (_use_that_is_none, r"node scan number \d+: operand 0 is not the value that lists this use"),
    (_use_by_a_node_outside, "is used by sin, which is not in the graph"),
    (_use_beyond_the_operands, "node sin number 0: operand 7 is not the value"),
    (_result_index, r"node scan number \d+: result 1 says that it is number 0"),
    (_result_node, r"node scan number \d+: result 0 says that another node makes it"),
    (_result_twice, r"node scan number \d+: result 2 is defined twice"),
    (_result_constant, "node sin number 0: result 0 is also a constant or an input"),
    (_constant_with_owner, "node sin number 0: operand 0 is a constant and also a result or an input"),
    (_input_index, "graph fun: input 1 says that it is number 5"),
    (_input_twice, "graph fun: input 2 occurs twice"),
    (_input_of_another, "graph fun: input 1 belongs to another graph"),
    (_input_constant, "graph fun: input 1 is also a result or a constant"),
    (_node_in_another_graph, "node sin number 0: says that it is in another graph"),
    (_broken_link, r"node scan number \d+: is not linked back"),
    (_missing_parent, r"node scan number \d+: region body lists it 0 times"),
    (_foreign_parent, r"graph body, node sin: is listed as a parent"),
    (_twice_a_parent, r"node scan number \d+: region body lists it 2 times"),
    (_wrong_counts, "node scan number"),
    (_too_many_counts, "node scan number"),
    (_missing_parameter, "its parameters do not describe its slots: KeyError"),
    (_missing_region_input, r"node cond number \d+: its regions have \[2, 1\] inputs, its slots feed 2"),
    (_missing_region_output, r"node cond number \d+: its regions have \[1, 0\] outputs"),
    (
        _wrong_shape_of_an_output,
        r"node scan number \d+: result 1 is f32\[3\] and output 1 of region 0 is f32\[3\]",
    ),
    (
        _wrong_dtype_of_an_input,
        r"node cond number \d+: operand 1 is f32\[3\] and input 0 of region 0 is i32\[3\]",
    ),
    (_wrong_length, r"node scan number \d+: operand \d is f32\[3\] and input \d of region 0 is f32\[\]"),
    (_damage_in_a_shared_region, "graph <lambda>, node exp number 0: result 0 says that it is number 1"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[damage.__name__ for damage, _ in DAMAGE])
def test_damage_is_found_and_named(damage: Callable[[Graph], None], message: str) -> None:
    graph = example()
    damage(graph)
    with pytest.raises(GraphError, match=message):
        check(graph)


def test_the_scope_of_a_damaged_node_is_told() -> None:
    def fun(x: jax.Array) -> Any:
        with jax.named_scope("layer"):
            return jnp.sin(x)

    graph = trace(fun, X)
    next(iter(graph)).results[0].index = 3
    with pytest.raises(GraphError, match=r"node sin number 0 \(layer\)"):
        check(graph)


def test_shards_and_linear_solves_may_differ_inside() -> None:
    def solve(b: jax.Array) -> Any:
        return lax.custom_linear_solve(lambda x: 2 * x, b, lambda _, v: v / 2, symmetric=True)

    check(trace(solve, X))
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    part = jax.P("d")
    check(trace(jax.shard_map(jnp.sin, mesh=mesh, in_specs=part, out_specs=part), X))
