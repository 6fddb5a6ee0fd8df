"""How important a unit is that has slices of several arrays: a channel with its kernels, bias and norm.

A unit's importance adds up over its slices. It is compared within its group, or, divided by the mean of its
group (`relative`), with units of others, as DepGraph does (Fang et al., arXiv:2301.12900).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"
Measure: TypeAlias = Callable[[Sequence[Array]], Array]
"""From the slices of a group, each [units, elements of one unit], to the importance of its units, [units]."""


def unit_slices(array: Any, dim: int, positions: Array) -> Array:
    """What belongs to each unit of one array.

    Args:
        array: any shape.
        dim: the dimension along which units lie.
        positions: their indices there, int [units, indices of one unit].

    Returns:
        [units, elements], in float64 (complex128 for complex arrays).

    Example:
        >>> unit_slices(np.arange(6.0).reshape(2, 3), 1, np.array([[0], [2]]))
        array([[0., 3.],
               [2., 5.]])
    """
    whole = np.moveaxis(np.asarray(array), dim, 0)
    wide = whole.astype(np.complex128 if np.iscomplexobj(whole) else np.float64)
    return np.asarray(wide[np.asarray(positions)].reshape(len(positions), -1))


def magnitude(slices: Sequence[Array]) -> Array:
    """The Euclidean norm of all that belongs to a unit.

    Example:
        >>> magnitude([np.array([[3.0], [0.0]]), np.array([[0.0, 4.0], [1.0, 0.0]])])
        array([5., 1.])
    """
    return np.asarray(np.sqrt(sum((np.abs(each) ** 2).sum(-1) for each in slices)))


def l1(slices: Sequence[Array]) -> Array:
    """The sum of absolute values of all that belongs to a unit (Li et al., arXiv:1608.08710).

    Example:
        >>> l1([np.array([[3.0], [0.0]]), np.array([[0.0, -4.0], [1.0, 0.0]])])
        array([7., 1.])
    """
    return np.asarray(sum(np.abs(each).sum(-1) for each in slices))


MEASURES: Final[dict[str, Measure]] = {"magnitude": magnitude, "l1": l1}


def taylor(products: Sequence[Array]) -> Array:
    """How much the loss changes at first order when a unit becomes zero, squared.

    The squares of the slices' sums of weight times gradient are added up (Molchanov et al.,
    arXiv:1906.10771, with gates at every slice). Average it over batches.

    Args:
        products: of each slice, weight times gradient, [units, elements].

    Example:
        >>> taylor([np.array([[1.0, 2.0], [1.0, -1.0]])])
        array([9., 0.])
    """
    return np.asarray(sum(np.abs(each.sum(-1)) ** 2 for each in products))


def relative(scores: Array) -> Array:
    """Scores divided by their mean, so that groups of other sizes and scales compare; zeros stay zeros."""
    mean = scores.mean() if scores.size else 0.0
    return scores / mean if mean > 0 else scores


def angle(before: Any, after: Any) -> jax.Array:
    """The mean angle between rows, 0 to 1 for 0 to π (Gromov et al., arXiv:2403.17887).

    Args:
        before: [..., features].
        after: as `before`.

    Returns:
        A float32 scalar, 0 for rows that point the same way; equal rows of zeros count as such.

    Example:
        >>> float(angle(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])))
        0.5
    """
    left, right = (jnp.asarray(each, jnp.float32) for each in (before, after))
    norms = jnp.linalg.norm(left, axis=-1) * jnp.linalg.norm(right, axis=-1)
    cosine = jnp.clip((left * right).sum(-1) / jnp.where(norms > 0, norms, 1), -1, 1)
    same = jnp.all(left == right, axis=-1)
    return jnp.mean(jnp.where(same, 0.0, jnp.arccos(cosine) / jnp.pi))


def change(before: Any, after: Any) -> jax.Array:
    """The norm of the change by the norm of what was there before, a float32 scalar.

    Example:
        >>> round(float(change(jnp.array([3.0, 4.0]), jnp.array([3.0, 4.5]))), 6)
        0.1
    """
    left, right = (jnp.asarray(each, jnp.float32).ravel() for each in (before, after))
    size = jnp.linalg.norm(left)
    moved = jnp.linalg.norm(right - left)
    return jnp.where(size > 0, moved / jnp.where(size > 0, size, 1), jnp.where(moved > 0, jnp.inf, 0.0))
