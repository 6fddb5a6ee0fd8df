"""Reinforcement learning: targets, returns, replay, environments and planning."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._program import Program, affine, dense, floats, integers, uniform

TIME, BATCH, ACTIONS = 6, 3, 4


class Replay(NamedTuple):
    """A ring of transitions and the place of the next."""

    observations: Any
    rewards: Any
    cursor: Any


def generalised_advantage(
    rewards: jax.Array, values: jax.Array, done: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Advantages and value targets; values has one step more than rewards."""
    go_on = 1.0 - done.astype(jnp.float32)
    delta = rewards + 0.99 * values[1:] * go_on - values[:-1]

    def step(advantage: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        advantage = inputs[0] + 0.99 * 0.95 * inputs[1] * advantage
        return advantage, advantage

    _, advantages = lax.scan(step, jnp.zeros_like(values[0]), (delta, go_on), reverse=True)
    return advantages, advantages + values[:-1]


def clipped_policy_loss(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The PPO objective with a clipped value loss and an entropy bonus, and its diagnostics."""
    hidden = jnp.tanh(affine(params["body"], batch["observation"]))
    scores = jax.nn.log_softmax(affine(params["policy"], hidden))
    value = affine(params["value"], hidden)[..., 0]
    chosen = jnp.take_along_axis(scores, batch["action"][:, None], axis=-1).squeeze(-1)
    advantage = batch["advantage"]
    advantage = lax.stop_gradient((advantage - advantage.mean()) / (advantage.std() + 1e-8))
    ratio = jnp.exp(chosen - batch["old_score"])
    policy = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage).mean()
    near = batch["old_value"] + jnp.clip(value - batch["old_value"], -0.2, 0.2)
    critic = 0.5 * jnp.maximum((value - batch["target"]) ** 2, (near - batch["target"]) ** 2).mean()
    entropy = -(jnp.exp(scores) * scores).sum(-1).mean()
    aside = {"clipped": jnp.mean(jnp.abs(ratio - 1.0) > 0.2), "entropy": lax.stop_gradient(entropy)}
    return policy + 0.5 * critic - 0.01 * entropy, aside


def lambda_returns(rewards: jax.Array, discounts: jax.Array, values: jax.Array) -> jax.Array:
    """TD(λ) targets from the end of the trajectory, unrolled by two."""

    def step(following: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
        reward, discount, value = inputs
        target = reward + discount * (0.1 * value + 0.9 * following)
        return target, target

    return lax.scan(step, values[-1], (rewards, discounts, values), reverse=True, unroll=2)[1]


def v_trace(
    behaviour: jax.Array, target: jax.Array, rewards: jax.Array, values: jax.Array
) -> tuple[Any, Any]:
    """Off-policy corrected values and advantages, by an associative scan in reverse."""
    ratio = jnp.exp(target - behaviour)
    clipped = jnp.minimum(ratio, 1.0)
    following = jnp.concatenate([values[1:], values[-1:]])
    delta = clipped * (rewards + 0.9 * following - values)

    def combine(later: Any, earlier: Any) -> tuple[jax.Array, jax.Array]:
        return later[0] * earlier[0], earlier[1] + earlier[0] * later[1]

    _, correction = lax.associative_scan(combine, (0.9 * clipped, delta), reverse=True)
    corrected = lax.stop_gradient(values + correction)
    ahead = jnp.concatenate([corrected[1:], values[-1:]])
    return corrected, lax.stop_gradient(jnp.minimum(ratio, 1.0) * (rewards + 0.9 * ahead - values))


def double_q_loss(online: Any, slow: Any, transition: Any) -> tuple[jax.Array, Any]:
    """Huber loss of double Q-learning, and the slow network moved towards the fast."""
    state, action, reward, following = transition
    value = affine(online, state)[jnp.arange(BATCH), action]
    best = affine(online, following).argmax(-1)
    target = reward + 0.9 * jnp.take_along_axis(affine(slow, following), best[:, None], 1)[:, 0]
    error = value - lax.stop_gradient(target)
    loss = jnp.where(jnp.abs(error) < 1, 0.5 * error**2, jnp.abs(error) - 0.5)
    return loss.mean(), jax.tree.map(lambda s, o: 0.99 * s + 0.01 * lax.stop_gradient(o), slow, online)


def replay_insert(replay: Replay, observation: jax.Array, reward: jax.Array) -> tuple[Replay, jax.Array]:
    """Writes a transition over the oldest, and reads a batch back from before the cursor."""
    place = replay.cursor % replay.rewards.shape[0]
    observations = replay.observations.at[place].set(observation)
    rewards = lax.dynamic_update_index_in_dim(replay.rewards, reward, place, 0)
    back = observations[(place - jnp.arange(3)) % replay.rewards.shape[0]]
    return Replay(observations, rewards, replay.cursor + 1), back


def cart_pole(policy: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rolls a linear policy out: the states and the return, counted until the pole falls."""

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        (x, speed, angle, spin), alive = carry
        force = jnp.where(policy @ jnp.stack([x, speed, angle, spin]) > 0, 10.0, -10.0)
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        push = (force + 0.05 * spin**2 * sin) / 1.1
        turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        move = push - 0.05 * turn * cos / 1.1
        state = (x + 0.02 * speed, speed + 0.02 * move, angle + 0.02 * spin, spin + 0.02 * turn)
        alive = alive & (jnp.abs(state[2]) < 0.2)
        return (state, alive), alive

    (final, _), alive = lax.scan(step, (tuple(state), True), None, length=8)
    return jnp.stack(final), alive.sum()


def value_iteration(transition: jax.Array, reward: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """Values and the greedy policy of a small decision process, until the change is small."""

    def backup(values: jax.Array) -> jax.Array:
        return reward + 0.8 * jnp.einsum("ast,t->sa", transition, values)

    def body(state: Any) -> Any:
        values, _, count = state
        new = backup(values).max(axis=1)
        return new, jnp.abs(new - values).max(), count + 1

    values, _, count = lax.while_loop(lambda s: s[1] > 1e-2, body, (jnp.zeros(len(reward)), jnp.inf, 0))
    return values, backup(values).argmax(axis=1), count


def series(*lengths: int) -> tuple[np.ndarray, ...]:
    return tuple(floats(length, BATCH, seed=seed) for seed, length in enumerate(lengths))


def policy_args() -> tuple[Any, ...]:
    params = {"body": dense(5, 6), "policy": dense(6, ACTIONS, 1), "value": dense(6, 1, 2)}
    names = ("advantage", "old_score", "old_value", "target")
    batch = {name: floats(8, seed=seed, scale=0.5) for seed, name in enumerate(names)}
    return params, {"observation": floats(8, 5, seed=9), "action": integers(8, high=ACTIONS), **batch}


def q_args() -> tuple[Any, ...]:
    transition = (
        floats(BATCH, 5),
        integers(BATCH, high=ACTIONS),
        floats(BATCH, seed=1),
        floats(BATCH, 5, seed=2),
    )
    return dense(5, ACTIONS), dense(5, ACTIONS, 3), transition


def decision_process() -> tuple[np.ndarray, np.ndarray]:
    chances = uniform(2, 4, 4, low=0.1)
    return chances / chances.sum(-1, keepdims=True), floats(4, 2)


PROGRAMS = [
    Program(
        "generalised_advantage",
        generalised_advantage,
        lambda: (*series(TIME, TIME + 1), uniform(TIME, BATCH) < 0.2),
        (0, 1),
        vmappable=True,
        exportable=True,
    ),
    Program("clipped_policy_loss", clipped_policy_loss, policy_args, (0,), vmappable=True, exportable=True),
    Program("lambda_returns", lambda_returns, lambda: series(TIME, TIME, TIME), (0, 1, 2), vmappable=True),
    Program("v_trace", v_trace, lambda: series(TIME, TIME, TIME, TIME), vmappable=True, exportable=True),
    Program("double_q_loss", double_q_loss, q_args, (0,), vmappable=True, exportable=True),
    Program(
        "replay_insert",
        replay_insert,
        lambda: (Replay(floats(5, 2), floats(5), np.int32(13)), floats(2, seed=3), 1.5),
        vmappable=True,
    ),
    Program(
        "cart_pole",
        cart_pole,
        lambda: (floats(4), np.array([0.0, 0.1, 0.15, 0.5], np.float32)),
        vmappable=True,
    ),
    Program("value_iteration", value_iteration, decision_process, vmappable=True, exportable=True),
]
