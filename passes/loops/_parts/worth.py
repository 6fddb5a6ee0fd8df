"""Which parts of a body may run in another order, what they weigh, and what memory they may take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from lepton_jax.ir import _jax
from lepton_jax.ir.cost import bytes_of
from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.rewrite import PassContext

MOVEMENT: Final = frozenset(
    {
        "broadcast_in_dim",
        "reshape",
        "transpose",
        "squeeze",
        "expand_dims",
        "slice",
        "iota",
        "convert_element_type",
        "rev",
        "copy",
        "concatenate",
        "pad",
        "split",
    }
)
"""Operations that only move data."""

DOTS: Final = frozenset({"dot_general", "ragged_dot_general", "ragged_product", "conv_general_dilated"})

_PURE_REGIONS: Final = frozenset(
    {"scan", "jit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"}
)
_FREE_REGIONS: Final = frozenset({"while", "cond"})
_STUCK: Final = frozenset(
    {
        "rng_uniform",
        "rng_bit_generator",
        "optimization_barrier",
        "pure_callback",
        "io_callback",
        "ffi_call",
        "pallas_call",
        "tpu_custom_call",
        "custom_partitioning",
    }
)

LARGEST: Final = {"cpu": 256 << 20, "gpu": 2 << 30, "tpu": 1 << 30}
"""Bytes that a rewrite of a loop may at most add to what is live."""

CHUNK: Final = {"cpu": 64 << 20, "gpu": 1 << 30, "tpu": 512 << 20}
"""Bytes of temporaries of iterations that run at once."""

FREE: Final = 16 << 20
"""So many bytes may always be added, whatever the loop's own arrays take."""


def stuck(node: Node, *, branches: bool = False) -> str | None:
    """Why a node may not run for all iterations at once, or None.

    Effects and calls to the outside keep their place; branches and loops that end when they want
    would run for every iteration as long as for the slowest; random bits of a generator whose
    batches differ from single draws would change.

    Args:
        branches: let branches and such loops do so.
    """
    for each in (node, *(n for region in node.regions for n in region.walk())):
        if each.effects:
            return f"{each.op} has effects"
        if each.regions and each.op not in _PURE_REGIONS and not (branches and each.op in _FREE_REGIONS):
            return f"{each.op} depends on the iteration"
        if each.op in _STUCK:
            return f"{each.op} keeps its place"
        if each.op.startswith("random_") and not _is_threefry(each):
            return f"{each.op} of another generator than threefry draws other numbers in a batch"
    return None


def _is_threefry(node: Node) -> bool:
    kinds = [v.dtype for v in (*node.operands, *node.results) if _jax.is_extended(v.dtype)]
    return all("fry" in str(kind) for kind in kinds)


def rows(node: Node, fixed: int) -> int:
    """How many rows a dot has besides its operand number `fixed`: 1 for a matrix times a vector."""
    if node.op != "dot_general":
        return math.prod(node.results[0].shape)
    contracting, batch = node.params["dimension_numbers"]
    other = node.operands[1 - fixed]
    gone = {*contracting[1 - fixed], *batch[1 - fixed]}
    return math.prod(d for i, d in enumerate(other.shape) if i not in gone)


def total_bytes(values: Iterable[Value]) -> float:
    """Bytes of all the values."""
    return sum(float(bytes_of(v)) for v in values)


def temporaries(body: Graph) -> float:
    """Bytes that one iteration makes, as if nothing were fused but moves of data."""
    own = total_bytes(v for node in body if node.op not in MOVEMENT for v in node.results)
    return own + sum(temporaries(region) for node in body for region in node.regions)


def too_large(added: float, instead_of: float, ctx: PassContext) -> str | None:
    """Why a rewrite may not add so many bytes, or None.

    Args:
        instead_of: bytes of the arrays that the loop has in any case.
    """
    platform = ctx.rates.platform
    if added > LARGEST.get(platform, FREE):
        return f"would keep {added / 2**20:.0f} MiB for all iterations at once"
    if added > max(4 * instead_of, FREE):
        return f"would keep {added / 2**20:.0f} MiB in place of {instead_of / 2**20:.0f}"
    return None
