"""`dp`: each device computes a part of the batch with all parameters."""

from __future__ import annotations

from lepton_jax.parallel.presets.arrangement import Arrangement, Work
from lepton_jax.parallel.presets.batch import find_batch, pin_batch, split_batch


def arrange(work: Work) -> Arrangement:
    """Split the batch over the mesh; gradients are added up over it.

    Raises:
        PresetError: there is no batch, or it does not divide over the first axis.
    """
    batch = find_batch(work)
    pin_batch(work, batch, split_batch(work, batch, work.axes.batch(), needed="dp"))
    return work.finished({})
