"""Numerical linear algebra and equation solving."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._program import Program, floats, positive_definite


def conjugate_gradient(a: jax.Array, b: jax.Array) -> tuple[Any, Any]:
    """The textbook iteration, until the residual is small: the solution and the number of steps."""

    def body(state: Any) -> Any:
        x, residual, direction, squared, steps = state
        image = a @ direction
        step = squared / jnp.vdot(direction, image)
        x, residual = x + step * direction, residual - step * image
        new = jnp.vdot(residual, residual)
        return x, residual, residual + (new / squared) * direction, new, steps + 1

    def unfinished(state: Any) -> Any:
        return (state[3] > 1e-8 * jnp.vdot(b, b)) & (state[4] < 20)

    state = (jnp.zeros_like(b), b, b, jnp.vdot(b, b), 0)
    x, *_, steps = lax.while_loop(unfinished, body, state)
    return x, steps


def implicit_solve(a: jax.Array, b: jax.Array) -> Any:
    """Conjugate gradients whose derivative is another solve, by `lax.custom_linear_solve`."""

    def solve(product: Any, right: jax.Array) -> Any:
        return lax.fori_loop(0, 30, lambda _, x: x + 0.3 * (right - product(x)), jnp.zeros_like(right))

    return lax.custom_linear_solve(lambda x: a @ x, b, solve, symmetric=True)


def square_root(x: jax.Array) -> Any:
    """Roots of y² = x by Newton's iteration, with implicit derivatives by `lax.custom_root`."""

    def solve(f: Any, start: jax.Array) -> Any:
        def newton(_: Any, y: jax.Array) -> Any:
            value, slope = jax.jvp(f, (y,), (jnp.ones_like(y),))
            return y - value / slope

        return lax.fori_loop(0, 8, newton, start)

    return lax.custom_root(lambda y: y * y - x, jnp.ones_like(x), solve, lambda g, y: y / g(jnp.ones_like(y)))


def newton_system(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A non-linear system by Newton's method with the exact Jacobian; the root and the residual's size."""

    def residual(y: jax.Array) -> jax.Array:
        return y + scale * jnp.sin(jnp.roll(y, 1)) - x

    def step(y: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        value = residual(y)
        y = y - jnp.linalg.solve(jax.jacfwd(residual)(y), value)
        return y, jnp.linalg.norm(value)

    root, sizes = lax.scan(step, x, None, length=4)
    return root, sizes[0]


def jacobi_poisson(source: jax.Array) -> Any:
    """Relaxation of Poisson's equation on a square with a zero border."""

    def sweep(_: Any, u: jax.Array) -> jax.Array:
        neighbours = u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:]
        return u.at[1:-1, 1:-1].set(0.25 * (neighbours + source))

    return lax.fori_loop(0, 12, sweep, jnp.zeros([n + 2 for n in source.shape]))


