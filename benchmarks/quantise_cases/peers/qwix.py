"""Qwix: the models as Flax NNX modules, with int8 weights and dynamic int8 activations.

Static activations need a run of Qwix's training provider first and are not supported for all of these
modules; weights alone are not supported for convolutions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

from benchmarks.quantise_cases.peers._problem import Array, Problem, Run, Variant

REQUIRES: Final = ("jax", "flax", "qwix")


def variants(problem: Problem) -> list[Variant]:
    """The module as it is, and quantised by `qwix.quantize_model`."""
    return [
        Variant("Flax, float32", functools.partial(_float, problem), _numbers, is_float=True),
        Variant("Qwix int8, dynamic", functools.partial(_dynamic, problem), _numbers),
    ]


def _numbers(found: Any) -> Sequence[Array]:
    import jax
    import numpy as np

    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


def _float(problem: Problem) -> Run:
    from benchmarks.quantise_cases.peers.flax_modules import MODELS, inputs_of

    return _jitted(MODELS[problem.model](problem), inputs_of(problem))


def _dynamic(problem: Problem) -> Run:
    import jax
    import qwix

    from benchmarks.quantise_cases.peers.flax_modules import MODELS, inputs_of

    jax.clear_caches()  # Qwix changes jax.lax while it traces: nothing traced before may be used again
    rules = [qwix.QuantizationRule(module_path=".*", weight_qtype="int8", act_qtype="int8")]
    module = MODELS[problem.model](problem)
    quantised = qwix.quantize_model(module, qwix.PtqProvider(rules), *inputs_of(problem))
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(_state(quantised)) if leaf.ndim > 1}
    if "int8" not in kinds:
        raise ValueError(f"no weight is int8: {sorted(kinds)}")
    run = _jitted(quantised, inputs_of(problem))
    run()  # trace it before the next variant does
    return run


def _state(module: Any) -> Any:
    from flax import nnx

    return nnx.state(module)


def _jitted(module: Any, inputs: Sequence[Array]) -> Run:
    import jax
    from flax import nnx

    graph, state = nnx.split(module)

    @jax.jit
    def apply(state: Any, *inputs: Any) -> Any:
        return nnx.merge(graph, state)(*inputs)

    fun: Callable[..., Any] = functools.partial(apply, state, *jax.device_put(tuple(inputs)))
    return lambda: jax.block_until_ready(fun())
