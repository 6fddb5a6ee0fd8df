"""Search and dynamic programming: beams, samples, shortest paths, alignments, boxes and clusters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._program import Program, floats, integers, uniform

BEAM, VOCABULARY, STEPS = 3, 6, 4


def beam_search(transition: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best token sequences under a Markov model, with early finish at token 0."""
    table = jax.nn.log_softmax(transition)
    finish = jnp.full(VOCABULARY, -jnp.inf).at[0].set(0.0)

    def step(i: Any, carry: Any) -> Any:
        sequences, scores, done = carry
        last = sequences[:, i]
        following = jnp.where(done[:, None], finish, table[last])
        scores, flat = lax.top_k((scores[:, None] + following).reshape(-1), BEAM)
        parent, token = flat // VOCABULARY, flat % VOCABULARY
        sequences = lax.dynamic_update_index_in_dim(sequences[parent], token, i + 1, axis=1)
        return sequences, scores, done[parent] | (token == 0)

    sequences = jnp.zeros((BEAM, STEPS + 1), jnp.int32).at[:, 0].set(start)
    scores = jnp.array([0.0] + [-1e9] * (BEAM - 1))
    sequences, scores, done = lax.fori_loop(0, STEPS, step, (sequences, scores, jnp.zeros(BEAM, bool)))
    return sequences, jnp.where(done, scores, scores - 1.0)


def nucleus_sample(logits: jax.Array, noise: jax.Array, p: jax.Array) -> jax.Array:
    """Top-p sampling of a batch by sorting, with the Gumbel trick on noise given by the caller."""
    order = jnp.argsort(-logits, axis=-1)
    ordered = jnp.take_along_axis(logits, order, axis=-1)
    mass = jnp.cumsum(jax.nn.softmax(ordered), axis=-1)
    kept = jnp.roll(mass, 1, axis=-1).at[:, 0].set(0.0) < p
    choice = jnp.argmax(jnp.where(kept, ordered - jnp.log(-jnp.log(noise)), -jnp.inf), axis=-1)
    return jnp.take_along_axis(order, choice[:, None], axis=-1)[:, 0]


