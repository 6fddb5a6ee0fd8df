"""Which form of a product or of a convolution is fast here.

    python benchmarks/forms.py [--quick] [--only TABLE] [--json FILE]

Times of forms of the same computation, run in turn, the least of several runs, in milliseconds; `chosen` is
what the passes `integer-convolution` and `products` make of the plain form when the weight is a parameter.
The tables of `lepton_jax/targets/forms.py` are read off these. `--quick` runs small sizes, for tests.

- products: int8 → int32, bfloat16 → float32 and float32, of several weights one after another.
- convolutions: int8 → int32, with the requantisation of their input.
- maxima: absolute maxima of rows, and quantisation by them: in one step and in two.
- layers: a multilayer perceptron in float32, and in int8 with static and with dynamic scales.
- merged: products that read one input, quantised once, apart and as one.
- decoded: two layers whose weights alone are quantised.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lepton_jax as lepton
from lepton_jax.passes.lower import merge_products
from lepton_jax.passes.lower._products.unsigned import as_unsigned, product_with_codes

Program = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments, the parameters first."""

PASSES = "inline,dce,integer-convolution,products{unsigned=true},early,dce"
RNG = np.random.default_rng(0)
SUMS: dict[str, Any] = {"int8": jnp.int32, "bfloat16": jnp.float32, "float32": jnp.float32}


def whole(*shape: int, dtype: str = "int8") -> jax.Array:
    """Random whole numbers that int8 can hold."""
    return jnp.asarray(RNG.integers(-127, 128, shape), jnp.int8).astype(dtype)


def chosen(fun: Callable[..., Any], args: tuple[Any, ...]) -> Program:
    """The function in the form that the passes choose, with its first argument prepared."""
    optimised: Any = lepton.optimize(fun, PASSES, params=0)
    prepared = optimised.prepare(*args)
    return optimised.jit_of(prepared), (prepared, *args[1:])


def least(programs: dict[str, Program], rounds: int) -> dict[str, float]:
    """The least milliseconds of each, run in turn; what takes a second is run twice only."""
    compiled = {name: (jax.jit(fun).lower(*args).compile(), args) for name, (fun, args) in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, (run, args) in compiled.items():
            if len(times[name]) > 1 and min(times[name]) > 300:
                continue
            start = time.perf_counter()
            jax.block_until_ready(run(*args))
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: min(found) for name, found in times.items()}


def product(a: Any, b: Any, along: tuple[int, int], dtype: Any) -> Any:
    """A product of two matrices, scaled as quantised ones are."""
    numbers = (((along[0],), (along[1],)), ((), ()))
    return lax.dot_general(a, b, numbers, preferred_element_type=dtype).astype(jnp.float32) * 0.5


def products(quick: bool) -> dict[str, dict[str, float]]:
    """Times of forms of products."""
    size, copies, rounds = (128, 2, 2) if quick else (2048, 12, 9)  # together more than caches hold
    found = {}
    for dtype in SUMS:
        for rows in (1, 16) if quick else (1, 6, 16, 24, 48, 64, 256):
            found[f"{dtype}, {rows} rows"] = least(forms_of_product(dtype, rows, size, copies), rounds)
    return found


def forms_of_product(dtype: str, rows: int, size: int, copies: int) -> dict[str, Program]:
    """One product in several forms."""
    x = whole(rows, size, dtype=dtype)
    weights = [whole(size, size, dtype=dtype) for _ in range(copies)]
    wide = SUMS[dtype]

    def plain(weights: Any, x: Any) -> Any:
        return [product(x, w, (1, 0), wide) for w in weights]

    def by_rows(weights: Any, x: Any) -> Any:
        return [product(x, w, (1, 1), wide) for w in weights]

    def on_the_left(weights: Any, x: Any) -> Any:
        return [product(w, x, (1, 1), wide) for w in weights]

    def with_codes(weights: Any, x: Any) -> Any:
        return [product_with_codes(w, x, by_rows=True).astype(jnp.float32) * 0.5 for w in weights]

    def by_columns(weights: Any, x: Any) -> Any:
        return [product(x, w, (0, 0), wide) for w in weights]

    floats = [w.astype(jnp.float32) for w in weights]
    forms: dict[str, Program] = {
        "float32": (plain, (floats, x.astype(jnp.float32))),
        "x·w": (plain, (weights, x)),
        "x·wᵀ": (by_rows, (weights, x)),
        "w·xᵀ": (on_the_left, (weights, x)),
        "chosen": chosen(plain, (weights, x)),
    }
    if dtype == "int8":
        unsigned = [as_unsigned(w) for w in weights]
        four = jnp.pad(x, ((0, max(0, 4 - rows)), (0, 0)))
        forms["w·xᵀ, w as uint8"] = with_codes, (unsigned, four)
        flat = jnp.asarray(np.ascontiguousarray(np.asarray(x).T))
        forms["xᵀ·w"] = by_columns, (weights, flat)
        forms["xᵀ·w, chosen"] = chosen(by_columns, (weights, flat))
    return forms


