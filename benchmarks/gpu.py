"""What becomes of quantised programs on a GPU, as XLA's compiler writes them: products and kernels.

    pip install 'lepton-jax[cuda-aot]'
    python benchmarks/gpu.py [--topology h100:1x1] [--only TEXT] [--json FILE] [--markdown FILE]

No GPU, driver or CUDA is needed: JAX's CUDA plug-in compiles ahead of time. For each program, as written and
as `lepton.compile(..., target="gpu")` leaves it, stand the products and convolutions of the compiled text
with the types of their operands and results, what runs them where that is not a kernel of XLA's own, and how
many kernels start in one call, loops as often as they run. Without a GPU XLA does not try which of several
kernels is the fastest, and whether cuDNN has one for a convolution shows when it runs: these are forms, not
times.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("LEPTON_STRICT", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lepton_jax as lepton
from benchmarks._common import Row, batches, table
from lepton_jax.parallel.aot.compile import compile_for
from lepton_jax.parallel.aot.text import Computation, Instruction, Module, arrays, called_by, parse
from lepton_jax.parallel.aot.topologies import why_not

PRODUCTS: Final = frozenset({"dot", "convolution", "ragged-dot", "scaled-dot"})

STARTED: Final = frozenset({"fusion", "custom-call", "copy", "sort", "fft", "scatter", *PRODUCTS})
"""Instructions that start a kernel, outside of fusions."""

NAMES: Final[Mapping[str, str]] = {
    "__gpu$xla.gpu.triton": "Pallas",
    "__cudnn$convForward": "cuDNN",
    "__cudnn$convBiasActivationForward": "cuDNN",
}
"""What runs a custom call, in words; others by their own names."""

ALL: Final[Mapping[str, str]] = {
    "int8, static": "quantize{activations=static}",
    "int8, dynamic": "quantize{activations=dynamic}",
    "fp8, static": "quantize{weights=fp8_e4m3,activations=static}",
    "fp8, dynamic": "quantize{weights=fp8_e4m3,activations=dynamic}",
    "int8, weights alone": "quantize",
    "int4, groups of 32": "quantize{weights=int4,group=32}",
    "int4, groups of 128": "quantize{weights=int4,group=128}",
    "int4 with zero points": "quantize{weights=int4,group=64,symmetric=false}",
    "nf4": "quantize{weights=nf4,group=64}",
    "mxfp4": "quantize{weights=mxfp4}",
    "mxfp8": "quantize{weights=mxfp8}",
    "palette of 4 bits": "palettize{bits=4}",
}
"""Pipelines of models."""

EIGHT: Final = {name: ALL[name] for name in ("int8, static", "int8, dynamic", "fp8, static")}

SOME: Final = {**EIGHT, "int4, groups of 128": ALL["int4, groups of 128"]}


@dataclass(frozen=True)
class Case:
    """A program, shapes of its weights and inputs in bfloat16, and the pipelines to compile it with."""

    name: str
    fun: Callable[..., Any]
    weights: Sequence[tuple[int, ...]]
    x: tuple[int, ...]
    kinds: Mapping[str, str]


def perceptron(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Layers with ReLU between them."""
    for weight in weights[:-1]:
        x = jax.nn.relu(x @ weight)
    return x @ weights[-1]


def layers(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """The same, in a loop over a stack."""
    found: jax.Array = lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, weights[0])[0]
    return found


def convolutions(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Convolutions of images [batch, rows, columns, channels], with ReLU."""
    for weight in weights:
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.nn.relu(lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=numbers))
    return x


def attention(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Attention of tokens [batch, tokens, features] in eight heads."""
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, w) for w in weights[:3])
    scores = jnp.einsum("bthk,bshk->bhts", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores).astype(x.dtype), v)
    return jnp.einsum("bthk,hkd->btd", mixed, weights[3])


