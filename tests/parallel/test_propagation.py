"""From the layouts of some arrays to those of all: in straight programs, in regions, and as XLA does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lepton_jax.ir import Graph, Value, to_callable, trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.propagation import propagate

DEVICES = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
MESH = MeshSpec.of(DEVICES)


def like(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def graph_of(fun: Callable[..., Any], *args: Any) -> Graph:
    return inline_calls(trace(fun, *args))


def lies(*dims: str | None) -> Layout:
    return Layout(tuple(() if each is None else tuple(each.split("+")) for each in dims))


def spread(graph: Graph, *layouts: Layout | None, **options: Any) -> dict[Value, Layout]:
    """What follows from the layouts of the inputs; None leaves one open."""
    given = {v: each for v, each in zip(graph.inputs, layouts, strict=True) if each is not None}
    found = propagate(graph, given, MESH, **options)
    assert_holds(graph, given, found)
    return found


def assert_holds(graph: Graph, given: Mapping[Value, Layout], found: Mapping[Value, Layout]) -> None:
    values = {*graph.inputs, *graph.outputs}
    for node in graph.walk():
        values |= {*node.operands, *node.results}
        for region in node.regions:
            values |= {*region.inputs, *region.outputs}
    assert values == set(found)
    for value, layout in found.items():
        layout.check(value.shape, MESH)
        assert layout.partial == ()
    assert {value: found[value] for value in given} == given


def outputs(graph: Graph, found: Mapping[Value, Layout]) -> list[str]:
    return [str(found[value]) for value in graph.outputs]


def mlp(x: Any, w: Any, b: Any, v: Any) -> Any:
    return jnp.mean((jax.nn.relu(x @ w + b) @ v) ** 2)


SHAPES = [like(32, 16), like(16, 64), like(64), like(64, 16)]


def test_forward_and_backward_through_a_program() -> None:
    graph = graph_of(lambda x, w, v: jnp.tanh(x @ w) @ v, like(8, 16), like(16, 32), like(32, 16))
    x, w, v = graph.inputs
    found = spread(graph, lies("data", None), lies(None, "model"), None)
    assert str(found[v]) == "[model, -]"
    assert outputs(graph, found) == ["[data, -]"], "what is summed over splits no result"
    found = spread(graph, None, None, lies("model", None))
    assert (str(found[w]), str(found[x])) == ("[-, model]", "[-, -]")


def test_gradients_and_optimisers_follow_parameters() -> None:
    def step(w: Any, v: Any, m: Any, x: Any) -> Any:
        gradient = jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) @ v))(w)
        m = 0.9 * m + gradient
        return w - 0.1 * m, m

    graph = graph_of(step, like(16, 32), like(32, 16), like(16, 32), like(8, 16))
    found = spread(graph, lies(None, "model"), None, None, lies("data", None))
    assert outputs(graph, found) == ["[-, model]", "[-, model]"]
    assert str(found[graph.inputs[2]]) == "[-, model]"


def test_the_larger_array_has_the_axis_unless_another_goes_first() -> None:
    graph = graph_of(lambda x, w: x @ w, like(8, 16), like(16, 64))
    split = [lies("data", None), lies(None, "data")]
    assert outputs(graph, spread(graph, *split)) == ["[-, data]"]
    assert outputs(graph, spread(graph, *split, first=graph.inputs[:1])) == ["[data, -]"]
    two = graph_of(lambda x, y: x + y, like(8, 16), like(1, 16))
    assert outputs(two, spread(two, lies("data", None), lies(None, "data"))) == ["[data, -]"]


def test_axes_join_where_they_can() -> None:
    graph = graph_of(lambda x, y: x * y, like(16, 8), like(16, 8))
    assert outputs(graph, spread(graph, lies("data", None), lies("data+model", None))) == ["[data+model, -]"]
    assert outputs(graph, spread(graph, lies("data", None), lies(None, "model"))) == ["[data, model]"]


def test_reshapes_carry_what_they_can() -> None:
    def heads(count: int) -> Graph:
        return graph_of(lambda x: x.reshape(8, count, -1), like(8, 32))

    graph = heads(4)
    assert outputs(graph, spread(graph, lies("data", "model"))) == ["[data, model, -]"]
    back = graph_of(lambda x: x.reshape(8, 32), like(8, 4, 8))
    assert outputs(back, spread(back, lies(None, "model", "data"))) == ["[-, model+data]"]
    assert outputs(back, spread(back, lies(None, "data", None))) == ["[-, data]"]
    assert outputs(back, spread(back, lies(None, None, "data"))) == ["[-, -]"], "no run of elements"
    few = heads(2)
    assert outputs(few, spread(few, lies(None, "model"))) == ["[-, -, -]"], "4 do not divide 2 heads"


def test_given_layouts_of_intermediate_values_are_kept() -> None:
    graph = graph_of(lambda x: jnp.exp(jnp.sin(x)) + 1.0, like(8, 8))
    middle = next(node.results[0] for node in graph if node.op == "sin")
    found = propagate(graph, {graph.inputs[0]: lies("data", None), middle: lies(None, "model")}, MESH)
    assert str(found[middle]) == "[-, model]"
    assert outputs(graph, found) == ["[-, model]"]


def test_loops() -> None:
    def fun(ws: Any, x: Any) -> Any:
        def body(c: Any, w: Any) -> tuple[Any, Any]:
            c = jnp.tanh(c @ w)
            return c, (c.sum(1), c)

        return lax.scan(body, x, ws)

    graph = graph_of(fun, like(4, 16, 16), like(8, 16))
    (scan,) = (node for node in graph if node.op == "scan")
    found = spread(graph, lies(None, None, "model"), lies("data", None))
    assert outputs(graph, found) == ["[data, -]", "[-, data]", "[-, data, -]"], (
        "a pinned carry lies as it begins"
    )
    assert [str(found[value]) for value in scan.regions[0].inputs] == ["[data, -]", "[-, model]"]
    found = spread(graph, lies(None, None, "model"), None)
    assert outputs(graph, found) == ["[-, model]", "[-, -]", "[-, -, model]"]
    found = spread(graph, lies("data", None, None), None)
    assert str(found[scan.regions[0].inputs[1]]) == "[-, -]", (
        "the dimension that a loop cuts is not there inside"
    )
    assert outputs(graph, found) == ["[-, -]", "[-, -]", "[-, -, -]"]


def test_the_dimension_that_a_loop_makes_is_not_split() -> None:
    graph = graph_of(
        lambda x, y: lax.scan(lambda c, _: (c, c), x, None, length=8)[1] + y, like(4), like(8, 4)
    )
    found = spread(graph, None, lies("data", "model"))
    (stacked,) = (node.results[-1] for node in graph if node.op == "scan")
    assert (str(found[stacked]), str(found[graph.inputs[0]])) == ("[-, model]", "[model]")


def test_branches_calls_and_while() -> None:
    def fun(x: Any, w: Any) -> Any:
        y = lax.cond(x.sum() > 0, lambda a: a @ w, lambda a: jnp.zeros((8, 32)), x)
        z = jax.checkpoint(lambda a: jnp.sin(a) * 2)(y)
        return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jax.nn.relu(c[1])), (0, z))[1]

    graph = graph_of(fun, like(8, 16), like(16, 32))
    found = spread(graph, lies("data", None), lies(None, "model"))
    assert outputs(graph, found) == ["[data, model]"]
    cond = next(node for node in graph if node.op == "cond")
    assert {str(found[region.outputs[0]]) for region in cond.regions} == {"[data, model]"}
    found = propagate(graph, {graph.outputs[0]: lies(None, "model")}, MESH)
    assert str(found[graph.inputs[1]]) == "[-, model]", "backward out of all of them"


def test_custom_derivatives() -> None:
    @jax.custom_vjp
    def twice(x: Any) -> Any:
        return 2 * x

    twice.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))
    graph = graph_of(lambda x: twice(jax.nn.silu(x)), like(8, 4))
    assert outputs(graph, spread(graph, lies("data", "model"))) == ["[data, model]"]


def test_the_users_own_layouts_hold() -> None:
    def fun(x: Any, y: Any) -> Any:
        x = lax.with_sharding_constraint(x, NamedSharding(DEVICES, P("model")))
        y = lax.with_sharding_constraint(y, NamedSharding(DEVICES, P(P.UNCONSTRAINED, "data")))
        mapped: Any = jax.shard_map(
            lambda a: a * 2, mesh=DEVICES, in_specs=P(None, "data"), out_specs=P(None, "data")
        )
        return jnp.sin(x), y, mapped(jnp.cos(x))

    graph = graph_of(fun, like(8, 8), like(8, 8))
    found = spread(graph, lies("data", None), lies("model", None))
    assert outputs(graph, found) == ["[model, -]", "[model, data]", "[-, data]"]
    mapped = next(node for node in graph if node.op == "shard_map")
    assert str(found[mapped.operands[0]]) == "[-, data]"
    assert found[mapped.regions[0].inputs[0]].is_whole
    other = MeshSpec.of("x=8", chip="cpu")
    assert all(layout.is_whole for layout in propagate(graph, {}, other).values()), "axes of another mesh"


def test_unknown_operations_carry_nothing() -> None:
    def fun(x: Any) -> Any:
        return jax.pure_callback(np.sin, like(8, 8), x) + 0.0

    graph = graph_of(fun, like(8, 8))
    assert outputs(graph, spread(graph, lies("data", None))) == ["[-, -]"]


@pytest.mark.parametrize(
    ("layouts", "message"),
    [
        ((Layout(((), ()), ("model",)), None), "of input 0 is a part of a sum"),
        ((lies("data"), None), r"\[data\] is for 1 dimensions; input 0 has 2"),
        ((lies("fsdp", None), None), "'fsdp' is not an axis of the mesh; its axes are data, model"),
        ((lies("data", "data"), None), "uses the mesh axis 'data' twice"),
        (
            (None, lies("model", None)),
            "dimension 0 of input 1 has size 6, which the 4 devices along model do not divide",
        ),
    ],
)
def test_given_layouts_that_cannot_be(layouts: tuple[Layout | None, ...], message: str) -> None:
    graph = graph_of(lambda x, y: (x, y), like(8, 8), like(6, 8))
    given = {v: each for v, each in zip(graph.inputs, layouts, strict=True) if each is not None}
    with pytest.raises(ValueError, match=message):
        propagate(graph, given, MESH)


def test_two_layouts_for_one_array_of_a_loop() -> None:
    graph = graph_of(lambda x: lax.fori_loop(0, 3, lambda _, c: jnp.sin(c), x), like(8, 8))
    given = {graph.inputs[0]: lies("data", None), graph.outputs[0]: lies(None, "data")}
    with pytest.raises(
        ValueError, match=r"as .*data.*, and as .*data.*: a loop or a call makes them one array"
    ):
        propagate(graph, given, MESH)


def test_as_xla_does_it() -> None:
    graph = graph_of(jax.value_and_grad(mlp, (1, 2, 3)), *SHAPES)
    x, w = graph.inputs[:2]
    given = {x: lies("data", None), w: lies(None, "model")}
    found = propagate(graph, given, MESH)
    values = [value for node in graph for value in node.results if node.op != "broadcast_in_dim"]
    graph.set_outputs(values)
    args = [
        like(*v.shape)
        if v not in given
        else jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=NamedSharding(DEVICES, given[v].spec()))
        for v in graph.inputs
    ]
    compiled = jax.jit(to_callable(graph)).lower(*args).compile()
    theirs = [
        Layout.from_spec(each.spec, v.ndim)
        for v, each in zip(values, jax.tree.leaves(compiled.output_shardings), strict=True)
    ]
    assert [str(found[value]) for value in values] == list(map(str, theirs))


def test_the_same_twice_and_in_little_time() -> None:
    def tower(x: Any, ws: Any) -> Any:
        for w, v in ws:
            x = x + jax.nn.gelu(x @ w) @ v
        return jnp.sum(x**2)

    weights = [(like(16, 64), like(64, 16)) for _ in range(6)]
    graph = graph_of(jax.grad(tower, 1), like(8, 16), weights)
    given = {v: lies(None, "model") for v in graph.inputs if v.shape == (16, 64)}
    given[graph.inputs[0]] = lies("data", None)
    once = propagate(graph, given, MESH)
    assert list(once.items()) == list(propagate(graph, dict(reversed(given.items())), MESH).items())
    assert outputs(graph, once) == ["[-, model]", "[model, -]"] * 6
