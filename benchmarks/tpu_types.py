"""The types of products in programs compiled for a TPU, and their cycles beside those of bfloat16."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

SIZES: Final = ((16, 2048), (512, 2048), (4096, 8192))
"""Rows of the left matrix, and the size of the right one, which is square."""

TYPES: Final = {"bfloat16": "bfloat16", "int8": "int32", "float8_e4m3fn": "float32", "int4": "int32"}
"""Types of both operands, the first the one to compare with, and those of the results."""

_NAMES: Final = {"bfloat16": "bf16", "int8": "s8", "float8_e4m3fn": "f8e4m3fn", "int4": "s4"}


def product_types(text: str) -> Counter[str]:
    """The types of operands and results of all products in a compiled module, as the compiler writes them.

    Example:
        >>> line = "  %c = s32[8,8]{1,0} convolution(%a, %b), dim_labels=bf_io->bf"
        >>> product_types("%a = s8[8,8] parameter(0)\\n%b = s8[8,8] parameter(1)\\n" + line)
        Counter({'s8·s8→s32': 1})
    """
    found: Counter[str] = Counter()
    for block in re.split(r"^}", text, flags=re.MULTILINE):
        types = dict(re.findall(r"%([\w.\-]+) = (\w+)\[", block))
        product = r"= (\w+)\[[^\n]*? (?:convolution|dot)\(%([\w.\-]+), %([\w.\-]+)\)"
        found.update(f"{types[left]}·{types[right]}→{out}" for out, left, right in re.findall(product, block))
    return found


def shown(types: Counter[str]) -> str:
    """How often each is there, in words."""
    return ", ".join(f"{count} × {name}" for name, count in sorted(types.items())) or "none"


def product_rows(sharding: Any, cycles: Callable[[str], float]) -> Iterator[dict[str, Any]]:
    """For each size and type whether the product has kept its operands' type, and its cycles.

    Args:
        sharding: of one chip.
        cycles: the compiler's estimate of a compiled module, from its text.
    """
    for rows, width in SIZES:
        first = 0.0
        for name, wide in TYPES.items():
            shapes = (
                jax.ShapeDtypeStruct(s, jnp.dtype(name), sharding=sharding)
                for s in ((rows, width), (width, width))
            )

            def product(x: Any, w: Any, wide: str = wide) -> Any:
                return lax.dot(x, w, preferred_element_type=jnp.dtype(wide))

            text = jax.jit(product).lower(*shapes).compile().as_text() or ""
            found, count = product_types(text), cycles(text)
            first = first or count
            operands = f"{_NAMES[name]}·{_NAMES[name]}→"
            yield {
                "name": f"product: {name}, {rows} rows, {width} wide",
                "types": shown(found),
                "kept": bool(found) and all(each.startswith(operands) for each in found),
                "cycles": count,
                "ratio": first / max(count, 1.0),
            }
