"""What reproducers call: random arguments, and the pipeline that failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.ir import _jax
from lepton_jax.ir._describe import key_kind
from lepton_jax.ir.cost import Rates
from lepton_jax.rewrite.context import Level
from lepton_jax.rewrite.instruments import CheckStructure
from lepton_jax.rewrite.manager import PassManager
from lepton_jax.rewrite.pipeline import Pipeline
from lepton_jax.rewrite.reproducer import without_reproducers


def random_args(specs: Sequence[Any], seed: int = 0) -> list[Any]:
    """Random arrays of these shapes and dtypes: normal floats, small integers, PRNG keys."""
    rng = np.random.default_rng(seed)
    return [_random(spec.shape, spec.dtype, rng) for spec in specs]


def _random(shape: tuple[int, ...], dtype: Any, rng: np.random.Generator) -> Any:
    if _jax.is_extended(dtype):
        words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype)).shape
        data = jnp.asarray(rng.integers(0, 2**32, words, dtype=np.uint32))
        return jax.random.wrap_key_data(data, impl=key_kind(dtype, "argument"))
    if jnp.issubdtype(dtype, jnp.bool_):
        return jnp.asarray(rng.integers(0, 2, shape)).astype(dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        low = -9 if jnp.issubdtype(dtype, jnp.signedinteger) else 0
        return jnp.asarray(rng.integers(low, 10, shape)).astype(dtype)
    values = rng.standard_normal(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.standard_normal(shape)
    return jnp.asarray(values).astype(dtype)


def replay(
    program: Callable[..., Any], specs: Sequence[Any], pipeline: str, level: Level, rates: Rates, file: str
) -> None:
    """Run a pipeline strictly on a program, as a reproducer does.

    Raises:
        PassError: a pass fails, as it did before.
    """
    manager = PassManager(Pipeline.parse(pipeline), rates, level, strict=True, instruments=[CheckStructure()])
    with without_reproducers(Path(file)):
        _, report = manager.run(_jax.trace_flat(program, specs), program.__name__)
    print(f"no pass failed\n{report}")
