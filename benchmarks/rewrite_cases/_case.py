"""What a case is, and random arguments for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A program as people write it, and the best form of it by hand.

    Attributes:
        name: what the table calls it.
        naive: the program; Lepton gets this one.
        optimum: the form that a specialist would write for the CPU, equal up to rounding; `naive`
            itself where there is nothing to gain, which shows that Lepton does no harm.
        args: makes the arguments.
        gpu: the best form on a GPU, where it is another one.
        gpu_args: the arguments on a GPU, where they are larger.
        passes: the pipeline, if not the default one.
        tolerance: the largest relative difference from `naive`.
    """

    name: str
    naive: Function
    optimum: Function
    args: Callable[[], tuple[Any, ...]]
    gpu: Function | None = None
    gpu_args: Callable[[], tuple[Any, ...]] | None = None
    passes: str = "default"
    tolerance: float = 1e-3


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal numbers; another seed for each argument of a case."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def integers(*shape: int, below: int, seed: int = 0) -> jax.Array:
    """Whole numbers from 0 to `below` - 1, int32."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, below, size=shape), jnp.int32)