def conv(kernel: Any, x: Any, strides: int, layout: str, groups: int) -> Any:
    """A convolution that quantises its input; of float32 numbers where the kernel has them.

    Args:
        strides: negative ones are those of a transposed convolution.
        layout: of the image; the kernel has its channels in the same place.
    """
    space = layout.strip("NC")
    numbers = (layout, space + "IO" if layout.endswith("C") else "OI" + space, layout)
    is_float = kernel.dtype == jnp.float32
    images = x if is_float else jnp.round(x * 0.5).astype(jnp.int8)
    y = lax.conv_general_dilated(
        images,
        kernel,
        (max(strides, 1),) * len(space),
        "SAME" if strides > 0 else ((2, 2),) * len(space),
        lhs_dilation=(max(-strides, 1),) * len(space),
        dimension_numbers=numbers,
        feature_group_count=groups,
        preferred_element_type=jnp.float32 if is_float else jnp.int32,
    )
    return y.astype(jnp.float32) * 0.5


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], int, int, int, str, int]] = {
    "3×3, 512 channels": ((1, 7, 7, 512), 512, 3, 1, "NHWC", 1),
    "4×4, transposed": ((1, 28, 28, 64), 64, 4, -2, "NHWC", 1),
    "5, rows": ((4, 512, 64), 64, 5, 1, "NWC", 1),
    "3×3×3, volumes": ((1, 8, 16, 16, 64), 64, 3, 1, "NDHWC", 1),
    "7×7/2 stem": ((1, 224, 224, 3), 64, 7, 2, "NHWC", 1),
    "3×3/2 stem": ((1, 224, 224, 3), 32, 3, 2, "NHWC", 1),
    "3×3, 3 channels": ((8, 32, 32, 3), 16, 3, 1, "NHWC", 1),
    "3×3, 16 channels": ((8, 32, 32, 16), 16, 3, 1, "NHWC", 1),
    "3×3, 16 channels, 64 outputs": ((8, 32, 32, 16), 64, 3, 1, "NHWC", 1),
    "3×3, 64 channels": ((1, 56, 56, 64), 64, 3, 1, "NHWC", 1),
    "3×3, 64 channels, NCHW": ((1, 56, 56, 64), 64, 3, 1, "NCHW", 1),
    "1×1, 256 channels, NCHW": ((1, 14, 14, 256), 256, 1, 1, "NCHW", 1),
    "1×1, 256 channels": ((1, 14, 14, 256), 256, 1, 1, "NHWC", 1),
    "depthwise 3×3": ((1, 56, 56, 64), 64, 3, 1, "NHWC", 64),
    "four groups 3×3": ((1, 28, 28, 128), 128, 3, 1, "NHWC", 4),
    "eight groups 3×3, NCHW": ((1, 28, 28, 128), 128, 3, 1, "NCHW", 8),
}


