from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lepton_jax.ir import to_callable, trace
from lepton_jax.ir.check import check
from lepton_jax.ir.graph import Graph, Node, Value, constant
from lepton_jax.ir.regions import add_constant, drop_slots, editable, inside, outer_of, slots, trip_count

X = jnp.arange(3.0)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph]


def like(node: Node, *operands: Value) -> Node:
    """A new node of the same operation on other operands."""
    avals = [value.aval for value in node.results]
    return Node(node.op, node.primitive, operands or node.operands, avals, node.params, regions=node.regions)


def chain() -> Graph:
    return trace(lambda x: jnp.sin(jnp.cos(jnp.exp(x))), X)


# Use lists


def test_every_use_is_listed_in_order() -> None:
    graph = trace(lambda x: (x * x + x, x), X)
    (x,) = graph.inputs
    mul, add = graph
    assert list(x.uses) == [(mul, 0), (mul, 1), (add, 1), (graph.ret, 1)]
    assert x.users() == [mul, add, graph.ret]
    check(graph)


def test_replacing_uses_moves_all_of_them() -> None:
    graph = chain()
    exp, cos, _ = graph
    exp.result.replace_uses(graph.inputs[0])
    assert cos.operands == [graph.inputs[0]] and not exp.result.uses
    assert (cos, 0) in graph.inputs[0].uses
    exp.result.replace_uses(exp.result)
    check(graph)


def test_replacing_outputs() -> None:
    graph = chain()
    *_, sin = graph
    sin.result.replace_uses(graph.inputs[0])
    assert graph.outputs == [graph.inputs[0]]
    graph.outputs.clear()
    assert graph.outputs, "outputs are a copy"
    graph.set_outputs([sin.result, sin.result])
    assert list(sin.result.uses) == [(graph.ret, 0), (graph.ret, 1)]
    assert (graph.ret, 0) not in graph.inputs[0].uses
    check(graph)


def test_setting_operands() -> None:
    graph = trace(lambda x, y: x + y, X, X)
    (add,) = graph
    x, y = graph.inputs
    add.set_operand(1, x)
    assert list(x.uses) == [(add, 0), (add, 1)] and not y.uses
    add.set_operands([y, y])
    assert list(y.uses) == [(add, 0), (add, 1)] and not x.uses
    check(graph)


def test_erasing_needs_results_without_readers() -> None:
    graph = chain()
    exp, cos, sin = graph
    with pytest.raises(ValueError, match="cos cannot be erased"):
        graph.erase(cos)
    graph.set_outputs([])
    for node in (sin, cos, exp):
        assert node.is_dead
        graph.erase(node)
        assert not node.alive
    assert ops(graph) == [] and not graph.inputs[0].uses


# Order


def test_inserting_and_moving() -> None:
    graph = chain()
    exp, cos, sin = graph
    graph.insert(like(sin, graph.inputs[0]), exp)
    graph.append(like(cos, graph.inputs[0]))
    assert ops(graph) == ["sin", "exp", "cos", "sin", "cos"]
    assert [node.op for node in reversed(graph)] == ["cos", "sin", "cos", "exp", "sin"]
    first = next(iter(graph))
    graph.move(first, graph.ret)
    assert ops(graph) == ["exp", "cos", "sin", "cos", "sin"]
    graph.move(first, exp)
    assert ops(graph) == ["sin", "exp", "cos", "sin", "cos"]
    check(graph)


@pytest.mark.parametrize("backwards", [False, True])
def test_nodes_may_be_erased_during_iteration(backwards: bool) -> None:
    graph = trace(lambda x: [jnp.sin(x) for _ in range(6)], X)
    graph.set_outputs([])
    seen = []
    for node in reversed(graph) if backwards else graph:
        seen.append(node)
        graph.erase(node)
    assert len(seen) == 6 and ops(graph) == []


def test_following_nodes_may_be_erased_during_iteration() -> None:
    graph = trace(lambda x: [jnp.sin(x) for _ in range(6)], X)
    graph.set_outputs([])
    nodes = list(graph)
    seen = []
    for node in graph:
        seen.append(node)
        if node is nodes[1]:
            for later in nodes[2:4]:
                graph.erase(later)
    assert seen == [nodes[0], nodes[1], nodes[4], nodes[5]]


def test_a_run_of_erased_nodes_leads_back_to_the_graph() -> None:
    graph = trace(lambda x: [jnp.sin(x) for _ in range(4)], X)
    graph.set_outputs([])
    nodes = list(graph)
    seen = []
    for node in graph:
        seen.append(node)
        if node is nodes[0]:
            for each in nodes[:3]:
                graph.erase(each)
    assert seen == [nodes[0], nodes[3]]


