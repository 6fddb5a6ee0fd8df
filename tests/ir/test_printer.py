from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import Graph, trace
from lepton_jax.ir.printer import aval_text, const_text, params_text, value_text
from tests.ir._programs import PROGRAMS, odd_pullback, odd_slope, vector

X = jax.ShapeDtypeStruct((3,), jnp.float32)
S = jax.ShapeDtypeStruct((), jnp.float32)


def straight(x: Any, y: Any) -> Any:
    return x * 2 + jnp.arange(3.0), y, -0.5


def called(x: Any) -> Any:
    return jax.jit(lambda a: jnp.abs(a))(x)


def scanned(x: Any) -> Any:
    return lax.scan(lambda c, r: (c + r, c * r), 0.0, x, reverse=True, unroll=3)


def looped(x: Any, n: Any) -> Any:
    return lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, jnp.abs(s[1])), (0.0, x))[1]


def branched(p: Any, x: Any) -> Any:
    return lax.cond(p, lambda a: a, lambda a: jnp.abs(a), x)


def with_slope(x: Any) -> Any:
    return odd_slope(x)


def with_pullback(x: Any) -> Any:
    return odd_pullback(x, x)[0]


def saved(x: Any) -> Any:
    return jax.checkpoint(lambda a: jnp.abs(a))(x)


