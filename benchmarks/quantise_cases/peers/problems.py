"""The models of the cases, by the names of their rows."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.quantise_cases.peers._problem import Problem

CASES: Final = "benchmarks.quantise_cases"


@dataclass(frozen=True)
class Source:
    """Where a problem comes from.

    Attributes:
        case: the module of `benchmarks.quantise_cases`.
        model: which of the peers' models it is.
        function: the name of the module's `build` function, called with `quick` and `size`.
        size: rows, images or sequences.
    """

    case: str
    model: str
    function: str
    size: int

    def build(self, quick: bool) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
        """The function, its parameters, and a sample of what follows them."""
        module = importlib.import_module(f"{CASES}.{self.case}")
        found: tuple[Any, Any, tuple[Any, ...]] = getattr(module, self.function)(quick, self.size)
        return found


PROBLEMS: Final = {
    **{f"perceptron, {n} rows": Source("layers", "perceptron", "build", n) for n in (1, 16, 256)},
    **{
        f"{what}, batch {n}": Source("transformer", what, f"build_{what}", n)
        for what in ("encoder", "decoder")
        for n in (1, 8)
    },
    **{f"ResNet-18, batch {n}": Source("resnet18", "resnet18", "build", n) for n in (1, 8)},
}


def names(only: str | None, quick: bool) -> list[str]:
    """The problems of a case, or of all; only the first of each model if it is to be quick."""
    there = [name for name, source in PROBLEMS.items() if only in (None, source.case) and _is_there(source)]
    first = {PROBLEMS[name].model: name for name in reversed(there)}
    return [name for name in there if not quick or name in first.values()]


def _is_there(source: Source) -> bool:
    return importlib.util.find_spec(f"{CASES}.{source.case}") is not None


def problem(name: str, quick: bool) -> Problem:
    """A problem with what `jax.jit` gives in float32."""
    import jax
    import numpy as np

    source = PROBLEMS[name]
    fun, params, inputs = source.build(quick)
    results = jax.jit(fun)(params, *inputs)
    expected = [np.asarray(results[0] if source.model == "decoder" else results)]  # the logits, not the cache
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves
    }
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(inputs)]
    config = {"quick": quick}
    if source.case == "transformer":
        transformer = importlib.import_module(f"{CASES}.transformer")
        config["heads"] = transformer.size_of(quick, 0).heads
    return Problem(name, source.model, paths, arrays, expected, config)
