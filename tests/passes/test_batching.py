"""Batching: many small products as one, weights and keys that are not repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests.passes._check import all_kept, fired, optimised, same
from tests.passes._movement import array

PASSES = "inline,dce,fixpoint(fold,algebra,movement,cse,dce,batching,inline)"
OURS = {"stacked-products", "flat-product", "grouped-product"}
COUNT = 8

Program = Callable[..., Any]


def rules_of(fun: Program, *args: Any, level: str = "reassociate", passes: str = PASSES) -> set[str]:
    return OURS & set(fired(fun, *args, passes=passes, level=level))


def products(graph: Any) -> int:
    return sum(node.op == "dot_general" for node in graph.walk())


def lines(fun: Program, *args: Any) -> list[str]:
    return [line.strip() for line in optimised(fun, *args, passes=PASSES).to_text().split("\n")][1:-1]


X, W, B, V = (COUNT, 4, 16), (COUNT, 16, 12), (COUNT, 12), (COUNT, 12, 6)

STACKED: dict[str, tuple[Program, tuple[tuple[int, ...], ...]]] = {
    "products": (lambda x, w: jnp.stack([x[i] @ w[i] for i in range(COUNT)]), (X, W)),
    "with a tail": (lambda x, w: jnp.stack([jnp.tanh(x[i] @ w[i]) * 2 for i in range(COUNT)]), (X, W)),
    "along the middle": (lambda x, w: jnp.stack([x[i] @ w[i] for i in range(COUNT)], 1), (X, W)),
    "joined": (lambda x, w: jnp.concatenate([x[i] @ w[i] for i in range(COUNT)], -1), (X, W)),
    "joined in front": (lambda x, w: jnp.concatenate([x[i] @ w[i] for i in range(COUNT)]), (X, W)),
    "some of them": (lambda x, w: jnp.stack([x[i + 1] @ w[i + 2] for i in range(6)]), (X, W)),
    "two layers": (
        lambda x, w, b, v: jnp.stack([jax.nn.silu(x[i] @ w[i] + b[i]) @ v[i] for i in range(COUNT)]),
        (X, W, B, V),
    ),
    "vectors": (lambda x, w: jnp.stack([x[i] @ w[i] for i in range(COUNT)]), ((COUNT, 16), (COUNT, 16, 40))),
    "columns": (
        lambda x, w: jnp.concatenate([x[:, 4 * i : 4 * i + 4] @ w[i] for i in range(COUNT)], -1),
        ((32, 4 * COUNT), (COUNT, 4, 5)),
    ),
    "heads": (lambda x, w: jnp.stack([x @ w[i] for i in range(COUNT)]), ((4, 16), W)),
    "heads and a bias": (
        lambda x, w, b: jnp.stack([jnp.sin(x @ w[i] + b) for i in range(COUNT)]),
        ((4, 16), W, (12,)),
    ),
    "another axis": (
        lambda x, w: jnp.stack([x[:, i] @ w[:, :, i] for i in range(COUNT)]),
        ((4, COUNT, 16), (16, 12, COUNT)),
    ),
    "rows of a row": (
        lambda x, w: jnp.stack([jnp.sum(x[i] @ w[i], 0) for i in range(COUNT)]),
        (X, W),
    ),
}


def test_stacked_products_become_one() -> None:
    programs = {
        name: (fun, tuple(array(shape, seed=i) for i, shape in enumerate(shapes)))
        for name, (fun, shapes) in STACKED.items()
    }
    for name, (graph, report) in all_kept(programs, passes=PASSES).items():
        assert OURS & set(report.rules) == {"stacked-products"}, name
        assert products(graph) == (2 if name == "two layers" else 1), name
    for name, (fun, args) in programs.items():
        assert rules_of(fun, *args, level="exact") == set(), name


def test_text_of_stacked_products() -> None:
    fun, shapes = STACKED["with a tail"]
    assert lines(fun, *map(array, shapes)) == [
        "%2: f32[8,4,12] = dot_general[dimension_numbers=(((2,),(1,)),((0,),(0,))) "
        "preferred_element_type=float32] %0 %1",
        "%3: f32[8,4,12] = tanh[accuracy=None] %2",
        "%4: f32[8,4,12] = mul %3 2.0",
        "return %4",
    ]


def precise(x: jax.Array, w: jax.Array) -> jax.Array:
    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        return lax.dot(a, b, precision=("highest", "default"), preferred_element_type=jnp.float32)

    return jnp.stack([one(x[i], w[i]) for i in range(COUNT)])


def test_precision_and_types_stay() -> None:
    args = array(X, "bfloat16"), array(W, "bfloat16", seed=1)
    [product, _] = lines(precise, *args)
    assert "precision=(HIGHEST,DEFAULT) preferred_element_type=float32" in product
    same(precise, *args, passes=PASSES, grad=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "int32", "float16"])
def test_stacked_products_of_other_numbers(dtype: str) -> None:
    fun, shapes = STACKED["products"]
    args = [array(shape, dtype, seed=i) for i, shape in enumerate(shapes)]
    assert rules_of(fun, *args) == {"stacked-products"}
    same(fun, *args, passes=PASSES, grad=False)


def test_nan_stays_in_its_product() -> None:
    fun, shapes = STACKED["with a tail"]
    x, w = (array(shape, seed=i) for i, shape in enumerate(shapes))
    same(fun, x.at[2, 1, 3].set(jnp.nan).at[3, 0, 0].set(jnp.inf), w, passes=PASSES, grad=False)


NOT_STACKED: dict[str, tuple[Program, tuple[tuple[int, ...], ...]]] = {
    "separate weights": (
        lambda x, q, k, v, o: jnp.stack([x @ w for w in (q, k, v, o)]),
        ((8, 32), *[(32, 32)] * 4),
    ),
    "joined separate weights": (
        lambda x, q, k, v, o: jnp.concatenate([x @ w for w in (q, k, v, o)], -1),
        ((8, 32), *[(32, 32)] * 4),
    ),
    "not in order": (lambda x, w: jnp.stack([x[i] @ w[i] for i in (0, 2, 1, 3, 4, 5, 6, 7)]), (X, W)),
    "with gaps": (lambda x, w: jnp.stack([x[i] @ w[i] for i in range(0, COUNT, 2)]), (X, W)),
    "too few": (lambda x, w: jnp.stack([x[i] @ w[i] for i in range(3)]), (X, W)),
    "few heads": (lambda x, w: jnp.stack([x @ w[i] for i in range(4)]), ((4, 16), W)),
    "large heads": (lambda x, w: jnp.stack([x @ w[i] for i in range(8)]), ((64, 64), (8, 64, 64))),
    "one is unlike": (
        lambda x, w: jnp.stack([jnp.tanh(x[i] @ w[i]) if i else x[i] @ w[i] for i in range(COUNT)]),
        (X, W),
    ),
    "factors differ": (lambda x, w: jnp.stack([(x[i] @ w[i]) * (i + 2.5) for i in range(COUNT)]), (X, W)),
    "also read elsewhere": (
        lambda x, w: (lambda ys: (jnp.stack(ys), ys[3]))([x[i] @ w[i] for i in range(COUNT)]),
        (X, W),
    ),
    "no product": (lambda x: jnp.stack([jnp.tanh(x[i]) for i in range(COUNT)]), (X,)),
    "little work": (lambda x, w: jnp.stack([x[i] @ w[i] for i in range(4)]), ((4, 2, 3), (4, 3, 5))),
    "no rows": (lambda x, w: jnp.stack([x[i] @ w[i] for i in range(COUNT)]), ((COUNT, 0, 16), W)),
}


@pytest.mark.parametrize("name", NOT_STACKED)
def test_products_that_are_not_batched(name: str) -> None:
    fun, shapes = NOT_STACKED[name]
    assert rules_of(fun, *(array(shape, seed=i) for i, shape in enumerate(shapes))) == set()


def test_the_products_of_one_layer_stay_three() -> None:
    def fun(x: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        return x @ q, x @ k, x @ v

    args = array((8, 32)), *(array((32, 32), seed=i) for i in range(3))
    graph = optimised(fun, *args, passes=PASSES)
    assert products(graph) == 3
    assert all(node.op == "dot_general" for node in graph)


BATCHES, ROWS, INWARD, OUTWARD = 16, 4, 64, 64

FLAT: dict[str, Program] = {
    "matmul": lambda x, w: jnp.matmul(x, jnp.broadcast_to(w, (BATCHES, *w.shape))),
    "einsum": lambda x, w: jnp.einsum("bij,bjk->bik", x, jnp.broadcast_to(w, (BATCHES, *w.shape))),
    "repeat": lambda x, w: x @ jnp.repeat(w[None], BATCHES, 0),
    "tile": lambda x, w: x @ jnp.tile(w, (BATCHES, 1, 1)),
    "transposed": lambda x, w: jnp.einsum("bij,bkj->bik", x, jnp.broadcast_to(w, (BATCHES, *w.shape))),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_weights_for_all_batches_are_read_once(dtype: str) -> None:
    args = array((BATCHES, ROWS, INWARD), dtype), array((INWARD, OUTWARD), dtype, seed=1)
    programs = {name: (fun, args) for name, fun in FLAT.items()}
    for name, (graph, report) in all_kept(programs, passes=PASSES, grad=dtype == "float32").items():
        assert OURS & set(report.rules) == {"flat-product"}, name
        assert all(node.op != "broadcast_in_dim" for node in graph), name
        assert rules_of(FLAT[name], *args, level="exact") == set(), name


def test_text_of_a_flat_product() -> None:
    args = array((BATCHES, ROWS, INWARD)), array((INWARD, OUTWARD), seed=1)
    assert lines(FLAT["matmul"], *args) == [
        "%2: f32[64,64] = reshape[new_sizes=(64,64)] %0",
        "%3: f32[64,64] = dot_general[dimension_numbers=(((1,),(0,)),((),())) "
        "preferred_element_type=float32] %2 %1",
        "%4: f32[16,4,64] = reshape[new_sizes=(16,4,64)] %3",
        "return %4",
    ]


def test_products_that_are_not_flattened() -> None:
    x, w = array((BATCHES, ROWS, INWARD)), array((INWARD, OUTWARD), seed=1)
    many = array((2, 512, INWARD))
    several = array((4, INWARD, OUTWARD))
    cases: list[tuple[Program, tuple[Any, ...]]] = [
        (lambda x, w: jnp.broadcast_to(w, (BATCHES, *w.shape)) @ jnp.swapaxes(x, 1, 2), (x, w)),
        (lambda x, w: x @ jnp.broadcast_to(w, (2, *w.shape)), (many, w)),
        (lambda x, w: x[:, :, :4] @ jnp.broadcast_to(w[:4], (BATCHES, 4, OUTWARD)), (x, w)),
        (lambda x, w: x @ jnp.repeat(w, 4, 0), (x, several)),
        (lambda x, w: x @ jnp.broadcast_to(w[:, :1], (BATCHES, INWARD, OUTWARD)), (x, w)),
    ]
    for fun, args in cases:
        assert "flat-product" not in rules_of(fun, *args)


B_, H, G, T, S, D = 2, 8, 2, 16, 24, 32


def score(layout: str, repeat: Callable[[jax.Array, int], jax.Array]) -> Program:
    axis = layout.split(",")[1].index("h")
    return lambda q, k: jnp.einsum(layout, q, repeat(k, axis))


def by_repeat(k: jax.Array, axis: int) -> jax.Array:
    return jnp.repeat(k, H // G, axis)


def by_broadcast(k: jax.Array, axis: int) -> jax.Array:
    shape = (*k.shape[: axis + 1], H // G, *k.shape[axis + 1 :])
    wide = jnp.broadcast_to(jnp.expand_dims(k, axis + 1), shape)
    return wide.reshape(*k.shape[:axis], H, *k.shape[axis + 1 :])


def by_turns(k: jax.Array, axis: int) -> jax.Array:
    shape = (*k.shape[:axis], H // G, *k.shape[axis:])
    return jnp.broadcast_to(jnp.expand_dims(k, axis), shape).reshape(*k.shape[:axis], H, *k.shape[axis + 1 :])


SIZES = {"b": B_, "h": H, "q": T, "k": S, "d": D}


LAYOUTS = [
    "bhqd,bhkd->bhqk",
    "bqhd,bkhd->bhqk",
    "qbhd,kbhd->hbqk",
    "bhqk,bhkd->bhqd",
    "bhqk,bkhd->bqhd",
    "hqd,hkd->hqk",
]


def test_repeated_heads_become_groups() -> None:
    programs = dict[str, tuple[Program, tuple[Any, ...]]]()
    for layout in LAYOUTS:
        left, right = layout.split("->")[0].split(",")
        sizes = {**SIZES, "q": 64} if "b" not in left else SIZES
        q = array(tuple(sizes[c] for c in left))
        k = array(tuple(G if c == "h" else sizes[c] for c in right), seed=1)
        for repeat in (by_repeat, by_broadcast, by_turns):
            programs[f"{layout} {repeat.__name__}"] = score(layout, repeat), (q, k)
    for name, (graph, report) in all_kept(programs, passes=PASSES).items():
        assert OURS & set(report.rules) == {"grouped-product"}, name
        assert all(node.op != "broadcast_in_dim" for node in graph), name


def test_text_of_grouped_queries() -> None:
    args = array((B_, H, T, D)), array((B_, G, S, D), seed=1)
    assert lines(score("bhqd,bhkd->bhqk", by_repeat), *args) == [
        "%2: f32[2,2,4,16,32] = reshape[new_sizes=(2,2,4,16,32)] %0",
        "%3: f32[2,2,4,16,24] = dot_general[dimension_numbers=(((4,),(3,)),((0,1),(0,1))) "
        "preferred_element_type=float32] %2 %1",
        "%4: f32[2,8,16,24] = reshape[new_sizes=(2,8,16,24)] %3",
        "return %4",
    ]


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    k, v = jnp.repeat(k, H // G, 2), jnp.repeat(v, H // G, 2)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / D**0.5)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def test_grouped_query_attention() -> None:
    args = array((B_, T, H, D)), array((B_, S, G, D), seed=1), array((B_, S, G, D), seed=2)
    assert fired(attention, *args, passes=PASSES)["grouped-product"] == 2
    same(attention, *args, passes=PASSES)
    assert rules_of(attention, *args, passes="default,batching") == {"grouped-product"}


def test_one_key_head_for_all() -> None:
    q, k = array((B_, H, T, D)), array((B_, 1, S, D), seed=1)
    cases: list[tuple[Program, jax.Array]] = [
        (lambda q, k: jnp.einsum("bhqd,bhkd->bhqk", q, jnp.repeat(k, H, 1)), k),
        (lambda q, k: jnp.einsum("bhqd,bhkd->bhqk", q, jnp.broadcast_to(k, (B_, H, S, D))), k),
        (lambda q, k: q @ jnp.swapaxes(jnp.broadcast_to(k[:, None], (B_, H, S, D)), 2, 3), k[:, 0]),
    ]
    for fun, keys in cases:
        assert rules_of(fun, q, keys) == {"grouped-product"}
        graph = same(fun, q, keys, passes=PASSES)
        assert all(node.result.shape != (B_, H, S, D) for node in graph)


def test_repeats_that_are_no_groups() -> None:
    q, k = array((B_, H, T, D)), array((B_, G, S, D), seed=1)
    cases: list[tuple[Program, tuple[Any, ...]]] = [
        (lambda q, k: jnp.einsum("bhqd,bhkd->bhqk", q, jnp.repeat(k, 2, 2)), (q, array((B_, H, S, D)))),
        (lambda q, k: jnp.einsum("bhqd,bhkd->bhqk", q, jnp.repeat(k, 2, 3)), (q, array((B_, H, S, D // 2)))),
        (score("bhqd,bhkd->bhqk", by_repeat), (q[:, :, :1, :4], k[:, :, :, :4])),
        (lambda q, k: jnp.einsum("bhqd,bhkd->bhqk", q, k), (q, array((B_, H, S, D)))),
    ]
    for fun, args in cases:
        assert "grouped-product" not in rules_of(fun, *args)


def test_inside_a_loop() -> None:
    def fun(x: jax.Array, w: jax.Array) -> jax.Array:
        def step(i: Any, y: jax.Array) -> jax.Array:
            return jnp.stack([jnp.tanh(y[j] @ w[j]) for j in range(COUNT)])

        result: jax.Array = lax.fori_loop(0, 3, step, x)
        return result

    args = array((COUNT, 4, 16)), array((COUNT, 16, 16), seed=1)
    assert rules_of(fun, *args, passes="default,batching") == {"stacked-products"}
    assert products(same(fun, *args, passes=PASSES)) == 1


def test_not_on_tpu() -> None:
    fun, shapes = STACKED["products"]
    graph = optimised(fun, *map(array, shapes), passes=PASSES, target="tpu")
    assert products(graph) == COUNT
