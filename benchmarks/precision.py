"""What mixed precision is worth: float32 against `precision{dtype=bf16}`, in turn in one process.

    python benchmarks/precision.py [--quick] [--dtype bf16] [--rounds 9] [--json FILE]

For each program four versions run in turn: `jax.jit`, Lepton's default pipeline, the same followed by
`precision`, which converts what it takes to be faster here, and by `precision{force=true}`, which converts
everything. The table gives the median time of each, how many products run in low precision, and how far the
results of the forced version are from float32's, as a part of the largest number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lepton_jax as lepton

Program = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments."""

RNG = np.random.default_rng(0)


def array(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[-1]), jnp.float32)


def forward(params: Sequence[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    return x @ params[-1][0] + params[-1][1]


def layers(width: int, depth: int = 4) -> list[tuple[jax.Array, jax.Array]]:
    return [(array(width, width), jnp.zeros(width)) for _ in range(depth)]


def mlp(rows: int, width: int) -> Program:
    return forward, (layers(width), array(rows, width))


def train_step(rows: int, width: int, depth: int = 4) -> Program:
    """One step of gradient descent with momentum on an MLP's squared error."""
    tx = optax.sgd(1e-2, momentum=0.9)
    params = layers(width, depth)

    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        grads = jax.grad(lambda params: jnp.mean((forward(params, x) - y) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step, (params, tx.init(params), array(rows, width), array(rows, width))


def block(batch: int, length: int, width: int, heads: int) -> Program:
    """A transformer block: norm, attention, norm, two layers with gelu."""
    each = width // heads
    params = {
        "qkv": array(3, width, heads, each),
        "out": array(heads, each, width),
        "up": array(width, 4 * width),
        "down": array(4 * width, width),
    }

    def norm(x: jax.Array) -> jax.Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    def run(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        h = norm(x)
        q, k, v = (jnp.einsum("btd,dhe->bthe", h, p["qkv"][i]) for i in range(3))
        scores = jnp.einsum("bthe,bshe->bhts", q, k) * each**-0.5
        mixed = jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(scores), v)
        x = x + jnp.einsum("bthe,hed->btd", mixed, p["out"])
        return x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]

    return run, (params, array(batch, length, width))


def programs(quick: bool) -> dict[str, Program]:
    if quick:
        return {"MLP step 2×8": train_step(2, 8, depth=2), "block 1×4×8": block(1, 4, 8, 2)}
    return {
        "MLP 16×1024": mlp(16, 1024),
        "MLP 256×1024": mlp(256, 1024),
        "MLP step 256×1024": train_step(256, 1024),
        "block 4×128×512": block(4, 128, 512, 8),
    }


def measure(name: str, program: Program, dtype: str, rounds: int) -> dict[str, Any]:
    """Median seconds of the four versions, run in turn."""
    fun, args = program
    asked = lepton.optimize(fun, f"default,precision{{dtype={dtype}}}")
    forced = lepton.optimize(fun, f"default,precision{{dtype={dtype},force=true}}")
    versions: dict[str, Callable[..., Any]] = {
        "jit": jax.jit(fun),
        "default": lepton.optimize(fun),
        "precision": asked,
        "forced": forced,
    }
    results = {key: jax.block_until_ready(version(*args)) for key, version in versions.items()}
    seconds: dict[str, list[float]] = {key: [] for key in versions}
    for _ in range(rounds):
        for key, version in versions.items():
            start = time.perf_counter()
            jax.block_until_ready(version(*args))
            seconds[key].append(time.perf_counter() - start)
    return {
        "name": name,
        "seconds": {key: statistics.median(times) for key, times in seconds.items()},
        "converted": [count(asked), count(forced)],
        "error": error(results["jit"], results["forced"]),
        "note": "; ".join(asked.report.notes),
    }


def count(optimised: Any) -> int:
    """How many products the pass converted."""
    return int(optimised.report.rules.get("low-product", 0))


def error(expected: Any, result: Any) -> float:
    """The largest difference in any array, as a part of its largest number."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(result), strict=True):
        scale = float(jnp.max(jnp.abs(a)))
        worst = max(worst, float(jnp.max(jnp.abs(a - b))) / scale if scale else 0.0)
    return worst


def show(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| program | jax.jit, ms | default | + precision | + forced | converted | error of forced |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        times = " | ".join(f"{1e3 * value:.3g}" for value in row["seconds"].values())
        asked, forced = row["converted"]
        lines.append(f"| {row['name']} | {times} | {asked} of {forced} | {row['error']:.1e} |")
    notes = dict.fromkeys(row["note"] for row in rows if row["note"])
    return "\n".join([*lines, *notes])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="float32 against mixed precision, in turn")
    parser.add_argument("--quick", action="store_true", help="tiny programs, two rounds")
    parser.add_argument("--dtype", choices=["bf16", "f16", "fp8"], default="bf16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rounds = 2 if options.quick else options.rounds
    rows = [
        measure(name, program, options.dtype, rounds) for name, program in programs(options.quick).items()
    ]
    print(f"{jax.devices()[0].device_kind}, {options.dtype}")
    print(show(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