def least_squares(a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
    """One regression four ways: normal equations, Cholesky, QR and `lstsq`."""
    gram = a.T @ a + 0.1 * jnp.eye(a.shape[1])
    factor = jax.scipy.linalg.cho_factor(gram)
    q, r = jnp.linalg.qr(a)
    return {
        "normal": jnp.linalg.solve(gram, a.T @ b),
        "cholesky": jax.scipy.linalg.cho_solve(factor, a.T @ b),
        "qr": jax.scipy.linalg.solve_triangular(r, q.T @ b),
        "lstsq": jnp.linalg.lstsq(a, b)[0],
    }


def spectra(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Quantities that do not depend on the signs of eigenvectors."""
    symmetric = 0.5 * (a + a.mT)
    values, vectors = jnp.linalg.eigh(symmetric)
    rebuilt = (vectors * jnp.exp(-values)[..., None, :]) @ vectors.mT
    sign, log_det = jnp.linalg.slogdet(a)
    return jnp.linalg.svd(a, compute_uv=False), rebuilt, sign * log_det, jnp.linalg.det(a) + jnp.trace(a)


def power_iteration(a: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest eigenvalue of a symmetric matrix and its eigenvector."""

    def step(_: Any, v: jax.Array) -> Any:
        image = a @ v
        return image / jnp.linalg.norm(image)

    v = lax.fori_loop(0, 10, step, start / jnp.linalg.norm(start))
    return v @ a @ v, v


def lanczos(a: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Diagonal and off-diagonal of the tridiagonal form of a symmetric matrix, four steps."""

    def step(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        v, previous, beta = carry
        w = a @ v - beta * previous
        alpha = jnp.dot(w, v)
        w = w - alpha * v
        norm = jnp.sqrt(jnp.sum(w * w))
        return (w / norm, v, norm), (alpha, norm)

    begin = (start / jnp.linalg.norm(start), jnp.zeros_like(start), jnp.float32(0))
    return lax.scan(step, begin, length=4)[1]


def sinkhorn(cost: jax.Array, p: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Entropic transport in the log domain: the plan and its cost."""

    def step(potentials: Any, _: None) -> tuple[Any, None]:
        f, g = potentials
        f = jnp.log(p) - jax.nn.logsumexp(-cost + g[None, :], axis=1)
        g = jnp.log(q) - jax.scipy.special.logsumexp(-cost + f[:, None], axis=0)
        return (f, g), None

    (f, g), _ = lax.scan(step, (jnp.zeros_like(p), jnp.zeros_like(q)), None, length=5)
    plan = jnp.exp(f[:, None] + g[None, :] - cost)
    return plan, jnp.sum(plan * cost)


def n_body(
    position: jax.Array, velocity: jax.Array, mass: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Leapfrog steps of softened gravity, and the energy before each."""

    def acceleration(x: jax.Array) -> jax.Array:
        offset = x[None] - x[:, None]
        inverse = (jnp.sum(offset**2, -1) + 0.1) ** -1.5
        return jnp.einsum("ijk,ij,j->ik", offset, inverse, mass)

    def step(state: Any, _: None) -> tuple[Any, jax.Array]:
        x, v = state
        energy = 0.5 * jnp.sum(mass[:, None] * v**2)
        half = v + 0.005 * acceleration(x)
        x = x + 0.01 * half
        return (x, half + 0.005 * acceleration(x)), energy

    (position, velocity), energy = lax.scan(step, (position, velocity), length=3)
    return position, velocity, energy


def system() -> tuple[np.ndarray, np.ndarray]:
    return positive_definite(5), floats(5, seed=1)


def regression() -> tuple[np.ndarray, np.ndarray]:
    return floats(8, 3) + 2 * np.eye(8, 3, dtype=np.float32), floats(8, seed=1)


PROGRAMS = [
    Program("conjugate_gradient", conjugate_gradient, system, vmappable=True, exportable=True),
    Program("implicit_solve", implicit_solve, system, (0, 1), vmappable=True),
    Program("square_root", square_root, lambda: (np.array([0.5, 1.0, 2.0, 7.0], np.float32),), (0,)),
    Program("newton_system", newton_system, lambda: (floats(4), np.float32(0.4)), (0, 1)),
    Program("jacobi_poisson", jacobi_poisson, lambda: (floats(5, 5),), (0,), vmappable=True, exportable=True),
    Program("least_squares", least_squares, regression, (0, 1), exportable=True),
    Program(
        "spectra", spectra, lambda: (positive_definite(3) + 0.2 * floats(3, 3, seed=9),), (0,), vmappable=True
    ),
    Program("power_iteration", power_iteration, system, (0,), vmappable=True, exportable=True),
    Program("lanczos", lanczos, lambda: (positive_definite(6), floats(6, seed=3)), (0, 1), vmappable=True),
    Program(
        "sinkhorn",
        sinkhorn,
        lambda: (floats(3, 4) ** 2, np.full(3, 1 / 3, np.float32), np.full(4, 0.25, np.float32)),
        (0, 1, 2),
        vmappable=True,
        exportable=True,
    ),
    Program(
        "n_body",
        n_body,
        lambda: (floats(4, 3), floats(4, 3, seed=1), np.array([1.0, 0.5, 2.0, 0.1], np.float32)),
        (0, 1, 2),
        vmappable=True,
    ),
]
