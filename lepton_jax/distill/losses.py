"""What a student may be taught by: losses between two arrays, as pure functions.

All take the student's and the teacher's arrays, of any float dtype, compute in float32 (float64 where that
comes in), and return a mean as a scalar. They can be differentiated by both.

`where` are weights, bool or numbers of any dtype, not negative: their shape is the leading part of the
arrays' shape that a loss averages over, or a part of its front. What has the weight 0 counts for nothing,
whatever stands there, NaN among it; where all have, the loss is 0.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import jax
import jax.numpy as jnp

from lepton_jax.distill._arrays import clean, divergence, mean, positive, same_shape, unit, wide

Direction = Literal["forward", "reverse", "jensen"]


def cross_entropy(logits: Any, labels: Any, *, where: Any = None) -> jax.Array:
    """The mean of -log p(label).

    Args:
        logits: [..., classes].
        labels: integers [...].
        where: weights of the leading dimensions.
    """
    (logits,), keep = clean((logits,), where, jnp.ndim(labels))
    labels = jnp.asarray(labels) if keep is None else jnp.where(keep > 0, labels, 0)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    return mean(-picked, keep)


def kl(
    student: Any,
    teacher: Any,
    *,
    temperature: float = 1.0,
    direction: Direction = "forward",
    where: Any = None,
) -> jax.Array:
    """The divergence of two softmaxes at a temperature, times its square (Hinton et al., arXiv:1503.02531).

    The square keeps gradients of one size at all temperatures. Logits of -inf are classes that are left out.

    Args:
        student: logits [..., classes].
        teacher: logits of that shape.
        temperature: both are divided by it.
        direction: `forward`: KL(teacher ‖ student); `reverse`: KL(student ‖ teacher), which seeks the
            teacher's modes; `jensen`: the mean of both to their mean (Agarwal et al., arXiv:2306.13649, at
            β = ½).
        where: weights of [...].

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.
    """
    same_shape("kl", student, teacher)
    positive("temperature", temperature)
    (student, teacher), keep = clean((student, teacher), where, jnp.ndim(student) - 1)
    q, p = jax.nn.log_softmax(student / temperature), jax.nn.log_softmax(teacher / temperature)
    match direction:
        case "forward":
            found = divergence(p, q)
        case "reverse":
            found = divergence(q, p)
        case "jensen":
            middle = jnp.logaddexp(p, q) - jnp.log(2.0).astype(p.dtype)
            found = (divergence(p, middle) + divergence(q, middle)) / 2
        case _:
            raise ValueError(f"direction is one of forward, reverse, jensen, not {direction!r}")
    return mean(found, keep) * temperature**2


def decoupled(
    student: Any,
    teacher: Any,
    labels: Any,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    where: Any = None,
) -> jax.Array:
    """α·KL of (label, not label) + β·KL of the other classes, times T² (Zhao et al., arXiv:2203.08679).

    Ordinary distillation weighs the second part by how unsure the teacher is; here that is apart.

    Args:
        student: logits [..., classes], two classes or more.
        teacher: logits of that shape.
        labels: integers [...].
        temperature: logits are divided by it.
        alpha: the weight of the label against all others.
        beta: the weight of the others among themselves.
        where: weights of [...].

    Raises:
        ValueError: the shapes differ, there is one class, or the temperature is not positive.
    """
    same_shape("decoupled", student, teacher)
    positive("temperature", temperature)
    if jnp.shape(student)[-1] < 2:
        raise ValueError("decoupled distillation wants two classes or more")
    (student, teacher), keep = clean((student, teacher), where, jnp.ndim(labels))
    is_label = jax.nn.one_hot(labels, student.shape[-1], dtype=bool)

    def parts(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities [..., 2] of label and not label, and [..., classes] of the others."""
        logits = logits / temperature
        others = jnp.where(is_label, -jnp.inf, logits)
        of_label = jnp.sum(jnp.where(is_label, logits, 0), -1)
        both = jnp.stack([of_label, jax.nn.logsumexp(others, -1)], -1)
        return jax.nn.log_softmax(both), jax.nn.log_softmax(others)

    (q_both, q_others), (p_both, p_others) = parts(student), parts(teacher)
    found = alpha * divergence(p_both, q_both) + beta * divergence(p_others, q_others)
    return mean(found, keep) * temperature**2


