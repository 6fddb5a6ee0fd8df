"""What programs cost on a mesh: against XLA's text for eight CPU devices, and closed formulas for TPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lepton_jax.ir import trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.graph import Graph, Value
from lepton_jax.parallel.aot.hlo import collectives
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction import Prediction, predict
from lepton_jax.parallel.prediction.heights import heights
from lepton_jax.parallel.prediction.sizes import tiled_elements
from lepton_jax.parallel.propagation import propagate

P = PartitionSpec
ALL = ("data", "model")
CPU = MeshSpec.of("data=2,model=4", chip="cpu")
TPU = MeshSpec.of("data=2,model=4", chip="v5e")
Tree = Any


def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def graph_of(
    fun: Callable[..., Any], args: Tree, specs: Tree, mesh: MeshSpec, out: Tree = None
) -> tuple[Graph, dict[Value, Layout]]:
    """The graph of a function, and the layouts that follow from those of its inputs and outputs."""
    graph = inline_calls(trace(fun, *args))
    flat = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
    given = {v: Layout.from_spec(s, v.ndim) for v, s in zip(graph.inputs, flat, strict=True)}
    batch = graph.inputs[-len(jax.tree.leaves(args[1:])) :]
    if out is not None:
        ends = jax.tree.leaves(out, is_leaf=lambda x: isinstance(x, P))
        given |= {v: Layout.from_spec(s, v.ndim) for v, s in zip(graph.outputs, ends, strict=True)}
    return graph, propagate(graph, given, mesh, first=batch)


def predicted(
    fun: Callable[..., Any], args: Tree, specs: Tree, mesh: MeshSpec = TPU, out: Tree = None
) -> Prediction:
    return predict(*graph_of(fun, args, specs, mesh, out), mesh)


def loss(model: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda params, *batch: (model(params, *batch).astype(jnp.float32) ** 2).mean()


def mlp(params: Tree, x: jax.Array) -> jax.Array:
    for into, out in params:
        x = jax.nn.relu(x @ into) @ out
    return x


def norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def layer(x: jax.Array, p: Tree) -> jax.Array:
    h = norm(x)
    q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[name]) for name in "qkv")
    scores = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k), -1)
    x = x + jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", scores, v), p["o"])
    return x + jnp.einsum("btf,fd->btd", jax.nn.gelu(jnp.einsum("btd,df->btf", norm(x), p["in"])), p["out"])


def transformer(params: Tree, x: jax.Array) -> jax.Array:
    for each in params:
        x = layer(x, each)
    return x


def scanned(params: Tree, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, p: (layer(x, p), None), x, params)[0]


B, T, D, H, K, F = 16, 32, 128, 8, 16, 256
WEIGHTS = {
    **dict.fromkeys("qkv", shape(D, H, K, dtype="bfloat16")),
    "o": shape(H, K, D, dtype="bfloat16"),
    "in": shape(D, F, dtype="bfloat16"),
    "out": shape(F, D, dtype="bfloat16"),
}
MEGATRON = {
    **dict.fromkeys("qkv", P(None, "model")),
    "o": P("model"),
    "in": P(None, "model"),
    "out": P("model"),
}
ZERO = {**dict.fromkeys("qkv", P(ALL)), "o": P(ALL), "in": P(ALL), "out": P(ALL)}
X = shape(B, T, D, dtype="bfloat16")
ACTIVATIONS = B // 2 * T * D * 2  # bytes on one device of two along `data`
PARAMETERS = (4 * D * H * K + 2 * D * F) * 2


def test_collectives_are_those_of_the_compiled_text() -> None:
    """Gradients of a perceptron under four ways to lay it, one after the other in one program."""
    args = ([(shape(32, 64), shape(64, 32))] * 2, shape(512, 32))
    ways: list[tuple[tuple[P, P], P]] = [
        ((P(None, "model"), P("model")), P("data")),
        ((P(), P()), P("data")),
        ((P("data", "model"), P("model", "data")), P("data")),
        ((P(ALL), P(None, ALL)), P(ALL)),
    ]
    grads = jax.grad(loss(mlp))
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))

    def lay(tree: Tree) -> Tree:
        return jax.tree.map(lambda s: NamedSharding(mesh, s), tree, is_leaf=lambda x: isinstance(x, P))

    specs = [([way] * 2, batch) for way, batch in ways]
    program = jax.jit(
        lambda every: [grads(*each) for each in every],
        in_shardings=(lay(specs),),
        out_shardings=lay([each[0] for each in specs]),
    )
    text = program.lower([args] * len(ways)).compile().as_text()
    assert text is not None
    compiled: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for each in collectives(text, CPU):
        assert each.axes is not None
        compiled[each.kind, each.axes] += each.bytes * each.times
    expected: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for spec in specs:
        for move in predicted(grads, args, spec, CPU, spec[0]).collectives:
            expected[move.kind, move.axes] += move.bytes * move.times
    assert compiled == expected


@pytest.mark.parametrize("layers", [1, 3])
def test_tensor_parallel_transformers_reduce_four_times_a_layer_but_once(layers: int) -> None:
    """Alpa's count: 4L - 1 all-reduces over one axis; one more for all gradients where there is a second."""
    specs = ([MEGATRON] * layers, P("data"))
    found = predicted(jax.grad(loss(transformer)), ([WEIGHTS] * layers, X), specs, out=specs[0])
    assert found.count("all-reduce", ("model",)) == 4 * layers - 1
    assert found.bytes("all-reduce", ("model",)) == (4 * layers - 1) * ACTIVATIONS
    assert found.count("all-reduce") == found.count() == 4 * layers
    assert found.bytes("all-reduce", ("data",)) == layers * PARAMETERS // 4
    line = MeshSpec.of("model=4", chip="v5e")
    alone = predicted(jax.grad(loss(transformer)), ([WEIGHTS] * layers, X), ([MEGATRON] * layers, P()), line)
    assert alone.count("all-reduce") == alone.count() == 4 * layers - 1
    both = jax.grad(loss(transformer), argnums=(0, 1))
    assert predicted(both, ([WEIGHTS] * layers, X), ([MEGATRON] * layers, P()), line).count() == 4 * layers


