"""Derivatives inside the program: custom rules, checkpoints, higher orders, per-example gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ._program import Program, affine, dense, floats, uniform


def small_network(params: Any, x: jax.Array) -> jax.Array:
    return affine(params["head"], jnp.tanh(affine(params["body"], x)))


def network_params() -> dict[str, Any]:
    return {"body": dense(3, 5), "head": dense(5, 2, 3)}


def private_gradient(params: Any, x: jax.Array, y: jax.Array) -> Any:
    """The mean of clipped per-example gradients, and their norms."""

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum((small_network(params, x) - y) ** 2)

    each = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, x, y)
    norms = jnp.sqrt(sum(jnp.sum(jnp.square(g), axis=range(1, g.ndim)) for g in jax.tree.leaves(each)))
    share = jnp.minimum(1.0, 1.0 / norms)
    return jax.tree.map(lambda g: jnp.tensordot(share, g, 1) / len(x), each), norms


def hessian_vector(params: Any, direction: Any, x: jax.Array) -> Any:
    """Gradient and Hessian-vector product of a tree of parameters, forward over reverse."""

    def loss(params: Any) -> jax.Array:
        return jnp.mean(jnp.logaddexp(small_network(params, x), 0.0))

    return jax.jvp(jax.grad(loss), (params,), (direction,))


def jacobians(x: jax.Array) -> dict[str, jax.Array]:
    """Jacobians both ways, a Hessian, a divergence and a transposed product."""

    def f(x: jax.Array) -> jax.Array:
        return jnp.stack([x[0] * jnp.sin(x[1]), jnp.exp(-x[2]) * x[0] ** 2])

    _, transposed = jax.vjp(f, x)
    _, linear = jax.linearize(f, x)
    return {
        "forward": jax.jacfwd(f)(x),
        "reverse": jax.jacrev(f)(x),
        "hessian": jax.hessian(lambda x: jnp.prod(f(x)))(x),
        "transposed": transposed(jnp.ones(2))[0],
        "linear": linear(jnp.arange(3.0)),
    }


def physics_residual(params: Any, points: jax.Array) -> Any:
    """Residual of the heat equation of a network of (time, place): derivatives of a network by its inputs."""

    def field(t: jax.Array, x: jax.Array) -> jax.Array:
        return small_network(params, jnp.stack([t, x, t * x]))[0]

    def residual(point: jax.Array) -> Any:
        curvature = jax.grad(jax.grad(field, 1), 1)(point[0], point[1])
        return jax.grad(field)(point[0], point[1]) - 0.1 * curvature

    return jnp.mean(jax.vmap(residual)(points) ** 2)


@jax.custom_jvp
def log1p_exp(x: jax.Array) -> jax.Array:
    return jnp.log1p(jnp.exp(x))


@log1p_exp.defjvp
def log1p_exp_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (tangent,) = primals, tangents
    return log1p_exp(x), (1 - 1 / (1 + jnp.exp(x))) * tangent


def stable_softplus(x: jax.Array) -> jax.Array:
    """A custom forward rule, used twice and under a map."""
    return log1p_exp(x) + jax.vmap(log1p_exp)(2.0 * x)


@partial(jax.custom_vjp, nondiff_argnums=(0, 2))
def clip_gradient(low: float, x: jax.Array, high: float) -> jax.Array:
    return x


def clip_forward(low: float, x: jax.Array, high: float) -> tuple[jax.Array, None]:
    return x, None


def clip_backward(low: float, high: float, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.clip(gradient, low, high),)


clip_gradient.defvjp(clip_forward, clip_backward)


@jax.custom_vjp
def straight_through(x: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.round(x / scale) * scale


def straight_forward(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, Any]:
    return straight_through(x, scale), (jnp.abs(x / scale) < 4, scale)


def straight_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    inside, scale = kept
    return jnp.where(inside, gradient, 0), jnp.sum(jnp.where(inside, 0, 4 * gradient)) * jnp.ones_like(scale)


straight_through.defvjp(straight_forward, straight_backward)


def quantised_layer(x: jax.Array, scale: jax.Array, weight: jax.Array) -> jax.Array:
    """Rounding with a straight-through gradient, then a gradient that is clipped on the way back."""
    hidden = clip_gradient(-0.05, straight_through(x, scale) @ weight, 0.05)
    return jnp.sum(hidden**3)


def fixed_point(a: jax.Array, b: jax.Array) -> Any:
    """A contraction whose gradient is itself the solution of a fixed point, by a custom rule."""

    def f(params: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(0.3 * params[0] @ x + params[1])

    def iterate(g: Any, start: jax.Array) -> Any:
        return lax.while_loop(
            lambda s: jnp.max(jnp.abs(s[0] - s[1])) > 1e-6, lambda s: (g(s[0]), s[0]), (g(start), start)
        )[0]

    @jax.custom_vjp
    def solve(params: Any) -> Any:
        return iterate(lambda x: f(params, x), jnp.zeros_like(params[1]))

    def forward(params: Any) -> tuple[Any, Any]:
        root = solve(params)
        return root, (params, root)

    def backward(kept: Any, gradient: jax.Array) -> Any:
        params, root = kept
        _, by_x = jax.vjp(lambda x: f(params, x), root)
        _, by_params = jax.vjp(lambda p: f(p, root), params)
        return by_params(iterate(lambda u: gradient + by_x(u)[0], gradient))

    solve.defvjp(forward, backward)
    return solve((a, b))


def checkpointed_blocks(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Layers under checkpoints with three policies: names, nothing, products without a batch."""
    policies = jax.checkpoint_policies

    def block(weight: jax.Array, x: jax.Array) -> jax.Array:
        hidden = checkpoint_name(jnp.sin(x @ weight), "hidden")
        return x + jnp.exp(-(hidden**2))

    x = jax.checkpoint(block, policy=policies.save_only_these_names("hidden"))(weights[0], x)
    x = jax.checkpoint(block)(weights[1], x)
    x = jax.checkpoint(block, policy=policies.dots_with_no_batch_dims_saveable, prevent_cse=False)(
        weights[2], x
    )
    step = jax.checkpoint(lambda x, weight: (block(weight, x), None))
    return lax.scan(step, x, weights)[0]