def edit_distance(source: jax.Array, target: jax.Array) -> jax.Array:
    """Levenshtein distance: a scan over rows around a scan along the row."""

    def row(previous: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        number, token = inputs
        keep_or_change = previous[:-1] + (target != token)
        best = jnp.minimum(keep_or_change, previous[1:] + 1)

        def cell(left: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
            new = jnp.minimum(left + 1, value)
            return new, new

        _, values = lax.scan(cell, number, best)
        return jnp.concatenate([number[None], values]), None

    numbers = jnp.arange(1, source.shape[0] + 1, dtype=jnp.int32)
    first = jnp.arange(target.shape[0] + 1, dtype=jnp.int32)
    return lax.scan(row, first, (numbers, source))[0][-1]


def floyd_warshall(weights: jax.Array) -> Any:
    """All shortest paths of a graph given by its matrix of edge lengths."""

    def relax(k: Any, paths: jax.Array) -> jax.Array:
        return jnp.minimum(paths, paths[:, k, None] + paths[None, k, :])

    return lax.fori_loop(
        0, weights.shape[0], relax, jnp.where(jnp.eye(weights.shape[0], dtype=bool), 0, weights)
    )


def dynamic_time_warping(x: jax.Array, y: jax.Array) -> jax.Array:
    """Soft alignment cost of two series, differentiable."""
    cost = (x[:, None] - y[None, :]) ** 2

    def soft_min(*values: jax.Array) -> jax.Array:
        return -jax.nn.logsumexp(-jnp.stack(values) / 0.5, axis=0) * 0.5

    def row(above: jax.Array, costs: jax.Array) -> tuple[jax.Array, None]:
        def cell(left: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
            value = inputs[0] + soft_min(left, inputs[1], inputs[2])
            return value, value

        _, values = lax.scan(cell, jnp.array(1e4), (costs, above[1:], above[:-1]))
        return jnp.pad(values, (1, 0), constant_values=1e4), None

    first = jnp.full(len(y) + 1, 1e4).at[0].set(0.0)
    return lax.scan(row, first, cost)[0][-1]


def non_maximum_suppression(boxes: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Boxes (x0, y0, x1, y1) by falling score, and which of them no better box overlaps."""
    order = jnp.argsort(scores, descending=True)
    boxes = boxes[order]
    low = jnp.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = jnp.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = jnp.prod(jnp.clip(high - low, 0), axis=-1)
    area = jnp.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    overlap = shared / (area[:, None] + area[None, :] - shared)

    def visit(i: Any, kept: jax.Array) -> jax.Array:
        hidden = (overlap[i] > 0.3) & (jnp.arange(len(scores)) > i)
        return jnp.where(kept[i], kept & ~hidden, kept)

    return boxes, lax.fori_loop(0, len(scores), visit, jnp.ones(len(scores), bool))


def k_means(points: jax.Array, centres: jax.Array) -> tuple[Any, Any, Any]:
    """Lloyd's iterations until no assignment changes."""

    def assign(centres: jax.Array) -> jax.Array:
        squared = jnp.sum((points[:, None] - centres[None]) ** 2, axis=-1)
        return jnp.argmin(squared, axis=1)

    def body(state: Any) -> Any:
        centres, labels, _, rounds = state
        total = jax.ops.segment_sum(points, labels, num_segments=len(centres))
        count = jax.ops.segment_sum(jnp.ones(len(points)), labels, num_segments=len(centres))
        centres = jnp.where(count[:, None] > 0, total / jnp.maximum(count, 1)[:, None], centres)
        new = assign(centres)
        return centres, new, jnp.any(new != labels), rounds + 1

    start = (centres, assign(centres), jnp.bool_(True), 0)
    centres, labels, _, rounds = lax.while_loop(lambda s: s[2] & (s[3] < 20), body, start)
    return centres, labels, rounds


def bisect(threshold: jax.Array) -> tuple[Any, Any]:
    """Root of x³ + x = threshold by halving, and the number of halvings."""

    def body(state: Any) -> Any:
        low, high, count = state
        middle = 0.5 * (low + high)
        above = middle**3 + middle > threshold
        return jnp.where(above, low, middle), jnp.where(above, middle, high), count + 1

    low, high, count = lax.while_loop(lambda s: s[1] - s[0] > 1e-3, body, (0.0, 4.0, 0))
    return (low + high) / 2, count


def boxes() -> tuple[np.ndarray, np.ndarray]:
    corner = uniform(7, 2, high=4.0)
    return np.concatenate([corner, corner + uniform(7, 2, low=0.5, high=3.0, seed=1)], axis=1), uniform(
        7, seed=2
    )


PROGRAMS = [
    Program(
        "beam_search",
        beam_search,
        lambda: (floats(VOCABULARY, VOCABULARY, scale=2.0), np.int32(2)),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "nucleus_sample",
        nucleus_sample,
        lambda: (floats(3, VOCABULARY), uniform(3, VOCABULARY, low=0.01, seed=4), np.float32(0.8)),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "edit_distance",
        edit_distance,
        lambda: (integers(6, high=3), integers(5, high=3, seed=1)),
        vmappable=True,
        exportable=True,
    ),
    Program("floyd_warshall", floyd_warshall, lambda: (uniform(5, 5, high=9.0),), (0,), vmappable=True),
    Program(
        "soft_time_warping",
        dynamic_time_warping,
        lambda: (floats(5), floats(4, seed=1)),
        (0, 1),
        vmappable=True,
    ),
    Program("non_maximum_suppression", non_maximum_suppression, boxes, vmappable=True, exportable=True),
    Program(
        "k_means", k_means, lambda: (floats(12, 2), floats(3, 2, seed=1)), vmappable=True, exportable=True
    ),
    Program("bisect", bisect, lambda: (5.0,), vmappable=True),
]
