"""Which of a TPU's two memories arrays are in, and how they lie there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lepton_jax.ir import trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction import Prediction
from lepton_jax.parallel.prediction.assignment import Assignment
from lepton_jax.parallel.prediction.onchip import on_chip
from lepton_jax.parallel.prediction.spans import Spans
from lepton_jax.parallel.prediction.walk import walk
from lepton_jax.parallel.propagation import propagate
from tests.parallel._memory import BIG, MIB, SQUARE, TPU, array, predicted


def test_two_memories() -> None:
    """What the vector memory holds is not in the main one; the peak is the greater of both."""

    def chain(w: jax.Array, x: jax.Array) -> jax.Array:
        return (jnp.tanh(jnp.tanh(x @ w) @ w) @ w).sum()

    w = array(8, 8, dtype="bfloat16")

    def of(rows: int) -> Prediction:
        return predicted(chain, (w, array(rows, 8, dtype="bfloat16")), TPU)

    # 8 rows to a tile of 128 lanes: the rows are laid along them. A product and the one that it is made of.
    large = of(1 << 23)  # 128 MiB each, more than there is room for
    assert large.temporaries == 2 * 128 * MIB
    half = of(1 << 22)  # 64 MiB each: one in either memory
    assert half.temporaries == 64 * MIB + half.temporaries % (64 * MIB) < 112 * MIB
    small = of(1 << 16)  # all in the vector memory, the input too
    assert small.temporaries >= 2 * MIB


def test_what_is_read_much_later_waits_in_the_main_memory() -> None:
    """Two products of 256 MiB are in the main memory; one of 32 MiB besides where it is read after them."""

    def chain(last: bool) -> Callable[..., Any]:
        def run(small: jax.Array, w: jax.Array, x: jax.Array) -> Any:
            h = small @ small
            before = 0.0 if last else h.sum()
            y = ((x @ w) @ w).sum()
            return y, h.sum() if last else before

        return run

    args = array(4096, 4096, dtype="bfloat16"), SQUARE, BIG
    assert predicted(chain(False), args, TPU).temporaries == 2 * 256 * MIB
    assert predicted(chain(True), args, TPU).temporaries == 2 * 256 * MIB + 32 * MIB


def test_tables_of_few_columns_are_gathered_from_copies() -> None:
    def rows(columns: int) -> int:
        args = array(1 << 20, columns, dtype="bfloat16"), array(8, dtype="int32")
        return predicted(lambda table, ids: table[ids].sum(), args, TPU).temporaries

    assert rows(16) == 256 * MIB > MIB > rows(128)

    def sums(ids: jax.Array, new: jax.Array) -> Any:
        zeros = jnp.zeros((1 << 20, 16), new.dtype)
        return jnp.sin(zeros.at[ids].add(new)) @ zeros.at[ids].add(2 * new).T[:, :8]

    # Of two sums one lies in whole lanes, in the main memory; the other without gaps.
    found = predicted(sums, (array(8, dtype="int32"), array(8, 16, dtype="bfloat16")), TPU).temporaries
    assert 256 * MIB <= found < 2 * 256 * MIB


def test_products_write_the_main_memory_of_v5p() -> None:
    """From there they are fetched, while somebody reads them there."""

    def run(a: jax.Array, b: jax.Array) -> Any:
        h = a @ b  # 32 MiB
        return (h.astype("float32") ** 2).sum(), h.max(), jnp.sin(h) @ a

    args = array(4096, 1024, dtype="bfloat16"), array(1024, 4096, dtype="bfloat16")
    graph = inline_calls(trace(run, *args))
    found: dict[str, list[tuple[int, int]]] = {}
    for chip in ("v5e", "v5p"):
        mesh = MeshSpec.of("data=1", chip=chip)
        spans = Spans(graph, walk(graph, {}, mesh), mesh)
        product = spans.of[next(node.result for node in graph if node.op == "dot_general")]
        places = Assignment(spans, on_chip(chip)).left
        found[chip] = [(begin - product.born, end) for span, begin, end in places if span is product]
    assert not found["v5e"]
    ((begin, end),) = found["v5p"]
    assert begin == 0
    assert end < product.last


def test_sums_that_are_scattered_in_parts_begin_with_two_arrays_of_a_part() -> None:
    spread = MeshSpec.of("data=8", chip="v5e")
    x, y = array(65536, 1024, dtype="bfloat16"), array(65536, 4096, dtype="bfloat16")
    graph = inline_calls(trace(lambda x, y: x.T @ y, x, y))
    split = dict.fromkeys([*graph.inputs, *graph.outputs], Layout((("data",), ())))
    walked = walk(graph, propagate(graph, split, spread), spread)
    assert {move.collective.kind for move in walked.moves} == {"collective-permute"}
    spans = Spans(graph, walked, spread)
    assert {spans.parts(node) for node in graph if node.op == "dot_general"} == {8}
    sums = [span for span in spans.found if span.main]
    assert [span.bytes for span in sums] == [1024 * 4096 * 2 // 8] * 2


@pytest.mark.parametrize(
    ("devices", "tokens", "rows", "columns", "waits"),
    [
        (8, 8192, 2048, 4096, True),  # 0.7 ms of arithmetic: five rounds are taken for the two
        (4, 8192, 2048, 4096, False),  # all four parts in one round: not taken for a loop
        (8, 16384, 4096, 128, True),  # 0.1 ms of arithmetic, but ten times 138 MB are read
        (4, 16384, 4096, 128, False),
    ],
)
def test_arrays_wait_in_the_main_memory_for_loops_over_parts(
    devices: int, tokens: int, rows: int, columns: int, waits: bool
) -> None:
    """One array is computed, then a gradient in a loop over its parts, then one of that array."""

    def gradients(x: jax.Array, y: jax.Array, z: jax.Array, w: jax.Array) -> Any:
        h = z @ w
        return jnp.einsum("td,tf->df", x, y), jnp.einsum("td,tf->df", h, y)

    tall = [array(devices * tokens, n, dtype="bfloat16") for n in (rows, columns, 1024)]
    graph = inline_calls(trace(gradients, *tall, array(1024, 1024, dtype="bfloat16")))
    spread = MeshSpec.of(f"data={devices}", chip="v5e")
    products = [node for node in graph if node.op == "dot_general"]
    rows_of = [*graph.inputs[:3], *products[0].results, *graph.outputs]
    split = dict.fromkeys(rows_of, Layout((("data",), ())))
    spans = Spans(graph, walk(graph, propagate(graph, split, spread), spread), spread)
    assert [spans.adds_parts(node) for node in products] == [False, True, True]
    left = [span.bytes for span, *_ in Assignment(spans, on_chip("v5e")).left if not span.main]
    assert left == [tokens * 1024 * 2] * waits
