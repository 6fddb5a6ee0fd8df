"""Training and optimisation: steps of optax and by hand, line searches, fits, constraints."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ._program import Program, affine, dense, floats, integers


def network_loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of a small classifier with a penalty on its weights."""
    logits = affine(params["head"], jax.nn.relu(affine(params["body"], x)))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return jnp.asarray(loss + 1e-3 * optax.tree.norm(params, squared=True))


def network_params() -> dict[str, Any]:
    return {"body": dense(4, 6), "head": dense(6, 3, 5)}


def labelled() -> tuple[np.ndarray, np.ndarray]:
    return floats(5, 4, seed=1), integers(5, high=3)


def train_step(optimiser: Any) -> Any:
    """The step of an optax optimiser on the classifier: loss, new parameters, new state."""

    def step(params: Any, state: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any, Any]:
        loss, gradient = jax.value_and_grad(network_loss)(params, x, labels)
        updates, state = optimiser().update(gradient, state, params)
        return loss, optax.apply_updates(params, updates), state

    return step


def train_args(optimiser: Any) -> Any:
    return lambda: (network_params(), optimiser().init(network_params()), *labelled())


def momentum() -> Any:
    return optax.sgd(0.1, momentum=0.9, nesterov=True)


def clipped_adam() -> Any:
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 3, 10)
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(schedule, weight_decay=0.1))


def labelled_rates() -> Any:
    """Another optimiser for each part of the tree, one of them frozen, under accumulation of two steps."""
    parts = optax.partition({"fast": optax.adagrad(0.1), "frozen": optax.set_to_zero()}, rates_of)
    return optax.MultiSteps(optax.chain(optax.clip(1.0), parts), 2)


def rates_of(params: Any) -> Any:
    return {name: "fast" if name == "head" else "frozen" for name in params}


def adam_by_hand(params: Any, moments: Any, step: jax.Array, x: jax.Array, labels: jax.Array) -> Any:
    """Adam over a tree without a library, with an average of the parameters and skipped overflow."""
    gradient = jax.grad(network_loss)(params, x, labels)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradient)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * jnp.square(g), moments[1], gradient)
    scale = 0.01 * jnp.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    new = jax.tree.map(lambda p, m, v: p - scale * m / (jnp.sqrt(v) + 1e-8), params, first, second)
    finite = jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)]))
    params = jax.tree.map(lambda old, leaf: jnp.where(finite, leaf, old), params, new)
    return params, (first, second), step + finite


def levenberg_marquardt(start: jax.Array, t: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Fits a·exp(-b·t) + c with damping that a `cond` raises or lowers; the fit and its squared error."""

    def residual(p: jax.Array) -> jax.Array:
        return p[0] * jnp.exp(-p[1] * t) + p[2] - y

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        p, damping = carry
        r, jacobian = residual(p), jax.jacfwd(residual)(p)
        normal = jacobian.T @ jacobian
        trial = p - jnp.linalg.solve(normal + damping * jnp.eye(3), jacobian.T @ r)
        better = jnp.sum(residual(trial) ** 2) < jnp.sum(r**2)
        carry = lax.cond(better, lambda: (trial, damping * 0.5), lambda: (p, damping * 4.0))
        return carry, jnp.sum(r**2)

    (fit, _), errors = lax.scan(step, (start, jnp.float32(0.5)), length=4)
    return fit, errors


def projected_gradient(a: jax.Array, b: jax.Array) -> jax.Array:
    """Least squares on the probability simplex; the projection sorts."""

    def project(x: jax.Array) -> jax.Array:
        ordered = jnp.sort(x)[::-1]
        excess = (jnp.cumsum(ordered) - 1) / jnp.arange(1, x.size + 1)
        last = jnp.sum(ordered > excess) - 1
        return jnp.maximum(x - excess[last], 0)

    def step(_: Any, x: jax.Array) -> jax.Array:
        return project(x - 0.05 * (a.T @ (a @ x - b)))

    return jnp.asarray(lax.fori_loop(0, 5, step, jnp.full(a.shape[1], 1 / a.shape[1])))


def backtracking(x: jax.Array) -> tuple[Any, Any]:
    """One step down Rosenbrock's valley, halving the step until it descends enough; how many halvings."""

    def valley(x: jax.Array) -> jax.Array:
        return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    value, gradient = jax.value_and_grad(valley)(x)

    def too_long(state: Any) -> Any:
        least = value - 0.3 * state[0] * gradient @ gradient
        return (valley(x - state[0] * gradient) > least) & (state[1] < 30)

    size, count = lax.while_loop(too_long, lambda s: (s[0] * 0.5, s[1] + 1), (1.0, 0))
    return x - size * gradient, count


def soft_threshold_path(a: jax.Array, b: jax.Array, penalties: jax.Array) -> jax.Array:
    """The lasso for many penalties at once: a `vmap` around proximal gradient steps."""

    def fit(penalty: jax.Array) -> jax.Array:
        def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            x = x - 0.02 * (a.T @ (a @ x - b))
            return jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.02 * penalty, 0.0), None

        return lax.scan(step, jnp.zeros(a.shape[1]), None, length=5)[0]

    return jax.vmap(fit)(penalties)


def unrolled_inner_loop(start: jax.Array, rate: jax.Array, target: jax.Array) -> jax.Array:
    """The loss after three steps of gradient descent, as a function of the learning rate and the start."""

    def inner(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.cosh(x - target))

    x = start
    for _ in range(3):
        x = x - rate * jax.grad(inner)(x)
    return inner(x)


def hand_args() -> tuple[Any, ...]:
    params = network_params()
    first = jax.tree.map(lambda p: 0.1 * p, params)
    return params, (first, jax.tree.map(np.square, first)), np.int32(3), *labelled()


def decay_args() -> tuple[np.ndarray, ...]:
    t = np.linspace(0, 3, 8, dtype=np.float32)
    return np.array([1.0, 0.5, 0.0], np.float32), t, (2 * np.exp(-1.3 * t) + 0.5).astype(np.float32)


PROGRAMS = [
    Program("momentum_step", train_step(momentum), train_args(momentum), vmappable=True),
    Program("clipped_adam_step", train_step(clipped_adam), train_args(clipped_adam), vmappable=True),
    Program("labelled_rates_step", train_step(labelled_rates), train_args(labelled_rates)),
    Program("adam_by_hand", adam_by_hand, hand_args, vmappable=True, exportable=True),
    Program("levenberg_marquardt", levenberg_marquardt, decay_args, exportable=True),
    Program(
        "projected_gradient",
        projected_gradient,
        lambda: (floats(6, 4), floats(6, seed=1)),
        (0, 1),
        vmappable=True,
    ),
    Program(
        "backtracking",
        backtracking,
        lambda: (np.array([-1.2, 1.0, 0.4], np.float32),),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "soft_threshold_path",
        soft_threshold_path,
        lambda: (floats(6, 4), floats(6, seed=1), np.array([0.1, 1.0, 5.0], np.float32)),
        (0, 1, 2),
        vmappable=True,
    ),
    Program(
        "unrolled_inner_loop",
        unrolled_inner_loop,
        lambda: (floats(4), np.float32(0.1), floats(4, seed=1)),
        (0, 1, 2),
        vmappable=True,
        exportable=True,
    ),
]
