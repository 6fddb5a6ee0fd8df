"""Programs whose memory is predicted, and their predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from lepton_jax.ir import trace
from lepton_jax.ir.cutting.inlined import inline_calls
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.prediction import Prediction, predict
from lepton_jax.parallel.propagation import propagate

MIB = 1 << 20
CPU = MeshSpec.of("data=2", chip="cpu")
TPU = MeshSpec.of("data=2", chip="v5e")


def array(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


BIG = array(8192, 16384, dtype="bfloat16")  # 256 MiB, more than the vector memory holds
SQUARE = array(16384, 16384, dtype="bfloat16")  # 512 MiB


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
