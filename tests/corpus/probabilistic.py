"""Probabilistic models: Gaussian processes, filters, hidden states, mixtures, chains, variational bounds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import stats

from ._program import Program, affine, dense, floats, integers

STATES = 3


class Chain(NamedTuple):
    """A Markov chain: where it is, its log-density there, and how often it has moved."""

    position: Any
    log_density: Any
    accepted: Any


def gaussian_process(kernel: Any, x: jax.Array, y: jax.Array, at: jax.Array) -> tuple[jax.Array, ...]:
    """Mean and variance at new points, and the log marginal likelihood, by a Cholesky factor."""

    def covariance(a: jax.Array, b: jax.Array) -> jax.Array:
        squared = jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
        return jnp.exp(kernel["log_variance"]) * jnp.exp(-0.5 * squared / jnp.exp(2 * kernel["log_length"]))

    noise = jnp.exp(kernel["log_noise"]) * jnp.eye(len(x))
    factor = jnp.linalg.cholesky(covariance(x, x) + noise)
    weights = jax.scipy.linalg.cho_solve((factor, True), y)
    cross = covariance(x, at)
    half = jax.scipy.linalg.solve_triangular(factor, cross, lower=True)
    variance = jnp.diag(covariance(at, at)) - jnp.sum(half**2, axis=0)
    likelihood = (
        -0.5 * y @ weights - jnp.log(jnp.diagonal(factor)).sum() - 0.5 * len(x) * math.log(2 * math.pi)
    )
    return cross.T @ weights, variance, likelihood


def kalman_filter(model: Any, observed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Filtered means and covariances, and the log-likelihood of the observations."""
    a, c, q, r = model["A"], model["C"], model["Q"], model["R"]

    def step(carry: Any, y: jax.Array) -> tuple[Any, Any]:
        mean, covariance = carry
        mean, covariance = a @ mean, a @ covariance @ a.T + q
        innovation = c @ covariance @ c.T + r
        error = y - c @ mean
        solved = jnp.linalg.solve(innovation, jnp.column_stack([c @ covariance, error]))
        gain, whitened = solved[:, :-1].T, solved[:, -1]
        mean, covariance = mean + gain @ error, covariance - gain @ c @ covariance
        density = -0.5 * (error @ whitened + jnp.log(jnp.linalg.det(innovation)))
        return (mean, covariance), (mean, covariance, density)

    size = a.shape[0]
    _, (means, covariances, densities) = lax.scan(step, (jnp.zeros(size), jnp.eye(size)), observed)
    return means, covariances, densities.sum()


def hidden_markov_forward(
    initial: jax.Array, transition: jax.Array, emission: jax.Array, seen: jax.Array
) -> Any:
    """Log-likelihood of a sequence of symbols, by the forward algorithm."""
    start, move, emit = (jax.nn.log_softmax(t, axis=-1) for t in (initial, transition, emission))

    def step(alpha: jax.Array, symbol: jax.Array) -> tuple[jax.Array, None]:
        return jax.nn.logsumexp(alpha[:, None] + move, axis=0) + emit[:, symbol], None

    alpha, _ = lax.scan(step, start + emit[:, seen[0]], seen[1:])
    return jax.nn.logsumexp(alpha)


def viterbi(initial: jax.Array, transition: jax.Array, emission: jax.Array, seen: jax.Array) -> Any:
    """The most likely path: a scan forwards for the scores and one backwards for the states."""

    def forwards(score: jax.Array, symbol: jax.Array) -> tuple[jax.Array, jax.Array]:
        options = score[:, None] + transition
        return options.max(0) + emission[:, symbol], options.argmax(0)

    score, back = lax.scan(forwards, initial + emission[:, seen[0]], seen[1:])
    last = jnp.argmax(score)
    first, path = lax.scan(lambda state, pointers: (pointers[state], state), last, back, reverse=True)
    return jnp.concatenate([first[None], path]), score.max()


def gaussian_mixture(points: jax.Array, means: jax.Array) -> tuple[Any, jax.Array]:
    """Expectation and maximisation of a mixture with diagonal covariances, four rounds."""

    def round_(_: Any, state: Any) -> Any:
        logits, means, variances, _ = state
        densities = stats.norm.logpdf(points[:, None], means[None], jnp.sqrt(variances)[None]).sum(-1)
        joint = densities + jax.nn.log_softmax(logits)
        evidence = jax.nn.logsumexp(joint, axis=1, keepdims=True)
        share = jnp.exp(joint - evidence)
        total = share.sum(0)
        means = (share.T @ points) / total[:, None]
        variances = jnp.einsum("nk,nkd->kd", share, (points[:, None] - means) ** 2) / total[:, None] + 0.05
        return jnp.log(total), means, variances, evidence.mean()

    start = (jnp.zeros(len(means)), means, jnp.ones_like(means), jnp.float32(0))
    return lax.fori_loop(0, 4, round_, start), points.mean(0)


