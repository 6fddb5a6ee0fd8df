"""`sp`: as `tp`, and between its blocks arrays are split along the sequence.

Norms, residuals and dropout are computed for a part of the sequence; in place of each all-reduce there is a
reduce-scatter behind a block and an all-gather before the next: Korthikanti et al., 2022, arXiv 2205.05198.
"""

from __future__ import annotations

from collections.abc import Iterator

from lepton_jax.ir.cost import bytes_of
from lepton_jax.ir.graph import Value
from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.presets.arrangement import Arrangement, Axes, PresetError, Work
from lepton_jax.parallel.presets.batch import Batch, find_batch, pin_batch, split_batch
from lepton_jax.parallel.presets.choice import Choice
from lepton_jax.parallel.presets.origins import origins_of
from lepton_jax.parallel.presets.together import PRODUCTS, Dim
from lepton_jax.parallel.presets.tp import layouts, split_model


def arrange(work: Work) -> Arrangement:
    """Split as `tp`, and the sequence where no dimension of the model is split.

    Raises:
        PresetError: there is nothing to split as in `tp`, or no sequence that divides.
    """
    axes = work.axes.model()
    choice = split_model(work, axes, "sp")
    batch = find_batch(work)
    sequence = _sequence(work, batch, choice, axes)
    over = split_batch(work, batch, work.axes.besides(axes))
    wanted = dict.fromkeys((*choice.classes, sequence), axes)
    pinned = set(pin_batch(work, batch, over, wanted, choice.together))
    # Tokens are whole, since to slice them is free; and what a split table gives or takes is added up or
    # gathered first, lest the table be gathered.
    whole = {*work.graph.inputs, *_looked_up(work, choice)} & pinned
    for value in whole.intersection(work.layouts):
        dims = work.layouts[value].dims
        work.layouts[value] = Layout(
            tuple(() if choice.together.of(value, dim) == sequence else each for dim, each in enumerate(dims))
        )
    return work.finished(layouts(work, choice, axes))


def _looked_up(work: Work, choice: Choice) -> Iterator[Value]:
    """What is read from, or added to, tables whose rows are split."""
    for use in work.program.uses:
        if use.node.op == "gather" or use.node.op.startswith("scatter"):
            rows = {choice.together.of(use.node.operands[0], dim) for dim in range(use.node.operands[0].ndim)}
            if rows.intersection(choice.classes):
                yield from (value for value, _ in use.arrays())


def _sequence(work: Work, batch: Batch, choice: Choice, axes: Axes) -> Dim:
    """The class of the sequence: with the batch, what products with parameters keep of their other operand.

    Of several that of the most bytes; those of dimensions of the batch's arrays before others.
    """
    one, parts = work.together(1), choice.together.parts
    examples = {one.find(dim) for dim in batch.dims}
    model = {one.find(dim) for dim in choice.classes}
    given = {
        one.find((work.graph.inputs[i], dim)) for i in work.roles.batch for dim in range(work.param(i).ndim)
    }
    origins = origins_of(work)
    weights: dict[Dim, float] = {}
    lengths: dict[Dim, tuple[Value, int]] = {}
    for use in work.program.uses:
        if use.node.op not in PRODUCTS or not any(value in origins for value in use.node.operands):
            continue
        for value, dims in zip(use.node.operands, use.operands, strict=True):
            classes = [one.of(value, dim) for dim in range(value.ndim)]
            if value in origins or not examples.intersection(classes):
                continue
            for dim, found in enumerate(classes):
                is_kept = dims[dim] and not use.reduced.union(use.whole).intersection(dims[dim])
                if is_kept and found is not None and found not in examples and found not in model:
                    weights[found] = weights.get(found, 0.0) + bytes_of(value) * use.times
                    lengths.setdefault(found, (value, dim))
    if not weights:
        raise PresetError(
            "shard='sp' finds no sequence: what is multiplied with parameters has no dimension beside the "
            "batch's and the one that is summed over; use shard='tp'"
        )
    best = max(weights, key=lambda each: (each in given, weights[each]))
    value, dim = lengths[best]
    found = choice.together.of(value, dim)
    if found is None:
        raise PresetError(
            f"shard='sp': the sequence, dimension {dim} of an array of shape {value.shape}, is "
            f"{value.shape[dim]}, which does not divide by the {parts} of {'+'.join(axes)}; use shard='tp', "
            "or pad the sequence"
        )
    return found