def mse(student: Any, teacher: Any, *, where: Any = None) -> jax.Array:
    """The mean square of the differences, as of logits (Kim et al., arXiv:2105.08919) or features.

    Args:
        student: [..., channels].
        teacher: of that shape.
        where: weights of [...], or of its front.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("mse", student, teacher)
    (student, teacher), keep = clean((student, teacher), where, jnp.ndim(student) - 1)
    return mean(jnp.mean(jnp.square(student - teacher), -1), keep)


def cosine(student: Any, teacher: Any, *, where: Any = None) -> jax.Array:
    """1 - cos of the angle between vectors; of a vector of zeros and another one, ½.

    Args:
        student: [..., channels].
        teacher: of that shape.
        where: weights of [...], or of its front.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("cosine", student, teacher)
    (student, teacher), keep = clean((student, teacher), where, jnp.ndim(student) - 1)
    apart = unit(student) - unit(teacher)
    return mean(jnp.sum(jnp.square(apart), -1) / 2, keep)  # the same, and exact where they are equal


def attention_maps(student: Any, teacher: Any, *, power: float = 2.0, where: Any = None) -> jax.Array:
    """The squared distance of where images are active (Zagoruyko and Komodakis, arXiv:1612.03928).

    An image's map is the mean of |x|^power over its channels, scaled to length 1. The authors' code takes the
    mean over positions where this is their sum: its β is this weight times the number of positions.

    Args:
        student: [batch, *positions, channels].
        teacher: of that shape, but for the channels.
        power: larger ones look at the strongest channels.
        where: weights of [batch].

    Raises:
        ValueError: the shapes differ in other things than channels.
    """
    if jnp.ndim(student) < 3 or jnp.shape(student)[:-1] != jnp.shape(teacher)[:-1]:
        raise ValueError(
            "attention_maps wants [batch, *positions, channels] with the same positions, "
            f"not {jnp.shape(student)} and {jnp.shape(teacher)}"
        )
    (student, teacher), keep = clean((student, teacher), where, 1)

    def where_active(x: jax.Array) -> jax.Array:
        return unit(jnp.mean(jnp.abs(x) ** power, -1).reshape(x.shape[0], -1))

    return mean(jnp.sum(jnp.square(where_active(student) - where_active(teacher)), -1), keep)


def attention_probabilities(student: Any, teacher: Any, *, where: Any = None) -> jax.Array:
    """KL(teacher ‖ student) of attention weights, as in MiniLM (Wang et al., arXiv:2002.10957).

    Args:
        student: probabilities [batch, heads, queries, keys]; below 1e-7 they count as that.
        teacher: of that shape, but for the heads: where these differ, both are averaged over theirs.
        where: weights of the queries [batch, queries], or of [batch].

    Raises:
        ValueError: the shapes differ in other things than heads.
    """
    shapes = jnp.shape(student), jnp.shape(teacher)
    if any(len(shape) != 4 for shape in shapes) or any(shapes[0][i] != shapes[1][i] for i in (0, 2, 3)):
        raise ValueError(
            f"attention weights are [batch, heads, queries, keys], not {shapes[0]} and {shapes[1]}"
        )
    student, teacher = (jnp.moveaxis(wide(x), 1, 2) for x in (student, teacher))
    (student, teacher), keep = clean((student, teacher), where, 2)
    if shapes[0][1] != shapes[1][1]:
        student, teacher = (jnp.mean(x, 2, keepdims=True) for x in (student, teacher))
    student, teacher = jnp.maximum(student, _LEAST), jnp.maximum(teacher, _LEAST)
    apart = teacher * (jnp.log(teacher) - jnp.log(student))
    apart += student - teacher  # which sum to 0, and so equal rows have no gradient
    return mean(jnp.mean(jnp.sum(apart, -1), -1), keep)


_LEAST: Final = 1e-7