def test_nodes_inserted_during_iteration_are_met() -> None:
    graph = chain()
    first = next(iter(graph))
    met = []
    for node in graph:
        met.append(node.op)
        if node is first:
            graph.insert(like(node, graph.inputs[0]), node.next or graph.ret)
    assert met == ["exp", "exp", "cos", "sin"]


# Inputs


def test_inputs_are_added_and_removed() -> None:
    graph = trace(lambda x, y, z: x + z, X, X, X)
    with pytest.raises(ValueError, match="input 2 of <lambda> is still read"):
        graph.remove_inputs([2])
    graph.remove_inputs([1])
    assert [value.index for value in graph.inputs] == [0, 1]
    added = graph.add_input(X.aval if hasattr(X, "aval") else jax.typeof(X), 0)
    assert added.graph is graph and [value.index for value in graph.inputs] == [0, 1, 2]
    last = graph.add_input(jax.typeof(X))
    assert last.index == 3
    check(graph)


# Versions


def test_every_edit_changes_the_version() -> None:
    graph = trace(lambda x, y: jnp.sin(x) + jnp.cos(x), X, X)
    sin, cos, add = graph
    edits = [
        lambda: sin.result.replace_uses(cos.result),
        lambda: add.set_operand(0, graph.inputs[0]),
        lambda: add.set_operands([cos.result, cos.result]),
        lambda: graph.erase(sin),
        lambda: graph.move(cos, add),
        lambda: graph.append(like(add)),
        lambda: graph.add_input(jax.typeof(X)),
        lambda: graph.remove_inputs([1]),
        lambda: graph.set_outputs([cos.result]),
        lambda: add.set_results(add.results),
    ]
    assert graph.is_pristine()
    for edit in edits:
        before = graph.total_version()
        edit()  # type: ignore[no-untyped-call]
        assert graph.total_version() > before
        assert not graph.is_pristine()


def test_the_total_version_grows_when_a_region_goes() -> None:
    graph = trace(lambda x: (lax.cond(True, jnp.sin, jnp.cos, x), x), X)
    seen = [graph.total_version()]
    region = next(node for node in graph if node.regions).regions[0]
    for _ in range(5):
        region.touch()
        seen.append(graph.total_version())
    graph.set_outputs([graph.inputs[0]])
    for node in reversed(graph):
        graph.erase(node)
        seen.append(graph.total_version())
    assert len(set(seen)) == len(seen) and seen == sorted(seen)


def test_a_change_in_a_region_shows_in_all_graphs_above() -> None:
    graph = trace(lambda x: jax.jit(lambda y: lax.cond(y[0] > 0, jnp.sin, jnp.cos, y))(x), X)
    (call,) = graph
    branch = list(call.regions[0])[-1].regions[0]
    assert graph.is_pristine() and call.is_pristine()
    branch.touch()
    assert not graph.is_pristine() and not call.is_pristine()


# Regions


def test_walking_meets_shared_regions_once() -> None:
    inner = jax.jit(lambda x: jnp.sin(x))
    graph = trace(lambda x: inner(inner(x)), X)
    first, second = graph
    assert first.regions[0] is second.regions[0]
    assert first.regions[0].parents == [first, second]
    assert not first.own_regions()
    assert [node.op for node in graph.walk()] == ["jit", "sin", "jit"]
    assert graph.num_nodes() == 3
    assert graph.graphs() == [graph, first.regions[0]]
    graph.set_outputs([first.result])
    graph.erase(second)
    assert first.regions[0].parents == [first] and first.own_regions()
    check(graph)


def test_an_erased_call_runs_nothing_any_more() -> None:
    inner = jax.jit(lambda x: jnp.sin(x))
    outer = jax.jit(lambda x: inner(x) + 1)
    graph = trace(lambda x: (outer(x), inner(x)), X)
    first, second = graph
    (shared,) = second.regions
    (nested,) = (node for node in first.regions[0] if node.op == "jit")
    assert shared.parents == [nested, second]
    graph.set_outputs([second.result])
    graph.erase(first)
    assert shared.parents == [second] and second.own_regions()
    again = graph.append(like(first))
    assert shared.parents == [second, nested] and not second.own_regions()
    graph.set_outputs([again.result, second.result])
    check(graph)


def test_walking_goes_into_regions_after_the_node_in_their_order() -> None:
    graph = trace(lambda x: lax.cond(x[0] > 0, jnp.sin, lambda y: jnp.cos(jnp.exp(y)), x) * 2, X)
    found = [node.op for node in graph.walk()]
    assert found[-5:] == ["cond", "exp", "cos", "sin", "mul"]


def test_graphs_may_leave_regions_out() -> None:
    graph = trace(lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), X)
    assert len(graph.graphs()) == 3
    assert graph.graphs(enter=lambda node: False) == [graph]


