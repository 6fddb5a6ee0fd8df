"""Fast initialisation of NNX models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

Model = TypeVar("Model", bound=nnx.Module)


def create(build: Callable[[], Model]) -> Model:
    """Makes the model that `build` makes, in one compiled program instead of operation by operation.

    It runs once, and XLA takes long to optimise random numbers, so it is compiled without optimisation.

    Example:
        >>> create(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0))).kernel.shape
        (2, 3)
    """
    graphdef = nnx.graphdef(nnx.eval_shape(build))

    def initial() -> Any:
        return nnx.state(build())

    state = jax.jit(initial, compiler_options={"xla_backend_optimization_level": 0})()
    model: Model = nnx.merge(graphdef, state)
    return model