def test_fully_sharded_parameters_are_gathered_and_their_gradients_scattered() -> None:
    specs = ([ZERO] * 2, P(ALL))
    found = predicted(jax.grad(loss(transformer)), ([WEIGHTS] * 2, X), specs, out=specs[0])
    assert found.count("all-reduce") == 0
    assert found.count("reduce-scatter") == 1
    assert found.bytes("reduce-scatter") == 2 * PARAMETERS // 8
    # What is read again after a whole layer forward and back is gathered twice.
    again = (D * H * K + D * F) * 2
    assert found.bytes("all-gather") == 2 * PARAMETERS + again
    kept = predicted(jax.grad(loss(transformer)), ([WEIGHTS], X), ([ZERO], P(ALL)), out=[ZERO])
    assert kept.bytes("all-gather") == PARAMETERS


def test_loops_count_as_often_as_they_run_and_share_what_is_equal() -> None:
    layers = 5
    stacked = jax.tree.map(lambda w: shape(layers, *w.shape, dtype="bfloat16"), WEIGHTS)
    specs = {name: P(None, *spec) for name, spec in MEGATRON.items()}
    args, given = (stacked, X), (specs, P("data"))
    found = predicted(jax.grad(loss(scanned)), args, given, out=specs)
    assert found.count("all-reduce", ("model",)) == 4 * layers  # the loop knows no first layer
    assert found.bytes("all-reduce", ("data",)) == layers * PARAMETERS // 4
    remat = jax.grad(
        loss(lambda p, x: jax.lax.scan(jax.checkpoint(lambda x, w: (layer(x, w), None)), x, p)[0])
    )
    again = predicted(remat, args, given, out=specs)
    assert again.count("all-reduce", ("model",)) == 5 * layers  # one is computed again
    assert again.peak < found.peak / 2