def sharded(x: Any) -> Any:
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(lambda a: jnp.abs(a), mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d"))(x)


def solved(x: Any) -> Any:
    return lax.custom_linear_solve(lambda a: 2 * a, x, lambda _, b: b / 2, lambda _, b: b / 2)


def opaque(x: Any) -> Any:
    jax.debug.callback(print, x, ordered=True)
    return x


GOLDEN: list[tuple[Callable[..., Any], tuple[Any, ...], str]] = [
    (
        straight,
        (X, S),
        """
        graph straight(%0: f32[3], %1: f32[]) {
          %2: f32[3] = mul %0 2.0
          %3: f32[3] = iota[dimension=0 dtype=float32 shape=(3,)]
          %4: f32[3] = add %2 %3
          return %4, %1, -0.5
        }
        """,
    ),
    (
        called,
        (X,),
        """
        graph called(%0: f32[3]) {
          %1: f32[3] = jit[name='<lambda>'] %0 {
            region <lambda>(%0: f32[3]) {
              %1: f32[3] = abs %0
              return %1
            }
          }
          return %1
        }
        """,
    ),
    (
        scanned,
        (X,),
        """
        graph scanned(%0: f32[3]) {
          %1: f32[], %2: f32[3] = scan[length=3 num_carry=1 num_consts=0 reverse=True unroll=3] 0.0 %0 {
            region body(%0: f32[], %1: f32[]) {
              %2: f32[] = convert_element_type[new_dtype=float32 weak_type=False] %0
              %3: f32[] = add %2 %1
              %4: f32[] = convert_element_type[new_dtype=float32 weak_type=False] %0
              %5: f32[] = mul %4 %1
              return %3, %5
            }
          }
          return %1, %2
        }
        """,
    ),
    (
        looped,
        (X, S),
        """
        graph looped(%0: f32[3], %1: f32[]) {
          _: f32[], %2: f32[3] = while[body_nconsts=0 cond_nconsts=1] %1 0.0 %0 {
            region cond(%0: f32[], %1: f32[], %2: f32[3]) {
              %3: f32[] = convert_element_type[new_dtype=float32 weak_type=False] %1
              %4: bool[] = lt %3 %0
              return %4
            }
            region body(%0: f32[], %1: f32[3]) {
              %2: f32[] = add %0 1.0
              %3: f32[3] = abs %1
              return %2, %3
            }
          }
          return %2
        }
        """,
    ),
    (
        branched,
        (True, X),
        """
        graph branched(%0: bool[], %1: f32[3]) {
          %2: i32[] = convert_element_type[new_dtype=int32 weak_type=False] %0
          %3: f32[3] = cond %2 %1 {
            region branch0(%0: f32[3]) {
              %1: f32[3] = abs %0
              return %1
            }
            region branch1(%0: f32[3]) {
              return %0
            }
          }
          return %3
        }
        """,
    ),
    (
        with_slope,
        (X,),
        """
        graph with_slope(%0: f32[3]) {
          %1: f32[3] = custom_jvp_call %0 {
            region body(%0: f32[3]) {
              %1: f32[3] = sin[accuracy=None] %0
              return %1
            }
          }
          return %1
        }
        """,
    ),
    (
        with_pullback,
        (X,),
        """
        graph with_pullback(%0: f32[3]) {
          %1: f32[3], _: f32[3] = custom_vjp_call %0 %0 {
            region body(%0: f32[3], %1: f32[3]) {
              %2: f32[3] = mul %0 %1
              %3: f32[3] = add %0 %1
              return %2, %3
            }
          }
          return %1
        }
        """,
    ),
    (
        saved,
        (X,),
        """
        graph saved(%0: f32[3]) {
          %1: f32[3] = remat2[differentiated=False prevent_cse=True] %0 {
            region body(%0: f32[3]) {
              %1: f32[3] = abs %0
              return %1
            }
          }
          return %1
        }
        """,
    ),
    (
        sharded,
        (X,),
        """
        graph sharded(%0: f32[3]) {
          %1: f32[3] = shard_map[check_vma=True in_specs=(P('d',),) mesh=<Mesh> newly_manual_axes={'d'} out_specs=(P('d',),)] %0 {
            region body(%0: f32[3]{V:d}) {
              %1: f32[3]{V:d} = abs %0
              return %1
            }
          }
          return %1
        }
        """,  # noqa: E501
    ),
    (
        solved,
        (X,),
        """
        graph solved(%0: f32[3]) {
          %1: f32[3] = custom_linear_solve[const_lengths=_LinearSolveTuple(matvec=0,vecmat=1,solve=0,transpose_solve=0)] 2.0 %0 {
            region matvec(%0: f32[3]) {
              %1: f32[3] = mul 2.0 %0
              return %1
            }
            region vecmat(%0: f32[], %1: f32[3]) {
              %2: f32[3] = mul %0 %1
              return %2
            }
            region solve(%0: f32[3]) {
              %1: f32[3] = div %0 2.0
              return %1
            }
            region transpose_solve(%0: f32[3]) {
              %1: f32[3] = div %0 2.0
              return %1
            }
          }
          return %1
        }
        """,  # noqa: E501
    ),
]


@pytest.mark.parametrize(("fun", "args", "text"), GOLDEN, ids=[fun.__name__ for fun, _, _ in GOLDEN])
def test_text(fun: Callable[..., Any], args: tuple[Any, ...], text: str) -> None:
    assert trace(fun, *args).to_text() == textwrap.dedent(text).strip()


def first(graph: Graph, op: str) -> Any:
    return next(node for node in graph.walk() if node.op == op)


def test_text_is_stable() -> None:
    for program in PROGRAMS.values():
        once, again = (trace(program.fun, *program.args).to_text() for _ in range(2))
        assert once == again and " at 0x" not in once
        assert once.startswith("graph ") and once.endswith("}")
        assert program.op in once


def test_effects_are_shown() -> None:
    text = trace(opaque, X).to_text()
    assert "!OrderedDebugEffect" in text
    assert "!ReadEffect" in trace(PROGRAMS["mutable reference"].fun, vector()).to_text()


def test_scopes_are_shown_on_request() -> None:
    def fun(x: Any) -> Any:
        with jax.named_scope("a"), jax.named_scope("b"):
            return jnp.abs(x)

    graph = trace(fun, X)
    assert graph.to_text().splitlines()[1] == "  %1: f32[3] = abs %0"
    assert graph.to_text(scopes=True).splitlines()[1] == "  %1: f32[3] = abs %0  # a/b"


def test_unused_results_have_no_number() -> None:
    text = trace(lambda x: lax.top_k(x, 2)[1], X).to_text()
    assert "  _: f32[2], %1: i32[2] = top_k" in text


def test_values_of_nowhere_are_question_marks() -> None:
    graph = trace(lambda x: jnp.abs(x), X)
    (node,) = graph
    node.set_operand(0, trace(lambda x: x, X).inputs[0])
    assert "abs %?" in graph.to_text()


def test_constants() -> None:
    table = jnp.arange(5.0)

    def fun(x: Any) -> Any:
        return x + table.sum() + table[0] + jnp.bfloat16(1.5) + jnp.int8(2), x + table[:3], jax.random.key(0)

    constants = [v for node in trace(fun, X) for v in node.operands if v.is_const]
    texts = {const_text(v) for v in constants}
    assert {"const<f32[5]>"} <= texts
    assert all(
        t.startswith("const<") or v.ndim == 0
        for v, t in zip(constants, map(const_text, constants), strict=True)
    )
    weak = [v for v in first(trace(lambda x: lax.add(x, jnp.bfloat16(2)), jnp.bfloat16(1)), "add").operands]
    assert const_text(weak[1]) == "2.0:bf16[]"


def test_parameters() -> None:
    assert value_text(np.dtype("int8")) == "int8" and value_text(jnp.float32) == "float32"
    assert value_text((1, (2,), "a b")) == "(1,(2,),'a b')"
    assert value_text((np.int64(1), np.float32(2.5))) == "(1,2.5)"
    assert value_text(lax.GatherScatterMode.CLIP) == "CLIP"
    assert value_text(np.zeros((2, 3), np.int32)) == "array<int32[2,3]>"
    assert value_text(jax.make_jaxpr(jnp.sin)(1.0)) == "jaxpr"
    assert value_text(jnp.sin).startswith("<")
    assert value_text(frozenset({"b", "a", "c"})) == "{'a','b','c'}"
    assert value_text(object()) == "<object>"
    assert params_text(first(trace(lambda x: x.sum(), X), "reduce_sum")) == "[axes=(0,)]"
    assert aval_text(jax.typeof(jnp.zeros((2, 3), jnp.bool_))) == "bool[2,3]"
