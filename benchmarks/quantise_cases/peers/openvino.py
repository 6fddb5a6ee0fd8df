"""OpenVINO: float32, and int8 by the post-training quantisation of NNCF."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.quantise_cases.peers._problem import Array, Problem, Run, Variant

REQUIRES: Final = ("onnx", "openvino", "nncf")


def variants(problem: Problem) -> list[Variant]:
    """Float32 and static int8."""
    builds = {
        "float32": functools.partial(_float, problem),
        "int8, static (NNCF)": functools.partial(_static, problem),
    }
    return [
        Variant(f"OpenVINO {name}", build, list, is_float=name == "float32") for name, build in builds.items()
    ]


def _float(problem: Problem) -> Run:
    model, inputs = _model(problem)
    return _request(model, inputs, {"INFERENCE_PRECISION_HINT": "f32"})


def _static(problem: Problem) -> Run:
    import nncf

    model, inputs = _model(problem)
    kind = nncf.ModelType.TRANSFORMER if problem.model in ("encoder", "decoder") else None
    quantised = nncf.quantize(
        model,
        nncf.Dataset([tuple(inputs)]),
        model_type=kind,
        subset_size=1,
        preset=nncf.QuantizationPreset.MIXED,
    )
    return _request(quantised, inputs, {})


def _model(problem: Problem) -> tuple[Any, list[Array]]:
    import io

    import openvino

    from benchmarks.quantise_cases.peers.onnx_graphs import graph

    model, inputs = graph(problem)
    return openvino.convert_model(io.BytesIO(model.SerializeToString())), inputs


def _request(model: Any, inputs: Sequence[Array], options: dict[str, Any]) -> Run:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": os.cpu_count(), **options}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    for place, array in enumerate(inputs):
        request.set_input_tensor(place, openvino.Tensor(array))
    outputs = len(model.outputs)

    def run() -> list[Array]:
        request.infer()
        return [request.get_output_tensor(place).data for place in range(outputs)]

    return run
