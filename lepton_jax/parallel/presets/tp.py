"""`tp`: each device computes a part of every layer.

Of two products in a row the first is split by columns and the second by rows, so that only the result of the
second is added up: Megatron-LM (Shoeybi et al., 2019, arXiv 1909.08053).
"""

from __future__ import annotations

from lepton_jax.parallel.layouts import Layout
from lepton_jax.parallel.presets.arrangement import Arrangement, Axes, PresetError, Work
from lepton_jax.parallel.presets.batch import find_batch, pin_batch, split_batch
from lepton_jax.parallel.presets.choice import Choice, choose


def arrange(work: Work) -> Arrangement:
    """Split heads, hidden dimensions, channels, vocabularies; the batch over the axes that are left.

    Raises:
        PresetError: no dimension of a parameter divides.
    """
    axes = work.axes.model()
    choice = split_model(work, axes, "tp")
    batch = find_batch(work)
    over = split_batch(work, batch, work.axes.besides(axes))
    pin_batch(work, batch, over, dict.fromkeys(choice.classes, axes), choice.together)
    return work.finished(layouts(work, choice, axes))


def split_model(work: Work, axes: Axes, name: str) -> Choice:
    """Choose what is split over the model's axes.

    Raises:
        PresetError: nothing can be.
    """
    parts = work.mesh.size(*axes)
    choice = choose(work, parts)
    if not choice.dims:
        raise PresetError(
            f"shard={name!r} finds nothing to split over {'+'.join(axes)} of {parts}{_why(work)}"
        )
    return choice


def _why(work: Work) -> str:
    if not work.roles.params:
        return ": no input is a parameter; say which are, as in params='weights'"
    rest = f"; and {len(work.notes) - 3} more" if len(work.notes) > 3 else ""
    return f": {'; '.join(work.notes[:3])}{rest}" if work.notes else ": no parameter has two dimensions"


def layouts(work: Work, choice: Choice, axes: Axes) -> dict[int, Layout]:
    """Of the parameters that are split the layouts, by position."""
    return {
        i: Layout(tuple(axes if d == dim else () for d in range(work.graph.inputs[i].ndim)))
        for i, dim in choice.dims.items()
    }
