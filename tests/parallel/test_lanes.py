"""What convolutions in parts read and make on TPUs: where the lanes run, what is copied, what waits.

The sizes are those of the buffers in programs that libtpu compiled for v5e:2x4. No libtpu is needed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lepton_jax.ir import trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.ir.graph import Node
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction.span import Span
from lepton_jax.parallel.prediction.spans import Spans
from lepton_jax.parallel.prediction.walk import walk
from lepton_jax.parallel.propagation import propagate

MIB = 1 << 20
EIGHT = ("data", "model")
MESH = MeshSpec.of("data=2,model=4", chip="v5e")
EXAMPLES = Layout((EIGHT, (), (), ()))
CHANNELS = Layout(((), (), (), EIGHT))


def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def spans_of(
    fun: Any, images: tuple[int, ...], kernels: int, kernel: Layout = CHANNELS, mesh: MeshSpec = MESH
) -> Spans:
    """Of images split by examples and kernels split so, whose gradients shall lie as they do."""
    channels = images[-1]
    arrays = [jax.ShapeDtypeStruct((3, 3, channels, channels), jnp.bfloat16)] * kernels
    graph = inline_calls(trace(fun, arrays, jax.ShapeDtypeStruct(images, jnp.bfloat16)))
    given = dict.fromkeys(graph.inputs[:-1], kernel) | {graph.inputs[-1]: EXAMPLES}
    given |= {value: kernel if value.shape[:2] == (3, 3) else EXAMPLES for value in graph.outputs}
    return Spans(graph, walk(graph, propagate(graph, given, mesh), mesh), mesh)


def loops_of(spans: Spans) -> list[Node]:
    """The convolutions in parts, as they run."""
    return [
        node
        for node in spans.nodes
        if node is not None and node.op == "conv_general_dilated" and spans.parts(node) > 1
    ]


def copies_of(spans: Spans) -> list[Span]:
    """What is made of no single value, and read by a later step."""
    named = set(spans.of.values())
    return [span for span in spans.found if span not in named and span.last > span.born > 0]


def chain(kernels: Any, x: jax.Array) -> jax.Array:
    for kernel in kernels:
        x = x + convolved(x, kernel)
    return x


def gradient(kernels: Any, x: jax.Array) -> Any:
    return jax.grad(lambda kernels: (chain(kernels, x).astype(jnp.float32) ** 2).sum())(kernels)


@pytest.mark.parametrize(
    ("images", "made"),
    [
        ((256, 32, 32, 64), 16 * MIB),  # 8 channels a part, 32 examples: these in the lanes
        ((128, 32, 32, 128), 4 * MIB),  # 16 and 16: channels
        ((256, 16, 16, 256), 4 * MIB),  # 32 and 32: channels
        ((512, 32, 32, 32), 8 * MIB),  # 4 and 64: examples
    ],
)
def test_lanes_run_over_what_leaves_less_of_a_part_unused(images: tuple[int, ...], made: int) -> None:
    spans = spans_of(lambda kernels, x: convolved(convolved(x, kernels[0]), kernels[1]), images, 2)
    first, _ = loops_of(spans)
    assert spans.of[first.results[0]].bytes == made
    plain = spans_of(lambda kernels, x: convolved(x, kernels[0]), images, 1, Layout.whole(4))
    assert not loops_of(plain)


def test_arrays_are_copied_for_loops_that_need_other_lanes() -> None:
    """The images, whose rows are in the rows of their tiles, and what the first loop made."""
    spans = spans_of(lambda kernels, x: convolved(convolved(x, kernels[0]), kernels[1]), (256, 32, 32, 64), 2)
    assert [span.bytes for span in copies_of(spans)] == [8 * MIB, 8 * MIB]
    large = spans_of(lambda kernels, x: convolved(x, kernels[0]), (1024, 32, 32, 64), 1)
    assert not copies_of(large)  # examples fill the lanes


def test_gradients_that_loops_add_up_are_there_from_the_start() -> None:
    """Of images; those of kernels are scattered while they are made."""
    spans = spans_of(gradient, (256, 32, 32, 64), 3)
    loops = [node for node in loops_of(spans) if node.results[0].shape == (256, 32, 32, 64)]
    born = [spans.of[node.results[0]].born for node in loops]
    assert len(loops) == 5
    assert [each == 1 for each in born] == [False, False, False, True, True]


@pytest.mark.parametrize(("kernels", "at_once"), [(3, 0), (6, 3)])
def test_gradients_of_the_last_kernels_are_scattered_at_once_where_there_are_many(
    kernels: int, at_once: int
) -> None:
    spans = spans_of(gradient, (256, 16, 16, 64), kernels)
    order = [node.results[0].shape[:2] == (3, 3) for node in loops_of(spans)]
    backward = order[kernels:]
    last = max(i for i, of_kernel in enumerate(backward) if not of_kernel)
    assert sum(backward) == kernels
    assert sum(backward[:last]) == at_once
    assert all(backward[last + 1 :])


def test_a_loop_of_few_channels_takes_longer() -> None:
    few, many = (
        spans_of(lambda kernels, x: convolved(x, kernels[0]), images, 1)
        for images in ((256, 32, 32, 64), (256, 16, 16, 512))
    )
    (loop,), (other,) = loops_of(few), loops_of(many)
    assert few.waste(loop) == 4 * 2  # 32 examples of 128 lanes, 64 channels to multiply by of 128
    assert many.waste(other) == 2  # 64 channels of 128 lanes
