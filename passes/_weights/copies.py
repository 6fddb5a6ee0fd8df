"""Arrays that are copies of others along new axes."""

from __future__ import annotations

from collections.abc import Iterator

from lepton_jax.ir.graph import Value

Places = tuple[int, ...]


def copied(value: Value, *, stopped: bool = False) -> Iterator[tuple[Value, Places]]:
    """The arrays that a value repeats along some axes, in any order of its axes.

    Args:
        stopped: through `stop_gradient` too.

    Returns:
        Each array, the nearest first, and at which of the value's axes its own axes are.
    """
    places = tuple(range(value.ndim))
    while value.node is not None:
        node, (inner, *sizes) = value.node, value.node.operands or (value,)
        if node.op == "transpose":
            permutation = node.params["permutation"]
            places = tuple(places[permutation.index(i)] for i in range(inner.ndim))
        elif node.op == "broadcast_in_dim" and not sizes:
            axes = node.params["broadcast_dimensions"]
            if inner.shape != tuple(value.shape[axis] for axis in axes):
                return
            places = tuple(places[axis] for axis in axes)
        elif not stopped or node.op != "stop_gradient":
            return
        value = inner
        yield value, places
