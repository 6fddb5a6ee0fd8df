"""PyTorch: float32, its dynamic int8 layers, torchao, and static int8 by export for Inductor.

What `torch.compile` makes needs a C++ compiler; without one those rows say so.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.quantise_cases.peers._problem import Array, Problem, Run, Variant

REQUIRES: Final = ("torch", "torchao")


def variants(problem: Problem) -> list[Variant]:
    """Dynamic int8 is for linear layers alone; static int8 takes convolutions too."""
    builds = {"float32, compiled": _float, "int8, static (pt2e), compiled": _static}
    if problem.model != "resnet18":
        builds |= {"int8, dynamic (qint8)": _qint8, "int8, dynamic (torchao), compiled": _torchao}
    return [
        Variant(f"PyTorch {name}", functools.partial(build, problem), _numbers, is_float="float32" in name)
        for name, build in builds.items()
    ]


def _numbers(found: Any) -> Sequence[Array]:
    import torch

    return [each.numpy() for each in ([found] if isinstance(found, torch.Tensor) else found)]


def _model(problem: Problem) -> tuple[Any, tuple[Any, ...]]:
    import numpy as np
    import torch

    from benchmarks.quantise_cases.peers.torch_modules import MODELS

    warnings.filterwarnings("ignore")
    torch.set_num_threads(os.cpu_count() or 1)
    module, inputs = MODELS[problem.model](problem)
    arrays = tuple(torch.from_numpy(np.array(array, order="K")) for array in inputs)
    return module.eval(), arrays


def _runs(module: Any, inputs: tuple[Any, ...]) -> Run:
    import torch

    def run() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return run


def _compiled(module: Any, inputs: tuple[Any, ...]) -> Run:
    import torch
    from torch._inductor import config

    torch._dynamo.reset()
    with config.patch(freezing=True), torch.no_grad():
        compiled = torch.compile(module)
        compiled(*inputs)

    def run() -> Any:
        with torch.no_grad():
            return compiled(*inputs)

    return run


def _float(problem: Problem) -> Run:
    return _compiled(*_model(problem))


def _qint8(problem: Problem) -> Run:
    import torch
    from torch.ao.quantization import quantize_dynamic

    module, inputs = _model(problem)
    return _runs(quantize_dynamic(module, {torch.nn.Linear}, torch.qint8), inputs)


def _torchao(problem: Problem) -> Run:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    module, inputs = _model(problem)
    quantize_(module, Int8DynamicActivationInt8WeightConfig())
    return _compiled(module, inputs)


def _static(problem: Problem) -> Run:
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    module, inputs = _model(problem)
    with torch.no_grad():
        exported = torch.export.export(module, inputs).module()
        quantizer = x86.X86InductorQuantizer()
        # Without instructions for int8 products, sums of two products of eight bits would saturate.
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=True))
        prepared = prepare_pt2e(exported, quantizer)
        prepared(*inputs)
        return _compiled(convert_pt2e(prepared), inputs)
