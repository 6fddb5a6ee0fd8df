"""What Lepton itself costs: share of the time to compile, time for each equation, time for each call.

    python benchmarks/overhead.py [--quick] [--json FILE]

Three tables, all measured on the CPU:

- models: the default pipeline (import, passes, evaluation of the result) against the time that
  plain `jax.jit` takes to trace, lower and compile the same program. Aim: at most 15 %.
- straight lines: programs of 5,000 and of 50,000 equations. Aims: at most 150 µs an equation for
  all that Lepton adds, and at 50,000 at most 1.5 times what it is at 5,000.
- calls: an optimised function against a jitted one, called in turn. Aim: at most 5 µs more.

Times are the least of several runs; JAX's caches are emptied before each.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("LEPTON_STRICT", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import lepton_jax as lepton
from lepton_jax.models.lepton_net import LeptonNet, LeptonNetConfig

Program = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments."""

SHARE, EACH, GROWTH, CALL = 0.15, 150.0, 1.5, 5.0
"""The aims: share of compiling, µs an equation, growth of that, µs a call."""


def decoder(layers: int, width: int = 64, heads: int = 4, length: int = 32, vocabulary: int = 64) -> Program:
    """A decoder transformer in plain JAX, all layers unrolled: tokens [2, length] to logits."""
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) * shape[0] ** -0.5, jnp.float32)

    wide = 4 * width
    block = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, wide), "down": (wide, width)}
    params = {
        "embed": matrix(vocabulary, width),
        "blocks": [{name: matrix(*shape) for name, shape in block.items()} for _ in range(layers)],
    }

    def norm(x: jax.Array) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)

    def attention(p: Any, x: jax.Array) -> Any:
        q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
        q, k, v = (t.reshape(*t.shape[:2], heads, width // heads) for t in (q, k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (width // heads) ** -0.5
        causal = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ p["out"]

    def forward(params: Any, tokens: jax.Array) -> Any:
        x = params["embed"][tokens]
        for p in params["blocks"]:
            x = x + attention(p, norm(x))
            x = x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]
        return norm(x) @ params["embed"].T

    return forward, (params, jnp.zeros((2, length), jnp.int32))


def decoder_step(layers: int) -> Program:
    """Loss and gradient of the decoder."""
    forward, args = decoder(layers)

    def loss(params: Any, tokens: jax.Array) -> Any:
        logits = forward(params, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return jax.value_and_grad(loss), args


def resnet_step(blocks: int, widths: tuple[int, ...]) -> Program:
    """A train step of LeptonNet, a residual network, with Adam: images [4, 16, 16, 1]."""
    model = LeptonNet(LeptonNetConfig(widths=widths, blocks_per_stage=blocks), rngs=nnx.Rngs(0))
    parts: Any = nnx.split(model, nnx.Param, ...)
    definition, params, rest = parts
    adam = optax.adam(1e-3)

    def loss(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        net = nnx.merge(definition, params, rest, copy=True)
        logits = net(images, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), nnx.state(net, nnx.Not(nnx.Param))

    def step(params: Any, rest: Any, moments: Any, images: jax.Array, labels: jax.Array) -> Any:
        (value, rest), slopes = jax.value_and_grad(loss, has_aux=True)(params, rest, images, labels)
        updates, moments = adam.update(slopes, moments, params)
        return optax.apply_updates(params, updates), rest, moments, value

    images, labels = jnp.ones((4, 16, 16, 1)), jnp.zeros(4, jnp.int32)
    return step, (params, rest, adam.init(params), images, labels)


def straight_line(equations: int) -> Program:
    """So many equations one after the other; one in ten gives a pass something to do."""

    def line(x: jax.Array) -> jax.Array:
        y = x
        for i in range(equations // 10):
            y = jnp.sin(y) * (1.0 + i)
            y = jax.lax.max(y, x) + jnp.tanh(x)
            y = jnp.transpose(jnp.transpose(y)) if i % 2 else jnp.reshape(jnp.reshape(y, (6,)), (2, 3))
            y = y / 3.0 - x
            y = jnp.cos(y)
        return y

    return line, (jnp.ones((2, 3)),)


def least(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The least of each figure."""
    return {key: min(run[key] for run in runs) for key in runs[0]}


def seconds(fun: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes, and its result."""
    start = time.perf_counter()
    result = fun()
    return time.perf_counter() - start, result


def compile_plain(program: Program) -> dict[str, float]:
    """Seconds that `jax.jit` takes to trace, lower and compile."""
    fun, args = program
    jax.clear_caches()
    trace, traced = seconds(lambda: jax.jit(fun).trace(*args))
    lower, lowered = seconds(traced.lower)
    compiling, _ = seconds(lowered.compile)
    return {"trace": trace, "lower": lower, "compile": compiling}


def compile_optimised(program: Program, *, finish: bool = True) -> tuple[dict[str, float], lepton.Report]:
    """Seconds that `lepton.optimize` takes for the same, and for its own parts.

    Args:
        finish: lower and compile too.
    """
    fun, args = program
    jax.clear_caches()
    optimised: Any = lepton.optimize(lambda *args: fun(*args))
    total, traced = seconds(lambda: optimised.trace(*args))
    report = traced.report
    importing, _ = seconds(lambda: traced.graph_before)
    parts = {
        "trace": report.trace_seconds,
        "import": importing,
        "passes": report.pass_seconds - importing,
        "evaluate": total - report.trace_seconds - report.pass_seconds,
        "added": total - report.trace_seconds,
    }
    for record in report.passes:
        parts[f"pass {record.name}"] = parts.get(f"pass {record.name}", 0.0) + record.seconds
    if finish:
        parts["lower"], lowered = seconds(traced.lower)
        parts["compile"], _ = seconds(lowered.compile)
    return parts, report


def measure_model(name: str, program: Program, repeats: int) -> dict[str, Any]:
    """One row of the first table."""
    plain, ours = [], []
    for _ in range(repeats):
        plain.append(compile_plain(program))
        parts, report = compile_optimised(program)
        ours.append(parts)
    jit, opt = least(plain), least(ours)
    whole = jit["trace"] + jit["lower"] + jit["compile"]
    return {
        "name": name,
        "equations": [report.equations_before, report.equations_after],
        "jit_seconds": jit,
        "lepton_seconds": opt,
        "share": opt["added"] / whole,
        "ratio": (opt["trace"] + opt["added"] + opt["lower"] + opt["compile"]) / whole,
    }


def measure_line(equations: int, repeats: int) -> dict[str, Any]:
    """One row of the second table: microseconds for each equation."""
    program = straight_line(equations)
    runs = []
    for _ in range(repeats):
        parts, report = compile_optimised(program, finish=False)
        runs.append(parts)
    count = report.equations_before
    each = {key: value / count * 1e6 for key, value in least(runs).items()}
    return {"equations": count, "after": report.equations_after, "microseconds": each}


def measure_call(samples: int, calls: int) -> dict[str, float]:
    """Microseconds for a call of a small function, jitted and optimised in turn."""

    def small(x: jax.Array, y: jax.Array) -> jax.Array:
        return x * 2 + y

    args = (jnp.ones(8), jnp.ones(8))
    functions: dict[str, Callable[..., Any]] = {"jit": jax.jit(small), "lepton": lepton.optimize(small)}
    best = dict.fromkeys(functions, float("inf"))
    for sample in range(samples + 1):
        for name, fun in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                fun(*args)
            if sample:
                best[name] = min(best[name], (time.perf_counter() - start) / calls * 1e6)
    return {**best, "difference": best["lepton"] - best["jit"]}


def verdict(value: float, aim: float) -> str:
    """Whether an aim is met."""
    return "met" if value <= aim else "MISSED"


def show(results: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"jax {results['jax']}, {os.cpu_count()} cores")
    print(f"first use of the default pipeline in this process: {results['first']:.2f} s\n")
    print(f"{'model':<24}{'equations':>14}{'jit s':>8}{'added s':>9}{'share':>8}  {'≤ 15 %':<8}{'ratio':>7}")
    for row in results["models"]:
        before, after = row["equations"]
        whole = sum(row["jit_seconds"].values())
        print(
            f"{row['name']:<24}{before:>7}→{after:<6}{whole:>8.2f}{row['lepton_seconds']['added']:>9.3f}"
            f"{row['share']:>8.1%}  {verdict(row['share'], SHARE):<8}{row['ratio']:>7.2f}"
        )
    print("\nµs for each equation")
    short, long = (row["microseconds"] for row in results["lines"])
    counts = "".join(f"{row['equations']:>10}" for row in results["lines"])
    print(f"{'part':<28}{counts}{'ratio':>8}")
    for key in short:
        if key in long:
            print(f"{key:<28}{short[key]:>10.2f}{long[key]:>10.2f}{long[key] / max(short[key], 1e-9):>8.2f}")
    growth = results["growth"]
    print(f"added: {long['added']:.0f} µs (aim ≤ {EACH:.0f} µs: {verdict(long['added'], EACH)})")
    print(f"growth of that: {growth:.2f} (aim ≤ {GROWTH}: {verdict(growth, GROWTH)})")
    call = results["call"]
    print(
        f"\na call: jit {call['jit']:.2f} µs, lepton {call['lepton']:.2f} µs, "
        f"{call['difference']:+.2f} µs (aim ≤ {CALL:.0f} µs: {verdict(call['difference'], CALL)})"
    )


def run(quick: bool) -> dict[str, Any]:
    """Measure everything."""
    first, _ = seconds(lambda: lepton.optimize(lambda x: x.T.T * 1.0).trace(jnp.ones((2, 3))))
    repeats = 1 if quick else 3
    programs = {f"decoder, {n} layers": decoder(n) for n in ((1,) if quick else (12, 24, 48))}
    if not quick:
        programs["decoder step, 12 layers"] = decoder_step(12)
    programs["ResNet train step"] = resnet_step(1, (8,)) if quick else resnet_step(3, (16, 32, 64))
    lines = [measure_line(n, repeats) for n in ((200, 1000) if quick else (5_000, 50_000))]
    growth = lines[1]["microseconds"]["added"] / lines[0]["microseconds"]["added"]
    return {
        "jax": jax.__version__,
        "quick": quick,
        "first": first,
        "models": [measure_model(name, program, repeats) for name, program in programs.items()],
        "lines": lines,
        "growth": growth,
        "call": measure_call(*((3, 200) if quick else (30, 2000))),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="What Lepton itself costs.")
    parser.add_argument("--quick", action="store_true", help="small programs, in seconds: for tests")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    results = run(options.quick)
    show(results)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