def lookup(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Rows of a table, compared with all of its rows."""
    rows = weights[0][jnp.argmax(x, -1)]
    return rows @ weights[0].T


WIDE: Final = ((2048, 2048),) * 3
CASES: Final = (
    Case("3 layers, 1 row", perceptron, WIDE, (1, 2048), ALL),
    Case("3 layers, 16 rows", perceptron, WIDE, (16, 2048), ALL),
    Case("3 layers, 512 rows", perceptron, WIDE, (512, 2048), ALL),
    Case("4 layers in a loop, 16 rows", layers, ((4, 1024, 1024),), (16, 1024), SOME),
    Case("2 convolutions", convolutions, ((3, 3, 64, 64),) * 2, (8, 32, 32, 64), EIGHT),
    Case("attention", attention, ((512, 8, 64),) * 3 + ((8, 64, 512),), (2, 128, 512), SOME),
    Case("tied embedding", lookup, ((1024, 512),), (8, 1024), SOME),
)


def forms(text: str) -> Counter[str]:
    """The products of a compiled program: types, and what runs them where that is not XLA; loops by rounds.

    Example:
        >>> lines = "HloModule f\\nENTRY %m (a: s8[8,8]) -> s32[8,8] {\\n  %a = s8[8,8]{1,0} parameter(0)\\n"
        >>> forms(lines + "  ROOT %d = s32[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}\\n}")
        Counter({'s8·s8→s32': 1})
    """
    module = parse(text)
    found: Counter[str] = Counter()
    for name, times in module.times().items():
        computation = module.computations[name]
        for each in computation.instructions.values():
            if each.opcode in PRODUCTS:
                found[_types(computation, each, 2)] += times
            elif each.opcode == "custom-call" and (target := _target(each)):
                found[f"{NAMES.get(target, target)} {_types(computation, each, 3)}"] += times
    return found


def kernels(text: str) -> int:
    """How many kernels a compiled program starts, those of loops as often as they go round."""
    module = parse(text)
    fused = {called for each in _instructions(module, "fusion") for called in called_by(each)}
    return sum(
        times
        for name, times in module.times().items()
        if name not in fused
        for each in module.computations[name].instructions.values()
        if each.opcode in STARTED
    )


def _instructions(module: Module, opcode: str) -> Iterator[Instruction]:
    for computation in module.computations.values():
        yield from (each for each in computation.instructions.values() if each.opcode == opcode)


def _target(call: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', call.rest)
    return found[1] if found else ""


def _types(computation: Computation, each: Instruction, most: int) -> str:
    known = [computation.instructions.get(name) for name in each.operands()[:most]]
    shapes = [one.shape for one in known if one is not None]
    operands, result = (
        [arrays(shape)[0][0].partition("[")[0] for shape in part if arrays(shape)]
        for part in (shapes, [each.shape])
    )
    return f"{'·'.join(operands)}→{''.join(result)}"


def rows_of(case: Case, topology: str) -> Iterator[Row]:
    """The program as written, then each model of it, compiled for a topology."""
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(0, shape[-2] ** -0.5, shape), jnp.bfloat16) for shape in case.weights]
    x = jnp.asarray(rng.normal(size=case.x), jnp.bfloat16)

    def row(name: str, fun: Any, params: Any) -> Row:
        there = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, x))
        text = compile_for(fun, there, topology).executable.as_text()
        products = ", ".join(f"{count} × {form}" for form, count in sorted(forms(text).items()))
        return {
            "program": case.name,
            "model": name,
            "products": products or "in loops of XLA's",
            "kernels": kernels(text),
            "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        }

    yield row("bfloat16", jax.jit(case.fun), weights)
    for name, passes in case.kinds.items():
        pipeline = f"default,{passes}"
        seen = batches(pipeline, x)
        model = lepton.compile(case.fun, weights, x, passes=pipeline, target="gpu", calibration=seen)
        yield row(name, model.jit, model.params)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--topology", default="h100:1x1", help="one GPU (default: h100:1x1)")
    parser.add_argument("--only", default="", help="programs with this text in their names")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    options = parser.parse_args(argv)
    if reason := why_not(options.topology):
        print(f"nothing is compiled: {reason}")
        return 0
    rows = []
    for case in CASES:
        for row in rows_of(case, options.topology) if options.only in case.name else ():
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            rows.append(row)
    print(f"\njax {jax.__version__}, {options.topology}\n\n{table(rows)}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.markdown is not None:
        options.markdown.write_text(table(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
