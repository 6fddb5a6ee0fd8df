"""How the attention pass cuts scores into blocks: those without a mask, and those that masks cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir.export import to_callable
from lepton_jax.passes.fuse._attention.cutting import Cutting, Limits, cutting_of
from lepton_jax.passes.fuse._attention.match import Found, find
from tests.passes._attention_forms import mix, normal
from tests.passes._check import optimised

BEFORE = "inline,dce,fixpoint(fold,algebra,movement,cse,dce)"
PASSES = f"{BEFORE},attention{{smallest=2,block=16}}"

B, H, T, D = 2, 2, 64, 8

DISTANCE = np.arange(T)[:, None] - np.arange(T)
CAUSAL = DISTANCE >= 0

Form = Callable[..., Any]


def attention(mask: Callable[[Any], Any], scale: float = 1 / math.sqrt(D)) -> Form:
    """Attention whose scores go through a function."""

    def fun(q: Any, k: Any, v: Any) -> Any:
        scores = scale * jnp.einsum("bqhd,bkhd->bhqk", q, k)
        return mix(jax.nn.softmax(mask(scores)), v)

    return fun


def counted(see: Callable[[Any], Any], fill: float = -jnp.inf) -> Callable[[Any], Any]:
    """A mask of the distance between query and key."""

    def mask(scores: Any) -> Any:
        rows, columns = (jax.lax.broadcasted_iota(jnp.int32, scores.shape[2:], d) for d in (0, 1))
        return jnp.where(see(rows - columns), scores, fill)

    return mask


def arguments(length: int = T, dtype: Any = jnp.float32) -> tuple[Any, ...]:
    return tuple(normal(B, length, H, D, seed=s, dtype=dtype) for s in range(3))


def cut(fun: Form, *args: Any, block: int | None = 16, widen: bool = True) -> Cutting:
    """How the attention in a function is cut."""
    graph = optimised(fun, *args, passes=BEFORE)
    found = [f for f in (find(node) for node in graph if node.op == "dot_general") if isinstance(f, Found)]
    assert len(found) == 1
    return cutting_of(found[0], Limits(masked=2, open=2, scores=0, block=block, widen=widen))


def operations(fun: Form, *args: Any) -> list[list[str]]:
    """The operations in each kind of blocks."""
    return [[step.op for step in tile.program.steps] for tile in cut(fun, *args).tiles]


def test_causal_blocks_are_halves_on_the_diagonal_and_bare_below() -> None:
    made = cut(attention(counted(lambda d: d >= 0)), *arguments())
    diagonal, below = made.tiles
    assert diagonal.parts == ((0, 8, 0, 8), (8, 8, 0, 16)) and diagonal.blocks == ((0,), (1,), (2,), (3,))
    assert below.parts == ((0, 16, 0, 16),) and below.blocks == ((), (0,), (0, 1), (0, 1, 2))
    assert [step.op for step in below.program.steps] == ["dot_general"]
    assert "select_n" in [step.op for step in diagonal.program.steps]
    assert made.share == (4 * 0.75 + 6) / 16


def test_scales_of_scores_are_scales_of_queries() -> None:
    for fun, scales in (
        (attention(lambda s: s), [1 / math.sqrt(D)]),
        (attention(lambda s: s, scale=3.0), []),
        (attention(lambda s: jnp.where(s > 0, s, s - 1)), [1 / math.sqrt(D)]),
    ):
        found = [s for s in cut(fun, *arguments()).scores.scales if s is not None]
        np.testing.assert_allclose(found, scales)
    narrow = cut(attention(lambda s: s), *arguments(dtype=jnp.bfloat16), widen=False)
    assert not any(narrow.scores.scales) and not narrow.scores.wide


def test_masks_are_left_out_where_they_are_known() -> None:
    table = np.where(CAUSAL, 0.0, -np.inf).astype(np.float32)
    ones = np.where(np.abs(DISTANCE) < 16, 0.5, 1.0).astype(np.float32)
    outer = jnp.asarray(DISTANCE % 7 == 0)
    programs: dict[str, tuple[Form, list[str]]] = {
        "bias": (attention(lambda s: s + table), ["dot_general"]),
        "subtracted": (attention(lambda s: s - -table), ["dot_general"]),
        "factor": (attention(lambda s: s * ones), ["dot_general"]),
        "either": (attention(lambda s: jnp.where(CAUSAL & (s > 0), s, -jnp.inf)), ["gt", "select_n"]),
        "both": (attention(lambda s: jnp.where(~CAUSAL | (s > 9) | outer, -jnp.inf, s)), ["gt", "or"]),
    }
    for name, (fun, wanted) in programs.items():
        plain = operations(fun, *arguments())[-1]
        assert all(op in plain for op in wanted), name
        assert not {"add", "sub", "and", "mul"} & set(plain), name


def test_windows_have_a_kind_for_each_edge() -> None:
    made = cut(attention(counted(lambda d: (d >= 0) & (d < 16))), *arguments())
    parts = sorted(tile.parts for tile in made.tiles)
    assert parts == [((0, 8, 0, 8), (8, 8, 0, 16)), ((0, 8, 0, 16), (8, 8, 8, 8))]


def test_masks_without_order_are_computed_whole() -> None:
    blocks = np.random.default_rng(0).random((8, 8)) < 0.6
    table = np.kron(blocks | np.eye(8, dtype=bool), np.ones((8, 8), bool))
    made = cut(attention(lambda s: jnp.where(table, s, -jnp.inf)), *arguments())
    assert all(tile.parts == ((0, 16, 0, 16),) for tile in made.tiles)


def test_blocks_are_larger_for_fewer_heads() -> None:
    def size(heads: int, length: int) -> int:
        args = [jax.ShapeDtypeStruct((1, length, heads, D), jnp.float32)] * 3
        return cut(attention(counted(lambda d: d >= 0)), *args, block=None).size[0]

    assert [size(heads, 4096) for heads in (2, 16, 64)] == [512, 256, 128]


def test_narrow_numbers_are_computed_in_float32() -> None:
    fun = attention(counted(lambda d: d >= 0))
    given = [arguments(dtype=dtype) for dtype in (jnp.bfloat16, jnp.float16)]
    graphs = [optimised(fun, *args, passes=PASSES) for args in given]

    def errors(given: Any) -> Any:
        found = []
        for args, graph in zip(given, graphs, strict=True):
            exact = fun(*(x.astype(jnp.float32) for x in args))
            results = (fun(*args), to_callable(graph)(*args)[0])
            found.append([jnp.abs(x.astype(jnp.float32) - exact).max() for x in results])
        return found

    for args, graph, (before, after) in zip(given, graphs, jax.jit(errors)(given), strict=True):
        dtype = args[0].dtype
        assert after <= before and graph.outputs[0].dtype == dtype, dtype
        scores = f"{'bf16' if dtype == jnp.bfloat16 else 'f16'}[{B},{H},16,16]"
        assert scores not in graph.to_text(), dtype
        assert scores in optimised(fun, *args, passes=PASSES, target="gpu").to_text(), dtype


def test_narrow_queries_are_widened_even_if_their_scores_are_not_narrow() -> None:
    def fun(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        return mix(jax.nn.softmax(scores).astype(q.dtype), v)

    assert cut(fun, *arguments(dtype=jnp.bfloat16)).widen
    assert not cut(fun, *arguments(dtype=jnp.bfloat16), widen=False).widen
    assert not cut(fun, *arguments()).widen


def low(scores: Any) -> Any:
    """Some rows see no key at all, and average all values."""
    rows = jax.lax.broadcasted_iota(jnp.int32, scores.shape[2:], 0)
    return counted(lambda d: (d >= 0) & (rows % 24 != 5), -1e9)(scores)


PROGRAMS: dict[str, tuple[Form, int]] = {
    "causal, ragged": (attention(counted(lambda d: d >= 0)), 55),
    "window": (attention(counted(lambda d: (d >= 0) & (d < 21))), T),
    "bias": (attention(lambda s: s + np.where(CAUSAL, 0.0, -np.inf).astype(np.float32)), T),
    "either": (attention(lambda s: jnp.where(CAUSAL & (s > -1), s, -1e9)), T),
    "scattered": (attention(lambda s: jnp.where((DISTANCE // 8) % 3 != 1, s, -jnp.inf)), T),
    "large scale": (attention(counted(lambda d: d >= 0), scale=3.0), T),
    "rows that see nothing, ragged": (attention(low), 60),
}


SLOPES = ("causal, ragged", "bias", "rows that see nothing, ragged")
"""Gradients go by blocks of one size; these differ in what they have to do with masks and ends."""


def test_numbers_and_gradients_are_kept() -> None:
    lengths = {length: arguments(length) for _, length in PROGRAMS.values()}
    pairs = {
        name: (fun, to_callable(optimised(fun, *lengths[length], passes=PASSES)))
        for name, (fun, length) in PROGRAMS.items()
    }

    def of(name: str, fun: Form, args: Any) -> Any:
        def total(*args: Any) -> Any:
            (out,) = jax.tree.leaves(fun(*args))
            return (out**2).sum(), out

        return jax.grad(total, (0, 1, 2), has_aux=True)(*args) if name in SLOPES else total(*args)[1]

    def both(given: dict[int, Any]) -> Any:
        return {name: [of(name, f, given[PROGRAMS[name][1]]) for f in pair] for name, pair in pairs.items()}

    for name, (expected, found) in jax.jit(both)(lengths).items():
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            scale = max(float(np.abs(a).max()), 1.0)
            np.testing.assert_allclose(a, b, atol=1e-4 * scale, err_msg=name)