def stopped_targets(online: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Contrastive loss in which a gradient flows through one side only, and a gradient penalty."""
    online, target = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (online, target))
    logits = online @ lax.stop_gradient(target).T / 0.1
    loss = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))
    slope = jax.grad(lambda v: jnp.sum(jnp.tanh(v @ v.T)))(online)
    return loss, jnp.mean((jnp.linalg.norm(slope, axis=-1) - 1) ** 2)


PROGRAMS = [
    Program(
        "private_gradient",
        private_gradient,
        lambda: (network_params(), floats(4, 3), floats(4, 2, seed=1)),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "hessian_vector_product",
        hessian_vector,
        lambda: (network_params(), network_params(), floats(4, 3)),
        exportable=True,
    ),
    Program("jacobians", jacobians, lambda: (floats(3),), vmappable=True, exportable=True),
    Program("physics_residual", physics_residual, lambda: (network_params(), floats(5, 2)), (0,)),
    Program(
        "custom_jvp_softplus", stable_softplus, lambda: (floats(5),), (0,), vmappable=True, exportable=True
    ),
    Program(
        "straight_through_layer",
        quantised_layer,
        lambda: (floats(4, 3), np.float32(0.3), floats(3, 2, seed=1)),
        (0, 1, 2),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "fixed_point",
        fixed_point,
        lambda: (floats(4, 4, scale=0.5), floats(4, seed=1)),
        (0, 1),
        vmappable=True,
    ),
    Program(
        "checkpointed_blocks",
        checkpointed_blocks,
        lambda: (uniform(3, 4, 4, low=-0.5, high=0.5), floats(2, 4)),
        (0, 1),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "stopped_targets",
        stopped_targets,
        lambda: (floats(4, 3), floats(4, 3, seed=1)),
        (0, 1),
        vmappable=True,
    ),
]