def metropolis_step(key: jax.Array, chain: Chain) -> tuple[jax.Array, Chain]:
    """One random-walk step of a two-dimensional banana; keys go in and come out typed."""
    key, walk, coin = jax.random.split(key, 3)
    proposal = chain.position + 0.5 * jax.random.normal(walk, chain.position.shape)
    density = -0.5 * (proposal[0] ** 2 + (proposal[1] - proposal[0] ** 2) ** 2)
    accept = jnp.log(jax.random.uniform(coin, minval=1e-7)) < density - chain.log_density
    position = jnp.where(accept, proposal, chain.position)
    density = jnp.where(accept, density, chain.log_density)
    return key, Chain(position, density, chain.accepted + accept)


def hamiltonian_trajectory(
    position: jax.Array, momentum: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Leapfrog through a log-density given as a function, and the energy error."""

    def potential(x: jax.Array) -> jax.Array:
        return -jnp.sum(stats.t.logpdf(x, 4.0)) + 0.1 * jnp.prod(x)

    force = jax.grad(potential)

    def leap(_: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, p = state
        p = p - 0.05 * force(x)
        x = x + 0.1 * p
        return x, p - 0.05 * force(x)

    x, p = lax.fori_loop(0, 5, leap, (position, momentum))
    before = potential(position) + 0.5 * momentum @ momentum
    return x, p, potential(x) + 0.5 * p @ p - before


def evidence_bound(params: Any, images: jax.Array, noise: jax.Array) -> jax.Array:
    """Loss of a variational autoencoder: reparametrised sample, Bernoulli likelihood, divergence."""
    hidden = jax.nn.relu(affine(params["encode"], images))
    mean, log_variance = jnp.split(affine(params["moments"], hidden), 2, axis=-1)
    latent = mean + jnp.exp(0.5 * log_variance) * noise
    logits = affine(params["decode"], latent)
    likelihood = jnp.sum(images * jax.nn.log_sigmoid(logits) + (1 - images) * jax.nn.log_sigmoid(-logits), -1)
    divergence = 0.5 * jnp.sum(jnp.exp(log_variance) + mean**2 - 1.0 - log_variance, axis=-1)
    return jnp.mean(divergence - likelihood)


def densities(x: jax.Array, shape: jax.Array) -> dict[str, jax.Array]:
    """Log-densities and special functions of the scipy module."""
    return {
        "beta": stats.beta.logpdf(jax.nn.sigmoid(x), shape, 2.0),
        "gamma": stats.gamma.logpdf(jnp.exp(x), shape),
        "poisson": stats.poisson.logpmf(jnp.floor(jnp.abs(x)), shape),
        "cauchy": stats.cauchy.cdf(x),
        "normal": stats.norm.ppf(jax.nn.sigmoid(x)) + jax.scipy.special.erf(x),
        "laplace": stats.laplace.logpdf(x, 0.3, shape),
        "log_gamma": jax.scipy.special.gammaln(shape),
    }


def process_args() -> tuple[Any, ...]:
    kernel = {"log_variance": np.float32(0.1), "log_length": np.float32(0.2), "log_noise": np.float32(-1.0)}
    return kernel, floats(6, 2), floats(6, seed=1), floats(3, 2, seed=2)


def kalman_args() -> tuple[Any, ...]:
    model = {
        "A": np.array([[1.0, 0.1], [-0.1, 0.9]]),
        "C": np.array([[1.0, 0.5]]),
        "Q": 0.1 * np.eye(2),
        "R": np.eye(1),
    }
    return {name: value.astype(np.float32) for name, value in model.items()}, floats(5, 1)


def markov_args() -> tuple[Any, ...]:
    return floats(STATES), floats(STATES, STATES, seed=1), floats(STATES, 4, seed=2), integers(7, high=4)


def chain() -> Chain:
    return Chain(np.array([0.3, -0.2], np.float32), np.float32(-0.1), np.int32(5))


def bound_args() -> tuple[Any, ...]:
    params = {"encode": dense(6, 5), "moments": dense(5, 4, 3), "decode": dense(2, 6, 5)}
    return params, (floats(3, 6) > 0).astype(np.float32), floats(3, 2, seed=4)


PROGRAMS = [
    Program("gaussian_process", gaussian_process, process_args, (0, 1, 2, 3), exportable=True),
    Program("kalman_filter", kalman_filter, kalman_args, (0, 1)),
    Program(
        "hidden_markov_forward",
        hidden_markov_forward,
        markov_args,
        (0, 1, 2),
        vmappable=True,
        exportable=True,
    ),
    Program("viterbi", viterbi, markov_args, vmappable=True, exportable=True),
    Program(
        "gaussian_mixture",
        gaussian_mixture,
        lambda: (floats(9, 2), floats(3, 2, seed=1)),
        vmappable=True,
    ),
    Program("metropolis_step", metropolis_step, lambda: (jax.random.key(1), chain())),
    Program("hamiltonian_trajectory", hamiltonian_trajectory, lambda: (floats(3), floats(3, seed=1)), (0, 1)),
    Program("evidence_bound", evidence_bound, bound_args, (0, 1), vmappable=True, exportable=True),
    Program(
        "log_densities",
        densities,
        lambda: (floats(4), np.array([0.5, 1.5, 3.0, 4.0], np.float32)),
        exportable=True,
    ),
]
