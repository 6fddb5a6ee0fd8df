"""Predicted bytes: derived by hand, beside eight CPU devices, and beside TPUs where libtpu is installed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
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
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction import predict
from lepton_jax.parallel.prediction.spans import Spans
from lepton_jax.parallel.prediction.walk import walk
from lepton_jax.parallel.propagation import propagate
from tests.parallel._memory import BIG, CPU, MIB, SQUARE, TPU, array, predicted

AXES = "data=2,model=4"
ALL = ("data", "model")


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'lepton-jax[tpu]'",
)


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


def attention(masked: bool, wide: bool) -> Callable[..., jax.Array]:
    def mixed(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = jnp.einsum("...td,...sd->...ts", q, k).astype("float32" if wide else q.dtype) / 8
        if masked:
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e9)
        weights = jax.nn.softmax(scores.astype(jnp.float32), -1).astype(v.dtype)
        return jnp.einsum("...ts,...sd->...td", weights, v)

    return mixed


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "wide", "bytes"), [((), True, 2), ((16,), False, 2), ((16,), True, 4)])
def test_softmaxes_run_within_batched_products_where_they_are_computed_in_float32(
    batch: tuple[int, ...], wide: bool, bytes: int, masked: bool
) -> None:
    heads = (array(*batch, 8192 >> len(batch), 128, dtype="bfloat16"),) * 3
    found = predicted(attention(masked, wide), heads, TPU)
    (written,) = (
        math.prod(v.shape) * v.dtype.itemsize for v in found.alive if v.shape[-2:] == v.shape[-1:] * 2
    )
    assert written == bytes * math.prod(batch) * (8192 >> len(batch)) ** 2


def test_loops_read_weights_that_were_converted_before_them() -> None:
    def layers(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (x @ w.astype(x.dtype), None), x, w)[0]

    x, kept = array(64, 4096, dtype="bfloat16"), array(8, 4096, 4096, dtype="bfloat16")
    wide = array(8, 4096, 4096)
    more = predicted(layers, (wide, x), TPU).temporaries - predicted(layers, (kept, x), TPU).temporaries
    assert 200 * MIB < more < 260 * MIB
    assert predicted(layers, (wide, x), CPU).temporaries < 256 * MIB

    def added(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (x @ w.astype(x.dtype) + w[0, 0].astype(x.dtype), None), x, w)[0]

    assert predicted(added, (wide, x), TPU).temporaries < 256 * MIB  # who reads them as they are needs them


def test_one_element_of_each_row_is_chosen_and_given_back_without_scattering() -> None:
    def loss(x: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jnp.sin(x), labels[:, None], 1).sum()

    args = array(8192, 16384), array(8192, dtype="int32")  # 512 MiB
    chosen = predicted(loss, args, TPU)
    assert chosen.temporaries >= 512 * MIB  # rows are taken from what is written
    graph = inline_calls(trace(jax.grad(loss), *args))
    assert any(node.op == "scatter-add" for node in graph)
    for mesh, scattered in ((TPU, False), (CPU, True)):
        written = Spans(graph, walk(graph, {}, mesh), mesh).of
        assert (
            any(value.node is not None and value.node.op == "scatter-add" for value in written) is scattered
        )


def test_convolutions_keep_examples_and_channels_together() -> None:
    def relu(x: jax.Array, w: jax.Array) -> Any:
        names = ("NHWC", "HWIO", "NHWC")
        y = jax.nn.relu(jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=names))
        return jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")

    args = array(64, 112, 112, 64, dtype="bfloat16"), array(3, 3, 64, 64, dtype="bfloat16")
    found = predicted(relu, args, TPU)
    assert (
        found.temporaries == 64 * 112 * 112 * 128 * 2
    )  # 64 channels in 128 lanes; windows read what is written
    assert found.outputs == 64 * 56 * 56 * 128 * 2


def test_what_a_loop_stacks_up_twice_is_there_once() -> None:
    def twice(x: jax.Array, w: jax.Array) -> Any:
        def step(x: jax.Array, w: jax.Array) -> Any:
            return x + w, (jnp.sin(x + w), jnp.sin(x + w), jnp.cos(x + w))

        first, second, third = jax.lax.scan(step, x, w)[1]
        return first.sum() + (second * third).sum()

    args = array(4096, 4096), array(8, 4096, 4096)  # stacks of 512 MiB
    assert 2 * 512 * MIB <= predicted(twice, args, TPU).temporaries < 3 * 512 * MIB


def test_what_a_loop_reads_and_what_it_stacks_up_are_both_there() -> None:
    def step(cache: jax.Array, x: jax.Array) -> Any:
        return jax.lax.scan(lambda x, c: (x + c.sum(), c + x), x, cache)

    graph = inline_calls(trace(step, array(8, 4096, 4096), array(4096, 4096)))
    lies = propagate(graph, {}, TPU)
    kept, given = predict(graph, lies, TPU), predict(graph, lies, TPU, donated=(0,))
    assert kept.outputs - given.outputs == 512 * MIB
    assert kept.temporaries < 512 * MIB <= given.temporaries


def test_weights_of_attention_are_made_again_on_v5e_and_written_on_v5p() -> None:
    def twice(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        weights = jax.nn.softmax((q @ k.T).astype(jnp.float32), -1).astype(v.dtype)
        return weights @ v, weights.T @ v

    heads = (array(8192, 128, dtype="bfloat16"),) * 3
    for chip, arrays in (("v5e", 1), ("v5p", 2)):
        found = predicted(twice, heads, MeshSpec.of("data=2", chip=chip))
        assert 0 <= found.temporaries - arrays * 128 * MIB < 4 * MIB


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
