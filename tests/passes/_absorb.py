"""What the tests of `absorb` share: running the pass, counting what `apply` computes, parts of models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from lepton_jax.ir import Graph, to_callable
from lepton_jax.ir.split import split
from lepton_jax.rewrite import CheckStructure, PassManager, Pipeline, Report
from lepton_jax.targets import get_target

PASSES = "inline,cse,dce,absorb,early,cse,dce"
AFTER, BEFORE, SUM = (
    "scale-and-shift-into-weight",
    "scale-and-shift-into-readers",
    "sum-of-products-into-weight",
)
RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> Any:
    return RANDOM.normal(size=shape).astype(np.float32)


class Case(NamedTuple):
    """A function of parameters and one input; what fires; the arithmetic of `apply`; and a reason given."""

    fun: Callable[..., Any]
    params: dict[str, Any]
    x: Any
    rules: dict[str, int]
    ops: dict[str, int]
    miss: str = ""


def rewritten(fun: Callable[..., Any], params: Any, *args: Any, passes: str = PASSES) -> tuple[Graph, Report]:
    manager = PassManager(
        Pipeline.parse(passes), get_target("cpu"), strict=True, explain=True, instruments=[CheckStructure()]
    )
    count = len(jax.tree.leaves(params))
    paths = tuple(f"p{i}" for i in range(count))
    return manager.run(jax.make_jaxpr(fun)(params, *args), "f", frozenset(range(count)), paths)


def apply_of(graph: Graph, params: Any) -> Graph:
    return split(graph, range(len(jax.tree.leaves(params)))).apply


WANTED = ("add", "sub", "mul", "div", "neg", "dot_general", "conv_general_dilated")


def arithmetic(graph: Graph) -> dict[str, int]:
    """How often `apply` computes, outside of norms' statistics."""
    counts = Counter(node.op for node in graph.walk())
    return {op: counts[op] for op in WANTED if counts[op]}


def batch_norm(y: Any, p: Any) -> Any:
    return (y - p["m"]) * lax.rsqrt(p["v"] + 1e-5) * p["g"] + p["t"]


def conv(x: Any, w: Any, **options: Any) -> Any:
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def norm(c: int) -> dict[str, Any]:
    return {"m": numbers(c), "v": np.abs(numbers(c)) + 0.5, "g": numbers(c), "t": numbers(c)}


W, B, S = numbers(6, 4), numbers(4), numbers(6)
X = numbers(3, 6)
IMAGE = numbers(2, 5, 5, 4)
ONE_DOT = {"dot_general": 1}
ONE_CONV = {"add": 1, "conv_general_dilated": 1}


def to_callable_of(graph: Graph) -> Callable[..., Any]:
    run = to_callable(graph)
    return lambda *args: run(*jax.tree.leaves(args))
