"""Shardy's modules: what their operations, types and shardings say, as MLIR writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

AXIS: Final = re.compile(r'"([^"]+)"(?::\((\d+)\)(\d+))?')
_TENSOR: Final = re.compile(r"tensor<((?:\d+x)*)([a-z]+\w*)>")


def used_once(value: Any) -> bool:
    return len(list(value.uses)) == 1


def starts_empty(value: Any) -> bool:
    """Whether a loop is given a constant here: it collects its own values there."""
    return str(getattr(value.owner, "name", "")).endswith((".constant", ".broadcast_in_dim"))


def moved_axes(before: str, after: str) -> set[tuple[str, str, str]]:
    """The axes that split another dimension, or stand elsewhere in it, than before."""
    sides = []
    for layout in (before, after):
        dims = re.findall(r"\{([^{}]*)\}", layout)
        sides.append(
            {(axis, dim, at) for dim, each in enumerate(dims) for at, axis in enumerate(AXIS.findall(each))}
        )
    return {axis for axis, _, _ in sides[0] ^ sides[1]}


def text_of(attribute: Any) -> str:
    return str(getattr(attribute, "value", attribute)).strip('"')


def dims_of(sharding: str) -> str:
    """`[{"data"}, {}]` of a sharding attribute."""
    found = re.search(r"\[.*?\](?=[,>]|$)", sharding)
    return found[0] if found else ""


def name_of(location: str) -> str:
    """The user's name of a place in the program."""
    found = re.search(r'loc\("([^"]*)"', location)
    return found[1] if found else ""


def array_of(kind: str) -> tuple[str, int]:
    """An MLIR tensor type as `bf16[8,128]`, and its bytes; nothing for other types."""
    found = _TENSOR.fullmatch(kind)
    if found is None:
        return "", 0
    dims = [int(size) for size in found[1].split("x") if size]
    dtype = found[2].replace("ui", "u") if found[2] != "i1" else "pred"
    bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or ["8"])[0])
    width = "s" + dtype[1:] if re.fullmatch(r"i\d+", dtype) else dtype
    return f"{width}[{','.join(map(str, dims))}]", math.prod(dims) * bits // 8


def rounds_of(loop: Any) -> int:
    """How often a while goes round, by the constant that its condition compares with; 1 where it has none."""
    for op in loop.regions[0].blocks[0].operations:
        if op.operation.name == "stablehlo.compare":
            return max(1, next(_constants(op), 1))
    return 1


def _constants(compare: Any) -> Iterator[int]:
    for operand in compare.operands:
        owner = operand.owner
        if str(getattr(owner, "name", "")).endswith(".constant"):
            found = re.search(r"dense<(-?\d+)>", str(owner))
            if found:
                yield int(found[1])
