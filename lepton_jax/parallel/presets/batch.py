"""The batch, split over devices, and all that is computed for each of its examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lepton_jax.ir.graph import Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.presets.arrangement import Axes, PresetError, Work
from lepton_jax.parallel.presets.together import PRODUCTS, Dim, Together


@dataclass(frozen=True)
class Batch:
    """Where the examples of a program are.

    Attributes:
        dims: of the arrays of the batch the dimension of its examples.
        in_neighbours: the inputs that are cut along their first dimension into parts which a loop takes, by
            position, and how many parts.
    """

    dims: tuple[Dim, ...]
    in_neighbours: Mapping[int, int]

    def classes(self, together: Together) -> set[Dim]:
        """The classes of its dimensions, of those that divide."""
        return {found for value, dim in self.dims if (found := together.of(value, dim)) is not None}


def find_batch(work: Work) -> Batch:
    """Where the examples are.

    Their dimension is the first; the second where a loop goes along the first (micro-batches). Arrays whose
    first dimension is not as long as that of most are no examples, nor are those of which a loop takes
    neighbours at a time.
    """
    together = work.together(1)
    found: list[Dim] = []
    neighbours = _in_neighbours(work)
    for i in work.roles.batch:
        value = work.graph.inputs[i]
        if i in neighbours:
            continue
        dim = 1 if value.ndim > 1 and together.find((value, 0)) in together.fixed else 0
        found.append((value, dim))
    sizes = Counter(value.shape[dim] for value, dim in found)
    if not sizes:
        return Batch((), neighbours)
    usual = max(sizes, key=lambda size: (sizes[size], -list(sizes).index(size)))
    return Batch(tuple((value, dim) for value, dim in found if value.shape[dim] == usual), neighbours)


def _in_neighbours(work: Work) -> dict[int, int]:
    together = work.together(1)
    found: dict[int, int] = {}
    for i in work.roles.batch:
        value = work.graph.inputs[i]
        if not value.ndim or together.find((value, 0)) not in together.fixed:
            continue
        for user in value.users():
            shape = user.results[0].shape
            if user.op == "reshape" and shape and shape[0] < value.shape[0]:
                found[i] = shape[0]
    return found


def split_batch(work: Work, batch: Batch, axes: Sequence[str], *, needed: str = "") -> Axes:
    """Find over which of the axes the batch divides, the first ones first; note the others.

    Args:
        needed: the preset that cannot do without, for the message.

    Returns:
        the axes.

    Raises:
        PresetError: there is no batch or it does not divide, and it is needed.
    """
    if not batch.dims:
        for i, parts in batch.in_neighbours.items():
            path = work.roles.paths[i]
            wrong = (
                f"micro-batches are {parts} runs of neighbours in {path}, so that no split of it splits "
                f"each; let each take every {parts}th example, as in x.reshape(-1, {parts}, "
                f"*x.shape[1:]).swapaxes(0, 1), or write the step for the whole batch and ask for "
                f"microbatches={parts}"
            )
            if parts == 1:  # no matter which: there is nothing in one to split
                wrong = f"micro-batches are single examples of {path}, which devices cannot share; take fewer"
            if needed:
                raise PresetError(f"shard={needed!r}: {wrong}")
            work.note("the batch", f"since {wrong}")
            return ()
        if needed:
            raise PresetError(
                f"shard={needed!r}: none of the inputs {', '.join(work.roles.paths[:8])} is a batch: "
                "say which are parameters, as in params='weights', or write layouts: shard={'x': P('data')}"
            )
        return ()
    value, dim = batch.dims[0]
    size, path = value.shape[dim], work.roles.paths[value.index]
    for count in range(len(axes), 0, -1):
        parts = work.mesh.size(*axes[:count])
        if size % parts == 0:
            if count < len(axes):
                work.note(
                    "the batch",
                    f"over {'+'.join(axes[count:])}: dimension {dim} of {path} is {size}, which does not "
                    f"divide by {work.mesh.size(*axes)}",
                )
            return tuple(axes[:count])
    if needed and axes:
        raise PresetError(
            f"shard={needed!r}: dimension {dim} of {path} is {size}, which does not divide over the mesh "
            f"axis {axes[0]!r} of {work.mesh.size(axes[0])}; the nearest sizes that do: "
            f"{_nearest(size, work, axes[0])}"
        )
    if axes:
        work.note(
            "the batch", f"over {'+'.join(axes)}: dimension {dim} of {path} is {size}, which does not divide"
        )
    return ()


def _nearest(size: int, work: Work, axis: str) -> str:
    parts = work.mesh.size(axis)
    below = size // parts * parts
    return f"{below} or {below + parts}" if below else f"{parts}"


def pin_batch(
    work: Work,
    batch: Batch,
    axes: Sequence[str],
    others: Mapping[Dim, Axes] | None = None,
    *finders: Together,
) -> list[Value]:
    """Lay all that is computed for each example: split over `axes`, by other classes over theirs, else whole.

    Args:
        others: of classes of `finders` the mesh axes.

    Returns:
        these values.
    """
    together = work.together(work.mesh.size(*axes))
    classes = batch.classes(together)
    inputs, owned = work.graph.inputs, work.roles.owners
    held = {inputs[i] for i in (*work.roles.params, *owned)}
    loose = {inputs[i] for i in work.roles.state if i not in owned}  # running statistics, caches
    values = [
        value
        for value in work.program.values
        if value in loose
        or (value not in held and any(together.of(value, dim) in classes for dim in range(value.ndim)))
    ]
    wanted = {**(others or {}), **dict.fromkeys(classes, tuple(axes))} if axes else dict(others or {})
    work.pin(values, wanted, *finders, *([together] if axes else []))
    return values


def pin_sums(
    work: Work,
    batch: Batch,
    axes: Sequence[str],
    others: Mapping[Dim, Axes] | None = None,
    *finders: Together,
) -> None:
    """Lay sums over the batch that no product makes whole over its axes: they are added up, then cut.

    Gradients of tables and of what is added to each example are such sums. Where a parameter is cut along
    another dimension than the batch, XLA otherwise lays the whole batch out anew before it adds.
    """
    together = work.together(work.mesh.size(*axes))
    classes = batch.classes(together)
    outputs = set(work.graph.outputs)
    for use in work.program.uses:
        if use.node.op in PRODUCTS:
            continue
        for value, dims in zip(use.node.operands, use.operands, strict=True):
            if any(
                factors and factors[0] in use.reduced and together.of(value, dim) in classes
                for dim, factors in enumerate(dims)
            ):
                results = [result for result in use.node.results if result.ndim and result not in outputs]
                work.layouts.update((result, Layout.whole(result.ndim)) for result in results)
                work.pin(results, others or {}, *finders)
