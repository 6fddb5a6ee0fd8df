"""Peak memory on a device, predicted and compiled, of programs beside those of `wire`.

Loops over layers, layers that are computed again, masks, gradients added up over micro-batches, a forward
pass, each with shardings by hand, told to Lepton. Nothing runs; compiled is for the pod. Decoders are those
of `examples/train_pod.py`, smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct as Shape
from jax.sharding import Mesh, PartitionSpec

import lepton_jax as lepton
from benchmarks._common import Row
from benchmarks.shard_cases._programs import (
    MLP,
    TRANSFORMER,
    WIDTH,
    Place,
    Program,
    Specs,
    attention,
    mean_square,
    norm,
)
from benchmarks.shard_cases._topology import reached
from benchmarks.shard_cases.solve import decoder
from benchmarks.shard_cases.wire import through_lepton

POD: Final = "v5e:2x4"
AXES: Final = "data=2,model=4"
SEQUENCES: Final = 64
MICROBATCHES: Final = 4

Made = Callable[[], tuple[Any, tuple[Any, ...]]]


def measure(quick: bool) -> list[Row]:
    """Megabytes on a device when most is there."""
    pod = "cpu:8" if quick else POD
    topology = reached(pod)
    if topology is None:
        return []
    mesh = topology.mesh(AXES)
    cases = _quick(mesh) if quick else _cases(mesh)
    return [measured(name, sharding, made, pod) for name, sharding, made in cases]


def measured(name: str, sharding: str, made: Made, pod: str) -> Row:
    """The row of a program, printed too; `made` gives it and the shapes of its arguments."""
    f, arguments = made()
    plan = f.plan(*arguments)
    row = _row(name, sharding, plan.memory["peak"], f.lower(*arguments).compile().memory_analysis(), pod)
    print(", ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values()), flush=True)
    return row


def _row(name: str, sharding: str, peak: float, compiled: Any, pod: str) -> Row:
    found = compiled.peak_memory_in_bytes
    if pod.startswith("cpu"):  # the processor's figure is not one of a device
        found = compiled.argument_size_in_bytes + compiled.output_size_in_bytes
        found += compiled.temp_size_in_bytes - compiled.alias_size_in_bytes
    return {
        "program": name,
        "sharding": sharding,
        "predicted MB": peak / 1e6,
        "compiled MB": found / 1e6,
        "predicted by compiled": peak / found,
    }


def _cases(mesh: Mesh) -> list[tuple[str, str, Made]]:
    scanned = decoder("scanned", 6, SEQUENCES)
    stacked = {name: _stacked(specs) for name, specs in TRANSFORMER.by_hand.items()}
    again = Program("remat", partial(_scanned, remat=True), scanned.params, scanned.batch, stacked)
    batch = Shape((SEQUENCES, *TRANSFORMER.batch.shape[1:]), jnp.bfloat16)
    more = Shape((2 * SEQUENCES, *TRANSFORMER.batch.shape[1:]), jnp.bfloat16)
    params, by_hand = TRANSFORMER.params, TRANSFORMER.by_hand
    loops = Program("scan", _scanned, scanned.params, scanned.batch, stacked)
    masked = Program("masked", _masked, params, batch, by_hand)
    sums = _Accumulating("sums", TRANSFORMER.loss, params, more, by_hand)
    forward = _Forward("forward", TRANSFORMER.loss, params, batch, by_hand)
    cases: list[tuple[str, Program, tuple[str, ...]]] = [
        ("6 scanned layers", loops, ("Megatron", "FSDP")),
        ("6 scanned layers, computed again", again, ("Megatron", "FSDP")),
        ("2 layers with masks", masked, ("data parallel",)),
        ("2 layers, 4 micro-batches", sums, ("Megatron", "FSDP", "data parallel")),
        ("2 layers, forward", forward, ("Megatron",)),
    ]
    found = [
        (name, way, _by_hand(program, program.by_hand[way], mesh))
        for name, program, ways in cases
        for way in ways
    ]
    return [*found, *(("decoder, AdamW", preset, _decoder(preset, mesh)) for preset in ("tp", "fsdp"))]


def _quick(mesh: Mesh) -> list[tuple[str, str, Made]]:
    return [("MLP", "Megatron", _by_hand(MLP, MLP.by_hand["Megatron"], mesh))]


def _by_hand(program: Program, specs: Specs, mesh: Mesh) -> Made:
    return lambda: (through_lepton(program, specs, mesh), program.arguments)


def _decoder(preset: str, mesh: Mesh) -> Made:
    """The step of the training script, of two layers with 8192 words."""

    def made() -> tuple[Any, tuple[Any, ...]]:
        from examples import train_pod
        from lepton_jax.models import DecoderConfig

        config = DecoderConfig(8192, 512, 2, heads=16, width=WIDTH, dtype="bfloat16")
        model = train_pod.structure(config)
        state = jax.eval_shape(lambda: train_pod.create(config))
        tokens = Shape((SEQUENCES, 513), jnp.int32)
        step = partial(train_pod.train_step, model)
        return lepton.optimize(step, "none", mesh=mesh, shard=preset, donate_argnums=(0,)), (state, tokens)

    return made


def _stacked(specs: Specs) -> Mapping[str, PartitionSpec]:
    """Shardings of weights that are stacked over layers."""
    whole = ("batch", "activations")
    return {name: spec if name in whole else PartitionSpec(None, *spec) for name, spec in specs.items()}


def _layer(p: Any, x: Any, attend: Callable[[Any, Any], Any]) -> Any:
    x = x + attend(p, norm(x))
    return x + jax.nn.gelu(norm(x) @ p["w1"]) @ p["w2"]


def _scanned(params: Any, x: Any, place: Place, *, remat: bool = False) -> Any:
    def step(x: Any, p: Any) -> Any:
        return place(_layer(p, x, attention)), None

    x, _ = jax.lax.scan(jax.checkpoint(step) if remat else step, x, params)
    return mean_square(x)


def _masked_attention(p: Any, x: Any) -> Any:
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv")
    scores = jnp.einsum("bthk,bshk->bhts", q, k).astype(jnp.float32) / 8
    seen = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1).astype(x.dtype)
    return jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", weights, v), p["o"])


def _masked(params: Any, x: Any, place: Place) -> Any:
    for p in params:
        x = place(x + _masked_attention(p, norm(x)))
        x = place(x + jax.nn.gelu(norm(x) @ p["w1"]) @ p["w2"])
    return mean_square(x)


class _Accumulating(Program):
    """Gradients are added up over micro-batches before the step."""

    def step(self, place: Place = lambda x: x) -> Callable[[Any, Any, Any], Any]:
        def step(params: Any, momentum: Any, batch: Any) -> Any:
            parts = batch.reshape(MICROBATCHES, batch.shape[0] // MICROBATCHES, *batch.shape[1:])

            def add(sums: Any, x: Any) -> Any:
                grads = jax.grad(lambda params: self.loss(params, x, place))(params)
                return jax.tree.map(lambda s, g: s + g.astype(s.dtype), sums, grads), None

            zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
            sums, _ = jax.lax.scan(add, zeros, parts)
            momentum = jax.tree.map(lambda m, s: 0.9 * m + s / MICROBATCHES, momentum, sums)
            return jax.tree.map(lambda p, m: p - (0.01 * m).astype(p.dtype), params, momentum), momentum

        return step


class _Forward(Program):
    """The activations after the last layer; parameters and momentum are donated for nothing."""

    def step(self, place: Place = lambda x: x) -> Callable[[Any, Any, Any], Any]:
        def step(params: Any, momentum: Any, batch: Any) -> Any:
            for p in params:
                batch = place(_layer(p, batch, attention))
            return batch

        return step