def test_sums_are_joined_once_and_gathers_kept() -> None:
    def sums(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w + (x * 2) @ w + (x + 1) @ w

    found = predicted(sums, (shape(8, 16), shape(16, 32)), (P(None, "model"), P("model")))
    assert [(each.kind, each.bytes) for each in found.collectives] == [("all-reduce", 8 * 32 * 4)]

    def twice(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ w) @ w

    kept = predicted(twice, (shape(16, 16), shape(64, 16)), (P("data"), P("data")))
    assert [each.kind for each in kept.collectives] == ["all-gather"]

    def read_twice(w: jax.Array, x: jax.Array) -> jax.Array:
        parts = x @ w
        return jnp.tanh(parts) + parts

    shared = predicted(read_twice, (shape(16, 32), shape(8, 16)), (P("data"), P(None, "data")))
    assert [(each.kind, each.bytes) for each in shared.collectives] == [("all-reduce", 8 * 32 * 4)]


def test_what_only_one_product_reads_is_sent_on_while_it_multiplies() -> None:
    """The permutations of XLA's windowed products: counted in texts for v5e and v5p, 4 to 64 devices."""
    w, rows = shape(1024, 512, dtype="bfloat16"), 4096

    def kinds(fun: Callable[..., Any], length: int) -> list[tuple[str, int, int]]:
        x = shape(length, 1024, dtype="bfloat16")
        found = predicted(fun, (w, x), (P(ALL), P(ALL)))
        return [(each.kind, each.bytes, each.times) for each in found.collectives]

    part = 1024 * 512 * 2 // 8
    assert kinds(lambda w, x: x @ w, rows) == [("all-gather", 8 * part, 1)]
    assert kinds(lambda w, x: x @ w, 2 * rows) == [("collective-permute", part, 9)]
    # Another reader that would gather it too; one that reads it as it lies.
    assert kinds(lambda w, x: jnp.einsum("bn,kn->bk", x @ w, w), 2 * rows) == [("all-gather", 8 * part, 1)]
    assert kinds(lambda w, x: (x @ w, w * 2), 2 * rows) == [("collective-permute", part, 9)]

    def gradients(u: jax.Array, v: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x.T @ (x @ u), x.T @ jnp.tanh(x @ v)

    # Four devices: the loop runs once; its last two sends go, and its first two of zeros are one for both.
    args, specs = (w, w, shape(16384, 1024, dtype="bfloat16")), (P("model", "data"),) * 2
    found = predicted(gradients, args, (*specs, P("model")), out=specs)
    assert {(each.kind, each.bytes) for each in found.collectives} == {("collective-permute", part)}
    assert sorted(each.times for each in found.collectives) == [3, 3, 3, 5]
    # Axes that split the same dimension besides: XLA does not take such products apart.
    mixed = predicted(gradients, args, (P(ALL), P(ALL), P("model")), out=(P(ALL), P(ALL)))
    assert "collective-permute" not in {each.kind for each in mixed.collectives}
    # The other devices have copies of the weights, or split rows that only the other operand has.
    for axes in ((), ("data",)):
        batch = shape(*((2,) if axes else ()), 8192, 1024, dtype="bfloat16")
        copies = predicted(lambda w, x: x @ w, (w, batch), (P("model"), P(*axes, "model")))
        assert [(each.kind, each.times) for each in copies.collectives] == [("all-gather", 1)]
    long = shape(16384, 1024, dtype="bfloat16")
    alone = predicted(lambda x, y: x.T @ y, (long, long), (P("model"),) * 2, out=P("model"))
    assert [(each.kind, each.times) for each in alone.collectives] == [("reduce-scatter", 1)]


def test_what_is_read_again_after_long_is_gathered_again() -> None:
    """By the longest way between two readers, as XLA counts it: 100 operations are near, 101 are far."""

    def gathers(between: Callable[[jax.Array], jax.Array], times: int) -> int:
        def fun(w: jax.Array, x: jax.Array) -> jax.Array:
            y = x @ w
            for _ in range(times):
                y = between(y)
            return y @ w

        found = predicted(fun, (shape(64, 64), shape(64, 64)), (P(ALL), P(ALL)))
        return found.count("all-gather")

    for between, steps in (
        (jnp.tanh, 1),
        (lambda y: jnp.tanh(y) * y, 2),
        (lambda y: y**3 + 1, 3),
        (lambda y: jnp.tanh(y * 2 / 3), 3),  # numbers are not multiplied first
        (lambda y: y - y.max(-1, keepdims=True), 3),  # the greatest, repeated, taken away
        (lambda y: jax.lax.stop_gradient(y).reshape(64, 1, 64)[:, 0], 0),
    ):
        near = 100 // steps if steps else 200
        assert gathers(between, near) == 1
        assert gathers(between, near + 1) == (2 if steps else 1)

    # Where devices add up parts, that is one more operation.
    graph, assignment = graph_of(
        lambda w, x: jnp.tanh(x @ w), (shape(64, 64), shape(8, 64)), (P("model"), P(None, "model")), TPU
    )
    product = next(iter(graph))
    assert heights(graph, set(graph))[product] == 1
    assert heights(graph, set(graph), assignment.__getitem__)[product] == 2


def test_a_torus_that_wraps_in_three_dimensions_is_gathered_by_sums() -> None:
    w, x = shape(1024, 512, dtype="bfloat16"), shape(64, 1024, dtype="bfloat16")
    for mesh, kind in (("data=16,model=4", "all-reduce"), ("data=8,model=4", "all-gather")):
        pod = MeshSpec.of(mesh, chip="v5p")
        found = predicted(lambda w, x: x @ w, (w, x), (P(ALL), P(ALL)), pod)
        assert [(each.kind, each.bytes) for each in found.collectives] == [(kind, 1024 * 512 * 2)]
        assert found.count() == 1

    def slope(k: jax.Array, x: jax.Array) -> jax.Array:
        """Backward, the kernel's windows are turned: what was gathered forward serves."""
        found: jax.Array = jax.grad(lambda x: jnp.sum(jax.lax.conv(x, k, (1, 1), "SAME") ** 2))(x)
        return found

    k, images = shape(64, 64, 3, 3, dtype="bfloat16"), shape(64, 64, 16, 16, dtype="bfloat16")
    for mesh, times in (("data=16,model=4", 1), ("data=8,model=4", 2)):
        found = predicted(slope, (k, images), (P(ALL), P(ALL)), MeshSpec.of(mesh, chip="v5p"))
        kernels = [each for each in found.collectives if each.bytes >= 64 * 64 * 9 * 2 // 32]
        assert len(kernels) == times, kernels


def test_tpus_send_in_the_type_in_which_they_multiply() -> None:
    """What only products read is rounded to bfloat16 before it is gathered; what is added up is not."""
    args, specs = (shape(16, 128), shape(128, 256)), (P("data"), P("data"))
    assert predicted(lambda x, w: x @ w, args, specs).bytes("all-gather") == 128 * 256 * 2
    exact = predicted(lambda x, w: jnp.matmul(x, w, precision="highest"), args, specs)
    assert exact.bytes("all-gather") == 128 * 256 * 4
    assert predicted(lambda x, w: x @ w, args, specs, CPU).bytes("all-gather") == 128 * 256 * 4


def test_arguments_outputs_and_donation() -> None:
    graph, assignment = graph_of(
        lambda w, x: (w * 2, x.sum()), (shape(64, 1024), shape(16, 256)), (P("data", "model"), P()), TPU
    )
    found = predict(graph, assignment, TPU)
    assert found.arguments == 64 * 1024 * 4 // 8 + 16 * 256 * 4
    assert found.outputs == 64 * 1024 * 4 // 8 + 4
    donated = predict(graph, assignment, TPU, donated=[0])
    assert donated.outputs == 4 and donated.peak == found.peak - 64 * 1024 * 4 // 8
    assert found.fits and not predict(graph, assignment, MeshSpec.of("data=2,model=4", chip="v5e")).moves


def test_elementwise_chains_take_no_memory() -> None:
    x = shape(1024, 1024)
    short = predicted(lambda x: jnp.tanh(x) @ x, (x,), (P(),))
    long = predicted(lambda x: jnp.exp(-jnp.tanh(x) * 2 + 1) @ x, (x,), (P(),))
    # The input and the output, and in the vector memory the output before it is stored.
    assert short.peak == long.peak == 3 * 1024 * 1024 * 4


def test_tiles() -> None:
    assert tiled_elements((512, 8, 64)) == 512 * 8 * 64
    assert tiled_elements((64, 8, 64)) == 64 * 8 * 128
    assert tiled_elements((1, 512)) == 512
    assert tiled_elements((100,)) == 100


def test_gathers_hide_behind_work_and_sums_within_layers_do_not() -> None:
    big = [(shape(2048, 8192, dtype="bfloat16"), shape(8192, 2048, dtype="bfloat16"))] * 2
    x = shape(65536, 2048, dtype="bfloat16")
    fsdp = predicted(mlp, (big, x), ([(P(ALL), P(None, ALL))] * 2, P(ALL)))
    tensor = predicted(mlp, (big, x), ([(P(None, "model"), P("model"))] * 2, P("data")))
    # Only the first layer's gather has nothing to hide behind.
    assert 0 < fsdp.exposed < fsdp.communication / 2
    assert tensor.exposed == tensor.communication > 0
    assert tensor.flops == pytest.approx(fsdp.flops, rel=0.01)
    assert tensor.flops == pytest.approx(2 * 2 * 2 * 65536 * 2048 * 8192 / 8, rel=0.01)
    assert tensor.seconds == max(tensor.compute, tensor.traffic) + tensor.exposed


def test_sums_of_gradients_and_gathers_beside_look_ups_are_waited_for_within_a_slice() -> None:
    def gradient(w: Any, x: Any) -> Any:
        return w - x.T @ x, x @ w

    for outer in ((), ("data",)):
        mesh = MeshSpec.of("data=2", chip="v5e", outer=outer)
        found = predicted(gradient, (shape(2048, 2048), shape(1 << 20, 2048)), (P(), P("data")), mesh)
        assert [(each.kind, each.axes) for each in found.collectives] == [("all-reduce", ("data",))]
        assert found.exposed == pytest.approx(0 if outer else found.communication)
    table, ids, w = shape(1 << 16, 1024), shape(1 << 16, dtype="int32"), shape(1024, 1024)

    def twice(params: Tree, ids: Any) -> Any:
        table, w, again = params
        return table[ids] @ w @ again

    mesh = MeshSpec.of("data=2", chip="v5e")
    found = predicted(twice, ((table, w, w), ids), ((P(), P("data"), P("data")), P("data")), mesh)
    first, second = (move.collective.seconds(mesh) for move in found.moves)
    assert first == second == pytest.approx(found.exposed) and found.communication == first + second


def test_it_can_be_read() -> None:
    text = str(
        predicted(
            mlp,
            ([(shape(32, 64), shape(64, 32))], shape(16, 32)),
            ([(P(None, "model"), P("model"))], P("data")),
        )
    )
    assert text.startswith("on 8 v5e (data=2,model=4), per device:\n  1 all-reduce over model: 0.001 MB\n")
    assert "no collectives" in str(predicted(jnp.sin, (shape(4),), (P(),)))


def test_collectives_that_the_user_wrote() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))

    def local(x: jax.Array) -> jax.Array:
        gathered = jax.lax.all_gather(x, "model", tiled=True)
        scattered = jax.lax.psum_scatter(gathered, "model", tiled=True)
        passed = jax.lax.ppermute(scattered, "data", [(0, 1), (1, 0)])
        summed: jax.Array = jax.lax.psum(jax.lax.all_to_all(passed, "model", 1, 1, tiled=True), ALL)
        return summed

    fun = jax.shard_map(local, mesh=mesh, in_specs=P(ALL), out_specs=P())
    found = predicted(fun, (shape(64, 16),), (P(ALL),))
    part = 8 * 16 * 4
    assert [(each.kind, each.axes, each.bytes) for each in found.collectives] == [
        ("all-gather", ("model",), 4 * part),
        ("reduce-scatter", ("model",), part),
        ("collective-permute", ("data",), part),
        ("all-to-all", ("model",), part),
        ("all-reduce", ("data", "model"), part),
    ]


def test_layouts_that_do_not_fit_are_refused() -> None:
    graph, assignment = graph_of(lambda x, w: x @ w, (shape(4, 4), shape(4, 4)), (P(), P()), TPU)
    with pytest.raises(ValueError, match="dimensions"):
        predict(graph, {**assignment, graph.inputs[0]: Layout.whole(3)}, TPU)
