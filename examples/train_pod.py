"""Train a transformer on the bytes of a text, on one machine or on all hosts of a pod.

    python examples/train_pod.py --steps 100                  # on the devices of this machine
    python examples/train_pod.py --hosts --text corpus.txt    # on each host: Cloud TPU, SLURM, Kubernetes
    python examples/train_pod.py --hosts 10.0.0.1:8476 2 0    # the first of two processes, by hand
    lepton aot examples/train_pod.py:step --topology v5p:8x8x8 --mesh data=128,model=4 --preset auto

Lepton decides how the model, the optimiser's state and the batch lie on the mesh. Every host reads its own
part of each batch. A training starts again from its last checkpoint, on as many devices as there are then.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
from flax import nnx

import lepton_jax as lepton
from lepton_jax.models import Decoder, DecoderConfig
from lepton_jax.parallel import processes

LARGE = DecoderConfig(vocabulary=256, context=2048, layers=4, heads=32, width=4096, dtype="bfloat16")
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4, weight_decay=0.1))


def structure(config: DecoderConfig) -> Any:
    """The model without its parameters."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))[0]


def create(config: DecoderConfig) -> dict[str, Any]:
    """The state of the training at its start."""
    params = nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(0)), nnx.Param))
    return {"params": params, "tx": TX.init(params), "step": jnp.zeros((), jnp.int32)}


def train_step(model: Any, state: dict[str, Any], tokens: jax.Array) -> tuple[dict[str, Any], jax.Array]:
    """One step on tokens [batch, length + 1]: the new state, and the loss before it."""

    def loss(params: Any) -> jax.Array:
        logits = nnx.merge(model, params)(tokens[:, :-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]))

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, tx = TX.update(grads, state["tx"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "tx": tx, "step": state["step"] + 1}, value


def step(state: dict[str, Any], tokens: jax.Array) -> tuple[dict[str, Any], jax.Array]:
    """A step of the large model, to be compiled ahead of time."""
    return train_step(structure(LARGE), state, tokens)


def example_args() -> tuple[Any, Any]:
    """The shapes of its arguments."""
    tokens = jax.ShapeDtypeStruct((512, LARGE.context + 1), jnp.int32)
    return jax.eval_shape(lambda: create(LARGE)), tokens


def batches(text: Any, size: int, length: int, start: int) -> Iterator[Any]:
    """This host's part of each batch from step `start` on; the same batches on any number of hosts."""
    share = size // jax.process_count()
    own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    while True:
        places = np.random.default_rng(start).integers(0, len(text) - length - 1, size)[own]
        yield np.stack([text[at : at + length + 1] for at in places]).astype(np.int32)
        start += 1


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train; returns the losses."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", nargs="*", help="with other processes; host:port, how many, which one")
    parser.add_argument("--text", type=Path, default=Path(__file__), help="what to learn; default: this file")
    parser.add_argument("--mesh", help="as data=4,model=2; default: all devices along data")
    parser.add_argument("--shard", default="auto", help="auto, dp, fsdp, tp, fsdp+tp, or sp")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--checkpoints", type=Path, help="a folder; none are written without it")
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    options = parser.parse_args(arguments)

    if options.hosts is not None:
        host, count, index = (*options.hosts, None, None, None)[:3]
        processes.start(host, count and int(count), index and int(index))
    mesh = options.mesh or f"data={jax.device_count()}"
    config = DecoderConfig(256, options.length, options.layers, heads=8, width=options.width)
    model, state = structure(config), jax.jit(lambda: create(config))()
    run = lepton.optimize(
        lambda state, tokens: train_step(model, state, tokens),
        mesh=mesh,
        shard=lepton.Sharding(preset=options.shard, local="tokens"),
        donate="auto",
    )
    text = np.frombuffer(options.text.read_bytes(), np.uint8)
    sample = next(batches(text, options.batch, options.length, 0))
    first = jax.process_index() == 0
    if first:
        print(run.plan(state, sample))

    manager = None
    if options.checkpoints:
        keep = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=options.every)
        manager = ocp.CheckpointManager(options.checkpoints.absolute(), options=keep)
        if (latest := manager.latest_step()) is not None:
            state, _ = run.place(state, sample)
            state = manager.restore(latest, args=ocp.args.StandardRestore(state))
    start = int(state["step"])
    data = batches(text, options.batch, options.length, start)
    losses, clock = [], time.perf_counter()
    for number in range(start + 1, options.steps + 1):
        state, loss = run(state, next(data))
        losses.append(float(loss))
        if manager is not None:
            manager.save(number, args=ocp.args.StandardSave(state))
        if first and number % 10 == 0:
            print(f"step {number}: loss {losses[-1]:.3f}, {time.perf_counter() - clock:.1f} s", flush=True)
    if manager is not None:
        manager.close()
    return losses


if __name__ == "__main__":
    sys.exit(None if main() else "nothing was trained")
