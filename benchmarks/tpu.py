"""What the rewrites and quantisation are worth on a TPU, as its compiler estimates it: cycles and memory.

    pip install 'lepton-jax[tpu]'
    python benchmarks/tpu.py [--topology v5e:2x2] [--only TEXT] [--json FILE]

No TPU is needed: the TPU compiler (libtpu) compiles ahead of time for a topology. Each program is
compiled for one chip, as written and as `lepton.optimize(..., "max", target="tpu")` leaves it. The
cycles are the compiler's own estimates for each operation, those of a loop's body times its trip count;
transfers between memories are not in them. They compare two forms of one program; they are not a time.

For a Pallas kernel the compiler estimates nothing. Its cycles are counted here as those of its products
at the peak rate of the matrix units, which is the least it can take: ratios marked * are upper bounds.

Quantised models are made by `lepton.compile` for a TPU, and compared with the same network in bfloat16: four
layers, 2048 wide, at 16 and at 512 rows (`--only quantised`). Which formats gain depends on the generation.
Beside each stand the types that its products have in the compiled text. `--only products` compares single
products of int8, fp8 and int4 with those of bfloat16, and says whether the compiler has kept their type.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("LEPTON_STRICT", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lepton_jax as lepton
from benchmarks.tpu_types import product_rows, product_types, shown

TOPOLOGIES: Final = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")


@dataclass(frozen=True)
class Case:
    """A program as people write it, and the shapes of its arguments.

    Attributes:
        kernel: the floating-point operations of the products in a Pallas kernel, should Lepton put one in.
    """

    name: str
    fun: Callable[..., Any]
    args: tuple[tuple[tuple[int, ...], Any], ...]
    kernel: float = 0.0


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention, [batch, tokens, heads, features]."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf).astype(jnp.float32))
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)


def attention_gradient(q: jax.Array, k: jax.Array, v: jax.Array, change: jax.Array) -> Any:
    """What training needs of it, given the gradient of its result."""
    out, pullback = jax.vjp(attention, q, k, v)
    return out, pullback(change)


def linear_recurrence(a: jax.Array, b: jax.Array) -> Any:
    """h ← a h + b, step by step."""
    return jax.lax.scan(lambda h, x: ((h := x[0] * h + x[1]), h), jnp.zeros(a.shape[1:]), (a, b))[1]


def independent_steps(x: jax.Array, w: jax.Array) -> Any:
    """A loop whose steps do not depend on one another."""
    return jax.lax.scan(lambda c, row: (c, jnp.tanh(row @ w)), 0.0, x)[1]


def projected(x: jax.Array, w: jax.Array, u: jax.Array) -> Any:
    """A recurrent net that multiplies its input by a matrix on every step."""
    return jax.lax.scan(lambda h, row: (jnp.tanh(h @ u + row @ w), None), jnp.zeros_like(x[0]), x)[0]


QKV: Final = ((1, 2048, 8, 128), jnp.bfloat16)

PRODUCT: Final = 2 * 8 * 2048 * 2048 * 128 * 10 / 16
"""Of one product in causal attention: ten of sixteen blocks of 512 are not masked.

Forward has two products, backward seven.
"""

PER_CYCLE: Final = {
    "TPU v5 lite": 4 * 128 * 128 * 2,
    "TPU v5": 8 * 128 * 128 * 2,
    "TPU v6 lite": 4 * 256 * 256 * 2,
}
"""Floating-point operations of a chip's matrix units in a cycle."""

CASES: Final = [
    Case("attention, 2048 tokens", attention, (QKV,) * 3, 2 * PRODUCT),
    Case("attention and gradient, 2048 tokens", attention_gradient, (QKV,) * 4, 9 * PRODUCT),
    Case("linear recurrence, 4096 steps", linear_recurrence, (((4096, 256), jnp.float32),) * 2),
    Case(
        "loop without a carry, 1024 steps",
        independent_steps,
        (((1024, 512), jnp.float32), ((512, 512), jnp.float32)),
    ),
    Case(
        "recurrent net, 512 steps",
        projected,
        (((512, 8, 512), jnp.float32), ((512, 512), jnp.float32), ((512, 512), jnp.float32)),
    ),
    Case(
        "(A B) v", lambda a, b, v: (a @ b) @ v, (((2048, 2048), jnp.float32),) * 2 + (((2048,), jnp.float32),)
    ),
    Case("(A B)[:8]", lambda a, b: (a @ b)[:8], (((2048, 2048), jnp.float32),) * 2),
]


def compiled(fun: Callable[..., Any], case: Case, sharding: Any) -> dict[str, float]:
    """Compiles a program for a TPU; the compiler's figures."""
    args = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in case.args]
    made = jax.jit(fun).lower(*args).compile()
    memory = made.memory_analysis()
    text = made.as_text() or ""
    kernels = text.count('custom_call_target="tpu_custom_call"')
    (chip,) = sharding.device_set
    least = case.kernel / PER_CYCLE.get(chip.device_kind, math.inf) if kernels else 0.0
    return {
        "cycles": cycles(text) + least,
        "kernels": kernels,
        "temporary": 0 if memory is None else memory.temp_size_in_bytes,
    }