def convolutions(quick: bool) -> dict[str, dict[str, float]]:
    """Times of convolutions."""
    found = {}
    for name, ((n, *space, c), out, taps, strides, layout, groups) in CONVOLUTIONS.items():
        if quick:
            n, space = 1, [14] * len(space)
        window = [taps] * len(space)
        shape, kernel_shape = (n, *space, c), (*window, c // groups, out)
        if layout == "NCHW":
            shape, kernel_shape = (n, c, *space), (out, c // groups, *window)
        x, kernel = whole(*shape, dtype="float32"), whole(*kernel_shape)

        def run(kernel: Any, x: Any, how: Any = (strides, layout, groups)) -> Any:
            return conv(kernel, x, *how)

        forms = {
            "float32": (run, (kernel.astype(jnp.float32), x)),
            "plain": (run, (kernel, x)),
            "chosen": chosen(run, (kernel, x)),
        }
        found[name] = least(forms, 2 if quick else 7)
    return found


def maximum(x: Any, parts: int) -> Any:
    """The largest absolute value of each row; first of parts of the row where there are several."""
    sizes = jnp.abs(x)
    if parts > 1:
        sizes = jnp.max(sizes.reshape(*x.shape[:-1], parts, -1), -1)
    return jnp.max(sizes, -1, keepdims=True)


def rounded(x: Any, scale: Any) -> Any:
    """Numbers divided by a scale, as int8."""
    return jnp.clip(jnp.round(x / scale), -127, 127).astype(jnp.int8)


def maxima(quick: bool) -> dict[str, dict[str, float]]:
    """Times of quantising by rows."""
    found = {}
    for rows in (1, 16) if quick else (1, 16, 256):
        many = [jnp.asarray(RNG.normal(size=(rows, 4096)), jnp.float32) for _ in range(2 if quick else 8)]

        def quantise(many: Any, parts: int) -> Any:
            return [rounded(x, 3.0 if parts == 0 else maximum(x, parts) / 127) for x in many]

        names = {"fixed scale": 0, "in one step": 1, "of 16 parts": 16, "of 64 parts": 64}
        forms = {name: (lambda many, p=p: quantise(many, p), (many,)) for name, p in names.items()}
        found[f"{rows} rows"] = least(forms, 2 if quick else 21)
    return found


def gelu(quick: bool) -> dict[str, dict[str, float]]:
    """Times of gelu's forms, between the sums of one int8 product and the codes of the next."""
    gates = {
        "tanh": lambda u: 0.5 * (1 + jnp.tanh(u)),
        "logistic": lambda u: jax.nn.sigmoid(2 * u),
    }

    def run(sums: Any, gate: Any) -> Any:
        x = sums.astype(jnp.float32) * 1e-3
        return rounded(x * gate(0.7978845608 * (x + 0.044715 * x**3)), 0.1)

    found = {}
    for rows in (1,) if quick else (1, 128, 1024):
        sums = jnp.asarray(RNG.integers(-5000, 5000, (rows, 3072)), jnp.int32)
        forms = {name: (lambda sums, gate=gate: run(sums, gate), (sums,)) for name, gate in gates.items()}
        found[f"{rows} rows"] = least(forms, 2 if quick else 21)
    return found


def layers(quick: bool) -> dict[str, dict[str, float]]:
    """Times of a multilayer perceptron."""
    size, depth = (256, 2) if quick else (4096, 4)
    floats = [jnp.asarray(RNG.normal(size=(size, size)) * size**-0.5, jnp.float32) for _ in range(depth)]
    scales = [jnp.max(jnp.abs(w), 0) / 127 for w in floats]
    params = [(rounded(w, s), s) for w, s in zip(floats, scales, strict=True)]

    def plain(params: Any, x: Any) -> Any:
        for w in params[:-1]:
            x = jnp.maximum(x @ w, 0)
        return x @ params[-1]

    def quantised(params: Any, x: Any, parts: int) -> Any:
        for i, (w, scale) in enumerate(params):
            step = 0.03 if parts == 0 else jnp.maximum(maximum(x, parts), 1e-9) / 127
            y = product(rounded(x, step), w, (1, 0), jnp.int32) * 2.0
            x = y * (scale * step)
            x = x if i == depth - 1 else jnp.maximum(x, 0)
        return x

    def by_hand(params: Any, x: Any) -> Any:
        few = max(x.shape[0], 4)
        x = jnp.pad(x, ((0, few - x.shape[0]), (0, 0)))
        return [product(w, rounded(x, 0.03), (1, 1), jnp.int32) for w, _ in params]

    found = {}
    for rows in (1, 16) if quick else (1, 16, 256):
        x = jnp.asarray(RNG.normal(size=(rows, size)), jnp.float32)
        forms: dict[str, Program] = {
            "float32": (plain, (floats, x)),
            "products alone": (by_hand, (params, x)),
        }
        for name, parts in (("static", 0), ("dynamic", 1), ("dynamic, of 64 parts", 64)):

            def run(params: Any, x: Any, parts: int = parts) -> Any:
                return quantised(params, x, parts)

            forms[name] = chosen(run, (params, x))
            if parts == 0:
                forms["static, plain"] = run, (params, x)
        found[f"{rows} rows"] = least(forms, 2 if quick else 9)
    return found


def merged(quick: bool) -> dict[str, dict[str, float]]:
    """Times of products that read one input."""
    sizes = [(64, (64, 32))] if quick else [(768, (768, 768, 768)), (2048, (2048, 512, 512))]
    found = {}
    for inner, widths in sizes:
        for dtype, passes in (("int8", "quantize{activations=dynamic}"), ("float32", "none")):
            weights = [jnp.asarray(RNG.normal(size=(inner, n)) * 0.02, jnp.float32) for n in widths * 4]
            for rows in (1, 16) if quick else (1, 16, 256):
                x = jnp.asarray(RNG.normal(size=(rows, inner)), jnp.float32)

                def run(weights: Any, x: Any, count: int = len(widths)) -> Any:
                    return [jnp.tanh((x + i // count) @ w) for i, w in enumerate(weights)]

                forms: dict[str, Program] = {}
                for name, most in (("apart", 0), ("merged", 2**30)):
                    forms[name] = _merging(run, weights, x, f"cleanup,{passes}", most)
                found[f"{dtype}, {inner} → {widths}, {rows} rows"] = least(forms, 2 if quick else 9)
    return found


def _merging(run: Callable[..., Any], weights: Any, x: Any, passes: str, most: int) -> Program:
    """A program whose products of one input are merged up to so many elements of their weights."""
    patch = mock.patch.object(merge_products, "most_merged", lambda *_: most)
    with patch:
        model = lepton.compile(run, weights, x, passes=passes)

    def apply(params: Any, x: Any) -> Any:
        with patch:  # the program is traced here
            return model.jit(params, x)

    return apply, (model.params, x)


def decoded(quick: bool) -> dict[str, dict[str, float]]:
    """Times of layers whose weights alone are quantised."""
    size = 64 if quick else 4096
    weights = [jnp.asarray(RNG.normal(size=(size, size)) * size**-0.5, jnp.float32) for _ in range(2)]

    def run(weights: Any, x: Any) -> Any:
        return jnp.maximum(x @ weights[0], 0) @ weights[1]

    options = ("weights=int8", "weights=int4", "weights=int4,group=64", "weights=nf4")
    found = {}
    for rows in (1,) if quick else (1, 16, 256):
        x = jnp.asarray(RNG.normal(size=(rows, size)), jnp.float32)
        forms: dict[str, Program] = {"float32": (run, (weights, x))}
        for option in options:
            model = lepton.compile(run, weights, x, passes=f"cleanup,quantize{{{option}}}")
            forms[option.removeprefix("weights=")] = model.jit, (model.params, x)
        found[f"{rows} rows"] = least(forms, 2 if quick else 5)
    return found


TABLES = {
    "products": products,
    "convolutions": convolutions,
    "maxima": maxima,
    "gelu": gelu,
    "layers": layers,
    "merged": merged,
    "decoded": decoded,
}


def show(name: str, table: dict[str, dict[str, float]]) -> None:
    """Print a table in Markdown."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    print(f"\n| {name} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for label, row in table.items():
        cells = [f"{row[c]:.3g}" if c in row else "" for c in columns]
        print(f"| {label} | {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: only to see that it runs")
    parser.add_argument("--only", choices=list(TABLES), help="one of the tables")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args(arguments)
    tables = {}
    for name, measure in TABLES.items():
        if options.only in (None, name):
            tables[name] = measure(options.quick)
            show(name, tables[name])
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
