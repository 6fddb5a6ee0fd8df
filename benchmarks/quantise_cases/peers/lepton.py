"""`jax.jit` in float32, and Lepton: the same functions that the cases have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

from benchmarks.quantise_cases.peers._problem import Array, Problem, Run, Variant

REQUIRES: Final = ("jax", "lepton_jax")

PASSES: Final = {
    "int8, dynamic": "deploy,quantize{activations=dynamic}",
    "int8, static": "deploy,quantize{activations=static}",
}


def variants(problem: Problem) -> list[Variant]:
    """Float32, and int8 with dynamic and static activations."""
    plain = Variant("jax.jit, float32", functools.partial(_plain, problem), _numbers, is_float=True)
    passes = PASSES | problem.config.get("passes", {})
    builds = {name: functools.partial(_compiled, problem, text) for name, text in passes.items()}
    return [plain, *(Variant(f"Lepton {name}", build, _numbers) for name, build in builds.items())]


def _numbers(found: Any) -> Sequence[Array]:
    import jax
    import numpy as np

    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


def _plain(problem: Problem) -> Run:
    import jax

    fun, params, inputs = _parts(problem)
    if problem.model == "decoder":
        return _waited(_Steps(functools.partial(jax.jit(fun, donate_argnums=3), params), inputs))
    return _waited(functools.partial(jax.jit(fun), params, *inputs))


def _compiled(problem: Problem, passes: str) -> Run:
    import lepton_jax as lepton

    fun, params, inputs = _parts(problem)
    calibration = [inputs] if "static" in passes else None
    donated = 3 if problem.model == "decoder" else None
    model = lepton.compile(
        fun, params, *inputs, passes=passes, calibration=calibration, donate_argnums=donated
    )
    return _waited(_Steps(model, inputs) if donated else functools.partial(model, *inputs))


class _Steps:
    """A step that is run again and again on its own cache; gives the logits."""

    def __init__(self, step: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        self.step, (*self.first, self.cache) = step, inputs

    def __call__(self) -> Any:
        logits, self.cache = self.step(*self.first, self.cache)
        return logits


def _parts(problem: Problem) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    import jax

    from benchmarks.quantise_cases.peers import problems

    fun, params, inputs = problems.PROBLEMS[problem.name].build(problem.config["quick"])
    return fun, jax.device_put(params), jax.device_put(tuple(inputs))


def _waited(run: Run) -> Run:
    import jax

    return lambda: jax.block_until_ready(run())
