from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from lepton_jax.ir import Graph, evaluate, from_jaxpr, to_callable, trace
from lepton_jax.ir.check import check
from tests.ir._programs import PROGRAMS, Program, printed, vector

EITHER = pytest.mark.parametrize("rebuilt", [False, True], ids=["verbatim", "rebuilt"])
Fun = Callable[..., Any]


def programs(able: Callable[[Program], bool] = lambda p: True) -> pytest.MarkDecorator:
    chosen = {name: p for name, p in PROGRAMS.items() if able(p)}
    return pytest.mark.parametrize("program", list(chosen.values()), ids=list(chosen))


def imported(program: Program, rebuilt: bool) -> Graph:
    """Its graph; rebuilt: as if a pass had changed every region."""
    graph = trace(program.fun, *program.args)
    if rebuilt:
        for region in graph.graphs():
            region.touch()
    return graph


def flat(fun: Fun) -> Callable[..., list[Any]]:
    return lambda *args: jax.tree.leaves(fun(*args))


def assert_same(got: Any, want: Any, name: str = "") -> None:
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert jax.typeof(a) == jax.typeof(b)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


def assert_same_program(changed: Callable[[Fun], Fun], program: Program, *args: Any) -> None:
    """A transformed program, its graph verbatim, and its graph rebuilt: the same types and numbers.

    Programs that JAX lowers to the same text are the same; only others are compiled.
    """

    def lowered(fun: Fun) -> Any:
        inner = changed(fun)
        return jax.jit(lambda *args: jax.tree.leaves(inner(*args))).lower(*args)

    plain = lowered(program.fun)
    want = None
    for rebuilt in (False, True):
        other = lowered(to_callable(imported(program, rebuilt)))
        types = [[(s.shape, s.dtype) for s in x.out_info] for x in (other, plain)]
        assert types[0] == types[1], f"{rebuilt=}"
        if other.as_text() != plain.as_text():
            want = plain.compile()(*args) if want is None else want
            assert_same(other.compile()(*args), want, f"{rebuilt=}")


def scalar(fun: Fun) -> Callable[..., Any]:
    """The sum of the outputs that are floats, to be differentiated."""
    return lambda *args: sum(
        jnp.sum(x) for x in jax.tree.leaves(fun(*args)) if jnp.issubdtype(x.dtype, jnp.floating)
    )


# The same function comes out


@EITHER
@programs()
def test_the_graph_is_the_program(program: Program, rebuilt: bool) -> None:
    graph = imported(program, rebuilt)
    check(graph)
    assert any(node.op == program.op for node in graph.walk())
    assert graph.is_pristine() is not rebuilt
    assert_same(evaluate(graph, program.args), program.fun(*program.args))


@programs()
def test_under_jit(program: Program) -> None:
    assert_same_program(lambda f: f, program, *program.args)


@programs(lambda p: p.grad)
def test_under_grad(program: Program) -> None:
    assert_same_program(lambda f: jax.grad(scalar(f)), program, *program.args)


@programs(lambda p: p.grad and p.op in ("custom_jvp_call", "remat2", "custom_linear_solve", "shard_map"))
def test_under_jvp(program: Program) -> None:
    def changed(f: Fun) -> Fun:
        return lambda x, *rest: jax.jvp(lambda x: scalar(f)(x, *rest), (x,), (jnp.ones_like(x),))

    assert_same_program(changed, program, *program.args)


@programs(lambda p: p.vmap)
def test_under_vmap(program: Program) -> None:
    assert_same_program(jax.vmap, program, jnp.stack([vector(), vector() + 1, vector()[::-1]]))


@programs(lambda p: p.grad and (p.op.startswith("custom") or p is PROGRAMS["nested"]))
def test_under_vmap_of_grad(program: Program) -> None:
    batch = jnp.stack([vector(), vector() + 1])
    assert_same_program(lambda f: jax.vmap(jax.grad(scalar(f))), program, batch)


