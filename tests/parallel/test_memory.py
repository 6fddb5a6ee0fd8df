"""Predicted bytes: derived by hand, beside eight CPU devices, and beside TPUs where libtpu is installed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lepton_jax.ir import trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.parallel.aot.compile import compile_for
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction import Prediction, predict
from lepton_jax.parallel.prediction.assignment import Assignment
from lepton_jax.parallel.prediction.onchip import on_chip
from lepton_jax.parallel.prediction.order import ordered
from lepton_jax.parallel.prediction.spans import Spans
from lepton_jax.parallel.prediction.walk import walk
from lepton_jax.parallel.propagation import propagate

MIB = 1 << 20
CPU = MeshSpec.of("data=2", chip="cpu")
TPU = MeshSpec.of("data=2", chip="v5e")
AXES = "data=2,model=4"
ALL = ("data", "model")

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'lepton-jax[tpu]'",
)


def array(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def predicted(
    fun: Callable[..., Any], args: Any, mesh: MeshSpec, specs: Any = None, out: Any = None
) -> Prediction:
    graph = inline_calls(trace(fun, *args))
    spec_list: Sequence[P] = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
    pairs = zip(graph.inputs, spec_list or [P()] * len(graph.inputs), strict=True)
    given = {value: Layout.from_spec(spec, value.ndim) for value, spec in pairs}
    if out is not None:
        ends = jax.tree.leaves(out, is_leaf=lambda x: isinstance(x, P))
        given |= {v: Layout.from_spec(s, v.ndim) for v, s in zip(graph.outputs, ends, strict=True)}
    return predict(graph, propagate(graph, given, mesh, first=graph.inputs[-1:]), mesh)


def test_what_is_written() -> None:
    """Two products of 2 MiB each; operations on elements between them take none."""
    w, x = array(512, 512), array(1024, 512)
    found = predicted(lambda w, x: (jnp.tanh(x @ w) @ w).sum(), (w, x), CPU)
    assert (found.arguments, found.outputs) == (3 * MIB, 4)
    assert found.temporaries == 2 * MIB + 2 * MIB
    assert found.peak == found.arguments + found.outputs + found.temporaries
    assert {value.shape for value in found.alive} == {(1024, 512)}

    def once(a: jax.Array, b: jax.Array) -> jax.Array:
        return (a + b).sum()

    def twice(a: jax.Array, b: jax.Array) -> jax.Array:
        both = a + b
        return both.sum() + (both @ both).sum()

    # What joins two arrays is written where it has more than one reader; a sum is 4 bytes.
    assert predicted(once, (w, w), CPU).temporaries == 0
    assert predicted(twice, (w, w), CPU).temporaries == MIB + MIB + 4


def test_loops() -> None:
    """A step holds its product, and the slice of the weights that it reads; carries are written over."""

    def loop(ws: jax.Array, x: jax.Array) -> Any:
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), c), x, ws)

    found = predicted(loop, (array(4, 512, 512), array(1024, 512)), CPU)
    assert found.arguments == 4 * MIB + 2 * MIB
    assert found.outputs == 2 * MIB + 4 * 2 * MIB
    assert found.temporaries == MIB + 2 * MIB


def test_gathered_copies_are_there_while_they_are_read() -> None:
    args, specs = (array(512, 512), array(512, 512), array(512, 512)), (P("data"), P("data"), P("data"))
    found = predicted(lambda a, b, x: jnp.tanh(x @ a) @ b, args, CPU, specs)
    assert [each.kind for each in found.collectives] == ["all-gather"] * 2
    assert found.arguments == 3 * MIB // 2
    assert found.temporaries == MIB + MIB // 2  # one gathered weight and half of the rows


BIG = array(8192, 16384, dtype="bfloat16")  # 256 MiB, more than the vector memory holds
SQUARE = array(16384, 16384, dtype="bfloat16")  # 512 MiB


def test_what_runs_within_a_product_on_a_tpu() -> None:
    def epilogue(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        h = x @ w
        return h * y + h * x  # all that is made of the product's result goes into one array

    args = SQUARE, BIG, BIG
    assert predicted(epilogue, args, TPU).temporaries == 0
    assert predicted(epilogue, args, CPU).temporaries == 256 * MIB

    def summed(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return epilogue(w, x, y) + x @ w  # of two products one is written before

    assert predicted(summed, args, TPU).temporaries == 256 * MIB


def attention(masked: bool) -> Callable[..., jax.Array]:
    def mixed(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = (q @ k.T).astype(jnp.float32)
        if masked:
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape, bool)), scores, -jnp.inf)
        return jax.nn.softmax(scores, -1).astype(v.dtype) @ v

    return mixed


def test_scores_are_kept_in_their_own_type_without_a_mask_and_widened_with_one() -> None:
    heads = (array(8192, 128, dtype="bfloat16"),) * 3
    assert predicted(attention(False), heads, TPU).temporaries == 128 * MIB
    assert predicted(attention(True), heads, TPU).temporaries == 256 * MIB


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


def test_weights_of_attention_are_made_again_on_v5e_and_written_on_v5p() -> None:
    def twice(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        weights = jax.nn.softmax((q @ k.T).astype(jnp.float32), -1).astype(v.dtype)
        return weights @ v, weights.T @ v

    heads = (array(8192, 128, dtype="bfloat16"),) * 3
    for chip, arrays in (("v5e", 1), ("v5p", 2)):
        found = predicted(twice, heads, MeshSpec.of("data=2", chip=chip))
        assert 0 <= found.temporaries - arrays * 128 * MIB < 4 * MIB


def test_of_two_products_the_one_that_frees_runs_first() -> None:
    def pair(a: jax.Array, o: jax.Array, v: jax.Array) -> Any:
        w = jnp.sin(a)
        return jnp.einsum("ik,jk->ij", o, v), jnp.einsum("ij,ik->jk", w, o)

    graph = inline_calls(trace(pair, array(64, 64), array(64, 8), array(64, 8)))
    order = ordered(graph, lambda value: 4 * math.prod(value.shape))
    first, second = (node for node in order if node.op == "dot_general")
    assert (first.results[0].shape, second.results[0].shape) == ((64, 8), (64, 64))
    assert sorted(map(id, order)) == sorted(map(id, graph))


def test_sums_that_are_scattered_in_parts_begin_with_two_arrays_of_a_part() -> None:
    spread = MeshSpec.of("data=8", chip="v5e")
    x, y = array(65536, 1024, dtype="bfloat16"), array(65536, 4096, dtype="bfloat16")
    graph = inline_calls(trace(lambda x, y: x.T @ y, x, y))
    split = dict.fromkeys([*graph.inputs, *graph.outputs], Layout((("data",), ())))
    walked = walk(graph, propagate(graph, split, spread), spread)
    assert {move.collective.kind for move in walked.moves} == {"collective-permute"}
    sums = [span for span in Spans(graph, walked, spread).found if span.main]
    assert [span.bytes for span in sums] == [1024 * 4096 * 2 // 8] * 2


def mlp(params: Any, x: jax.Array) -> jax.Array:
    for into, out in params:
        x = x + jax.nn.gelu(x @ into) @ out
    return (x.astype(jnp.float32) ** 2).mean()


def compared(args: Any, specs: Any) -> float:
    """The predicted peak of a gradient by the compiled one."""
    step = jax.grad(mlp)
    found = compile_for(step, args, "v5e:2x4", AXES, in_specs=specs)
    assert found.memory is not None
    return predicted(step, args, MeshSpec.of(AXES, chip="v5e"), specs).peak / found.memory.peak


def test_peaks_of_eight_cpu_devices() -> None:
    def loss(params: Any, x: jax.Array) -> jax.Array:
        for into, out in params:
            x = jax.nn.relu(x @ into) @ out
        return (x**2).mean()

    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    weights, x = [(array(1024, 4096), array(4096, 1024))] * 2, array(4096, 1024)
    ways = [((P(None, "model"), P("model")), P("data")), ((P(ALL), P(ALL)), P(ALL))]
    for way, batch in ways:
        specs = [way] * 2, batch
        placed = jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, P))
        step = jax.jit(jax.grad(loss), in_shardings=placed, out_shardings=placed[0])
        found = step.lower(weights, x).compile().memory_analysis()
        assert found is not None
        peak = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        spread = MeshSpec.of(AXES, chip="cpu")
        mine = predicted(jax.grad(loss), (weights, x), spread, specs, specs[0])
        assert mine.arguments == found.argument_size_in_bytes
        assert 0.85 < mine.peak / peak < 1.15


@needs_libtpu
def test_peaks_of_tpus() -> None:
    weights = [(array(1024, 4096, dtype="bfloat16"), array(4096, 1024, dtype="bfloat16"))] * 2
    x = array(16384, 1024, dtype="bfloat16")
    split = [(P(None, "model"), P("model"))] * 2
    assert 0.9 < compared((weights, x), (split, P("data"))) < 1.1
    large = array(1 << 18, 1024, dtype="bfloat16")
    assert 0.9 < compared((weights, large), (split, P("data"))) < 1.1
