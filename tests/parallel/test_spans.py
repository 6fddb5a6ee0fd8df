"""When arrays are in memory on TPUs: what is written, when it is made, who reads it. No libtpu is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lepton_jax.ir import trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.graph import Node
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.memory import memory_of
from lepton_jax.parallel.prediction.spans import Spans
from lepton_jax.parallel.prediction.walk import walk
from lepton_jax.parallel.propagation import propagate

MIB = 1 << 20


def array(*sizes: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def spans_of(
    fun: Callable[..., Any], args: Any, mesh: MeshSpec, ins: Any = (), outs: Any = ()
) -> tuple[Spans, list[Node]]:
    """The spans of a program whose first inputs and outputs lie so, and its products in their order."""
    graph = inline_calls(trace(fun, *args))
    given = dict(zip(graph.inputs, ins, strict=False)) | dict(zip(graph.outputs, outs, strict=False))
    spans = Spans(graph, walk(graph, propagate(graph, given, mesh), mesh), mesh)
    return spans, [node for node in graph if node.op in ("dot_general", "conv_general_dilated")]


@pytest.mark.parametrize("chip", ["v5e", "v5p"])
@pytest.mark.parametrize("scattered", [True, False])
def test_two_devices_make_gradients_in_halves_of_operands_that_are_written(
    chip: str, scattered: bool
) -> None:
    """A tanh that one product alone reads, which is made within it where the whole sum is wanted."""

    def gradient(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum("td,tf->df", x, jnp.tanh(y))

    rows = Layout((("data",), ()))
    ends = (rows if scattered else Layout.whole(2),)
    args = array(8192, 512), array(8192, 2048)
    spans, (product,) = spans_of(gradient, args, MeshSpec.of("data=2", chip=chip), (rows, rows), ends)
    kinds = [move.collective.kind for move in spans.walked.moves]
    assert kinds == ["reduce-scatter" if scattered else "all-reduce"]
    assert spans.parts(product) == 1 + scattered
    assert sum(span.bytes == 4096 * 2048 * 2 for span in spans.found) == 1 + scattered  # the input; its tanh


@pytest.mark.parametrize("chip", ["v5p", "v5e"])
def test_parts_of_a_sum_do_not_wait_on_v5p_once_they_are_scattered_over_some_axes(chip: str) -> None:
    """Sixteen devices add up 8 MiB; each keeps a quarter, which four of them add up in the end."""

    def step(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return w - (x.T @ y).astype(w.dtype)

    mesh = MeshSpec.of("data=4,model=4", chip=chip)
    quarter, tokens = Layout((("data",), ())), Layout((("data", "model"), ()))
    args = array(1024, 4096, dtype="float32"), array(4096, 1024), array(4096, 4096)
    spans, (product,) = spans_of(step, args, mesh, (quarter, tokens, tokens), (quarter,))
    assert [move.collective.kind for move in spans.walked.moves] == ["reduce-scatter", "all-reduce"]
    waits = spans.of[product.results[0]]
    (parts,) = (span for span in spans.found if span.bytes == 8 * MIB and not span.given)
    assert (waits is parts) == (chip == "v5e")
    assert waits.bytes == 2 * MIB if chip == "v5p" else parts.last == waits.last
    assert (parts.last == parts.born + 1) or chip == "v5e"


@pytest.mark.parametrize(("tables", "results"), [(1, 1), (4, 3), (8, 6)])
def test_sparse_cores_look_up_beside_all_else(tables: int, results: int) -> None:
    """Two tables of 32 MiB in whole lanes at a time, and what was found before, 16 MiB each."""

    def found(tables: Any, ids: jax.Array) -> jax.Array:
        return jnp.concatenate([table[ids] for table in tables], -1)

    args = [array(1 << 17, 2)] * tables, array(1 << 16, dtype="int32")
    graph = inline_calls(trace(found, *args))

    def temporaries(chip: str) -> int:
        mesh = MeshSpec.of("data=1", chip=chip)
        return memory_of(graph, walk(graph, {}, mesh), mesh).temporaries

    laid = 32 * MIB * min(tables, 2)
    assert (
        0 <= temporaries("v5p") - laid - 16 * MIB * results < 4 * MIB
    )  # without gaps they take 256 KiB each
    assert temporaries("v5e") < laid + 16 * MIB


def test_rows_that_fill_lanes_are_found_where_they_lie() -> None:
    mesh = MeshSpec.of("data=1", chip="v5p")
    spans, _ = spans_of(lambda t, i: t[i] * 2, (array(1 << 17, 128), array(1 << 16, dtype="int32")), mesh)
    assert not any(span.main for span in spans.found)


def kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Of a 3×3 convolution."""
    numbers = jax.lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1))
    return jax.lax.conv_general_dilated(x, g, (1, 1), [(1, 1), (1, 1)], dimension_numbers=numbers)