@programs(lambda p: p.export)
def test_under_export(program: Program) -> None:
    def exported(fun: Fun) -> Any:
        found = jax.export.export(jax.jit(lambda *args: jax.tree.leaves(fun(*args))))(*program.args)
        return jax.export.deserialize(found.serialize())

    plain = exported(program.fun)
    want = None
    for rebuilt in (False, True):
        other = exported(to_callable(imported(program, rebuilt)))
        assert other.out_avals == plain.out_avals, f"{rebuilt=}"
        if other.mlir_module() != plain.mlir_module():
            want = plain.call(*program.args) if want is None else want
            assert_same(other.call(*program.args), want, f"{rebuilt=}")


@EITHER
@programs()
def test_imported_again_it_is_the_same_graph(program: Program, rebuilt: bool) -> None:
    graph = imported(program, rebuilt)
    again = trace(to_callable(graph), *program.args)
    check(again)
    if not rebuilt:
        assert again.to_text().splitlines()[1:] == graph.to_text().splitlines()[1:]


# What an untouched node keeps, and what a rebuilt one keeps


def test_untouched_nodes_are_bound_with_their_own_parameters() -> None:
    for program in PROGRAMS.values():
        closed = jax.make_jaxpr(program.fun)(*program.args)
        again = jax.make_jaxpr(to_callable(from_jaxpr(closed)))(*program.args)
        assert [e.primitive for e in again.eqns] == [e.primitive for e in closed.eqns]
        for new, old in zip(again.eqns, closed.eqns, strict=True):
            assert set(new.params) == set(old.params)


@EITHER
def test_custom_rules_keep_their_meaning(rebuilt: bool) -> None:
    x = vector()
    slope = to_callable(imported(PROGRAMS["custom_jvp nondiff"], rebuilt))
    np.testing.assert_allclose(jax.grad(scalar(slope))(x), 30.0)
    pullback = to_callable(imported(PROGRAMS["custom_vjp nondiff"], rebuilt))
    np.testing.assert_allclose(jax.grad(scalar(pullback))(x), 5.0 * jnp.tanh(x), rtol=1e-6)


@EITHER
def test_a_custom_rule_over_constants_of_the_function(rebuilt: bool) -> None:
    """What the function closes over is no argument of its rule: JAX refuses to differentiate it."""
    table = np.linspace(0.0, 1.0, 4, dtype=np.float32)

    def fun(x: Any) -> Any:
        made = jax.custom_vjp(lambda y: jnp.sin(y) * jnp.asarray(table))
        made.defvjp(lambda y: (made(y), y), lambda y, g: (7.0 * g,))
        return jax.lax.fori_loop(0, 2, lambda _, c: made(c) + c * table, x)

    graph = trace(fun, vector())
    assert graph.to_text().count("custom_vjp_call") == 1
    if rebuilt:
        for region in graph.graphs():
            region.touch()
    expected = jax.grad(lambda x: fun(x).sum())(vector())
    np.testing.assert_allclose(jax.grad(scalar(to_callable(graph)))(vector()), expected, rtol=1e-6)


@EITHER
def test_checkpoints_keep_their_policy(rebuilt: bool) -> None:
    graph = imported(PROGRAMS["checkpoint policy"], rebuilt)
    (again,) = trace(to_callable(graph), vector())
    assert again.op == "remat2" and again.params["policy"] is jax.checkpoint_policies.dots_saveable
    gradient = jax.make_jaxpr(jax.grad(scalar(to_callable(graph))))(vector())
    plain = jax.make_jaxpr(jax.grad(scalar(PROGRAMS["checkpoint policy"].fun)))(vector())
    assert str(gradient).count("dot_general") == str(plain).count("dot_general")


@EITHER
def test_scans_keep_their_direction_and_unrolling(rebuilt: bool) -> None:
    for name, key, value in (("scan reverse", "reverse", True), ("scan unroll", "unroll", 2)):
        graph = trace(to_callable(imported(PROGRAMS[name], rebuilt)), vector())
        (loop,) = (node for node in graph if node.op == "scan")
        assert loop.params[key] == value and loop.params["length"] == 4


