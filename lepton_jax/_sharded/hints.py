"""`lepton.shard_hint`: how an array inside a function shall lie."""

from __future__ import annotations

from typing import TypeVar

import jax

from lepton_jax.ir import _jax, _primitives
from lepton_jax.ir.graph import Graph
from lepton_jax.rewrite import Instrument

Array = TypeVar("Array")


def shard_hint(x: Array, spec: object) -> Array:
    """The array itself, with a wish for how it lies on the mesh of `lepton.optimize(mesh=…)`.

    Without a mesh nothing happens: the same function runs under `jax.jit` and step by step. Under a mesh the
    layout is kept, whatever the preset, the patterns or the solver say. It may stand in loops and branches
    and under `jax.grad` and `jax.vmap`: a gradient lies as its array, and the dimension that `jax.vmap` adds
    is left open.

    Args:
        x: an array of any shape and dtype.
        spec: a `PartitionSpec`, a tuple of axes or logical names, a single name, or None for "every device
            holds all of it". Dimensions left out are not split; those that are `PartitionSpec.UNCONSTRAINED`
            are left open.

    Raises:
        TypeError: `x` is no array, or the spec none of these.
        ValueError: the spec has more entries than the array has dimensions.

    Example:
        >>> import jax.numpy as jnp
        >>> shard_hint(jnp.ones((2, 3)), ("batch", None)).shape
        (2, 3)
    """
    from lepton_jax.parallel.annotations import shown, spec_of

    if not hasattr(x, "shape"):
        raise TypeError(f"shard_hint takes an array, not {type(x).__name__}; use jax.tree.map for a tree")
    wanted = spec_of(spec, "a hint")
    ndim = len(x.shape)
    if len(wanted) > ndim:
        raise ValueError(
            f"shard_hint: the spec {shown(wanted)} has {len(wanted)} entries, the array {ndim} dimensions"
        )
    if not isinstance(x, jax.core.Tracer):
        return x
    global _used
    if not _used:
        _jax.hide_frames(__file__)
    _used = True
    return _primitives.shard_hint(x, wanted)  # type: ignore[no-any-return]


_used = False


def droppers() -> tuple[Instrument, ...]:
    """What takes the hints out of programs that have no mesh; nothing as long as no program had any."""
    return (DropHints(),) if _used else ()


class DropHints(Instrument):
    """Takes hints out of a program before the passes see it."""

    def before_pipeline(self, graph: Graph) -> None:
        """Let all who read a hint read the array."""
        for inner in graph.graphs(enter=lambda node: not node.op.startswith("custom_")):
            for node in inner:
                if node.op == _primitives.SHARD_HINT:
                    node.result.replace_uses(node.operands[0])
                    inner.erase(node)
