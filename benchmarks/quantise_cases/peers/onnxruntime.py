"""ONNX Runtime: float32, int8 with dynamic activations, and static int8 in both of its formats.

Settings are those of its documentation for processors without instructions for int8 products: weights per
channel and, for static activations, of seven bits (`reduce_range`), since sums of two products of eight bits
saturate there.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.quantise_cases.peers._problem import Array, Problem, Run, Variant

REQUIRES: Final = ("onnx", "onnxruntime")


def variants(problem: Problem) -> list[Variant]:
    """The graph as it is, and quantised by `onnxruntime.quantization`."""
    builds: dict[str, Callable[[Problem], Run]] = {
        "float32": _float,
        "int8, dynamic": _dynamic,
        "int8, static (QDQ)": functools.partial(_static, form="QDQ"),
        "int8, static (QOperator)": functools.partial(_static, form="QOperator"),
    }
    return [
        Variant(f"ONNX Runtime {name}", functools.partial(build, problem), list, is_float=name == "float32")
        for name, build in builds.items()
    ]


def _float(problem: Problem) -> Run:
    from benchmarks.quantise_cases.peers.onnx_graphs import graph

    model, inputs = graph(problem)
    return _session(model.SerializeToString(), inputs)


def _dynamic(problem: Problem) -> Run:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = _written(problem, folder)
        quantize_dynamic(
            folder / "ready.onnx",
            folder / "int8.onnx",
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        return _session(str(folder / "int8.onnx"), inputs)


def _static(problem: Problem, form: str) -> Run:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = _written(problem, folder)
        quantize_static(
            folder / "ready.onnx",
            folder / "int8.onnx",
            _reader(inputs),
            quant_format=getattr(QuantFormat, form),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return _session(str(folder / "int8.onnx"), inputs)


def _written(problem: Problem, folder: Path) -> list[Array]:
    """Write the graph, made ready for quantisation, as `ready.onnx`; its inputs."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from benchmarks.quantise_cases.peers.onnx_graphs import graph

    model, inputs = graph(problem)
    onnx.save(model, folder / "float.onnx")
    quant_pre_process(folder / "float.onnx", folder / "ready.onnx", skip_symbolic_shape=True)
    return inputs


def _reader(inputs: Sequence[Array]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The one batch that all tools are calibrated with."""

        def __init__(self) -> None:
            self.batches = iter([{f"x{n}": array for n, array in enumerate(inputs)}])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.batches, None)

    return Reader()


def _session(model: str | bytes, inputs: Sequence[Array]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {f"x{n}": array for n, array in enumerate(inputs)}
    return functools.partial(session.run, None, feed)