def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(("chip", "read_again"), [("v5e", False), ("v5p", False), ("v5p", True)])
def test_convolutions_run_within_gradients_of_kernels_on_v5p(chip: str, read_again: bool) -> None:
    def gradient(x: jax.Array, g: jax.Array, kernel: jax.Array) -> Any:
        inner = convolved(g, kernel) + g
        return kernel_gradient(x, inner), inner.max() if read_again else x.max()

    args = array(32, 16, 16, 64), array(32, 16, 16, 64), array(3, 3, 64, 64)
    spans, (inner, _) = spans_of(gradient, args, MeshSpec.of("data=1", chip=chip))
    assert (inner in spans.nodes) == (chip == "v5e" or read_again)


def test_convolutions_forward_do_not_run_within_the_next() -> None:
    args = array(32, 16, 16, 64), array(3, 3, 64, 64)
    f = lambda x, k: convolved(convolved(x, k), k)  # noqa: E731
    spans, products = spans_of(f, args, MeshSpec.of("data=1", chip="v5p"))
    assert all(product in spans.nodes for product in products)


@pytest.mark.parametrize("alone", [True, False])
def test_weights_of_attention_are_written_where_a_product_alone_reads_their_gradient(alone: bool) -> None:
    """As in the first layer, whose input needs no gradient."""

    def layer(q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array) -> Any:
        weights = jax.nn.softmax((q @ k.T).astype(jnp.float32), -1).astype(v.dtype)
        mixed, values = weights @ v, weights.T @ v
        return mixed, mixed.T @ x, values.T @ x, x.max() if alone else jnp.sin(values) @ q.T[:, :8]

    args = (array(8192, 128),) * 4
    spans, _ = spans_of(layer, args, MeshSpec.of("data=1", chip="v5e"))
    large = [value for value in spans.of if value.shape == (8192, 8192)]
    assert len(large) == (2 if alone else 1)


@pytest.mark.parametrize(
    ("read", "written"), [("products", True), ("twice", True), ("elements", False), ("nobody", False)]
)
def test_weights_of_grouped_queries_are_written_on_v5p_where_the_gradient_of_values_is(
    read: str, written: bool
) -> None:
    """Compiled for v5p: where that goes into the next operation, or out, products take the exponentials."""

    def layer(q: jax.Array, k: jax.Array, v: jax.Array, x: jax.Array) -> Any:
        scores = jnp.einsum("btngh,bsnh->bngts", q, k).astype(jnp.float32)
        weights = jax.nn.softmax(scores, -1).astype(v.dtype)
        mixed, values = (
            jnp.einsum("bngts,bsnh->btngh", weights, v),
            jnp.einsum("bngts,btngh->bsnh", weights, q),
        )
        if read == "nobody":
            return mixed, values
        if read == "elements":
            values = values * jnp.sin(v)
        if read == "twice":
            values = 2 * values
        return (
            mixed,
            jnp.einsum("bsnh,bsd->nhd", values, x),
            jnp.einsum("bsnh,dnh->bsd", values, v[0, :8, :, :]),
        )

    args = array(4, 512, 4, 4, 64), *[array(4, 512, 4, 64)] * 2, array(4, 512, 64)
    spans, _ = spans_of(layer, args, MeshSpec.of("data=1", chip="v5p"))
    large = [value for value in spans.of if value.shape == (4, 4, 4, 512, 512)]
    assert len(large) == 1 + written  # the scores are written too


def test_parts_of_sums_are_made_in_their_place() -> None:
    """Not where the sum is read, to which what they are made of would have to stay."""
    mesh = MeshSpec.of("data=64", chip="v5p")

    def step(x: jax.Array, g: jax.Array, m: jax.Array) -> Any:
        gradient = x.T @ g
        y = jnp.sin(x) @ x[:64].T
        return m + gradient.astype(jnp.float32), y

    rows, columns = Layout((("data",), ())), Layout(((), ("data",)))
    args = array(65536, 256), array(65536, 256), array(256, 256, dtype="float32")
    spans, (first, second) = spans_of(step, args, mesh, (rows, rows, columns), (columns, rows))
    assert spans.layout(first.results[0]).partial
    assert 0 < spans.nodes.index(first) < spans.nodes.index(second)


