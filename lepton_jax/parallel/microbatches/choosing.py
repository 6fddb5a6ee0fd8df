"""Which inputs are the batch, and into how many parts it can be cut."""

from __future__ import annotations

from lepton_jax.ir.graph import Graph, Node, Value
from lepton_jax.parallel.meshes import MeshSpec
from lepton_jax.parallel.microbatches.rewriting import SCOPE
from lepton_jax.parallel.microbatches.states import MicrobatchError, Part
from lepton_jax.parallel.presets.arrangement import Work
from lepton_jax.parallel.presets.batch import find_batch
from lepton_jax.parallel.roles import Roles


def batch_of(graph: Graph, roles: Roles) -> dict[Value, int]:
    """Of those inputs that are the batch, the dimension of the examples."""
    return dict(find_batch(Work(graph, roles, MeshSpec.of("data=1", chip="cpu"))).dims)


def parts_of(
    batch: dict[Value, int], roles: Roles, count: int, *, interleaved: bool = False
) -> dict[Value, Part]:
    """Of inputs that are the batch, how they are cut.

    Args:
        batch: of each the dimension of the examples.
        interleaved: whether a round takes every `count`-th example, rather than neighbours.

    Raises:
        MicrobatchError: there is no batch, or the count does not divide it.
    """
    if not batch:
        raise MicrobatchError(
            f"none of the inputs {', '.join(roles.paths[:8])} is a batch: say which are parameters, as in "
            "params='weights'"
        )
    value, dim = next(iter(batch.items()))
    size = value.shape[dim]
    if count < 1 or size % count:
        raise MicrobatchError(
            f"{roles.paths[value.index]} has {size} examples, which {count} micro-batches do not divide: "
            f"{nearest(size, count)} would do"
        )
    outer = size // count if interleaved else 1
    return {value: Part(dim, outer) for value, dim in batch.items()}


def nearest(size: int, count: int) -> str:
    """The divisors of a size that are nearest to a count."""
    below = max((n for n in range(1, min(size, max(count, 1)) + 1) if size % n == 0), default=1)
    above = next((n for n in range(max(count, 1), size + 1) if size % n == 0), below)
    return f"{below}" if below == above else f"{below} or {above}"


def loop_of(graph: Graph) -> Node | None:
    """The loop over parts of the batch that a program has already."""
    for node in graph:
        if node.op == "scan" and SCOPE in node.scope.split("/"):
            return node
    return None
