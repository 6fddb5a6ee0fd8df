"""Pipelines: bubbles and live activations against the formulas, losses against one device, compiled memory.

On virtual devices: no times are measured. The model is a stack of layers of a transformer's MLP, as a scan.
"""

from __future__ import annotations

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import lepton_jax as lepton
from benchmarks._common import Row, relative
from lepton_jax.parallel.pipeline import bubble, live, schedules

STAGES: Final = 4
LAYERS: Final = 8


def measure(quick: bool) -> list[Row]:
    """A row for each schedule and number of microbatches; none without as many devices as stages."""
    if len(jax.devices()) < STAGES:
        print(f"not measured: pipelines want {STAGES} devices, there are {len(jax.devices())}")
        return []
    width, rows = (16, 4) if quick else (64, 128)
    counts = (8,) if quick else (8, 32)
    mesh = Mesh(np.asarray(jax.devices()[:STAGES]), ("stage",))
    found = []
    for microbatches in counts:
        params, x = _model(width, rows * microbatches)
        expected = jax.jit(jax.value_and_grad(_loss))(params, x)
        found += [_row(name, microbatches, mesh, params, x, expected) for name in schedules.NAMES]
    return found


def _row(name: str, microbatches: int, mesh: Mesh, params: Any, x: Any, expected: tuple[Any, Any]) -> Row:
    virtual = 2 if name == "interleaved" else 1
    step = lepton.pipelined(_loss, mesh, microbatches=microbatches, schedule=name, virtual=virtual)
    compiled = step.lower(params, x).compile()
    loss, grads = compiled(params, x)
    packed = step.packed(params, x)
    return {
        "schedule": name,
        "microbatches": microbatches,
        "bubble": step.schedule.bubble,
        "by formula": bubble(name, STAGES, microbatches, virtual),
        "live": " ".join(map(str, step.schedule.live)),
        "bound": " ".join(map(str, live(name, STAGES, microbatches, virtual))),
        "loss, error": relative(expected[0], loss),
        "gradients, error": relative(expected[1], grads),
        "temporary bytes": compiled.memory_analysis().temp_size_in_bytes,
        "predicted to be held": packed.held_bytes,
    }


def _loss(params: Any, x: Any) -> Any:
    def layer(h: Any, w: Any) -> tuple[Any, None]:
        return h + jax.nn.gelu(h @ w["up"]) @ w["down"], None

    h, _ = jax.lax.scan(layer, x @ params["first"], params["layers"])
    return jnp.mean((h @ params["last"]) ** 2)


def _model(width: int, examples: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return (rng.normal(size=shape) / shape[-2] ** 0.5).astype(np.float32)

    layers = {"down": weight(LAYERS, 4 * width, width), "up": weight(LAYERS, width, 4 * width)}
    params = {"first": weight(8, width), "last": weight(width, 4), "layers": layers}
    return params, weight(examples, 8)