def test_products_within_which_others_run_read_gathered_copies() -> None:
    mesh = MeshSpec.of("data=8", chip="v5e")

    def run(w: jax.Array, x: jax.Array) -> jax.Array:
        return (x @ w) @ w * x

    rows = Layout((("data",), ()))
    spans, (_, second) = spans_of(run, (array(1024, 1024), array(4096, 1024)), mesh, (rows, rows), (rows,))
    (copy,) = (span for span in spans.found if span.bytes == 2 * MIB)
    assert copy.last == spans.nodes.index(second)


@pytest.mark.parametrize(
    ("chip", "layers", "rows", "ahead"),
    [
        ("v5p", 1, 4096, True),
        ("v5p", 1, 512, False),  # the first product makes less than the second weight takes
        ("v5p", 3, 4096, False),  # all weights at once need more memory
        ("v5e", 1, 4096, False),  # gathered while the product before runs
    ],
)
def test_weights_are_gathered_in_the_beginning_where_that_needs_no_more_memory(
    chip: str, layers: int, rows: int, ahead: bool
) -> None:
    def run(weights: list[jax.Array], x: jax.Array) -> jax.Array:
        for w in weights:
            x = jnp.tanh(x @ w)
        return x

    mesh = MeshSpec.of("data=4,model=4", chip=chip)
    quarter, tokens = Layout((("data",), ())), Layout((("data", "model"), ()))
    args = [array(1024, 4096), array(4096, 1024)] * layers, array(16 * rows, 1024)
    spans, products = spans_of(run, args, mesh, (*(quarter,) * (2 * layers), tokens), (tokens,))
    assert spans.nodes[1:-1] == products
    gathers = [span for span in spans.found if span.bytes == 8 * MIB and not span.given]
    begun = {span.born for span in gathers if span.reads[0] - span.born <= 1 or ahead}
    assert (begun == {0}) is ahead


@pytest.mark.parametrize("chip", ["v5e", "v5p"])
def test_gradients_are_made_where_they_free_most(chip: str) -> None:
    """As soon as what they read is there, before products that free less."""

    def run(x: jax.Array, g: jax.Array, w: jax.Array) -> Any:
        h = jnp.tanh(x @ w)
        return jnp.tanh(g @ w) @ w, h.T @ g

    args = array(65536, 1024), array(65536, 1024), array(1024, 1024)
    spans, (first, *two, gradient) = spans_of(run, args, MeshSpec.of("data=1", chip=chip))
    assert spans.nodes[1:-1] == ([first, gradient, *two] if chip == "v5p" else [*two, first, gradient])


@pytest.mark.parametrize("batches", [(), (2,)])
@pytest.mark.parametrize("chip", ["v5e", "v5p"])
def test_a_product_takes_the_place_of_what_it_reads_by_elements(chip: str, batches: tuple[int, ...]) -> None:
    """Two arrays of 256 MiB; with batches that is not followed."""

    def run(g: jax.Array, w: jax.Array, x: jax.Array, v: jax.Array, u: jax.Array) -> jax.Array:
        return ((g @ w) * jnp.sin(x @ v)) @ u

    rows, columns, last = array(*batches, 8192, 512), array(*batches, 512, 16384), array(*batches, 16384, 128)
    graph = inline_calls(trace(run, rows, columns, rows, columns, last))
    mesh = MeshSpec.of("data=1", chip=chip)
    memory = memory_of(graph, walk(graph, propagate(graph, {}, mesh), mesh), mesh)
    assert memory.temporaries == (2 * 512 if batches else 256) * MIB


@pytest.mark.parametrize("chip", ["v5e", "v5p"])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("summed", [True, False])
def test_single_operations_write_the_main_memory_of_v5p(chip: str, alone: bool, summed: bool) -> None:
    """Not with another operation or a sum in the same step."""

    def run(x: jax.Array, y: jax.Array, w: jax.Array) -> Any:
        z = x + y if alone else jnp.sin(x) + y
        return z @ w, z @ w.T, jnp.tanh(z) @ w, (z * z).sum() if summed else w.sum()

    spans, _ = spans_of(run, (array(1024, 1024),) * 3, MeshSpec.of("data=1", chip=chip))
    (made,) = (span for span in spans.found if len(span.reads) > 2 and not span.argument)
    assert made.outside is (chip == "v5p" and alone and not summed)
