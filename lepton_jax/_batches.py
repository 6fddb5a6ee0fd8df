"""Batches of inputs, as `compile`, `trainable` and `sensitivity` are given them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.rewrite import UsageError


class CalibrationError(UsageError):
    """Calibration has nothing to go by, or saw what it cannot use."""


def batches_of(given: Iterable[Any], what: str) -> Iterator[tuple[Any, ...]]:
    """Each batch as a tuple of the inputs after the parameters.

    Args:
        given: tuples, or single arrays or trees.
        what: the name of the argument, for the message.

    Raises:
        CalibrationError: it is no collection of batches.

    Example:
        >>> list(batches_of([1.0, (2.0, 3.0)], "calibration"))
        [(1.0,), (2.0, 3.0)]
    """
    wanted = (
        f"{what} is a list, or another iterable, of batches, each a tuple of the inputs after the parameters"
    )
    if hasattr(given, "shape"):
        raise CalibrationError(f"{wanted}, not one array: say {what}=[x] if it is one batch")
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise CalibrationError(f"{wanted}, not {type(given).__name__}")
    return (batch if isinstance(batch, tuple) else (batch,) for batch in given)


def check_arrays(inputs: Iterable[Any], number: int) -> None:
    """Raise where an input of a batch is no tree of arrays.

    Raises:
        CalibrationError: the message names the batch and the type.
    """
    for leaf in jax.tree.leaves(list(inputs)):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise CalibrationError(f"calibration batch {number} has shapes: it needs the arrays themselves")
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
            raise CalibrationError(
                f"calibration batch {number} holds {type(leaf).__name__} where an array is wanted"
            )


def check_dtypes(batch: list[Any], sample: list[Any], number: int) -> None:
    """Raise where a batch has integers in the place of the sample's floats, or floats in that of integers.

    Raises:
        CalibrationError: the message names the batch and both dtypes.
    """
    if len({jax.tree.structure(batch), jax.tree.structure(sample)}) > 1:
        return
    for found, wanted in zip(jax.tree.leaves(batch), jax.tree.leaves(sample), strict=True):
        kinds = [jnp.result_type(leaf) for leaf in (found, wanted)]
        if len({jnp.issubdtype(kind, jnp.inexact) for kind in kinds}) > 1:
            raise CalibrationError(
                f"calibration batch {number} has {kinds[0]} where the sample has {kinds[1]}: "
                "give batches of what the model will be called with"
            )


def is_finite(array: Any) -> bool:
    """Whether all elements are finite; on the CPU NumPy looks, and nothing is compiled for that.

    What is traced counts as finite: nothing is known of it.
    """
    if isinstance(array, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(array), jnp.inexact):
        return True
    host = jax.default_backend() == "cpu" and getattr(array, "is_fully_addressable", True)
    return bool(np.isfinite(np.asarray(array)).all() if host else jnp.isfinite(array).all())
