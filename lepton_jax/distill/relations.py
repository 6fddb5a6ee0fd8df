"""Losses between how examples, or tokens, stand to each other; student and teacher may differ in width.

Arrays, dtypes and `where` are those of `lepton_jax.distill.losses`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.distill._arrays import clean, divergence, mean, positive, same_shape, unit


def contrastive(student: Any, teacher: Any, *, temperature: float = 0.1, where: Any = None) -> jax.Array:
    """InfoNCE between both views of the examples in the batch, in both directions.

    An example's pair is the teacher's view of the same one; all others of the batch are what it is not, in
    place of the memory bank of Tian et al. (arXiv:1910.10699). It is not 0 where both are equal.

    Args:
        student: [batch, width]; only directions count.
        teacher: of that shape.
        temperature: cosines are divided by it.
        where: weights of [batch]; what has 0 is no example's contrast either.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.
    """
    same_shape("contrastive", student, teacher)
    positive("temperature", temperature)
    (student, teacher), keep = clean((student, teacher), where, 1)
    scores = unit(student) @ unit(teacher).T / temperature
    if keep is not None:
        both = (keep[:, None] > 0) & (keep[None, :] > 0)
        scores = jnp.where(both | jnp.eye(len(keep), dtype=bool), scores, -jnp.inf)
    to_teacher, to_student = (jnp.diagonal(jax.nn.log_softmax(scores, axis)) for axis in (1, 0))
    return mean(-(to_teacher + to_student) / 2, keep)


def distances(student: Any, teacher: Any, *, where: Any = None) -> jax.Array:
    """Huber loss of the distances between examples, over their mean (RKD-D, Park et al., arXiv:1904.05068).

    The mean is over pairs of two examples. Takes memory for batch² × width numbers.

    Args:
        student: [batch, width].
        teacher: [batch, other width].
        where: weights of [batch]; a pair's is the product of both.

    Raises:
        ValueError: there are not as many examples.
    """
    (student, teacher), keep = _examples(student, teacher, where)
    pairs = _distinct(keep, len(student), student.dtype)

    def spread(x: jax.Array) -> jax.Array:
        square = jnp.sum(jnp.square(x[:, None] - x[None, :]), -1)
        apart = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        average = mean(apart, pairs)
        return apart / jnp.where(average > 0, average, 1)

    return mean(_huber(spread(student) - spread(teacher)), pairs)


def angles(student: Any, teacher: Any, *, where: Any = None) -> jax.Array:
    """Huber loss of the cosines in triangles of examples (RKD-A, Park et al., arXiv:1904.05068).

    The mean is over triples of three examples. Takes memory for batch² × (width + batch) numbers.

    Args:
        student: [batch, width].
        teacher: [batch, other width].
        where: weights of [batch]; a triple's is the product of all three.

    Raises:
        ValueError: there are not as many examples.
    """
    (student, teacher), keep = _examples(student, teacher, where)
    size = len(student)
    pairs = _distinct(keep, size, student.dtype)
    triples = pairs[:, :, None] * pairs[:, None, :] * (1 - jnp.eye(size, dtype=pairs.dtype))[None]

    def cosines(x: jax.Array) -> jax.Array:
        """For each corner the cosines between its sides."""
        sides = unit(x[None, :] - x[:, None])
        return jnp.einsum("jic,jkc->jik", sides, sides)

    return mean(_huber(cosines(student) - cosines(teacher)), triples)


def token_relations(student: Any, teacher: Any, *, heads: int = 1, where: Any = None) -> jax.Array:
    """KL of softmax(x·xᵀ/√d) over the tokens of a sequence (MiniLM, Wang et al., arXiv:2002.10957).

    For hidden states, and queries, keys or values as in MiniLMv2 (arXiv:2012.15828). Widths may differ.

    Args:
        student: [batch, length, width].
        teacher: [batch, length, other width].
        heads: the widths are cut in so many parts, each of which has its relations.
        where: weights of the tokens [batch, length], or of [batch].

    Raises:
        ValueError: other shapes, or `heads` does not divide the widths.
    """
    shapes = jnp.shape(student), jnp.shape(teacher)
    if any(len(shape) != 3 for shape in shapes) or shapes[0][:2] != shapes[1][:2]:
        raise ValueError(f"token_relations wants [batch, length, width], not {shapes[0]} and {shapes[1]}")
    if any(shape[-1] % heads for shape in shapes):
        raise ValueError(f"{heads} heads do not divide the widths {shapes[0][-1]} and {shapes[1][-1]}")
    (student, teacher), keep = clean((student, teacher), where, 2)

    def relations(x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:2], heads, -1)
        scores = jnp.einsum("bqhd,bkhd->bqhk", x, x) / x.shape[-1] ** 0.5
        if keep is not None:
            own = jnp.eye(x.shape[1], dtype=bool)[None, :, None, :]
            scores = jnp.where((keep[:, None, None, :] > 0) | own, scores, -jnp.inf)
        return jax.nn.log_softmax(scores)

    return mean(jnp.mean(divergence(relations(teacher), relations(student)), -1), keep)


def _examples(student: Any, teacher: Any, where: Any) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    shapes = jnp.shape(student), jnp.shape(teacher)
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][0]:
        raise ValueError(f"relations of examples want [batch, width], not {shapes[0]} and {shapes[1]}")
    return clean((student, teacher), where, 1)


def _distinct(keep: jax.Array | None, size: int, dtype: Any) -> jax.Array:
    """The weights of pairs of two examples."""
    weights = jnp.ones(size, dtype) if keep is None else keep
    return weights[:, None] * weights[None, :] * (1 - jnp.eye(size, dtype=dtype))


def _huber(x: jax.Array) -> jax.Array:
    size = jnp.abs(x)
    return jnp.where(size < 1, jnp.square(x) / 2, size - 0.5)