def cycles(text: str) -> float:
    """The estimated cycles of a compiled module: those of its entry, loops as often as they run."""
    found = re.split(r"^(?=(?:ENTRY )?%[\w.\-]+ \()", text, flags=re.MULTILINE)
    bodies = {m[1]: block for block in found if (m := re.match(r"(?:ENTRY )?%([\w.\-]+) \(", block))}
    entry = next(name for name, block in bodies.items() if block.startswith("ENTRY"))

    def total(name: str) -> float:
        block = bodies[name]
        own = sum(float(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', block))
        for condition, body in re.findall(r"condition=%([\w.\-]+), body=%([\w.\-]+)", block):
            own += trips(bodies[condition]) * total(body)
        return own

    return total(entry)


def trips(condition: str) -> int:
    """How often a loop goes round, from the number that its condition compares with; 1 if it has none."""
    return max(map(int, re.findall(r"s32\[\][^=\n]*constant\((\d+)\)", condition)), default=1)


QUANTISED: Final = {
    "int8, static": "quantize{activations=static}",
    "int8, dynamic": "quantize{activations=dynamic}",
    "fp8, static": "quantize{weights=fp8_e4m3,activations=static}",
    "int8, weights alone": "quantize",
    "int4, weights alone": "quantize{weights=int4,group=128}",
}
"""Pipelines of quantised models."""


def perceptron(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Layers with ReLU between them."""
    for weight in weights[:-1]:
        x = jax.nn.relu(x @ weight)
    return x @ weights[-1]


def quantised(sharding: Any, rows: int, width: int = 2048, layers: int = 4) -> Iterator[dict[str, Any]]:
    """The figures of a network in bfloat16, then of its quantised models, compiled for a chip."""
    rng = np.random.default_rng(0)
    shape = (width, width)
    weights = [jnp.asarray(rng.normal(0, width**-0.5, shape), jnp.bfloat16) for _ in range(layers)]
    x = jnp.asarray(rng.normal(size=(rows, width)), jnp.bfloat16)

    def figures(name: str, fun: Any, params: Any) -> dict[str, Any]:
        there = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), (params, x))
        made = fun.lower(*there).compile()
        memory = made.memory_analysis()
        return {
            "name": f"quantised: {name}, {rows} rows",
            "cycles": cycles(made.as_text() or ""),
            "products": shown(product_types(made.as_text() or "")),
            "parameters": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
            "temporary": 0 if memory is None else memory.temp_size_in_bytes,
        }

    yield figures("bfloat16", jax.jit(perceptron), weights)
    for name, passes in QUANTISED.items():
        seen = [(x,)] if "static" in passes else None
        pipeline = f"default,{passes}"
        model = lepton.compile(perceptron, weights, x, passes=pipeline, target="tpu", calibration=seen)
        yield figures(name, model.jit, model.params)


def compare_quantised(sharding: Any) -> list[dict[str, Any]]:
    """Print a table of quantised models; its rows."""
    rows = []
    print(f"\n{'model':<40}{'cycles':>12}{'ratio':>8}{'parameters MB':>15}{'temporary MB':>14}  products")
    for count in (16, 512):
        first = 0.0
        for row in quantised(sharding, count):
            first = first or row["cycles"]
            print(
                f"{row['name']:<40}{row['cycles']:>12.4g}{first / max(row['cycles'], 1.0):>8.2f}"
                f"{row['parameters'] / 1e6:>15.1f}{row['temporary'] / 1e6:>14.1f}"
                f"  {row['products']}",
                flush=True,
            )
            rows.append(row)
    return rows


def compare_products(sharding: Any) -> list[dict[str, Any]]:
    """Print a table of single products; its rows."""
    print(f"\n{'product':<50}{'cycles':>12}{'ratio':>8}{'type kept':>11}  types")
    rows = []
    for row in product_rows(sharding, cycles):
        is_kept = "yes" if row["kept"] else "no"
        print(
            f"{row['name']:<50}{row['cycles']:>12.4g}{row['ratio']:>8.2f}{is_kept:>11}  {row['types']}",
            flush=True,
        )
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--topology", action="append", help=f"default: {' and '.join(TOPOLOGIES)}")
    parser.add_argument("--only", default="", help="cases with this text in their names")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(argv)
    if importlib.util.find_spec("libtpu") is None:
        print("the TPU compiler is missing, nothing is compiled: pip install 'lepton-jax[tpu]'")
        return 0
    rows = []
    for topology in options.topology or TOPOLOGIES:
        chip: Any = topologies.get_topology_desc(topology, "tpu").devices[0]
        sharding = NamedSharding(Mesh(np.array([chip]), ("all",)), PartitionSpec())
        print(f"\n{chip.device_kind}, jax {jax.__version__}")
        print(f"{'case':<40}{'cycles':>12}{'lepton':>12}{'ratio':>8}{'temporary MB':>14}{'lepton':>9}")
        for case in CASES:
            if options.only not in case.name:
                continue
            optimised = lepton.optimize(case.fun, "max", target="tpu")
            before, after = (compiled(fun, case, sharding) for fun in (case.fun, optimised))
            rows.append({"topology": topology, "name": case.name, "jit": before, "lepton": after})
            ratio = before["cycles"] / max(after["cycles"], 1.0)
            name = case.name + (" *" if after["kernels"] else "")
            print(
                f"{name:<40}{before['cycles']:>12.4g}{after['cycles']:>12.4g}{ratio:>8.2f}"
                f"{before['temporary'] / 1e6:>14.1f}{after['temporary'] / 1e6:>9.1f}",
                flush=True,
            )
        if options.only in "products":
            rows += [{"topology": topology, **row} for row in compare_products(sharding)]
        if options.only in "quantised":
            rows += [{"topology": topology, **row} for row in compare_quantised(sharding)]
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
