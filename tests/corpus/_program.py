"""What a program of the corpus is, and the arrays that programs are called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Program:
    """An ordinary JAX function with arguments to call it on.

    Attributes:
        name: unique in the corpus; the id of its tests.
        fun: the function, with no static arguments; only its arguments decide what it does.
        make_args: builds small arguments, the same at every call.
        differentiable: positions of the arguments by which its floating outputs have a gradient.
        vmappable: every argument may be batched along a new leading axis.
        exportable: `jax.export` can serialise it, its inputs and its outputs.
    """

    name: str
    fun: Callable[..., Any]
    make_args: Callable[[], tuple[Any, ...]]
    differentiable: tuple[int, ...] = ()
    vmappable: bool = False
    exportable: bool = False


def floats(*shape: int, seed: int = 0, scale: float = 1.0, dtype: Any = np.float32) -> np.ndarray:
    """Normal numbers of deviation `scale`, of any floating or complex dtype."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        values = values + 1j * draw.standard_normal(shape)
    return np.asarray(scale * values).astype(dtype)


def uniform(
    *shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0, dtype: Any = np.float32
) -> np.ndarray:
    """Uniform numbers in [low, high)."""
    return np.asarray(np.random.default_rng(seed).uniform(low, high, shape)).astype(dtype)


def integers(*shape: int, high: int, low: int = 0, seed: int = 0, dtype: Any = np.int32) -> np.ndarray:
    """Uniform integers in [low, high)."""
    return np.asarray(np.random.default_rng(seed).integers(low, high, shape)).astype(dtype)


def positive_definite(n: int, seed: int = 0) -> np.ndarray:
    """A well-conditioned symmetric matrix, float32 [n, n]: eigenvalues between 1 and about 5."""
    factor = floats(n, n, seed=seed)
    return np.asarray(factor @ factor.T / n + np.eye(n), np.float32)


def dense(inputs: int, outputs: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters of an affine layer: `kernel` float32 [inputs, outputs] and `bias` float32 [outputs]."""
    return {
        "kernel": floats(inputs, outputs, seed=seed, scale=inputs**-0.5),
        "bias": floats(outputs, seed=seed + 1, scale=0.1),
    }


def affine(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """The layer of `dense` applied to x [..., inputs]: [..., outputs]."""
    return x @ params["kernel"] + params["bias"]
