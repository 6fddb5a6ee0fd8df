"""A decoder trained on tiny Shakespeare on 8 virtual devices, its gradients added up in different ways.

Bytes are those that one device sends in a step, by the collectives in the compiled program. Losses are of
text that was not trained on; all ways see the same batches from the same start.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks._common import Row
from benchmarks.quantise_cases._character_model import (
    HELD_OUT,
    QUICK,
    Recipe,
    Tokens,
    characters,
    untrained,
    windows,
)
from benchmarks.shard_cases._text import text_for_eight
from lepton_jax.parallel.aot.hlo import collectives
from lepton_jax.parallel.compressed import compressed, data_parallel
from lepton_jax.parallel.compressed.codes import FORMATS
from lepton_jax.parallel.meshes import MeshSpec

RECIPE: Final = Recipe(layers=2, width=256, heads=8, context=64, batch=8, steps=600, rate=2e-3)

WAYS: Final[dict[str, dict[str, Any]]] = {
    "exact": {},
    "int8": {"method": "int8"},
    "int8, no feedback": {"method": "int8", "feedback": False},
    "fp8_e4m3": {"method": "fp8_e4m3"},
    "PowerSGD, rank 10": {"method": "powersgd", "rank": 10},
    "PowerSGD, rank 15": {"method": "powersgd", "rank": 15},
    "top 1 %": {"method": "topk", "share": 0.01},
}
QUICK_WAYS: Final = ("exact", "int8")
AXES: Final = ("slice", "data")


def measure(quick: bool) -> list[Row]:
    """Of each way: bytes sent in a step, the loss in the end, and by how much it exceeds the exact one's."""
    if (file := text_for_eight()) is None:
        return []
    tokens, vocabulary = characters(file)
    cut = int(len(tokens) * (1 - HELD_OUT))
    recipe = replace(QUICK, batch=8, steps=3) if quick else RECIPE
    held = windows(tokens[cut:], recipe.context + 1, 16 if quick else 512)
    rows: list[Row] = []
    for name in QUICK_WAYS if quick else WAYS:
        how = WAYS[name] | ({"smallest": 1 << 10} if quick and WAYS[name] else {})
        rows.append(_row(name, how, recipe, tokens[:cut], held, vocabulary))
        exact = rows[0]
        row = rows[-1]
        row["times fewer than float32"] = exact["bytes sent"] / row["bytes sent"]
        row["than bfloat16"] = exact["bytes sent"] / 2 / row["than bfloat16"]
        row["percent more loss"] = 100 * (row["loss"] / exact["loss"] - 1)
    return rows


def _row(
    name: str, how: dict[str, Any], recipe: Recipe, tokens: Tokens, held: Tokens, vocabulary: int
) -> Row:
    split: Any = nnx.split
    definition, params = split(untrained(recipe, vocabulary))
    mesh = jax.make_mesh((2, 4), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.rate, max(1, recipe.steps // 20), recipe.steps, recipe.rate / 20
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.05))
    if how:
        tx = compressed(tx, mesh, axes=AXES, **how)

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        logits = nnx.merge(definition, params)(batch[:, :-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]))

    train = data_parallel(loss, tx, mesh)
    params, state = train.init(params)
    shape = jax.ShapeDtypeStruct((recipe.batch, recipe.context + 1), jnp.int32)
    run = train.lower(params, state, shape).compile()
    spec = MeshSpec.of(mesh, chip="cpu")
    found = collectives(run.as_text(), spec)
    sent = sum(each.collective().sent(spec) * each.times for each in found)
    # Gradients in bfloat16 that stay exact travel as they are; thin factors are float32 all the same.
    codes = [each for each in found if how.get("method") in FORMATS and each.dtypes == ("f32",)]
    floats = sum(each.collective().sent(spec) * each.times for each in codes)
    rng, start = np.random.default_rng(recipe.seed), time.perf_counter()
    for step in range(recipe.steps):
        places = rng.integers(0, len(tokens) - recipe.context - 1, recipe.batch)
        batch = np.stack([tokens[at : at + recipe.context + 1] for at in places])
        params, state, value = train.step(params, state, batch)
        value.block_until_ready()  # steps under way at once would wait for each other's threads on few cores
        if step % 100 == 0:
            said = f"step {step}, loss {float(value):.3f}, {time.perf_counter() - start:.0f} s"
            print(f"  {name}: {said}", file=sys.stderr, flush=True)
    ends: Any = jax.jit(loss)
    final = float(np.mean([ends(params, held[i : i + 16]) for i in range(0, len(held), 16)]))
    if not math.isfinite(final):
        raise FloatingPointError(f"{name}: the loss is {final}")
    return {
        "gradients": name,
        "collectives": len(found),
        "bytes sent": sent,
        "times fewer than float32": 1.0,
        "than bfloat16": sent - floats / 2,
        "loss": final,
        "percent more loss": 0.0,
    }