def test_shared_calls_stay_shared_after_a_rebuild() -> None:
    graph = imported(PROGRAMS["jit"], rebuilt=True)
    again = trace(to_callable(graph), vector())
    first, second, *_ = (node for node in again if node.op == "jit")
    assert first.regions[0] is second.regions[0]


@EITHER
def test_ordered_prints_keep_their_order(rebuilt: bool, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("debug print", "debug print in a scan"):
        graph = imported(PROGRAMS[name], rebuilt)
        jax.block_until_ready(jax.jit(PROGRAMS[name].fun)(vector()))
        jax.effects_barrier()
        want = capfd.readouterr().out
        jax.block_until_ready(jax.jit(to_callable(graph))(vector()))
        jax.effects_barrier()
        assert capfd.readouterr().out == want != ""
    jaxpr = jax.make_jaxpr(to_callable(trace(printed, vector())))(vector())
    assert jaxpr.effects == jax.make_jaxpr(printed)(vector()).effects


def test_unknown_effects_are_printed_and_kept() -> None:
    graph = trace(printed, vector())
    assert [bool(node.effects) for node in graph if node.op == "debug_print"] == [True, True]
    assert not any(node.is_dead for node in graph if node.effects)


@EITHER
def test_weak_types_and_dtypes_survive(rebuilt: bool) -> None:
    def fun(x: jax.Array, n: Any) -> Any:
        return x * 2, n * 2.5, jax.jit(lambda y: y + 1)(n), jnp.int8(3) + 0 * jnp.arange(2, dtype=jnp.int8)

    program = Program("jit", fun, (jnp.ones(2, jnp.bfloat16), 3.0))
    fun_again = to_callable(imported(program, rebuilt))
    got = jax.eval_shape(fun_again, *program.args)
    want = jax.eval_shape(flat(fun), *program.args)
    assert [(s.shape, s.dtype, s.weak_type) for s in got] == [(s.shape, s.dtype, s.weak_type) for s in want]


@EITHER
def test_sixty_four_bits(rebuilt: bool) -> None:
    with jax.enable_x64(True):
        x = jnp.linspace(0.0, 1.0, 4)
        assert x.dtype == jnp.float64
        program = Program("scan", PROGRAMS["scan"].fun, (x,))
        assert_same(jax.jit(to_callable(imported(program, rebuilt)))(x), program.fun(x))


@EITHER
def test_symbolic_dimensions(rebuilt: bool) -> None:
    def fun(x: jax.Array) -> Any:
        total, rows = lax.scan(lambda c, r: (c + r, c * r), jnp.float32(0), x)
        return jnp.tanh(rows.reshape(-1)) + total, jax.jit(lambda y: y[::-1])(x)

    (n,) = jax.export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((n,), jnp.float32)
    graph = imported(Program("scan", fun, (shape,)), rebuilt)
    exported = jax.export.export(jax.jit(to_callable(graph)))(shape)
    for length in (1, 5):
        x = jnp.arange(float(length))
        assert_same(exported.call(x), fun(x))


# Names, metadata, source


@EITHER
def test_scopes_reach_the_compiled_program(rebuilt: bool) -> None:
    def fun(x: jax.Array) -> Any:
        with jax.named_scope("encoder"):
            x = jnp.sin(x)
            with jax.named_scope("head"):
                x = lax.scan(lambda c, r: (jnp.tanh(c) * r, None), x, x)[0]
        return x + 1

    program = Program("scan", fun, (vector(),))
    graph = imported(program, rebuilt)
    assert {node.scope for node in graph} >= {"encoder", "encoder/head", ""}
    text = jax.jit(to_callable(graph)).lower(vector()).as_text(debug_info=True)
    assert "encoder/sin" in text and "encoder/head/" in text
    hlo = jax.jit(to_callable(graph)).lower(vector()).compile().as_text()
    assert "encoder/head" in (hlo or "")
    with_scopes = graph.to_text(scopes=True)
    assert "# encoder/head" in with_scopes and "# encoder\n" in with_scopes


def test_the_scope_of_the_caller_comes_first() -> None:
    def fun(x: jax.Array) -> Any:
        with jax.named_scope("inner"):
            return jnp.sin(x)

    graph = trace(fun, vector())

    def outer(x: jax.Array) -> Any:
        with jax.named_scope("outer"):
            return evaluate(graph, [x])

    assert [node.scope for node in trace(outer, vector())] == ["outer/inner"]


def test_errors_point_to_the_users_line() -> None:
    graph = trace(PROGRAMS["jit"].fun, vector())
    text = jax.jit(to_callable(graph)).lower(vector()).as_text(debug_info=True)
    assert "_programs.py" in text


@EITHER
def test_metadata_for_xla_survives(rebuilt: bool) -> None:
    def fun(x: jax.Array) -> Any:
        with set_xla_metadata(origin="lepton"):
            x = jnp.sin(x) * 2
            x = jax.jit(jnp.cos)(x)
        return x - 1

    graph = imported(Program("jit", fun, (vector(),)), rebuilt)
    got, want = (jax.jit(f).lower(vector()).as_text() for f in (to_callable(graph), fun))
    assert got.count('origin = "lepton"') == want.count('origin = "lepton"') > 0


def test_metadata_ends_with_its_equations() -> None:
    def fun(x: jax.Array) -> Any:
        with set_xla_metadata(a="1"):
            y = jnp.sin(x)
        z = jnp.cos(x)
        with set_xla_metadata(b="2"):
            return y, z, jnp.tan(x)

    lines = jax.jit(to_callable(trace(fun, vector()))).lower(vector()).as_text().splitlines()
    found = {op: line for op in ("sine", "cosine", "tan") for line in lines if f".{op} " in line}
    assert 'a = "1"' in found["sine"] and "frontend" not in found["cosine"] and 'b = "2"' in found["tan"]


# Odd functions


def test_inputs_returned_and_values_returned_twice() -> None:
    graph = trace(lambda x, y: (x, y, x, jnp.sin(y), 3.0), vector(), vector() + 1)
    assert_same(evaluate(graph, [vector(), vector() + 1])[:3], [vector(), vector() + 1, vector()])
    assert evaluate(graph, [vector(), vector()])[4] == 3.0
    assert evaluate(trace(lambda: ()), []) == []


def test_closed_over_arrays_are_not_copied() -> None:
    big = jnp.arange(1e5)
    graph = trace(lambda x: x + big.sum() + big[0], jnp.float32(1))
    consts = {id(v.const) for node in graph for v in node.operands if v.is_const and v.ndim}
    assert consts == {id(big)}


def test_the_wrong_number_of_arguments_is_an_error() -> None:
    graph = trace(lambda x, y: x + y, 1.0, 2.0)
    with pytest.raises(TypeError, match="<lambda> takes 2 arrays, got 1"):
        evaluate(graph, [1.0])


def test_static_arguments() -> None:
    graph = trace(lambda x, n: x * n, vector(), 3, static_argnums=1)
    assert len(graph.inputs) == 1
    assert_same(evaluate(graph, [vector()]), vector() * 3)


def test_branches_with_constants_of_their_own() -> None:
    def fun(x: jax.Array) -> Any:
        return lax.cond(
            x[0] > 1, lambda y: y + jnp.arange(4.0), lambda y: y * np.arange(4.0, dtype=np.float32), x
        )

    for x in (vector(), vector() + 1):
        graph = imported(Program("cond", fun, (x,)), rebuilt=True)
        assert_same(jax.jit(to_callable(graph))(x), fun(x))


def test_deep_nesting() -> None:
    def fun(x: jax.Array) -> Any:
        f = jnp.sin
        for _ in range(15):
            f = jax.jit(lambda y, f=f: f(y) + 1)
        return f(x)

    graph = imported(Program("jit", fun, (vector(),)), rebuilt=True)
    assert_same(jax.jit(to_callable(graph))(vector()), fun(vector()))
