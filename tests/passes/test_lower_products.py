"""Products: each gets the form that the target is fast at, and gives the same numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lepton_jax as lepton
from lepton_jax.ir.export import to_callable
from lepton_jax.targets import processor
from tests.passes._lowering import Case, check_cases, floats, int8, lowered

Dims = tuple[int, ...]
TURNED, ROWS, PADDED = {"turned-product": 1}, {"product-by-rows": 1}, {"padded-row": 1}


def dot(
    a: Any, b: Any, along: tuple[Dims, Dims], batch: tuple[Dims, Dims] = ((), ()), wide: Any = jnp.int32
) -> Any:
    return lax.dot_general(a, b, (along, batch), preferred_element_type=wide)


def plain(a: Any, b: Any) -> Any:
    return dot(a, b, ((1,), (0,)))


def by_rows(a: Any, b: Any) -> Any:
    return dot(a, b, ((1,), (1,)))


def by_columns(a: Any, b: Any) -> Any:
    return dot(a, b, ((0,), (0,)))


def heads(x: Any, w: Any) -> Any:
    return dot(x, w, ((3, 2), (1, 0)))


def of_batches(x: Any, w: Any) -> Any:
    return dot(x, w, ((2,), (1,)), ((0,), (0,)))


def twice(x: Any, w: Any) -> Any:
    return plain(x, w), plain(-x, w)


def chain(x: Any, w: Any, v: Any) -> Any:
    return x @ w @ v


def derived(x: Any, w: Any) -> Any:
    return plain(x, jnp.round(w * 100).astype(jnp.int8))


def tied(x: Any, w: Any, i: Any) -> Any:
    return plain(x, w), lax.dynamic_slice_in_dim(w, i, 1, 0)


def scanned(x: Any, ws: Any) -> Any:
    def body(c: Any, w: Any) -> Any:
        return (plain(c, w) >> 7).astype(jnp.int8), None

    return lax.scan(body, x, ws)[0]


W = int8(128, 256)
CLOSED = int8(128, 192)


def closed_over(x: Any) -> Any:
    return plain(x, CLOSED)


BF16 = jnp.bfloat16
CASES = {
    "one row": Case(plain, (int8(1, 128), W), TURNED),
    "a vector": Case(lambda x, w: dot(x, w, ((0,), (0,))), (int8(128), W), TURNED),
    "few rows": Case(plain, (int8(16, 128), W), TURNED),
    "many rows": Case(plain, (int8(100, 128), W), ROWS),
    "weight on the left": Case(lambda w, x: by_columns(w, x), (W, int8(128, 3)), TURNED, (0,)),
    "both by rows, on the left": Case(by_rows, (int8(256, 128), int8(2, 128)), TURNED, (0,)),
    "activations by columns": Case(by_columns, (int8(128, 16), W), TURNED),
    "several dimensions": Case(heads, (int8(2, 3, 8, 16), int8(8, 16, 256)), TURNED),
    "batches": Case(of_batches, (int8(2, 3, 128), int8(2, 128, 256)), TURNED),
    "twice": Case(twice, (int8(3, 128), W), {"turned-product": 2}),
    "derived": Case(derived, (int8(3, 128), floats(128, 256)), TURNED),
    "closed over": Case(closed_over, (int8(3, 128),), TURNED, ()),
    "in a scan": Case(scanned, (int8(3, 128), int8(3, 128, 128)), TURNED),
    "float32": Case(lambda x, w: x @ w, (floats(8, 128), floats(128, 256)), TURNED),
    "one after another": Case(
        chain, (floats(8, 128), floats(128, 256), floats(256, 128)), {"turned-product": 2}, (1, 2)
    ),
    "bfloat16": Case(lambda x, w: x @ w, (floats(1, 128, dtype=BF16), floats(128, 256, dtype=BF16)), {}),
    "by rows already, of unknown binding time": Case(by_rows, (int8(5, 128), int8(256, 128)), TURNED, ()),
    "one row, of unknown binding time": Case(plain, (int8(1, 128), W), PADDED, ()),
    "few rows, of unknown binding time": Case(plain, (int8(16, 128), W), {}, ()),
    "read as it is too": Case(tied, (int8(16, 128), W, jnp.int32(3)), {}),
    "small": Case(plain, (int8(1, 16), int8(16, 16)), {}),
    "no rows": Case(plain, (int8(0, 128), W), {}),
    "float32, many rows": Case(lambda x, w: x @ w, (floats(64, 128), floats(128, 256)), {}),
    "float16": Case(
        lambda x, w: x @ w, (floats(8, 128, dtype=jnp.float16), floats(128, 256, dtype=jnp.float16)), {}
    ),
    "both of parameters": Case(plain, (int8(3, 128), W), {}, (0, 1)),
}


def test_every_form_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "has", lambda *names: False)  # bfloat16 has forms where it is in hardware
    graphs = check_cases(CASES)
    assert graphs["one row"].to_text().splitlines() == [
        "graph f(%0: i8[1,128], %1: i8[128,256]) {",
        "  %2: i8[256,128] = transpose[permutation=(1,0)] %1",
        "  %3: i8[4,128] = pad[padding_config=((0,3,0),(0,0,0))] %0 0:i8[]",
        "  %4: i8[4,128] = jit[name='row_major'] %3 {",
        "    region row_major(%0: i8[4,128]) {",
        "      return %0",
        "    }",
        "  }",
        "  %5: i32[256,4] = dot_general[dimension_numbers=(((1,),(1,)),((),()))"
        " preferred_element_type=int32] %2 %4",
        "  %6: i32[256,4] = optimization_barrier %5",
        "  %7: i32[256,1] = slice[limit_indices=(256,1) start_indices=(0,0) strides=(1,1)] %6",
        "  %8: i32[1,256] = transpose[permutation=(1,0)] %7",
        "  return %8",
        "}",
    ]
    assert graphs["twice"].to_text().count("transpose[permutation=(1,0)] %1\n") == 1
    assert "transpose" not in graphs["closed over"].to_text().partition("dot_general")[0]


def test_other_targets() -> None:
    eight = jnp.float8_e4m3fn
    late, early = Case(plain, (int8(16, 128), W), {}, (), target="gpu"), (int8(16, 128), W)
    assert lowered(late)[1] == {}
    graph, rules = lowered(Case(plain, early, ROWS, target="gpu"))
    assert rules == ROWS and "row_major" not in graph.to_text()
    np.testing.assert_array_equal(to_callable(graph)(*early)[0], plain(*early))
    half = Case(
        lambda x, w: dot(x, w, ((1,), (0,)), wide=jnp.float32),
        (floats(16, 128, dtype=eight), floats(128, 256, dtype=eight)),
        ROWS,
        target="gpu",
    )
    assert lowered(half)[1] == ROWS
    assert lowered(Case(plain, early, {}, target="tpu"))[1] == {}


def test_sums_of_floats_are_not_reordered_at_level_exact() -> None:
    assert lowered(CASES["float32"], "exact")[1] == {}
    assert lowered(CASES["one row"], "exact")[1] == TURNED


def test_nan_stays_and_gradients_are_right() -> None:
    x, w = floats(8, 128).at[3, 5].set(jnp.nan), floats(128, 256)
    [y] = to_callable(lowered(CASES["float32"])[0])(x, w)
    assert np.isnan(y[3]).all() and np.isfinite(np.delete(y, 3, 0)).all()
    flat = to_callable(lowered(CASES["float32"])[0])
    found = jax.grad(lambda *a: jnp.sin(flat(*a)[0]).sum(), (0, 1))(floats(8, 128) * 0 + 0.1, w)
    expected = jax.grad(lambda x, w: jnp.sin(x @ w).sum(), (0, 1))(floats(8, 128) * 0 + 0.1, w)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-5)


def test_weights_are_turned_once() -> None:
    x, w = int8(1, 128), W
    f: Any = lepton.optimize(lambda w, x: plain(x, w), "products", params=0)
    prepared = f.prepare(w, x)
    assert [leaf.shape for leaf in jax.tree.leaves(prepared)] == [(256, 128)]
    np.testing.assert_array_equal(f.apply(prepared, x), plain(x, w))
    assert "transpose[permutation=(1, 0)] a" not in str(f.jit_of(prepared).trace(prepared, x).jaxpr)


def test_int8_operands_stay_on_the_fast_path() -> None:
    """XLA would give a product that reads what is made of a transpose its layout, and widen the weight."""

    def two(w: Any, x: Any) -> Any:
        hidden = lax.round(plain(x, w).astype(jnp.float32) * 0.01).astype(jnp.int8)
        return plain(hidden, w)

    f: Any = lepton.optimize(two, "products", params=0)
    args = int8(256, 256), int8(16, 256)
    prepared = f.prepare(*args)
    compiled = f.jit_of(prepared).lower(prepared, args[1]).compile()
    assert "s32[256,256]" not in compiled.as_text()
    np.testing.assert_array_equal(compiled(prepared, args[1]), two(*args))
