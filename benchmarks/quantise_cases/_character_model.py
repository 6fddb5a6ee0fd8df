"""A character transformer, trained on tiny Shakespeare once and kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks._common import data
from lepton_jax.models.decoder import Decoder, DecoderConfig
from lepton_jax.targets import records

HELD_OUT: Final = 0.1
"""The part of the text, at its end, that is not trained on."""

Tokens = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True)
class Recipe:
    """How the model is trained.

    Attributes:
        layers: of the model.
        width: of the residual stream.
        heads: of the attention.
        context: characters that it sees.
        batch: sequences to a step.
        steps: of AdamW, the rate rising over the first 5 % and falling with a cosine.
        rate: the largest step size.
        seed: of the weights and of the order of the text.
    """

    layers: int = 4
    width: int = 256
    heads: int = 8
    context: int = 128
    batch: int = 16
    steps: int = 1200
    rate: float = 1e-3
    seed: int = 0

    @property
    def key(self) -> str:
        """A name for the cached weights."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


QUICK: Final = Recipe(layers=1, width=32, heads=2, context=16, batch=4, steps=20)


def characters(file: Path) -> tuple[Tokens, int]:
    """The bytes of a text as numbers from 0, and how many different ones there are."""
    letters, numbers = np.unique(np.frombuffer(file.read_bytes(), np.uint8), return_inverse=True)
    return numbers.astype(np.int32), len(letters)


def windows(text: Tokens, length: int, count: int) -> Tokens:
    """So many pieces of a text, evenly spread, int32[count, length]."""
    starts = np.linspace(0, len(text) - length, count).astype(int)
    return np.stack([text[at : at + length] for at in starts])


def untrained(recipe: Recipe, vocabulary: int) -> Decoder:
    """The model with random weights."""
    config = DecoderConfig(
        vocabulary=vocabulary,
        context=recipe.context,
        layers=recipe.layers,
        heads=recipe.heads,
        width=recipe.width,
    )
    return Decoder(config, rngs=nnx.Rngs(recipe.seed))


def trained(recipe: Recipe, tokens: Tokens, vocabulary: int, log: bool = True) -> Decoder:
    """The model with trained weights: from the cache folder, or trained now and kept there."""
    model = untrained(recipe, vocabulary)
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    path = records.folder() / "models" / f"shakespeare-{recipe.key}-{len(tokens)}-{vocabulary}.npz"
    try:
        with np.load(path) as file:
            found = [jnp.asarray(file[str(i)]) for i in range(len(leaves))]
    except (OSError, KeyError, ValueError):
        found = _train(graph, tree, leaves, recipe, tokens, log)
        _keep(path, found)
    merged: Decoder = nnx.merge(graph, jax.tree.unflatten(tree, found))
    return merged


class Shakespeare(NamedTuple):
    """What a case on tiny Shakespeare needs.

    Attributes:
        recipe: how the model was trained.
        decoder: the trained model.
        training: the text that it was trained on.
        text: pieces of the held-out text, int32[pieces, context + 1].
        calibration: batches of the training text.
    """

    recipe: Recipe
    decoder: Decoder
    training: Tokens
    text: Tokens
    calibration: list[jax.Array]


def shakespeare(quick: bool) -> Shakespeare | None:
    """The trained model and its text; None, and a line that says why, where the text is missing."""
    if (files := data("tinyshakespeare.txt")) is None:
        return None
    tokens, vocabulary = characters(files[0])
    cut = int(len(tokens) * (1 - HELD_OUT))
    recipe = QUICK if quick else Recipe()
    text = windows(tokens[cut:], recipe.context + 1, 32 if quick else 256)
    seen = windows(tokens[:cut], recipe.context, 16 if quick else 64)
    calibration = [jnp.asarray(seen[i : i + 16]) for i in range(0, len(seen), 16)]
    decoder = trained(recipe, tokens[:cut], vocabulary)
    return Shakespeare(recipe, decoder, tokens[:cut], text, calibration)


def _train(
    graph: Any, tree: Any, leaves: list[jax.Array], recipe: Recipe, tokens: Tokens, log: bool
) -> list[jax.Array]:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.rate, recipe.steps // 20, recipe.steps, recipe.rate / 20
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.05))

    def loss(found: list[jax.Array], batch: jax.Array) -> jax.Array:
        model = nnx.merge(graph, jax.tree.unflatten(tree, found))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model(batch[:, :-1]), batch[:, 1:]))

    def step(found: list[jax.Array], state: Any, batch: jax.Array) -> tuple[list[jax.Array], Any, jax.Array]:
        value, slope = jax.value_and_grad(loss)(found, batch)
        updates, state = optimizer.update(slope, state, found)
        return optax.apply_updates(found, updates), state, value

    run: Any = jax.jit(step, donate_argnums=(0, 1))
    found, state = [jnp.array(leaf) for leaf in leaves], optimizer.init(leaves)
    rng, start = np.random.default_rng(recipe.seed), time.perf_counter()
    for number in range(recipe.steps):
        places = rng.integers(0, len(tokens) - recipe.context - 1, recipe.batch)
        batch = np.stack([tokens[at : at + recipe.context + 1] for at in places])
        found, state, value = run(found, state, batch)
        if log and (number % 50 == 0 or number == recipe.steps - 1):
            seconds = time.perf_counter() - start
            print(
                f"  training: step {number}, loss {float(value):.3f}, {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return found


def _keep(path: Path, found: list[jax.Array]) -> None:
    """Write the weights; the file is whole or absent."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.npz")
        arrays: Any = {str(i): np.asarray(each) for i, each in enumerate(found)}
        np.savez(part, **arrays)
        os.replace(part, path)
    except OSError as error:
        print(f"  the trained weights are not kept: {error}", file=sys.stderr)
