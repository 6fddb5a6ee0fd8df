"""`fsdp`: parameters, gradients and the optimiser's state in parts, gathered where they are used.

ZeRO-3 (Rajbhandari et al., 2020, arXiv 1910.02054).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.presets.arrangement import Arrangement, Axes, PresetError, Work
from lepton_jax.parallel.presets.batch import find_batch, pin_batch, pin_sums, split_batch

LEAST: Final = 16
"""Elements of a device's part, below which an array stays whole: sending it costs more than holding it."""
SHARE: Final = 1 / 1024
"""Of the largest parameter's size, what an array must have to be split."""


def arrange(work: Work) -> Arrangement:
    """Split each parameter along its largest dimension that divides, and the batch.

    Raises:
        PresetError: there are no parameters that divide, or no batch that does.
    """
    batch = find_batch(work)
    over = split_batch(work, batch, work.axes.batch(), needed="fsdp")
    pin_batch(work, batch, over)
    pin_sums(work, batch, over)
    params = in_parts(work, work.axes.shard(), {})
    if not any(not layout.is_whole for layout in params.values()):
        raise PresetError(
            f"shard='fsdp': no parameter has a dimension that divides over {work.mesh}{_why(work)}"
        )
    return work.finished(params)


def _why(work: Work) -> str:
    if not work.roles.params:
        return "; no input is a parameter: say which are, as in params='weights'"
    return f": {work.notes[-1]}" if work.notes else ""


def in_parts(work: Work, axes: Axes, before: Mapping[int, Layout]) -> dict[int, Layout]:
    """The parameters split over these axes too, each along the largest dimension that is not split yet.

    Dimensions that a scan goes along stay whole; so do small arrays, which are noted together.

    Args:
        before: layouts that they have, by position.
    """
    together, parts = work.together(1), work.mesh.size(*axes)
    found = dict(before)
    largest = max((math.prod(work.graph.inputs[i].shape) for i in work.roles.params), default=0)
    for i in work.roles.params:
        value, path = work.graph.inputs[i], work.roles.paths[i]
        layout = before.get(i, Layout.whole(value.ndim))
        found[i] = layout
        local = math.prod(layout.local_shape(value.shape, work.mesh))
        if local // parts < LEAST or math.prod(value.shape) < SHARE * largest:
            work.note(path, f"over {'+'.join(axes)}: small")
            continue
        open_dims = [
            dim
            for dim in range(value.ndim)
            if not layout.dims[dim] and together.find((value, dim)) not in together.fixed
        ]
        dividing = [dim for dim in open_dims if value.shape[dim] % parts == 0]
        if not dividing:
            sizes = " and ".join(str(value.shape[dim]) for dim in open_dims)
            work.note(
                path,
                f"over {'+'.join(axes)}: " + (f"{sizes} by {parts}: no whole number" if sizes else "split"),
            )
            continue
        dim = max(dividing, key=lambda dim: value.shape[dim])
        found[i] = Layout(tuple(axes if d == dim else each for d, each in enumerate(layout.dims)))
    return found