def test_values_know_what_they_are() -> None:
    graph = trace(lambda x: jnp.sin(x) + 2.0, X)
    sin, add = graph
    two = add.operands[1]
    assert (sin.result.op, graph.inputs[0].op, two.op) == ("sin", None, None)
    assert two.is_const and two.literal and not sin.result.is_const
    assert sin.result.shape == (3,) and sin.result.ndim == 1 and sin.result.is_static
    assert repr(sin.result) == "Value(f32[3])" and repr(sin) == "Node(sin)"
    made = constant(X, jax.typeof(X))
    assert made.is_const and not made.literal and made.graph is None
    assert "1 inputs" in repr(graph)


def test_symbolic_shapes_are_not_static() -> None:
    (n,) = jax.export.symbolic_shape("n")
    graph = trace(jnp.sin, jax.ShapeDtypeStruct((n,), jnp.float32))
    assert not graph.is_static and chain().is_static


# Slots


def scan_graph() -> Graph:
    def fun(x: jax.Array, w: jax.Array) -> Any:
        def step(carry: Any, row: jax.Array) -> Any:
            a, b = carry
            return (a + row * w, b * 2), (a + b, row + 1)

        return lax.scan(step, (x[0], x[1]), x, length=3)

    return trace(fun, X, jnp.float32(2))


def while_graph() -> Graph:
    return trace(
        lambda x, n, w: lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, s[1] * w), (0, x)), X, 3, 2.0
    )


def test_slots_of_a_scan() -> None:
    loop = next(node for node in scan_graph() if node.op == "scan")
    kinds = [slot.kind for slot in slots(loop)]
    assert kinds == ["constant", "carry", "carry", "scanned", "stacked", "stacked"]
    assert trip_count(loop) == 3 and editable(loop)


def test_slots_of_a_while_loop() -> None:
    loop = next(node for node in while_graph() if node.op == "while")
    kinds = [slot.kind for slot in slots(loop)]
    assert kinds == ["constant", "constant", "carry", "carry", "predicate"]
    assert trip_count(loop) == 0
    _, for_body, *_ = slots(loop)
    assert inside(loop, loop.operands[for_body.operand or 0]) == [loop.regions[1].inputs[0]]
    assert list(outer_of(loop, loop.regions[1]).values()) == [loop.operands[1]]


def test_dropping_slots_keeps_the_rest_running() -> None:
    graph = scan_graph()
    loop = next(node for node in graph if node.op == "scan")
    *_, last = slots(loop)
    with pytest.raises(ValueError, match=r"result . of scan is still read"):
        drop_slots(loop, [last])
    kept = graph.outputs[:-1]
    graph.set_outputs(kept)
    drop_slots(loop, [last])
    check(graph)
    assert loop.raw is None and not loop.is_pristine()
    expected = jax.tree.leaves(to_callable(scan_graph())(X, jnp.float32(2)))[:-1]
    for got, want in zip(to_callable(graph)(X, jnp.float32(2)), expected, strict=True):
        assert jnp.array_equal(got, want)


@pytest.mark.parametrize("make", [scan_graph, while_graph])
def test_adding_a_constant_to_a_loop(make: Any) -> None:
    graph = make()
    loop = next(node for node in graph if node.op in ("scan", "while"))
    args = [jnp.ones(v.shape, v.dtype) for v in graph.inputs]
    expected = to_callable(graph)(*args)
    for region in range(len(loop.regions)):
        added = add_constant(loop, region, graph.inputs[0])
        assert added.graph is loop.regions[region] and added in loop.regions[region].inputs
    check(graph)
    for got, want in zip(to_callable(graph)(*args), expected, strict=True):
        assert jnp.array_equal(got, want)


def test_adding_a_constant_to_branches() -> None:
    graph = trace(lambda p, x: lax.cond(p, jnp.sin, jnp.cos, x), True, X)
    branches = next(node for node in graph if node.op == "cond")
    add_constant(branches, 1, graph.inputs[1])
    check(graph)
    assert jnp.array_equal(to_callable(graph)(jnp.array(True), X)[0], jnp.sin(X))


def test_interfaces_of_shared_regions_and_custom_rules_are_fixed() -> None:
    inner = jax.jit(lambda x: jnp.sin(x))
    call = next(iter(trace(lambda x: inner(inner(x)), X)))
    assert not editable(call)
    with pytest.raises(ValueError, match="the interface of jit is fixed"):
        drop_slots(call, [])
    relu = next(iter(trace(jax.nn.relu, X)))
    assert relu.op == "custom_jvp_call" and not editable(relu)
    with pytest.raises(ValueError, match="custom_jvp_call is fixed"):
        add_constant(relu, 0, relu.operands[0])
