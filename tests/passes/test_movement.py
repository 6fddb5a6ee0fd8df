"""The movement pass as a whole: options, shardings, regions, types, and rules working together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lepton_jax.ir.export import to_callable
from lepton_jax.passes.simplify.movement import RULES, Movement
from lepton_jax.rewrite import Pipeline
from tests.passes._check import fired, optimised, rewrite_jaxpr, same
from tests.passes._movement import array, body, special
from tests.passes._movement_programs import program


def test_the_pipeline_text_of_the_pass() -> None:
    assert str(Movement()) == "movement"
    assert str(Pipeline.parse("movement{level=exact}")) == "movement{level=exact}"


def test_every_rule_has_a_name_of_its_own_and_says_before_and_after() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert [rule.name for rule in RULES if "→" not in rule.doc] == []


def test_a_level_of_the_pass_holds_back_rules_that_round_otherwise() -> None:
    def fun(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.broadcast_to(x, (5, 3)))

    assert fired(fun, array((3,)), passes="movement{level=exact}") == {}
    assert fired(fun, array((3,)), passes="movement") == {"sum-of-broadcast": 1}


def test_rules_work_together() -> None:
    def attention(q: jax.Array, k: jax.Array) -> jax.Array:
        scores = q.transpose(0, 2, 1, 3) @ k.transpose(0, 2, 1, 3).transpose(0, 1, 3, 2)
        return scores.transpose(0, 1, 3, 2).transpose(0, 1, 3, 2)

    q, k = array((2, 5, 3, 4)), array((2, 6, 3, 4), seed=1)
    assert body(attention, q, k) == (
        "%2: f32[2,3,5,6] = dot_general[dimension_numbers=(((3,),(3,)),((0,2),(0,2))) "
        "preferred_element_type=float32] %0 %1",
        "return %2",
    )
    same(attention, q, k, passes="movement")


def test_a_value_that_loses_a_reader_is_looked_at_again() -> None:
    def fun(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        inner = lax.concatenate([x, x + 1], 0)
        return lax.concatenate([inner, x], 0), inner[:2]

    assert body(fun, array((2,))) == (
        "%1: f32[2] = add %0 1.0",
        "%2: f32[6] = concatenate[dimension=0] %0 %1 %0",
        "return %2, %0",
    )
    same(fun, array((2,)), passes="movement")


def test_new_nodes_say_where_they_come_from() -> None:
    def fun(x: jax.Array) -> jax.Array:
        with jax.named_scope("outer"):
            return x.reshape(6).reshape(3, 2)

    assert optimised(fun, array((2, 3)), passes="movement").to_text(scopes=True).count("# outer") == 1


# Where arrays live


@pytest.fixture
def explicit_mesh() -> Iterator[Mesh]:
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        yield mesh


def round_trip(x: jax.Array) -> jax.Array:
    return x.transpose(1, 0).transpose(1, 0)[::-1][::-1]


def test_arrays_with_shardings_are_left_alone(explicit_mesh: Mesh) -> None:
    placed = jax.device_put(array((4, 3)), NamedSharding(explicit_mesh, P("x", None)))
    assert fired(round_trip, placed, passes="movement") == {}


def test_arrays_that_an_explicit_mesh_replicates_are_rewritten(explicit_mesh: Mesh) -> None:
    everywhere = jax.device_put(array((4, 3)), NamedSharding(explicit_mesh, P(None, None)))
    assert fired(round_trip, everywhere, passes="movement") == {"transpose-of-transpose": 1, "rev-of-rev": 1}


def test_a_sharding_that_the_user_asked_for_stays(explicit_mesh: Mesh) -> None:
    def fun(x: jax.Array) -> jax.Array:
        wanted = NamedSharding(explicit_mesh, P("x", None))
        return lax.reshape(lax.reshape(x, (2, 6)), (4, 3), out_sharding=wanted)

    everywhere = jax.device_put(array((4, 3)), NamedSharding(explicit_mesh, P(None, None)))
    assert fired(fun, everywhere, passes="movement") == {}


def test_inside_shard_map() -> None:
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))

    def shard(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        constant = lax.pad(jnp.zeros((2, 3)), 0.0, ((1, 1, 0), (0, 0, 0)))
        padding = lax.pad(x, 0.0, ((1, 1, 0), (0, 0, 0)))[:1]
        both = lax.concatenate([lax.concatenate([x, lax.pcast(y, "x", to="varying")], 0), x], 0)
        return round_trip(x) + constant, both + padding[:, :1]

    fun = jax.shard_map(shard, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x"))
    x, y = array((4, 3)), array((4, 3), seed=1)
    assert fired(fun, x, y, passes="movement")["transpose-of-transpose"] == 1
    same(fun, x, y, passes="movement")


def test_operations_in_different_contexts_are_not_merged() -> None:
    def fun(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, z = x.T, x.reshape(6)
        with set_xla_metadata(stage="second"):
            return y.T, z.reshape(3, 2)

    assert fired(fun, array((2, 3)), passes="movement") == {}


# Regions, symbolic shapes, types


def test_regions_are_rewritten_too() -> None:
    def fun(x: jax.Array) -> Any:
        def step(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
            return carry + row[None, :].reshape(3), round_trip(carry[None])[0]

        final, rows = lax.scan(step, jnp.zeros(3), x)
        return lax.cond(final[0] > 0, lambda: round_trip(rows), lambda: rows)

    graph = same(fun, array((4, 3)), passes="movement")
    assert "transpose" not in graph.to_text()


def test_symbolic_shapes_are_left_alone() -> None:
    (n,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, 3), jnp.float32)

    def fun(x: jax.Array) -> jax.Array:
        return round_trip(x).reshape(-1).reshape(x.shape)[:, 1:][:, 1:]

    graph, report = rewrite_jaxpr(jax.make_jaxpr(fun)(x), "f", "movement")
    assert "view-of-view" not in report.rules
    exported = jax.export.export(jax.jit(lambda x: to_callable(graph)(x)[0]))(x)
    given = array((5, 3))
    np.testing.assert_array_equal(exported.call(given), fun(given))


def test_keys_are_moved_like_numbers() -> None:
    def fun(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 6).reshape(2, 3).T.T.reshape(6)[::-1][::-1][1:3]
        joined = lax.concatenate([keys[:1], keys[1:]], 0)
        return jax.random.key_data(joined)

    key = jax.random.key(0)
    graph = optimised(fun, key, passes="movement")
    assert [node.op for node in graph] == ["random_split", "slice", "random_unwrap"]
    np.testing.assert_array_equal(to_callable(graph)(key)[0], fun(key))


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8", "bool", "complex64"]
)
def test_every_type_and_no_elements(dtype: str) -> None:
    def fun(x: jax.Array) -> tuple[Any, ...]:
        wide = jnp.broadcast_to(x.T, (2, *x.T.shape))
        zero = np.zeros((), x.dtype)
        padded = lax.pad(lax.pad(x, zero, ((1, 0, 0), (0, 0, 0))), zero, ((0, 1, 0), (0, 1, 0)))
        return (
            wide[0].T,
            padded[1:-1, :-1],
            lax.concatenate([x[:1], x[1:]], 0).reshape(-1),
            lax.rev(padded, (0,)),
        )

    for shape in ((3, 4), (0, 4), (1, 1)):
        graph = same(fun, array(shape, dtype), passes="movement", level="exact", grad=False, vmap=False)
        assert graph.num_nodes() <= 5


# Programs


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_keep_every_bit_and_do_not_grow(seed: int) -> None:
    dtype = ["float32", "bfloat16", "int8", "bool"][seed % 4]
    shape = [(2, 3), (4,), (1, 3, 2), (), (2, 0)][seed % 5]
    x = special(shape, dtype, seed) if "float" in dtype else array(shape, dtype, seed)
    closed = jax.make_jaxpr(program(seed))(x)
    plain, _ = rewrite_jaxpr(closed, "f", "dce", "exact")
    graph, _ = rewrite_jaxpr(closed, "f", "dce,movement", "exact")
    assert graph.num_nodes() <= plain.num_nodes()
    before, after = jax.jit(lambda x: (to_callable(plain)(x), to_callable(graph)(x)))(x)
    for left, right in zip(before, after, strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
    again, _ = rewrite_jaxpr(jax.make_jaxpr(to_callable(graph))(x), "f", "dce,movement", "exact")
    assert again.to_text() == graph.to_text()
